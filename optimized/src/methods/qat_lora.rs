//! QAT-LoRA: the frozen weight is quantized on a trained grid, and the low-rank update is a path
//! beside it in full precision. A merge would have to round the update, so there is none.
//! Eqs. (M13), (M14).

use plumbline_reference::spec::InitScaleRule;
use rand::Rng;

use super::low_rank_path::LowRankPath;
use super::quantized_weight::{Behind, HostWeight, QuantizedTensors, QuantizedWeight};
use super::{
    AdapterDropout, BackwardCall, CodeUse, L4qOptions, L4qTensors, LayerCost, LinearMethod,
    LoraOptions, Scratch, ScratchNeed, Trainable, TrainedScale, Update,
};
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::widen::{FrozenWeight, WeightType};

/// `y = x @ fake_quantize(weight)^T + lora_scaling * (x @ lora_a^T) @ lora_b^T`.
///
/// Options and tensors are those of L4Q, which is this method with the update inside the quantizer.
pub struct QatLora<B: Backend> {
    inner: QuantizedWeight<B>,
    path: LowRankPath<B>,
}

impl L4qOptions {
    /// What a layer of so many rows costs with the update beside the weight.
    pub fn cost_beside(&self, out_features: usize, stored: WeightType) -> LayerCost {
        let inside = self.cost(out_features, stored);
        let (rank, inputs) = (self.rank, self.spec.in_features());
        let scratch = ScratchNeed { rank, ..inside.scratch };
        LayerCost { scratch, update: Update::Beside { rank, inputs }, ..inside }
    }
}

impl<B: Backend> QatLora<B> {
    /// Starts from a full-precision `weight [out, in]`: `lora_a` Kaiming-uniform, `lora_b` zero,
    /// scale and offset by the options' rule.
    ///
    /// # Errors
    /// `NonFinite` for a bad weight; when the device has no room.
    pub fn new(
        backend: &B,
        weight: &FrozenWeight<Cpu>,
        out_features: usize,
        options: L4qOptions,
        random: &mut impl Rng,
    ) -> Result<Self> {
        let start = L4qTensors::initial(backend, weight, out_features, options, random)?;
        Self::from_tensors(backend, weight, out_features, options, &start)
    }

    /// Continues from saved tensors.
    ///
    /// # Errors
    /// When the device has no room.
    ///
    /// # Panics
    /// When a tensor's length is not what the options say.
    pub fn from_tensors(
        backend: &B,
        weight: &FrozenWeight<Cpu>,
        out_features: usize,
        options: L4qOptions,
        tensors: &L4qTensors,
    ) -> Result<Self> {
        let L4qTensors { lora_a, lora_b, scale, offset } = tensors;
        let L4qOptions { spec, rank, lora_scaling, grad_scale, .. } = options;
        let shape = (out_features, spec.in_features());
        let path = LoraOptions { rank, lora_scaling };
        let weight = HostWeight::Frozen(weight);
        let (trains_offset, scale_rule) = (true, None);
        let tensors = QuantizedTensors { weight, scale, offset, trains_offset, scale_rule };
        Ok(Self {
            inner: QuantizedWeight::new(backend, out_features, spec, grad_scale, &tensors)?,
            path: LowRankPath::new(backend, shape, path, lora_a, lora_b)?,
        })
    }

    /// Drops some of what the adapter reads, in training, or nothing.
    #[must_use]
    pub fn with_dropout(mut self, dropout: Option<AdapterDropout>) -> Self {
        self.path.drop_inputs(dropout);
        self
    }

    /// Keeps scale and offset as they are.
    #[must_use]
    pub fn freeze_grid(mut self) -> Self {
        self.inner.freeze_grid();
        self
    }
}

impl<B: Backend> LinearMethod<B> for QatLora<B> {
    fn cost(&self) -> LayerCost {
        let (spec, grad_scale) = (self.inner.spec, self.inner.grad_scale);
        let LoraOptions { rank, lora_scaling } = self.path.options();
        // How a grid begins costs nothing afterwards.
        let init = InitScaleRule::default();
        let stored = match &self.inner.weight {
            Behind::Trained(_) => WeightType::F32,
            Behind::Frozen(weight) => weight.stored(),
        };
        let scale_rule = None;
        let options = L4qOptions { spec, rank, lora_scaling, init, grad_scale, scale_rule };
        let cost = self.path.cost(options.cost_beside(self.inner.out_features(), stored));
        if self.inner.scale.is_trained() { cost } else { cost.freezing(2) }
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.inner.forward(backend, tokens, x, y, scratch)?;
        self.path.add_forward(backend, tokens, x, y, &mut scratch.path)
    }

    fn backward(
        &mut self,
        backend: &B,
        mut call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.inner.backward(backend, &mut call, scratch)?;
        let call = BackwardCall { write: Write::Add, ..call };
        self.path.backward(backend, call, &mut scratch.path)
    }

    fn trained_scale(&self) -> Option<&TrainedScale<B>> {
        self.inner.scale.if_trained()
    }

    fn code_use(&self, backend: &B) -> Result<Option<CodeUse>> {
        Ok(Some(self.inner.merged(backend)?.code_use()))
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        let grid = [self.inner.scale.trainable(), self.inner.offset.trainable("offset")];
        self.path.trainable().chain(grid.into_iter().flatten()).collect()
    }
}
