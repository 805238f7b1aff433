//! The low-rank update as a path beside a layer, in full precision. Eqs. (A2), (A3).

use super::{
    BackwardCall, LayerCost, LoraOptions, Parameter, ParameterKind, PathScratch, Trainable,
};
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::counter::{key_of_name, subkey};
use crate::ops::dropout::DropoutArgs;
use crate::ops::linear::{Linear, LinearArgs};

/// Dropout on what an adapter reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterDropout {
    probability: f32,
    stream: u64,
}

impl AdapterDropout {
    /// Each value is zero with that probability; what is drawn depends on the layer's name.
    pub fn new(probability: f32, layer: &str) -> Self {
        Self { probability, stream: key_of_name(layer) }
    }
}

/// `lora_scaling * (input @ lora_a^T) @ lora_b^T`, added to what the layer gives.
pub(super) struct LowRankPath<B: Backend> {
    options: LoraOptions,
    /// `[rank, inputs]`.
    pub(super) lora_a: Parameter<B>,
    /// `[out, rank]`.
    pub(super) lora_b: Parameter<B>,
    dropout: Option<AdapterDropout>,
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
            dropout: None,
        })
    }

    pub(super) fn options(&self) -> LoraOptions {
        self.options
    }

    /// Drops some of what the path reads, in training, or nothing.
    pub(super) fn drop_inputs(&mut self, dropout: Option<AdapterDropout>) {
        self.dropout = dropout;
    }

    /// What a layer's cost is with this path's dropout.
    pub(super) fn cost(&self, cost: LayerCost) -> LayerCost {
        if self.dropout.is_some() { cost.dropping() } else { cost }
    }

    /// Adds the path's output to `y`.
    ///
    /// # Errors
    /// `Length`.
    pub(super) fn add_forward(
        &self,
        backend: &B,
        tokens: usize,
        input: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut PathScratch<B>,
    ) -> Result<()> {
        let (down, up) = self.args(tokens);
        let dropout = self.dropout_args(tokens, scratch.dropout_key);
        let PathScratch { low_rank, dropped, .. } = scratch;
        let input = match dropout {
            Some(args) => {
                backend.dropout(args, input, dropped)?;
                &*dropped
            }
            None => input,
        };
        backend.linear(down, input, &self.lora_a.value, low_rank)?;
        backend.linear(up.adding(), low_rank, &self.lora_b.value, y)
    }

    /// The gradient of the path's input into `call.d_x`, as `call.write` says; adds the gradients
    /// of the factors.
    ///
    /// # Errors
    /// `Length`.
    pub(super) fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut PathScratch<B>,
    ) -> Result<()> {
        let BackwardCall { tokens, x, d_y, d_x, write } = call;
        let (down, up) = self.args(tokens);
        let dropout = self.dropout_args(tokens, scratch.dropout_key);
        let PathScratch { low_rank, d_low_rank, dropped, .. } = scratch;
        backend.linear_input_gradient(up, d_y, &self.lora_b.value, d_low_rank)?;
        let Some(args) = dropout else {
            let to_input = LinearArgs { write, ..down };
            backend.linear_input_gradient(to_input, d_low_rank, &self.lora_a.value, d_x)?;
            return self.factor_gradients(backend, (down, up), (x, d_y), (low_rank, d_low_rank));
        };
        backend.dropout(args, x, dropped)?;
        self.factor_gradients(backend, (down, up), (dropped, d_y), (low_rank, d_low_rank))?;
        // The gradient of what was left takes its place.
        backend.linear_input_gradient(down, d_low_rank, &self.lora_a.value, dropped)?;
        backend.dropout(DropoutArgs { write, ..args }, dropped, d_x)
    }

    fn factor_gradients(
        &mut self,
        backend: &B,
        (down, up): (LinearArgs, LinearArgs),
        (input, d_y): (&B::Floats, &B::Floats),
        (low_rank, d_low_rank): (&mut B::Floats, &B::Floats),
    ) -> Result<()> {
        if let Some(d_lora_a) = &mut self.lora_a.gradient {
            backend.linear_weight_gradient(down.adding(), d_low_rank, input, d_lora_a)?;
        }
        if let Some(d_lora_b) = &mut self.lora_b.gradient {
            backend.linear(down, input, &self.lora_a.value, low_rank)?;
            backend.linear_weight_gradient(up.adding(), d_y, low_rank, d_lora_b)?;
        }
        Ok(())
    }

    /// What is dropped of `tokens` inputs; nothing where there is no key.
    fn dropout_args(&self, tokens: usize, key: Option<u64>) -> Option<DropoutArgs> {
        let AdapterDropout { probability, stream } = self.dropout?;
        let (len, key) = (tokens * self.lora_a.shape[1], subkey(key?, stream));
        Some(DropoutArgs { len, key, probability, write: Write::Replace })
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
