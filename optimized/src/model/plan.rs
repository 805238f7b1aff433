//! What a training run needs of a device's memory, known before any of it is asked for.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;

use plumbline_reference::spec::{ActivationSpec, LlamaConfig};

use super::activations::{Activations, LOGIT_TOKENS, Recompute};
use super::llama::{Llama, Projection, tensor_shapes};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::{LayerCost, LinearMethod, ScratchNeed};
use crate::ops::adamw::StateType;
use crate::ops::sums::StepSlots;

/// What a plan needs to know of a run beside the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Keep activations or recompute them.
    pub recompute: Recompute,
    /// Micro-batches of one optimizer step.
    pub accumulation: usize,
    /// Bytes of a value of an effective weight: 2 where the device multiplies bf16, else 4.
    pub operand_bytes: usize,
    /// What the optimizer's moments are kept in.
    pub state: StateType,
    /// How activations are rounded, if they are.
    pub activations: Option<ActivationSpec>,
}

/// Trained tensors and all their values.
#[derive(Clone, Copy)]
struct Tensors {
    count: usize,
    values: usize,
}

/// Bytes of a training run by what they are for.
///
/// What the kernels of one call hand on to each other is the backend's own affair and not counted:
/// a few numbers per group of the largest layer or per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
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
        state: StateType,
    ) -> Self {
        let base: usize =
            model.base_parameters().iter().map(|(_, parameter)| parameter.frozen_bytes()).sum();
        let layers: Vec<LayerCost> = model.linears().iter().map(|(_, l)| l.cost()).collect();
        let operand_bytes = model.backend.operand_bytes();
        let activations = model.activations;
        let run = Run { tokens, recompute, accumulation, operand_bytes, state, activations };
        let trainable = model.trainable();
        let trained = Tensors {
            count: trainable.len(),
            values: trainable.iter().map(|tensor| tensor.len).sum(),
        };
        Self::with(&model.config, &layers, base, trained, run)
    }

    /// The same of a model that does not exist, whose embeddings and norms are not trained.
    pub fn of_costs(config: &LlamaConfig, layers: &[LayerCost], run: Run) -> Self {
        let linear: BTreeSet<String> =
            Projection::all(config).iter().map(|one| format!("{}.weight", one.name)).collect();
        let base: usize = tensor_shapes(config)
            .iter()
            .filter(|(name, _)| !linear.contains(*name))
            .map(|(_, shape)| 4 * shape.iter().product::<usize>())
            .sum();
        let trained = Tensors {
            count: layers.iter().map(|layer| layer.trained.len()).sum(),
            values: layers.iter().flat_map(|layer| &layer.trained).sum(),
        };
        Self::with(config, layers, base, trained, run)
    }

    fn with(
        config: &LlamaConfig,
        layers: &[LayerCost],
        frozen_base: usize,
        trained: Tensors,
        run: Run,
    ) -> Self {
        let Run { tokens, recompute, accumulation, operand_bytes, state, activations } = run;
        let frozen_layers: usize = layers.iter().map(|layer| layer.frozen_bytes).sum();
        let angles = config.longest_sequence() * (config.head_dim / 2);
        let need = layers.iter().map(|layer| layer.scratch);
        let need = need.fold(ScratchNeed::default(), ScratchNeed::max);
        let slots = StepSlots { losses: accumulation, tensors: trained.count };
        let ids = 2 * tokens + tokens.min(LOGIT_TOKENS); // of tokens, documents and targets
        let values = activation_values((config, activations), tokens, recompute);
        Self {
            frozen: frozen_base + frozen_layers + 2 * 4 * angles,
            trained: 4 * trained.values,
            gradients: 4 * trained.values,
            moments: 2 * state.bytes() * trained.values,
            activations: 4 * (ids + values),
            // The device's complaints are read with the sums.
            scratch: need.bytes(tokens, operand_bytes) + 8 * (slots.count() + 1),
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
fn activation_values(
    model: (&LlamaConfig, Option<ActivationSpec>),
    tokens: usize,
    recompute: Recompute,
) -> usize {
    let values = Cell::new(0);
    let count = |len: usize| -> Result<()> {
        values.set(values.get() + len);
        Ok(())
    };
    Activations::new(&count, model, tokens, Some(recompute)).expect("counting cannot fail");
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
