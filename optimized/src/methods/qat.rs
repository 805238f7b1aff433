//! Full-model quantization-aware training: the weight itself is trained, through its quantizer.
//! With an offset the quantizer is that of LSQ+, without one that of LSQ. Eqs. (M11), (M12).

use plumbline_reference::spec::{GradScale, InitScaleRule, QatQuantizer, QuantSpec, ScaleRule};

use super::quantized_weight::{Behind, HostWeight, QuantizedTensors, QuantizedWeight};
use super::{
    BackwardCall, CodeUse, LayerCost, LinearMethod, MergedTensors, Parameter, Scratch, ScratchNeed,
    Trainable, TrainedScale, Update, initial_grid, refuse_offset,
};
use crate::backend::Backend;
use crate::error::Result;

/// What a recipe decides about a QAT layer.
#[derive(Debug, Clone, Copy)]
pub struct QatOptions {
    /// Bits and groups.
    pub spec: QuantSpec,
    /// Whether there is an offset.
    pub quantizer: QatQuantizer,
    /// How scale and offset begin.
    pub init: InitScaleRule,
    /// Factor on the gradients of scale and offset.
    pub grad_scale: GradScale,
    /// The numbers that the scale in use may be, where a target says so; without an offset only.
    pub scale_rule: Option<ScaleRule>,
}

impl QatOptions {
    /// What a layer of so many rows costs.
    pub fn cost(&self, out_features: usize) -> LayerCost {
        let groups = out_features * self.spec.groups();
        let has_offset = self.quantizer == QatQuantizer::LsqPlus;
        qat_cost(self.spec, has_offset, out_features).rounding(self.scale_rule, groups)
    }
}

fn qat_cost(spec: QuantSpec, has_offset: bool, out_features: usize) -> LayerCost {
    let shape = (out_features, spec.in_features());
    let grid = out_features * spec.groups();
    let mut trained = vec![shape.0 * shape.1, grid];
    trained.extend(has_offset.then_some(grid));
    LayerCost {
        shape,
        frozen_bytes: if has_offset { 0 } else { 4 * grid },
        trained,
        scratch: ScratchNeed::of_weight(shape),
        weight_gradient: true,
        update: Update::None,
    }
}

/// A linear layer whose weight is `fake_quantize(weight)`, with the weight trained.
pub struct Qat<B: Backend> {
    /// Its offset is zero and frozen under LSQ.
    inner: QuantizedWeight<B>,
}

/// The trained tensors of one layer, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct QatTensors {
    /// `[out, in]`.
    pub weight: Vec<f32>,
    /// `[out, groups]`.
    pub scale: Vec<f32>,
    /// `[out, groups]`; absent under LSQ.
    pub offset: Option<Vec<f32>>,
}

impl<B: Backend> Qat<B> {
    /// Starts from a full-precision `weight [out, in]`, scale and offset by the options' rule.
    ///
    /// # Errors
    /// `Invalid` for LSQ with a rule that gives an offset; `NonFinite` for a bad weight; when the
    /// device has no room.
    pub fn new(
        backend: &B,
        weight: Vec<f32>,
        out_features: usize,
        options: QatOptions,
    ) -> Result<Self> {
        let has_offset = options.quantizer == QatQuantizer::LsqPlus;
        if !has_offset {
            refuse_offset(options.init, "quantizer lsq")?;
        }
        let (scale, offset) =
            initial_grid(backend, options.spec, options.init, out_features, &weight)?;
        let offset = has_offset.then_some(offset);
        Self::from_tensors(backend, out_features, options, &QatTensors { weight, scale, offset })
    }

    /// Continues from saved tensors.
    ///
    /// # Errors
    /// When the device has no room.
    ///
    /// # Panics
    /// When a tensor's length is not what the options say, or an offset is there that they do not
    /// ask for or missing where they do, or with a rule for the scale.
    pub fn from_tensors(
        backend: &B,
        out_features: usize,
        options: QatOptions,
        tensors: &QatTensors,
    ) -> Result<Self> {
        let has_offset = options.quantizer == QatQuantizer::LsqPlus;
        assert_eq!(tensors.offset.is_some(), has_offset, "offset under {:?}", options.quantizer);
        assert!(!has_offset || options.scale_rule.is_none(), "offset with a rule for the scale");
        let zero = vec![0.0; out_features * options.spec.groups()];
        let tensors = QuantizedTensors {
            weight: HostWeight::Trained(&tensors.weight),
            scale: &tensors.scale,
            offset: tensors.offset.as_ref().unwrap_or(&zero),
            trains_offset: has_offset,
            scale_rule: options.scale_rule,
        };
        let QatOptions { spec, grad_scale, .. } = options;
        Ok(Self { inner: QuantizedWeight::new(backend, out_features, spec, grad_scale, &tensors)? })
    }

    /// Keeps scale and offset as they are.
    #[must_use]
    pub fn freeze_grid(mut self) -> Self {
        self.inner.freeze_grid();
        self
    }

    /// Codes and grid of the trained weight, which is gone. Eq. (M3), without an update.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor.
    pub fn merge(self, backend: &B) -> Result<MergedTensors> {
        self.inner.merged(backend)
    }
}

impl<B: Backend> LinearMethod<B> for Qat<B> {
    fn cost(&self) -> LayerCost {
        let has_offset = self.inner.offset.gradient.is_some();
        let mut cost = qat_cost(self.inner.spec, has_offset, self.inner.out_features());
        cost.scratch.rounded_scale = self.inner.scale.room();
        if self.inner.scale.is_trained() { cost } else { cost.freezing(1) }
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.inner.forward(backend, tokens, x, y, scratch)
    }

    fn backward(
        &mut self,
        backend: &B,
        mut call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.inner.backward(backend, &mut call, scratch)?;
        match &mut self.inner.weight {
            Behind::Trained(Parameter { gradient: Some(gradient), shape, .. }) => {
                backend.add(&scratch.d_weight, gradient, shape.iter().product())
            }
            _ => Ok(()),
        }
    }

    fn trained_scale(&self) -> Option<&TrainedScale<B>> {
        self.inner.scale.if_trained()
    }

    fn code_use(&self, backend: &B) -> Result<Option<CodeUse>> {
        Ok(Some(self.inner.merged(backend)?.code_use()))
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        let weight = match &mut self.inner.weight {
            Behind::Trained(weight) => weight.trainable("weight"),
            Behind::Frozen(_) => None,
        };
        [weight, self.inner.scale.trainable(), self.inner.offset.trainable("offset")]
            .into_iter()
            .flatten()
            .collect()
    }
}
