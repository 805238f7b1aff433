//! Layers that training leaves as codes, and what runs on them.

use plumbline_reference::spec::QuantSpec;
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

    /// Bits that codes and grid need: a code its width, a scale 32, an offset or a zero point 32
    /// where it is real, the width of a code where it is one of the codes, and nothing where the
    /// grid is symmetric, so that it is known.
    fn stored_bits(&self) -> u64;
}

/// Bits of codes of that width and of their groups, beside offsets and zero points.
fn codes_and_scales(spec: QuantSpec, codes: usize, groups: usize) -> u64 {
    u64::from(spec.bits().count()) * codes as u64 + 32 * groups as u64
}

impl CodeTensors for MergedTensors {
    type Layer<B: Backend> = Merged<B>;

    fn layer<B: Backend>(&self, backend: &B) -> Result<Merged<B>> {
        Merged::new(backend, self)
    }

    fn stored_bits(&self) -> u64 {
        let groups = self.offset.len();
        let is_symmetric = self.offset.iter().all(|offset| *offset == 0.0);
        let offsets = if is_symmetric { 0 } else { 32 * groups as u64 };
        codes_and_scales(self.spec, self.codes.len(), groups) + offsets
    }
}

impl CodeTensors for AffineTensors {
    type Layer<B: Backend> = Affine<B>;

    fn layer<B: Backend>(&self, backend: &B) -> Result<Affine<B>> {
        Affine::new(backend, self)
    }

    fn stored_bits(&self) -> u64 {
        let groups = self.zero_point.len();
        let codes = 0.0..=self.spec.unsigned_max() as f32;
        let is_code = |zero: &f32| codes.contains(zero) && zero.fract() == 0.0;
        let of_each = if self.zero_point.windows(2).all(|two| two[0] == two[1]) {
            0
        } else if self.zero_point.iter().all(is_code) {
            u64::from(self.spec.bits().count())
        } else {
            32
        };
        codes_and_scales(self.spec, self.codes.len(), groups) + of_each * groups as u64
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

#[cfg(test)]
mod tests {
    use plumbline_reference::spec::Bits;

    use super::*;

    #[test]
    fn a_grid_costs_what_cannot_be_known_without_it() {
        let spec = QuantSpec::new(Bits::new(3).unwrap(), Some(4), 8).unwrap();
        let merged = |offset: f32| MergedTensors {
            spec,
            out_features: 2,
            codes: vec![0; 16],
            scale: vec![1.0; 4],
            offset: vec![0.0, 0.0, 0.0, offset],
        };
        assert_eq!(merged(0.0).stored_bits(), 16 * 3 + 4 * 32);
        assert_eq!(merged(0.5).stored_bits(), 16 * 3 + 4 * 64);
        let affine = |zero: f32| AffineTensors {
            spec,
            out_features: 2,
            codes: vec![0; 16],
            scale: vec![1.0; 4],
            zero_point: vec![4.0, 4.0, 4.0, zero],
        };
        assert_eq!(affine(4.0).stored_bits(), 16 * 3 + 4 * 32);
        assert_eq!(affine(7.0).stored_bits(), 16 * 3 + 4 * 35);
        assert_eq!(affine(7.5).stored_bits(), 16 * 3 + 4 * 64);
        assert_eq!(affine(8.0).stored_bits(), 16 * 3 + 4 * 64);
    }
}
