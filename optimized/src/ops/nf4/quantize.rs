//! From a weight to its codes. Eqs. (Q18a), (Q19a), (Q19b).

use plumbline_reference::spec::BlockSize;
use rayon::prelude::*;

use super::{ABSMAX_BLOCK, Absmax, DoubleAbsmax, MAGNITUDES, Nf4Weight};
use crate::backend::Storage;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::ops::refuse_non_finite;

const NAME: &str = "nf4_quantize";

/// Quantiles of a normal distribution, in ascending order.
const LEVEL: [f32; super::LEVELS] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The code of level 0: that of an empty block, and of the place behind an odd last code.
const ZERO_CODE: u8 = 7;

/// The code of 0 among the magnitudes.
const ZERO_MAGNITUDE: usize = 127;

impl Nf4Weight<Cpu> {
    /// The nearest level of every weight over the largest magnitude of its block, the lower one of
    /// two that are equally near. Eq. (Q18a). A block runs on over the end of a row; the last one
    /// may be short. With `double_quantize` the magnitudes are kept in eight bits, Eq. (Q19b); the
    /// codes are those of the magnitudes before.
    ///
    /// # Errors
    /// `NonFinite` for a bad weight, and for a mean of magnitudes that overflows; `Invalid` for a
    /// weight without elements.
    pub fn quantize(weight: &[f32], block_size: BlockSize, double_quantize: bool) -> Result<Self> {
        refuse_non_finite(NAME, "weight", weight)?;
        if weight.is_empty() {
            return Err(Error::Invalid(format!("{NAME}: weight has no element")));
        }
        let (len, size) = (weight.len(), block_size.get());
        let halfway = halfway_points(&LEVEL);
        let mut codes = vec![ZERO_CODE; len.next_multiple_of(2)];
        let blocks = codes[..len].par_chunks_mut(size).zip(weight.par_chunks(size));
        let absmax: Vec<f32> = blocks
            .map(|(codes, weight)| {
                let absmax = weight.iter().fold(0.0, |largest: f32, w| largest.max(w.abs()));
                if absmax > 0.0 {
                    for (code, weight) in codes.iter_mut().zip(weight) {
                        *code = nearest(&halfway, weight / absmax);
                    }
                }
                absmax
            })
            .collect();
        let pairs = codes.par_chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as i8);
        let absmax = match double_quantize {
            false => Absmax::F32(absmax),
            true => Absmax::Double(double(&absmax)?),
        };
        let tables = LEVEL.into_iter().chain(magnitudes()).collect();
        Ok(Self { len, block_size, codes: pairs.collect(), absmax, tables })
    }

    /// The code of every element, `len` of them.
    pub fn codes(&self) -> Vec<u8> {
        (0..self.len).map(|n| self.code(n)).collect()
    }

    /// The magnitudes that blocks are multiplied with, `[blocks]`.
    pub fn absmax(&self) -> Vec<f32> {
        (0..self.blocks()).map(|block| self.absmax_of(block)).collect()
    }

    /// What is kept of the magnitudes, where they are in eight bits.
    pub fn double_absmax(&self) -> Option<&DoubleAbsmax<Cpu>> {
        match &self.absmax {
            Absmax::F32(_) => None,
            Absmax::Double(stored) => Some(stored),
        }
    }

    /// Copies to a device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn upload<B: Storage>(&self, backend: &B) -> Result<Nf4Weight<B>> {
        let absmax = match &self.absmax {
            Absmax::F32(absmax) => Absmax::F32(backend.upload(absmax)?),
            Absmax::Double(DoubleAbsmax { codes, scale, offset }) => {
                let (codes, scale) = (backend.upload_codes(codes)?, backend.upload(scale)?);
                Absmax::Double(DoubleAbsmax { codes, scale, offset: *offset })
            }
        };
        Ok(Nf4Weight {
            len: self.len,
            block_size: self.block_size,
            codes: backend.upload_codes(&self.codes)?,
            absmax,
            tables: backend.upload(&self.tables)?,
        })
    }
}

/// Eq. (Q19b). The sum of the mean runs in ascending order of the blocks.
fn double(absmax: &[f32]) -> Result<DoubleAbsmax<Cpu>> {
    let offset = absmax.iter().sum::<f32>() / absmax.len() as f32;
    refuse_non_finite(NAME, "absmax_offset", &[offset])?;
    let of_block = |block: &[f32]| {
        block.iter().fold(0.0, |largest: f32, absmax| largest.max((absmax - offset).abs()))
    };
    let scale: Vec<f32> = absmax.chunks(ABSMAX_BLOCK).map(of_block).collect();
    refuse_non_finite(NAME, "absmax_scale", &scale)?;
    let halfway = halfway_points(&magnitudes());
    let code = |(b, absmax): (usize, &f32)| match scale[b / ABSMAX_BLOCK] {
        0.0 => ZERO_MAGNITUDE as i8,
        scale => nearest(&halfway, (absmax - offset) / scale) as i8,
    };
    let codes = absmax.iter().enumerate().map(code).collect();
    Ok(DoubleAbsmax { codes, scale, offset })
}

/// The values of the magnitudes' codes, in ascending order: a decade from `10^(e-7)` on is cut into
/// `2^e` equal parts, and their middles are taken with both signs. Eq. (Q19a).
fn magnitudes() -> [f32; MAGNITUDES] {
    let mut values = [0.0; MAGNITUDES];
    values[MAGNITUDES - 1] = 1.0;
    for place in 1..=ZERO_MAGNITUDE {
        let e = place.ilog2();
        let k = place - (1 << e);
        // The middle is an integer of few bits over a power of two, and 10^7 is below 2^24: both
        // are exact, and the quotient is the only rounding.
        let parts = (2 << e) as f32;
        let middle = (parts + 9.0 * (2 * k + 1) as f32) / parts;
        let value = middle / 10_u32.pow(7 - e) as f32;
        values[ZERO_MAGNITUDE + place] = value;
        values[ZERO_MAGNITUDE - place] = -value;
    }
    values
}

/// Between neighbours of a table; f64 holds the halves of such sums exactly.
fn halfway_points(table: &[f32]) -> Vec<f64> {
    table.windows(2).map(|pair| f64::midpoint(pair[0].into(), pair[1].into())).collect()
}

/// The number of halfway points below `value`.
fn nearest(halfway: &[f64], value: f32) -> u8 {
    halfway.partition_point(|middle| f64::from(value) > *middle) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::nf4::{Nf4, kept_bytes};

    fn quantized(weight: &[f32], block_size: usize, double_quantize: bool) -> Nf4Weight<Cpu> {
        Nf4Weight::quantize(weight, BlockSize::new(block_size).unwrap(), double_quantize).unwrap()
    }

    fn output(weight: &Nf4Weight<Cpu>) -> Vec<f32> {
        let mut output = vec![f32::NAN; weight.elements()];
        Cpu.nf4_dequantize(weight, &mut output).unwrap();
        output
    }

    #[test]
    fn example_of_q18() {
        let weight = quantized(&[4.0, -4.0, 1.0, 0.0], 4, false);
        assert_eq!(weight.codes(), [15, 0, 10, 7]);
        assert_eq!(weight.codes, [240_u8 as i8, 167_u8 as i8]);
        assert_eq!(weight.absmax(), [4.0]);
        assert_eq!(output(&weight), [4.0, -4.0, 0.984_449_2, 0.0]);
    }

    #[test]
    fn example_of_q19() {
        let weight = quantized(&[1.0, -3.0], 1, true);
        let stored = weight.double_absmax().unwrap();
        assert_eq!((&stored.codes[..], &stored.scale[..]), (&[0, -1][..], &[1.0][..]));
        assert_eq!(stored.offset, 2.0);
        let lowest = 2.0 - 1271.0 / 1280.0;
        assert_eq!(weight.absmax(), [lowest, 3.0]);
        assert_eq!(output(&weight), [lowest, -3.0]);
    }

    #[test]
    fn magnitudes_ascend_between_their_ends() {
        let values = magnitudes();
        assert!(values.is_sorted_by(|a, b| a < b));
        assert_eq!((values[0], values[127], values[255]), (-1271.0 / 1280.0, 0.0, 1.0));
        assert_eq!(values[128], 5.5e-7, "the middle of the lowest decade");
    }

    #[test]
    fn odd_blocks_begin_in_either_half_of_a_byte() {
        let weight: Vec<f32> = (0..11).map(|n| (n % 5) as f32 - 2.0).collect();
        let codes = quantized(&weight, 3, false);
        assert_eq!(codes.codes.len(), 6);
        assert_eq!(codes.codes[5] & 0xf, ZERO_CODE as i8);
        let expected: Vec<f32> =
            weight.chunks(3).flat_map(|block| output(&quantized(block, 3, false))).collect();
        assert_eq!(output(&codes), expected);
    }

    #[test]
    fn a_weight_takes_its_bytes_and_no_more() {
        let weight = vec![0.25; 64 * 300];
        for double_quantize in [false, true] {
            let kept = quantized(&weight, 64, double_quantize);
            let absmax = match &kept.absmax {
                Absmax::F32(absmax) => 4 * absmax.len(),
                Absmax::Double(DoubleAbsmax { codes, scale, .. }) => {
                    codes.len() + 4 * scale.len() + 4
                }
            };
            let held = kept.codes.len() + absmax + 4 * kept.tables.len();
            let block_size = BlockSize::new(64).unwrap();
            assert_eq!(kept_bytes(weight.len(), block_size, double_quantize), held);
        }
    }

    #[test]
    fn what_has_no_codes_is_refused() {
        let refused = |weight: &[f32], double_quantize| {
            Nf4Weight::quantize(weight, BlockSize::new(1).unwrap(), double_quantize)
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        let bad = refused(&[0.0, f32::NEG_INFINITY], false);
        assert_eq!(bad, "nf4_quantize: weight is not finite: -inf at flat index 1");
        assert!(refused(&[3e38, 3e38], true).contains("absmax_offset is not finite"));
        assert_eq!(refused(&[], true), "nf4_quantize: weight has no element");
        assert!(Nf4Weight::quantize(&[3e38, 3e38], BlockSize::new(1).unwrap(), false).is_ok());
    }
}
