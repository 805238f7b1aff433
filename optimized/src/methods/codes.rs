//! Layers that training leaves as codes, and what runs on them.

use super::{
    Affine, AffineTensors, L4q, LinearMethod, LrQat, Merged, MergedTensors, Peqa, QaLora, Qat,
    Qlora,
};
use crate::backend::Backend;
use crate::error::Result;

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
