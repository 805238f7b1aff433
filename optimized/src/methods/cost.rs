//! What a layer costs, known from its sizes alone: plans count with it before a layer exists, and a
//! layer asks for its share of the temporaries by it.

use plumbline_reference::spec::{QuantSpec, ScaleRule};

use super::ScratchNeed;
use super::trained_scale::room;

/// Memory and work of one linear layer under a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerCost {
    /// Rows and columns of the weight.
    pub shape: (usize, usize),
    /// Bytes of what is kept on the device and not trained.
    pub frozen_bytes: usize,
    /// Values of every trained tensor, in the order of the layer's `trainable`.
    pub trained: Vec<usize>,
    /// Shared temporaries.
    pub scratch: ScratchNeed,
    /// Whether the backward needs `d_y^T @ x`, the gradient of a whole weight.
    pub weight_gradient: bool,
    /// The low-rank update.
    pub update: Update,
}

/// Where a layer's low-rank update acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// There is none.
    None,
    /// Added to the weight, inside the quantizer.
    Inside {
        /// Inner dimension.
        rank: usize,
    },
    /// A path of its own beside the weight.
    Beside {
        /// Inner dimension.
        rank: usize,
        /// Numbers of a token that it reads.
        inputs: usize,
    },
}

impl LayerCost {
    /// Floating-point operations of a forward on so many tokens, a product and a sum counted as two.
    pub fn forward_operations(&self, tokens: usize) -> f64 {
        let (out, width) = (self.shape.0 as f64, self.shape.1 as f64);
        let update = match self.update {
            Update::None => 0.0,
            Update::Inside { rank } => 2.0 * out * width * rank as f64,
            Update::Beside { rank, inputs } => {
                2.0 * tokens as f64 * (out + inputs as f64) * rank as f64
            }
        };
        2.0 * tokens as f64 * out * width + update
    }

    /// The same of a backward: the gradient of the input, that of the weight where it is needed,
    /// those of the factors; what an update inside the quantizer adds to the weight is made again.
    pub fn backward_operations(&self, tokens: usize) -> f64 {
        let (out, width) = (self.shape.0 as f64, self.shape.1 as f64);
        let products = if self.weight_gradient { 2.0 } else { 1.0 };
        let update = match self.update {
            Update::None => 0.0,
            Update::Inside { rank } => 6.0 * out * width * rank as f64,
            Update::Beside { rank, inputs } => {
                4.0 * tokens as f64 * (out + inputs as f64) * rank as f64
            }
        };
        products * 2.0 * tokens as f64 * out * width + update
    }

    /// The same with the last `count` of the trained tensors frozen.
    pub(crate) fn freezing(mut self, count: usize) -> Self {
        let first = self.trained.len() - count;
        self.frozen_bytes += 4 * self.trained.drain(first..).sum::<usize>();
        self
    }

    /// The same with a scale that is rounded in every pass, or not.
    pub(crate) fn rounding(mut self, rule: Option<ScaleRule>, groups: usize) -> Self {
        self.scratch.rounded_scale = room(rule, groups);
        self
    }

    /// The same where the update begins beside the weight.
    pub(crate) fn warming_up(mut self) -> Self {
        if let Update::Inside { rank } = self.update {
            self.scratch.rank = rank;
        }
        self
    }

    /// The same with dropout on what an update beside the weight reads.
    pub(crate) fn dropping(mut self) -> Self {
        if let Update::Beside { inputs, .. } = self.update {
            self.scratch.dropped = inputs;
        }
        self
    }

    /// Bytes of everything that the layer's weight is made of.
    pub fn weight_bytes(&self) -> usize {
        self.frozen_bytes + 4 * self.trained.iter().sum::<usize>()
    }
}

/// A layer of codes, `row_bytes` of them to a row, on a frozen grid: scale, and offset or zero point.
pub(super) fn codes_cost(spec: QuantSpec, out_features: usize, row_bytes: usize) -> LayerCost {
    let (width, groups) = (spec.in_features(), spec.groups());
    LayerCost {
        shape: (out_features, width),
        frozen_bytes: out_features * (row_bytes + 2 * 4 * groups),
        trained: Vec::new(),
        scratch: ScratchNeed { effective: out_features * width, ..ScratchNeed::default() },
        weight_gradient: false,
        update: Update::None,
    }
}
