//! LoRA on a full-precision weight: the ceiling that quantized methods are measured against.
//! Eqs. (A2), (A3).

use rand::Rng;

use super::low_rank_path::LowRankPath;
use super::{
    BackwardCall, LayerCost, LinearMethod, Scratch, ScratchNeed, Trainable, Update, kaiming_uniform,
};
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::linear::LinearArgs;
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
        let effective = if stored == WeightType::F32 { 0 } else { shape.0 * shape.1 };
        LayerCost {
            shape,
            frozen_bytes: stored.bytes() * shape.0 * shape.1,
            trained: self.factors(shape),
            scratch: ScratchNeed { effective, rank, ..ScratchNeed::default() },
            weight_gradient: false,
            update: Update::Beside { rank, inputs: shape.1 },
        }
    }

    /// Values of the two factors, from `inputs` inputs.
    pub(super) fn factors(&self, (out_features, inputs): (usize, usize)) -> Vec<usize> {
        vec![self.rank * inputs, out_features * self.rank]
    }
}

/// `y = x @ weight^T + lora_scaling * (x @ lora_a^T) @ lora_b^T`.
pub struct Lora<B: Backend> {
    shape: (usize, usize),
    weight: FrozenWeight<B>,
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
        assert_eq!(weight.len(), shape.0 * shape.1, "weight");
        Ok(Self {
            shape,
            weight: weight.upload(backend)?,
            path: LowRankPath::new(backend, shape, options, lora_a, lora_b)?,
        })
    }

    fn linear_args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.shape.1, self.shape.0)
    }

    /// The weight that is multiplied with: itself, or the floats that it stands for.
    fn effective<'a>(&'a self, backend: &B, room: &'a mut B::Floats) -> Result<&'a B::Floats> {
        if let FrozenWeight::F32(weight) = &self.weight {
            return Ok(weight);
        }
        backend.widen(self.shape.0 * self.shape.1, self.weight.view(), room)?;
        Ok(room)
    }
}

impl<B: Backend> LinearMethod<B> for Lora<B> {
    fn cost(&self) -> LayerCost {
        self.path.options().cost(self.shape, self.weight.stored())
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let weight = self.effective(backend, &mut scratch.effective)?;
        backend.linear(self.linear_args(tokens), x, weight, y)?;
        self.path.add_forward(backend, tokens, x, y, &mut scratch.low_rank)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let to_input = LinearArgs { write: call.write, ..self.linear_args(call.tokens) };
        let weight = self.effective(backend, &mut scratch.effective)?;
        backend.linear_input_gradient(to_input, call.d_y, weight, call.d_x)?;
        let call = BackwardCall { write: Write::Add, ..call };
        self.path.backward(backend, call, &mut scratch.low_rank, &mut scratch.d_low_rank)
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        self.path.trainable().collect()
    }
}
