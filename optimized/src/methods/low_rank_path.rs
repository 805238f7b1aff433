//! The low-rank update as a path beside a layer, in full precision. Eqs. (A2), (A3).

use super::{BackwardCall, LoraOptions, Parameter, ParameterKind, Trainable};
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::linear::{Linear, LinearArgs};

/// `lora_scaling * (input @ lora_a^T) @ lora_b^T`, added to what the layer gives.
pub(super) struct LowRankPath<B: Backend> {
    options: LoraOptions,
    /// `[rank, inputs]`.
    lora_a: Parameter<B>,
    /// `[out, rank]`.
    lora_b: Parameter<B>,
}

impl<B: Backend> LowRankPath<B> {
    /// A path from `inputs` to `out_features`.
    ///
    /// # Errors
    /// When the device has no room.
    pub(super) fn new(
        backend: &B,
        (out_features, inputs): (usize, usize),
        options: LoraOptions,
        lora_a: &[f32],
        lora_b: &[f32],
    ) -> Result<Self> {
        let rank = options.rank;
        let (a, b) = ([rank, inputs], [out_features, rank]);
        Ok(Self {
            options,
            lora_a: Parameter::new(backend, lora_a, &a, ParameterKind::LoraA, true)?,
            lora_b: Parameter::new(backend, lora_b, &b, ParameterKind::LoraB, true)?,
        })
    }

    pub(super) fn options(&self) -> LoraOptions {
        self.options
    }

    /// Adds the path's output to `y`; `low_rank [tokens, rank]` is overwritten.
    ///
    /// # Errors
    /// `Length`.
    pub(super) fn add_forward(
        &self,
        backend: &B,
        tokens: usize,
        input: &B::Floats,
        y: &mut B::Floats,
        low_rank: &mut B::Floats,
    ) -> Result<()> {
        let (down, up) = self.args(tokens);
        backend.linear(down, input, &self.lora_a.value, low_rank)?;
        backend.linear(up.adding(), low_rank, &self.lora_b.value, y)
    }

    /// The gradient of the path's input into `call.d_x`, as `call.write` says; adds the gradients
    /// of the factors. Both temporaries `[tokens, rank]` are overwritten.
    ///
    /// # Errors
    /// `Length`.
    pub(super) fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        low_rank: &mut B::Floats,
        d_low_rank: &mut B::Floats,
    ) -> Result<()> {
        let BackwardCall { tokens, x, d_y, d_x, write } = call;
        let (down, up) = self.args(tokens);
        backend.linear_input_gradient(up, d_y, &self.lora_b.value, d_low_rank)?;
        let to_input = LinearArgs { write, ..down };
        backend.linear_input_gradient(to_input, d_low_rank, &self.lora_a.value, d_x)?;
        if let Some(d_lora_a) = &mut self.lora_a.gradient {
            backend.linear_weight_gradient(down.adding(), d_low_rank, x, d_lora_a)?;
        }
        if let Some(d_lora_b) = &mut self.lora_b.gradient {
            backend.linear(down, x, &self.lora_a.value, low_rank)?;
            backend.linear_weight_gradient(up.adding(), d_y, low_rank, d_lora_b)?;
        }
        Ok(())
    }

    /// `lora_scaling * (lora_b @ lora_a)`, `[out, inputs]`, on the host. Eq. (A1a).
    ///
    /// # Errors
    /// When the device failed.
    pub(super) fn delta(&self, backend: &B) -> Result<Vec<f32>> {
        let (out, inputs) = (self.lora_b.shape[0], self.lora_a.shape[1]);
        let mut delta = vec![0.0; out * inputs];
        let args =
            LinearArgs::new(out, inputs, self.options.rank).scaled(self.options.lora_scaling);
        // A weight is merged in full precision, whatever type the backend multiplies.
        let (lora_a, lora_b) = (self.lora_a.to_host(backend)?, self.lora_b.to_host(backend)?);
        Cpu.linear_input_gradient(args, &lora_b, &lora_a, &mut delta)?;
        Ok(delta)
    }

    pub(super) fn trainable(&mut self) -> impl Iterator<Item = Trainable<'_, B>> {
        let factors = [self.lora_a.trainable("lora_a"), self.lora_b.trainable("lora_b")];
        factors.into_iter().flatten()
    }

    /// The two products: `inputs -> rank`, and `rank -> out` with the multiplier.
    fn args(&self, tokens: usize) -> (LinearArgs, LinearArgs) {
        let (out, inputs) = (self.lora_b.shape[0], self.lora_a.shape[1]);
        let up = LinearArgs::new(tokens, self.options.rank, out).scaled(self.options.lora_scaling);
        (LinearArgs::new(tokens, inputs, self.options.rank), up)
    }
}
