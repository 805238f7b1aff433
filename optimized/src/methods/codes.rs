//! Layers that training leaves as codes, and what runs on them.

use serde::Serialize;

use super::{
    Affine, AffineTensors, L4q, LinearMethod, LrQat, Merged, MergedTensors, Peqa, QaLora, Qat,
    Qlora,
};
use crate::backend::Backend;
use crate::error::Result;

/// Shares of codes at the ends of their grid, where weights are clipped.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CodeUse {
    /// At the lowest code.
    pub codes_lowest: f64,
    /// At the highest.
    pub codes_highest: f64,
}

impl CodeUse {
    /// Of codes between `lowest` and `highest`.
    fn of<T: Copy + Into<i32>>(codes: &[T], lowest: i32, highest: i32) -> Self {
        let share = |end: i32| {
            let count = codes.iter().filter(|code| (**code).into() == end).count();
            count as f64 / codes.len() as f64
        };
        Self { codes_lowest: share(lowest), codes_highest: share(highest) }
    }
}

impl MergedTensors {
    pub(super) fn code_use(&self) -> CodeUse {
        CodeUse::of(&self.codes, self.spec.qmin(), self.spec.qmax())
    }
}

impl AffineTensors {
    pub(super) fn code_use(&self) -> CodeUse {
        CodeUse::of(&self.codes, 0, self.spec.unsigned_max())
    }
}

/// Codes and grid of a layer, on the host.
pub trait CodeTensors: Sized {
    /// The layer that runs on them.
    type Layer<B: Backend>: LinearMethod<B>;

    /// That layer.
    ///
    /// # Errors
    /// When the device has no room.
    fn layer<B: Backend>(&self, backend: &B) -> Result<Self::Layer<B>>;
}

impl CodeTensors for MergedTensors {
    type Layer<B: Backend> = Merged<B>;

    fn layer<B: Backend>(&self, backend: &B) -> Result<Merged<B>> {
        Merged::new(backend, self)
    }
}

impl CodeTensors for AffineTensors {
    type Layer<B: Backend> = Affine<B>;

    fn layer<B: Backend>(&self, backend: &B) -> Result<Affine<B>> {
        Affine::new(backend, self)
    }
}

/// A layer that training leaves as codes.
pub trait IntoCodes<B: Backend>: LinearMethod<B> {
    /// What is left of it.
    type Tensors: CodeTensors;

    /// Codes and grid; the layer is gone.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor; those of the method's `merge`.
    fn into_codes(self, backend: &B) -> Result<Self::Tensors>;
}

macro_rules! into_codes {
    ($($method:ident: $tensors:ident),*) => {$(
        impl<B: Backend> IntoCodes<B> for $method<B> {
            type Tensors = $tensors;

            fn into_codes(self, backend: &B) -> Result<$tensors> {
                self.merge(backend)
            }
        }
    )*};
}

into_codes!(
    L4q: MergedTensors, LrQat: MergedTensors, Qat: MergedTensors,
    Peqa: AffineTensors, QaLora: AffineTensors, Qlora: AffineTensors
);
