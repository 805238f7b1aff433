//! LoRA on a full-precision weight: the ceiling that quantized methods are measured against.
//! Eqs. (A2), (A3).

use rand::Rng;

use super::low_rank_path::LowRankPath;
use super::{
    AdapterDropout, BackwardCall, Frozen, LayerCost, LinearMethod, Scratch, ScratchNeed, Trainable,
    Update, frozen_cost, kaiming_uniform,
};
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::widen::{FrozenWeight, WeightType};

/// What a recipe decides about a LoRA layer.
#[derive(Debug, Clone, Copy)]
pub struct LoraOptions {
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, alpha / rank.
    pub lora_scaling: f32,
}

impl LoraOptions {
    /// What a layer `[out, in]` costs.
    pub fn cost(&self, shape: (usize, usize), stored: WeightType) -> LayerCost {
        let rank = self.rank;
        let frozen = frozen_cost(shape, stored);
        LayerCost {
            trained: self.factors(shape),
            scratch: ScratchNeed { rank, ..frozen.scratch },
            update: Update::Beside { rank, inputs: shape.1 },
            ..frozen
        }
    }

    /// Values of the two factors, from `inputs` inputs.
    pub(super) fn factors(&self, (out_features, inputs): (usize, usize)) -> Vec<usize> {
        vec![self.rank * inputs, out_features * self.rank]
    }
}

/// `y = x @ weight^T + lora_scaling * (x @ lora_a^T) @ lora_b^T`.
pub struct Lora<B: Backend> {
    base: Frozen<B>,
    path: LowRankPath<B>,
}

impl<B: Backend> Lora<B> {
    /// Starts from `weight [out, in]`: `lora_a` Kaiming-uniform, `lora_b` zero.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        backend: &B,
        weight: &FrozenWeight<Cpu>,
        (out_features, in_features): (usize, usize),
        options: LoraOptions,
        random: &mut impl Rng,
    ) -> Result<Self> {
        let lora_a = kaiming_uniform(options.rank * in_features, in_features, random);
        let lora_b = vec![0.0; out_features * options.rank];
        let shape = (out_features, in_features);
        Self::from_tensors(backend, weight, shape, options, &lora_a, &lora_b)
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
        shape: (usize, usize),
        options: LoraOptions,
        lora_a: &[f32],
        lora_b: &[f32],
    ) -> Result<Self> {
        Ok(Self {
            base: Frozen::new(backend, weight, shape)?,
            path: LowRankPath::new(backend, shape, options, lora_a, lora_b)?,
        })
    }

    /// Drops some of what the adapter reads, in training, or nothing.
    #[must_use]
    pub fn with_dropout(mut self, dropout: Option<AdapterDropout>) -> Self {
        self.path.drop_inputs(dropout);
        self
    }
}

impl<B: Backend> LinearMethod<B> for Lora<B> {
    fn cost(&self) -> LayerCost {
        self.path.cost(self.path.options().cost(self.base.shape(), self.base.stored()))
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.base.forward(backend, tokens, x, y, scratch)?;
        self.path.add_forward(backend, tokens, x, y, &mut scratch.path)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let BackwardCall { tokens, x, d_y, d_x, write } = call;
        self.base.backward(backend, BackwardCall::new(tokens, x, d_y, d_x, write), scratch)?;
        let call = BackwardCall::new(tokens, x, d_y, d_x, Write::Add);
        self.path.backward(backend, call, &mut scratch.path)
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        self.path.trainable().collect()
    }
}
