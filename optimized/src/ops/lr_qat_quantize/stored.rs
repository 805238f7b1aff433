//! The frozen weight of LR-QAT in its cheap type. It is made once, on the host, for every backend.

use half::{bf16, f16};
use plumbline_reference::spec::{Downcast, InnerScale, QuantSpec};

use crate::backend::Storage;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::ops::fake_quantize::floored;
use crate::ops::{prefix, refuse_non_finite};

pub(super) const NAME: &str = "lr_qat_downcast";

/// A frozen weight `[out, in]` in units of its first grid, as it is kept between steps. Eq. (M4).
pub enum StoredWeight<B: Storage + ?Sized> {
    /// Four bytes a weight; also the weight itself, under a live inner scale.
    F32(B::Floats),
    /// bfloat16.
    Bf16(B::Halves),
    /// IEEE 754 binary16.
    F16(B::Halves),
    /// A byte a weight, in units of `2^(bits-8)`.
    Fixed8(B::Codes),
    /// Two codes to a byte, rows of `ceil(in / 2)` bytes; the even input is the low nibble.
    Int(B::Codes),
}

/// Bytes of a row of `width` stored weights.
pub fn stored_row_bytes(inner_scale: InnerScale, width: usize) -> usize {
    match inner_scale {
        InnerScale::Live | InnerScale::Frozen(Downcast::F32) => 4 * width,
        InnerScale::Frozen(Downcast::Bf16 | Downcast::F16) => 2 * width,
        InnerScale::Frozen(Downcast::Fixed8) => width,
        InnerScale::Frozen(Downcast::Int) => width.div_ceil(2),
    }
}

impl StoredWeight<Cpu> {
    /// Rounds `weight / max(initial_scale, 1e-8)` once to the stored type. Eq. (M4).
    ///
    /// # Shapes
    /// `weight [out, in]`, `initial_scale, zero_point [out, groups]`
    ///
    /// # Errors
    /// `Spec` where the type does not hold codes of that width; `NonFinite` naming the tensor, also
    /// for a quotient that a float type does not reach; `Invalid` for a zero point that is no code;
    /// `Length`.
    pub fn downcast(
        weight: &[f32],
        initial_scale: &[f32],
        zero_point: Option<&[f32]>,
        spec: QuantSpec,
        kind: Downcast,
    ) -> Result<Self> {
        kind.check(spec.bits())?;
        let groups = weight.len() / spec.group_size();
        let scale = prefix(NAME, "initial_scale", initial_scale, groups)?;
        refuse_non_finite(NAME, "weight", weight)?;
        refuse_non_finite(NAME, "initial_scale", scale)?;
        let low = lowest_codes(spec, zero_point, groups)?;
        let size = spec.group_size();
        let argument = |i: usize| weight[i] / floored(scale[i / size]);
        let weights = 0..weight.len();
        let stored = match kind {
            Downcast::F32 => Self::F32(weights.map(argument).collect()),
            Downcast::Bf16 => {
                Self::Bf16(weights.map(|i| bf16::from_f32(argument(i)).to_bits()).collect())
            }
            Downcast::F16 => {
                Self::F16(weights.map(|i| f16::from_f32(argument(i)).to_bits()).collect())
            }
            Downcast::Fixed8 => {
                let unit = fixed_unit(spec);
                let byte = |i: usize| fixed(spec, argument(i), low[i / size], unit);
                return Ok(Self::Fixed8(weights.map(byte).collect()));
            }
            Downcast::Int => {
                let nibble = |i: usize| fixed(spec, argument(i), low[i / size], 1.0) as u8 & 0xf;
                return Ok(Self::Int(pack_nibbles(weight.len(), spec.in_features(), nibble)));
            }
        };
        // The float types do not clip, so a quotient may lie beyond them.
        refuse_non_finite(NAME, "phi", &stored.phi(spec, zero_point)?)?;
        Ok(stored)
    }

    /// What the bytes stand for, `phi [out, in]`.
    ///
    /// # Errors
    /// As [`StoredWeight::downcast`].
    pub fn phi(&self, spec: QuantSpec, zero_point: Option<&[f32]>) -> Result<Vec<f32>> {
        let width = spec.in_features();
        let rows = match self {
            Self::F32(values) => values.len() / width,
            Self::Bf16(halves) | Self::F16(halves) => halves.len() / width,
            Self::Fixed8(bytes) => bytes.len() / width,
            Self::Int(bytes) => bytes.len() / width.div_ceil(2),
        };
        let low = lowest_codes(spec, zero_point, rows * spec.groups())?;
        let mut phi = vec![0.0; rows * width];
        for (row, phi) in phi.chunks_exact_mut(width).enumerate() {
            self.read_row(spec, row, &low[row * spec.groups()..], phi);
        }
        Ok(phi)
    }

    /// Copies to a device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn upload<B: Storage>(&self, backend: &B) -> Result<StoredWeight<B>> {
        Ok(match self {
            Self::F32(values) => StoredWeight::F32(backend.upload(values)?),
            Self::Bf16(halves) => StoredWeight::Bf16(backend.upload_halves(halves)?),
            Self::F16(halves) => StoredWeight::F16(backend.upload_halves(halves)?),
            Self::Fixed8(bytes) => StoredWeight::Fixed8(backend.upload_codes(bytes)?),
            Self::Int(bytes) => StoredWeight::Int(backend.upload_codes(bytes)?),
        })
    }

    /// Refuses a buffer that is too short for so many rows.
    pub(super) fn check(&self, operation: &'static str, rows: usize, width: usize) -> Result<()> {
        let of_bytes =
            |bytes: &[i8], row: usize| prefix(operation, "weight", bytes, rows * row).map(|_| ());
        match self {
            Self::F32(values) => prefix(operation, "weight", values, rows * width).map(|_| ()),
            Self::Bf16(halves) | Self::F16(halves) => {
                prefix(operation, "weight", halves, rows * width).map(|_| ())
            }
            Self::Fixed8(bytes) => of_bytes(bytes, width),
            Self::Int(bytes) => of_bytes(bytes, width.div_ceil(2)),
        }
    }

    /// Reads one row; `low` is the smallest code of each of its groups.
    #[inline(always)]
    pub(super) fn read_row(&self, spec: QuantSpec, row: usize, low: &[f32], phi: &mut [f32]) {
        let (width, size) = (spec.in_features(), spec.group_size());
        // What is stored always has the range of the signed grid.
        let shift = |low: f32| low - spec.qmin() as f32;
        match self {
            Self::F32(values) => phi.copy_from_slice(&values[row * width..][..width]),
            Self::Bf16(halves) => {
                for (phi, half) in phi.iter_mut().zip(&halves[row * width..]) {
                    *phi = f32::from_bits(u32::from(*half) << 16);
                }
            }
            Self::F16(halves) => {
                for (phi, half) in phi.iter_mut().zip(&halves[row * width..]) {
                    *phi = f16::from_bits(*half).to_f32();
                }
            }
            Self::Fixed8(bytes) => {
                let unit = fixed_unit(spec);
                let groups = bytes[row * width..][..width].chunks_exact(size);
                for ((phi, bytes), low) in phi.chunks_exact_mut(size).zip(groups).zip(low) {
                    for (phi, byte) in phi.iter_mut().zip(bytes) {
                        *phi = f32::from(*byte) / unit + shift(*low);
                    }
                }
            }
            Self::Int(bytes) => {
                let row_bytes = width.div_ceil(2);
                let bytes = &bytes[row * row_bytes..][..row_bytes];
                for (i, phi) in phi.iter_mut().enumerate() {
                    // Shifting up puts the sign of the code where that of the byte is.
                    let code = bytes[i / 2] << (4 - 4 * (i % 2)) >> 4;
                    *phi = f32::from(code) + shift(low[i / size]);
                }
            }
        }
    }
}

/// The smallest code of every group. Eq. (M4d).
pub(super) fn lowest_codes(
    spec: QuantSpec,
    zero_point: Option<&[f32]>,
    groups: usize,
) -> Result<Vec<f32>> {
    let Some(zero_point) = zero_point else { return Ok(vec![spec.qmin() as f32; groups]) };
    let zero_point = prefix(NAME, "zero_point", zero_point, groups)?;
    check_zero_point_bits(spec)?;
    let largest = spec.unsigned_max();
    let is_code = |z: f32| z == z.trunc() && (0.0..=largest as f32).contains(&z);
    if let Some(index) = zero_point.iter().position(|z| !is_code(*z)) {
        let value = zero_point[index];
        let reason = format!(
            "{NAME}: zero_point is {value} at flat index {index}, expected an integer, \
             0 to {largest}"
        );
        return Err(Error::Invalid(reason));
    }
    // From zero, so that a zero_point of 0 gives no negative zero.
    Ok(zero_point.iter().map(|zero_point| 0.0 - zero_point).collect())
}

/// Refuses zero points where a code less one of them needs more than a byte.
pub(super) fn check_zero_point_bits(spec: QuantSpec) -> Result<()> {
    if spec.bits().count() == 8 {
        let reason = "bits is 8, expected 2 to 7 with a zero_point";
        return Err(Error::Invalid(reason.into()));
    }
    Ok(())
}

/// Steps of `fixed8` in one step of the grid.
pub(super) fn fixed_unit(spec: QuantSpec) -> f32 {
    f32::from(1_u16 << (8 - spec.bits().count()))
}

/// What is stored of one argument, in units of `1 / unit`. Eqs. (M4b), (M4c).
fn fixed(spec: QuantSpec, argument: f32, low: f32, unit: f32) -> i8 {
    let clamped = argument.clamp(low, low + spec.unsigned_max() as f32);
    let fixed = (unit * clamped).round_ties_even();
    (fixed - unit * (low - spec.qmin() as f32)) as i8
}

/// Two codes to a byte, row by row.
fn pack_nibbles(len: usize, width: usize, nibble: impl Fn(usize) -> u8) -> Vec<i8> {
    let rows = (0..len).step_by(width);
    rows.flat_map(|start| {
        let nibble = &nibble;
        (start..start + width).step_by(2).map(move |i| {
            let high = if i + 1 < start + width { nibble(i + 1) } else { 0 };
            (nibble(i) | high << 4) as i8
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use plumbline_reference::spec::Bits;

    use super::*;

    fn spec(bits: u32, in_features: usize) -> QuantSpec {
        QuantSpec::new(Bits::new(bits).unwrap(), None, in_features).unwrap()
    }

    /// Bytes of what is kept.
    fn bytes(stored: &StoredWeight<Cpu>) -> usize {
        match stored {
            StoredWeight::F32(values) => 4 * values.len(),
            StoredWeight::Bf16(halves) | StoredWeight::F16(halves) => 2 * halves.len(),
            StoredWeight::Fixed8(bytes) | StoredWeight::Int(bytes) => bytes.len(),
        }
    }

    #[test]
    fn a_type_takes_its_bytes_and_no_more() {
        // Rows of five inputs: the last nibble of each is padding.
        let weight = vec![0.25; 15];
        for (kind, expected) in [
            (Downcast::F32, 60),
            (Downcast::Bf16, 30),
            (Downcast::F16, 30),
            (Downcast::Fixed8, 15),
            (Downcast::Int, 9),
        ] {
            let stored = StoredWeight::downcast(&weight, &[1.0; 3], None, spec(4, 5), kind);
            assert_eq!(bytes(&stored.unwrap()), expected, "{kind:?}");
        }
    }

    #[test]
    fn example_of_m4() {
        let weight = [0.609375, -6.0, 3.65625];
        let run = |zero_point: Option<&[f32]>, kind| {
            let stored = StoredWeight::downcast(&weight, &[0.5], zero_point, spec(4, 3), kind);
            let stored = stored.unwrap();
            let phi = stored.phi(spec(4, 3), zero_point).unwrap();
            let bytes = match stored {
                StoredWeight::Fixed8(bytes) | StoredWeight::Int(bytes) => bytes,
                _ => vec![],
            };
            (bytes, phi)
        };
        assert_eq!(run(None, Downcast::Fixed8), (vec![20, -128, 112], vec![1.25, -8.0, 7.0]));
        let packed = [0x81_u8, 0x07].map(|byte| byte as i8).to_vec();
        assert_eq!(run(None, Downcast::Int), (packed, vec![1.0, -8.0, 7.0]));
        let shifted = (vec![-60, -128, 37], vec![1.25, -3.0, 7.3125]);
        assert_eq!(run(Some(&[3.0]), Downcast::Fixed8), shifted);
        for kind in [Downcast::F32, Downcast::Bf16, Downcast::F16] {
            assert_eq!(run(None, kind), (vec![], vec![1.21875, -12.0, 7.3125]));
        }
    }

    #[test]
    fn every_nibble_comes_back_from_either_half_of_its_byte() {
        for zero_point in [None, Some([0.0]), Some([5.0]), Some([15.0])] {
            let zero_point = zero_point.as_ref().map(|z| &z[..]);
            let low = zero_point.map_or(-8.0, |z| -z[0]);
            let codes: Vec<f32> = (0..17).map(|i| low + (i % 16) as f32).collect();
            let spec = spec(4, codes.len());
            let stored =
                StoredWeight::downcast(&codes, &[1.0], zero_point, spec, Downcast::Int).unwrap();
            assert_eq!(stored.phi(spec, zero_point).unwrap(), codes);
            let shifted: Vec<f32> = codes.iter().rev().copied().collect();
            let stored =
                StoredWeight::downcast(&shifted, &[1.0], zero_point, spec, Downcast::Int).unwrap();
            assert_eq!(stored.phi(spec, zero_point).unwrap(), shifted);
        }
    }

    #[test]
    fn what_a_type_does_not_hold_is_refused() {
        let run = |weight: f32, zero_point: Option<f32>, bits, kind| {
            let zero_point = zero_point.map(|z| [z]);
            let zero_point = zero_point.as_ref().map(|z| &z[..]);
            StoredWeight::downcast(&[weight], &[1.0], zero_point, spec(bits, 1), kind)
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        assert!(run(7e4, None, 4, Downcast::F16).unwrap_err().contains("phi"));
        assert!(run(3e38, None, 4, Downcast::Bf16).is_ok());
        assert!(run(3.4e38, None, 4, Downcast::Bf16).unwrap_err().contains("phi"));
        assert!(run(7e4, None, 4, Downcast::Int).is_ok(), "integers clip");
        assert!(run(f32::NAN, None, 4, Downcast::Int).unwrap_err().contains("weight"));
        assert!(run(1.0, None, 5, Downcast::Int).unwrap_err().contains("bits is 5"));
        assert!(run(1.0, None, 8, Downcast::Fixed8).unwrap_err().contains("bits is 8"));
        assert!(run(1.0, Some(2.5), 4, Downcast::F32).unwrap_err().contains("zero_point is 2.5"));
        assert!(run(1.0, Some(16.0), 4, Downcast::F32).unwrap_err().contains("0 to 15"));
        assert!(run(1.0, Some(0.0), 8, Downcast::F32).unwrap_err().contains("bits is 8"));
    }
}
