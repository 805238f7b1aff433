//! LoRA on a full-precision weight: the ceiling that quantized methods are measured against.
//! Eqs. (A2), (A3).

use rand::Rng;

use super::{
    BackwardCall, LinearMethod, Parameter, ParameterKind, Scratch, ScratchNeed, Trainable,
    kaiming_uniform,
};
use crate::backend::Backend;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::linear::LinearArgs;

/// What a recipe decides about a LoRA layer.
#[derive(Debug, Clone, Copy)]
pub struct LoraOptions {
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, alpha / rank.
    pub lora_scaling: f32,
}

/// `y = x @ weight^T + lora_scaling * (x @ lora_a^T) @ lora_b^T`.
pub struct Lora<B: Backend> {
    options: LoraOptions,
    weight: Parameter<B>,
    lora_a: Parameter<B>,
    lora_b: Parameter<B>,
}

impl<B: Backend> Lora<B> {
    /// Starts from `weight [out, in]`: `lora_a` Kaiming-uniform, `lora_b` zero.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        backend: &B,
        weight: &[f32],
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
        weight: &[f32],
        (out_features, in_features): (usize, usize),
        options: LoraOptions,
        lora_a: &[f32],
        lora_b: &[f32],
    ) -> Result<Self> {
        let parameter = |values, rows, columns, kind, trained| {
            Parameter::new(backend, values, &[rows, columns], kind, trained)
        };
        let rank = options.rank;
        Ok(Self {
            options,
            weight: parameter(weight, out_features, in_features, ParameterKind::Weight, false)?,
            lora_a: parameter(lora_a, rank, in_features, ParameterKind::LoraA, true)?,
            lora_b: parameter(lora_b, out_features, rank, ParameterKind::LoraB, true)?,
        })
    }

    /// The two low-rank products: `in -> rank` and `rank -> out`.
    fn low_rank_args(&self, tokens: usize) -> (LinearArgs, LinearArgs) {
        let (out, width) = (self.weight.shape[0], self.weight.shape[1]);
        let rank = self.options.rank;
        (LinearArgs::new(tokens, width, rank), LinearArgs::new(tokens, rank, out))
    }

    fn linear_args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.weight.shape[1], self.weight.shape[0])
    }
}

impl<B: Backend> LinearMethod<B> for Lora<B> {
    fn scratch_need(&self) -> ScratchNeed {
        ScratchNeed { effective: 0, d_weight: 0, rank: self.options.rank }
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let (down, up) = self.low_rank_args(tokens);
        backend.linear(self.linear_args(tokens), x, &self.weight.value, y)?;
        backend.linear(down, x, &self.lora_a.value, &mut scratch.low_rank)?;
        let up = up.scaled(self.options.lora_scaling).adding();
        backend.linear(up, &scratch.low_rank, &self.lora_b.value, y)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let BackwardCall { tokens, x, d_y, d_x, write } = call;
        let (down, up) = self.low_rank_args(tokens);
        let up = up.scaled(self.options.lora_scaling);
        let to_input = LinearArgs { write, ..self.linear_args(tokens) };
        backend.linear_input_gradient(to_input, d_y, &self.weight.value, d_x)?;
        backend.linear_input_gradient(up, d_y, &self.lora_b.value, &mut scratch.d_low_rank)?;
        let to_input = LinearArgs { write: Write::Add, ..down };
        backend.linear_input_gradient(to_input, &scratch.d_low_rank, &self.lora_a.value, d_x)?;
        if let Some(d_lora_a) = &mut self.lora_a.gradient {
            backend.linear_weight_gradient(down.adding(), &scratch.d_low_rank, x, d_lora_a)?;
        }
        if let Some(d_lora_b) = &mut self.lora_b.gradient {
            backend.linear(down, x, &self.lora_a.value, &mut scratch.low_rank)?;
            backend.linear_weight_gradient(up.adding(), d_y, &scratch.low_rank, d_lora_b)?;
        }
        Ok(())
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        let factors = [self.lora_a.trainable("lora_a"), self.lora_b.trainable("lora_b")];
        factors.into_iter().flatten().collect()
    }
}
