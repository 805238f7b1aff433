//! A weight that is not trained, in the type that its checkpoint has it in.

use std::borrow::Cow;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::backend::Storage;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::ops::prefix;

/// Type that a frozen weight is stored in. Every operation reads it as the f32 that it stands for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum WeightType {
    /// Four bytes a weight.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

impl WeightType {
    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A frozen weight on a device; on the host it is `FrozenWeight<Cpu>`.
pub enum FrozenWeight<B: Storage + ?Sized> {
    /// As f32.
    F32(B::Floats),
    /// As bfloat16.
    Bf16(B::Halves),
    /// As IEEE 754 binary16.
    F16(B::Halves),
}

/// A borrowed weight, in whatever type it is stored.
pub enum WeightView<'a, B: Storage + ?Sized> {
    /// As f32.
    F32(&'a B::Floats),
    /// As bfloat16.
    Bf16(&'a B::Halves),
    /// As IEEE 754 binary16.
    F16(&'a B::Halves),
}

impl<B: Storage + ?Sized> Clone for WeightView<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Storage + ?Sized> Copy for WeightView<'_, B> {}

impl<B: Storage + ?Sized> FrozenWeight<B> {
    /// For the operations that read it.
    pub fn view(&self) -> WeightView<'_, B> {
        match self {
            Self::F32(values) => WeightView::F32(values),
            Self::Bf16(halves) => WeightView::Bf16(halves),
            Self::F16(halves) => WeightView::F16(halves),
        }
    }

    /// What it is stored in.
    pub fn stored(&self) -> WeightType {
        match self {
            Self::F32(_) => WeightType::F32,
            Self::Bf16(_) => WeightType::Bf16,
            Self::F16(_) => WeightType::F16,
        }
    }
}

impl<B: Storage> FrozenWeight<B> {
    /// The first `len` weights, on the host.
    ///
    /// # Errors
    /// When there are fewer; when the device failed.
    pub fn download(&self, backend: &B, len: usize) -> Result<FrozenWeight<Cpu>> {
        Ok(match self {
            Self::F32(values) => FrozenWeight::F32(backend.download(values, len)?),
            Self::Bf16(halves) => FrozenWeight::Bf16(backend.download_halves(halves, len)?),
            Self::F16(halves) => FrozenWeight::F16(backend.download_halves(halves, len)?),
        })
    }
}

impl FrozenWeight<Cpu> {
    /// Rounds values once to a type.
    pub fn rounded(values: Vec<f32>, to: WeightType) -> Self {
        match to {
            WeightType::F32 => Self::F32(values),
            WeightType::Bf16 => Self::Bf16(
                values.par_iter().map(|value| bf16::from_f32(*value).to_bits()).collect(),
            ),
            WeightType::F16 => {
                Self::F16(values.par_iter().map(|value| f16::from_f32(*value).to_bits()).collect())
            }
        }
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(halves) | Self::F16(halves) => halves.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The floats that the weights stand for.
    pub fn into_floats(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values,
            Self::Bf16(halves) => halves.into_par_iter().map(bf16_to_f32).collect(),
            Self::F16(halves) => halves.into_par_iter().map(f16_to_f32).collect(),
        }
    }

    /// The same, copied only where they are stored otherwise.
    pub fn to_floats(&self) -> Cow<'_, [f32]> {
        match self {
            Self::F32(values) => values.into(),
            Self::Bf16(halves) => {
                halves.par_iter().map(|half| bf16_to_f32(*half)).collect::<Vec<f32>>().into()
            }
            Self::F16(halves) => {
                halves.par_iter().map(|half| f16_to_f32(*half)).collect::<Vec<f32>>().into()
            }
        }
    }

    /// The first NaN or infinity, and where it stands.
    pub fn first_non_finite(&self) -> Option<(usize, f32)> {
        Weights::new("weight", self.view(), self.len()).ok()?.first_non_finite()
    }

    /// Copies to a device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn upload<B: Storage>(&self, backend: &B) -> Result<FrozenWeight<B>> {
        Ok(match self {
            Self::F32(values) => FrozenWeight::F32(backend.upload(values)?),
            Self::Bf16(halves) => FrozenWeight::Bf16(backend.upload_halves(halves)?),
            Self::F16(halves) => FrozenWeight::F16(backend.upload_halves(halves)?),
        })
    }
}

/// Weights in memory, in whatever type, their number checked.
#[derive(Clone, Copy)]
pub(crate) enum Weights<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
    F16(&'a [u16]),
}

impl<'a> Weights<'a> {
    pub(crate) fn new(
        operation: &'static str,
        weight: WeightView<'a, Cpu>,
        len: usize,
    ) -> Result<Self> {
        Ok(match weight {
            WeightView::F32(values) => Self::F32(prefix(operation, "weight", values, len)?),
            WeightView::Bf16(halves) => Self::Bf16(prefix(operation, "weight", halves, len)?),
            WeightView::F16(halves) => Self::F16(prefix(operation, "weight", halves, len)?),
        })
    }

    /// `len` weights from `start` on.
    #[inline(always)]
    pub(crate) fn part(self, start: usize, len: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[start..][..len]),
            Self::Bf16(halves) => Self::Bf16(&halves[start..][..len]),
            Self::F16(halves) => Self::F16(&halves[start..][..len]),
        }
    }

    /// Calls `write(output, weight)` for every weight and what stands in its place.
    #[inline(always)]
    pub(crate) fn each(self, output: &mut [f32], write: impl Fn(&mut f32, f32)) {
        match self {
            Self::F32(values) => {
                output.iter_mut().zip(values).for_each(|(to, value)| write(to, *value));
            }
            Self::Bf16(halves) => {
                output.iter_mut().zip(halves).for_each(|(to, half)| write(to, bf16_to_f32(*half)));
            }
            Self::F16(halves) => {
                output.iter_mut().zip(halves).for_each(|(to, half)| write(to, f16_to_f32(*half)));
            }
        }
    }

    /// The first NaN or infinity, and where it stands.
    fn first_non_finite(self) -> Option<(usize, f32)> {
        let index = match self {
            Self::F32(values) => values.iter().position(|value| !value.is_finite()),
            Self::Bf16(halves) => halves.iter().position(|half| !bf16_to_f32(*half).is_finite()),
            Self::F16(halves) => halves.iter().position(|half| !f16_to_f32(*half).is_finite()),
        }?;
        Some((index, self.at(index)))
    }

    fn at(self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::Bf16(halves) => bf16_to_f32(halves[index]),
            Self::F16(halves) => f16_to_f32(halves[index]),
        }
    }

    /// Refuses the first NaN or infinity.
    pub(crate) fn refuse_non_finite(self, operation: &'static str) -> Result<()> {
        match self.first_non_finite() {
            Some((index, value)) => {
                let tensor = format!("{operation}: weight");
                Err(Error::NonFinite { tensor, index, value })
            }
            None => Ok(()),
        }
    }
}

/// The upper half of an f32 is a bf16.
#[inline(always)]
fn bf16_to_f32(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Exact, subnormal numbers included, and simple enough to be vectorised: the bits shifted to
/// where an f32 has them are 2^112 times too small.
#[inline(always)]
fn f16_to_f32(half: u16) -> f32 {
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = u32::from(half & 0x7fff) << 13;
    let is_finite = half & 0x7c00 != 0x7c00;
    let finite = (f32::from_bits(magnitude) * SCALE).to_bits();
    let bits = if is_finite { finite } else { magnitude | 0x7f80_0000 };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_to_what_it_stands_for() {
        for half in 0..=u16::MAX {
            let same = |actual: f32, expected: f32| {
                actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan()
            };
            assert!(same(f16_to_f32(half), f16::from_bits(half).to_f32()), "{half:#x}");
            assert!(same(bf16_to_f32(half), bf16::from_bits(half).to_f32()), "{half:#x}");
        }
    }
}
