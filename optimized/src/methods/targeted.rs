//! A layer that a method may or may not be on.

use super::{
    BackwardCall, CodeTensors, CodeUse, Frozen, IntoCodes, LayerCost, LinearMethod, Scratch,
    Trainable, TrainedScale,
};
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::widen::FrozenWeight;

/// A layer of a model whose method is on some of them.
pub enum Targeted<B: Backend, L> {
    /// Under the method.
    Method(L),
    /// As it is in the base model.
    Frozen(Frozen<B>),
}

impl<B: Backend, L: LinearMethod<B>> LinearMethod<B> for Targeted<B, L> {
    fn cost(&self) -> LayerCost {
        match self {
            Self::Method(layer) => layer.cost(),
            Self::Frozen(layer) => layer.cost(),
        }
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        match self {
            Self::Method(layer) => layer.forward(backend, tokens, x, y, scratch),
            Self::Frozen(layer) => layer.forward(backend, tokens, x, y, scratch),
        }
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        match self {
            Self::Method(layer) => layer.backward(backend, call, scratch),
            Self::Frozen(layer) => layer.backward(backend, call, scratch),
        }
    }

    fn trained_scale(&self) -> Option<&TrainedScale<B>> {
        match self {
            Self::Method(layer) => layer.trained_scale(),
            Self::Frozen(_) => None,
        }
    }

    fn code_use(&self, backend: &B) -> Result<Option<CodeUse>> {
        match self {
            Self::Method(layer) => layer.code_use(backend),
            Self::Frozen(_) => Ok(None),
        }
    }

    fn at_update(&mut self, backend: &B, updates: u64) -> Result<()> {
        match self {
            Self::Method(layer) => layer.at_update(backend, updates),
            Self::Frozen(_) => Ok(()),
        }
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        match self {
            Self::Method(layer) => layer.trainable(),
            Self::Frozen(_) => Vec::new(),
        }
    }
}

/// What merging leaves of such a layer, on the host.
pub enum TargetedTensors<T> {
    /// Codes and grid.
    Codes(T),
    /// A weight `[out, in]` as it is in the base model.
    Frozen {
        /// In the type of its checkpoint.
        weight: FrozenWeight<Cpu>,
        /// Rows and columns.
        shape: (usize, usize),
    },
}

impl<T: CodeTensors> CodeTensors for TargetedTensors<T> {
    type Layer<B: Backend> = Targeted<B, T::Layer<B>>;

    fn layer<B: Backend>(&self, backend: &B) -> Result<Self::Layer<B>> {
        Ok(match self {
            Self::Codes(tensors) => Targeted::Method(tensors.layer(backend)?),
            Self::Frozen { weight, shape } => {
                Targeted::Frozen(Frozen::new(backend, weight, *shape)?)
            }
        })
    }

    fn stored_bits(&self) -> u64 {
        match self {
            Self::Codes(tensors) => tensors.stored_bits(),
            Self::Frozen { weight, shape: (rows, columns) } => {
                8 * (weight.stored().bytes() * rows * columns) as u64
            }
        }
    }
}

impl<B: Backend, L: IntoCodes<B>> IntoCodes<B> for Targeted<B, L> {
    type Tensors = TargetedTensors<L::Tensors>;

    fn into_codes(self, backend: &B) -> Result<Self::Tensors> {
        Ok(match self {
            Self::Method(layer) => TargetedTensors::Codes(layer.into_codes(backend)?),
            Self::Frozen(layer) => {
                TargetedTensors::Frozen { weight: layer.download(backend)?, shape: layer.shape() }
            }
        })
    }
}
