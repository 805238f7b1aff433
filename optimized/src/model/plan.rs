//! What a training run needs of a device's memory, known before any of it is asked for.

use std::cell::Cell;
use std::fmt;

use super::activations::{Activations, LOGIT_TOKENS, Recompute};
use super::llama::Llama;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;
use crate::ops::sums::StepSlots;

/// Bytes of a training run by what they are for.
///
/// What the kernels of one call hand on to each other is the backend's own affair and not counted:
/// a few numbers per group of the largest layer or per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Weights, codes, grids and tables that are not trained.
    pub frozen: usize,
    /// Tensors that are trained.
    pub trained: usize,
    /// Their gradients.
    pub gradients: usize,
    /// The optimizer's two moments of each.
    pub moments: usize,
    /// Token ids and documents, activations of a micro-batch and their gradients.
    pub activations: usize,
    /// Temporaries that all layers share, and the sums of a step.
    pub scratch: usize,
}

impl Plan {
    /// For training on micro-batches of `tokens` tokens, `accumulation` of them a step.
    pub fn new<B: Backend, L: LinearMethod<B>>(
        model: &mut Llama<B, L>,
        tokens: usize,
        recompute: Recompute,
        accumulation: usize,
    ) -> Self {
        let frozen_base: usize =
            model.base_parameters().iter().map(|(_, parameter)| parameter.frozen_bytes()).sum();
        let frozen_layers: usize =
            model.linears().iter().map(|(_, layer)| layer.frozen_bytes()).sum();
        let angles = model.rope.positions * (model.config.head_dim / 2);
        let need = model.scratch_need();
        let trainable = model.trainable();
        let slots = StepSlots { losses: accumulation, tensors: trainable.len() };
        let trained: usize = trainable.iter().map(|tensor| 4 * tensor.len).sum();
        let ids = 2 * tokens + tokens.min(LOGIT_TOKENS); // of tokens, documents and targets
        let values = activation_values(model, tokens, recompute);
        Self {
            frozen: frozen_base + frozen_layers + 2 * 4 * angles,
            trained,
            gradients: trained,
            moments: 2 * trained,
            activations: 4 * (ids + values),
            // The device's complaints are read with the sums.
            scratch: 4 * need.values(tokens) + 8 * (slots.count() + 1),
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        let Self { frozen, trained, gradients, moments, activations, scratch } = self;
        frozen + trained + gradients + moments + activations + scratch
    }

    /// A device's refusal with the plan under it; any other error as it is.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Device { device, reason } => {
                Error::Device { device, reason: format!("{reason}\n{self}") }
            }
            other => other,
        }
    }
}

/// Counts with the code that allocates.
fn activation_values<B: Backend, L>(
    model: &Llama<B, L>,
    tokens: usize,
    recompute: Recompute,
) -> usize {
    let values = Cell::new(0);
    let count = |len: usize| -> Result<()> {
        values.set(values.get() + len);
        Ok(())
    };
    Activations::new(&count, &model.config, tokens, Some(recompute)).expect("counting cannot fail");
    values.get()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the run needs, in MiB:")?;
        for (what, bytes) in [
            ("frozen weights", self.frozen),
            ("trained tensors", self.trained),
            ("their gradients", self.gradients),
            ("their moments", self.moments),
            ("activations", self.activations),
            ("scratch", self.scratch),
        ] {
            writeln!(f, "  {what:<16}{:>10.1}", mib(bytes))?;
        }
        write!(f, "  {:<16}{:>10.1}", "in all", mib(self.total()))
    }
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
