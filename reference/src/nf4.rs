//! NF4: codes of a table of 16 levels, and the 8-bit form of the block magnitudes.
//!
//! A QLoRA layer has no equation of its own. It is (A2) on the weight that [`dequantize`] gives.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use crate::spec::BlockSize;
use crate::{Error, Real, check};

/// The levels in ascending order, numbers of binary32. Source: bitsandbytes,
/// `backends/utils.py`.
pub const LEVELS: [f64; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The code of level 0, which an empty block has.
pub const ZERO_CODE: u8 = 7;

/// Entries of `absmax` that share one scale in double quantization.
pub const ABSMAX_BLOCK: usize = 256;

/// The code of 0 in the map of double quantization.
pub const ABSMAX_ZERO_CODE: u8 = 127;

/// A weight as codes, and the weight that they stand for.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4<T> {
    /// `[out, in]`, each below 16.
    pub codes: Array2<u8>,
    /// `[blocks]`
    pub absmax: Array1<T>,
    /// `[out, in]`, the dequantized codes.
    pub output: Array2<T>,
}

/// `absmax` in 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct DoubleQuantized<T> {
    /// `[blocks]`
    pub absmax_codes: Array1<u8>,
    /// `[ceil(blocks / 256)]`
    pub absmax_scale: Array1<T>,
    /// The mean that was taken off.
    pub absmax_offset: T,
}

/// Weights to codes. Eq. (Q18a).
///
/// ```text
/// absmax[b] = max_(n in b) |weight[n]|
/// codes[n] = the number of k with weight[n] / absmax[b] > (LEVELS[k] + LEVELS[k+1]) / 2
/// codes[n] = 7 where absmax[b] = 0
/// ```
///
/// `n` counts the elements of the weight row by row and `b = n / block_size`: a block runs on over
/// the end of a row.
///
/// # Shapes
/// `weight [out, in]` -> `codes, output [out, in]`, `absmax [blocks]`
///
/// # Errors
/// `NonFinite`.
pub fn quantize<T: Real>(weight: ArrayView2<T>, block_size: BlockSize) -> Result<Nf4<T>, Error> {
    const OPERATION: &str = "nf4.quantize";
    check::finite(OPERATION, "weight", &weight)?;
    let columns = weight.ncols();
    let mut absmax = Array1::zeros(block_size.blocks(weight.len()));
    for ((o, i), &weight) in weight.indexed_iter() {
        let b = (o * columns + i) / block_size.get();
        absmax[b] = Real::max(absmax[b], weight.abs());
    }
    let codes = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let absmax: T = absmax[(o * columns + i) / block_size.get()];
        if absmax == T::zero() { ZERO_CODE } else { nearest(&LEVELS, weight[[o, i]] / absmax) }
    });
    let output = dequantize(codes.view(), absmax.view(), block_size)?;
    Ok(Nf4 { codes, absmax, output })
}

/// Codes to weights. Eq. (Q18b).
///
/// ```text
/// output[n] = LEVELS[codes[n]] * absmax[b]
/// ```
///
/// # Shapes
/// `codes [out, in]`, `absmax [blocks]` -> `[out, in]`
///
/// # Errors
/// `Shape`, `NonFinite`, `UnsignedCodeOutOfRange` for a code above 15.
pub fn dequantize<T: Real>(
    codes: ArrayView2<u8>,
    absmax: ArrayView1<T>,
    block_size: BlockSize,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "nf4.dequantize";
    check::input(OPERATION, "absmax", &absmax, &[block_size.blocks(codes.len())])?;
    let largest = LEVELS.len() as u8 - 1;
    if let Some(((o, i), &code)) = codes.indexed_iter().find(|(_, code)| **code > largest) {
        let (operation, index) = (OPERATION, vec![o, i]);
        return Err(Error::UnsignedCodeOutOfRange { operation, index, code, largest });
    }
    let columns = codes.ncols();
    let output = Array2::from_shape_fn(codes.dim(), |(o, i)| {
        let b = (o * columns + i) / block_size.get();
        T::of(LEVELS[usize::from(codes[[o, i]])]) * absmax[b]
    });
    check::result(OPERATION, "output", output)
}

/// The number of halfway points below `value`: the nearest entry of a table, the lower one of two
/// that are equally near.
///
/// Entries are binary32 numbers of like size, so binary64 holds their sum without a rounding.
fn nearest<T: Real>(table: &[f64], value: T) -> u8 {
    let below = |pair: &&[f64]| value.value() > f64::midpoint(pair[0], pair[1]);
    table.windows(2).filter(below).count() as u8
}

/// Two codes a byte, in the order of bitsandbytes. Eq. (Q18c).
///
/// ```text
/// byte[m] = 16 * codes[2*m] + codes[2*m+1]
/// ```
///
/// An odd last code stands beside the code of level 0.
///
/// # Shapes
/// `codes [out, in]` -> `[ceil(out * in / 2)]`
///
/// # Errors
/// `UnsignedCodeOutOfRange` for a code above 15.
pub fn pack(codes: ArrayView2<u8>) -> Result<Vec<u8>, Error> {
    let largest = LEVELS.len() as u8 - 1;
    if let Some(((o, i), &code)) = codes.indexed_iter().find(|(_, code)| **code > largest) {
        let (operation, index) = ("nf4.pack", vec![o, i]);
        return Err(Error::UnsignedCodeOutOfRange { operation, index, code, largest });
    }
    let flat: Vec<u8> = codes.iter().copied().collect();
    let pairs = flat.chunks(2);
    Ok(pairs.map(|pair| 16 * pair[0] + pair.get(1).unwrap_or(&ZERO_CODE)).collect())
}

/// The codes in packed bytes. Eq. (Q18c).
///
/// # Shapes
/// `bytes [ceil(out * in / 2)]` -> `[out, in]`
///
/// # Errors
/// `Shape`.
pub fn unpack(bytes: &[u8], shape: (usize, usize)) -> Result<Array2<u8>, Error> {
    let expected = (shape.0 * shape.1).div_ceil(2);
    check::shape("nf4.unpack", "bytes", &[bytes.len()], &[expected])?;
    Ok(Array2::from_shape_fn(shape, |(o, i)| {
        let n = o * shape.1 + i;
        if n.is_multiple_of(2) { bytes[n / 2] / 16 } else { bytes[n / 2] % 16 }
    }))
}

/// The 256 values that `absmax` is quantized to, in ascending order. Eq. (Q19a).
///
/// ```text
/// MAP = 0, 1 and the numbers +-(2^(e+1) + 9 * (2 * k + 1)) / (2^(e+1) * 10^(7-e)),
///       e = 0..6, k = 0..2^e - 1, each rounded to binary32, in ascending order
/// ```
pub fn absmax_map() -> [f64; 256] {
    let mut map = [0.0; 256];
    map[255] = 1.0;
    let magnitudes = (0..7_u32).flat_map(|e| (0..1_u32 << e).map(move |k| (e, k)));
    for (position, (e, k)) in magnitudes.enumerate() {
        // Both integers are exact: the quotient is rounded, and rounded again to binary32.
        let parts = f64::from(1_u32 << (e + 1));
        let quotient =
            (parts + 9.0 * f64::from(2 * k + 1)) / (parts * f64::from(10_u32.pow(7 - e)));
        let magnitude = f64::from(quotient as f32);
        map[usize::from(ABSMAX_ZERO_CODE) + 1 + position] = magnitude;
        map[usize::from(ABSMAX_ZERO_CODE) - 1 - position] = -magnitude;
    }
    map
}

/// `absmax` to 8-bit codes. Eq. (Q19b).
///
/// ```text
/// absmax_offset = (sum_b absmax[b]) / blocks
/// absmax_scale[s] = max_(b in s) |absmax[b] - absmax_offset|
/// absmax_codes[b] = the number of k with
///     (absmax[b] - absmax_offset) / absmax_scale[s] > (MAP[k] + MAP[k+1]) / 2
/// absmax_codes[b] = 127 where absmax_scale[s] = 0
/// ```
///
/// # Shapes
/// `absmax [blocks]` -> `absmax_codes [blocks]`, `absmax_scale [ceil(blocks / 256)]`
///
/// # Errors
/// `NonFinite`, `Empty` where there is no block.
pub fn double_quantize<T: Real>(absmax: ArrayView1<T>) -> Result<DoubleQuantized<T>, Error> {
    const OPERATION: &str = "nf4.double_quantize";
    check::finite(OPERATION, "absmax", &absmax)?;
    if absmax.is_empty() {
        return Err(Error::Empty { operation: OPERATION, what: "no block" });
    }
    let sum = absmax.iter().fold(T::zero(), |sum, &absmax| sum + absmax);
    let offset =
        check::result(OPERATION, "absmax_offset", ndarray::arr0(sum / T::of(absmax.len() as f64)))?
            [()];
    let centred = absmax.mapv(|absmax| absmax - offset);
    let mut scale = Array1::zeros(absmax.len().div_ceil(ABSMAX_BLOCK));
    for (b, centred) in centred.iter().enumerate() {
        scale[b / ABSMAX_BLOCK] = Real::max(scale[b / ABSMAX_BLOCK], centred.abs());
    }
    let scale = check::result(OPERATION, "absmax_scale", scale)?;
    let map = absmax_map();
    let codes = Array1::from_shape_fn(centred.len(), |b| {
        let scale: T = scale[b / ABSMAX_BLOCK];
        if scale == T::zero() { ABSMAX_ZERO_CODE } else { nearest(&map, centred[b] / scale) }
    });
    Ok(DoubleQuantized { absmax_codes: codes, absmax_scale: scale, absmax_offset: offset })
}

impl<T: Real> DoubleQuantized<T> {
    /// The `absmax` that the codes stand for. Eq. (Q19c).
    ///
    /// ```text
    /// absmax'[b] = MAP[absmax_codes[b]] * absmax_scale[s] + absmax_offset
    /// ```
    ///
    /// # Shapes
    /// `[blocks]`
    ///
    /// # Errors
    /// `Shape`, `NonFinite`.
    pub fn dequantize(&self) -> Result<Array1<T>, Error> {
        const OPERATION: &str = "nf4.dequantize_absmax";
        let scales = self.absmax_codes.len().div_ceil(ABSMAX_BLOCK);
        check::input(OPERATION, "absmax_scale", &self.absmax_scale, &[scales])?;
        check::finite(OPERATION, "absmax_offset", &ndarray::arr0(self.absmax_offset))?;
        let map = absmax_map();
        let absmax = Array1::from_shape_fn(self.absmax_codes.len(), |b| {
            let value = T::of(map[usize::from(self.absmax_codes[b])]);
            value * self.absmax_scale[b / ABSMAX_BLOCK] + self.absmax_offset
        });
        check::result(OPERATION, "absmax", absmax)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, array};

    fn blocks_of(block_size: usize) -> BlockSize {
        BlockSize::new(block_size).unwrap()
    }

    #[test]
    fn example_of_q18() {
        let quantized = quantize(array![[4.0, -4.0, 1.0, 0.0]].view(), blocks_of(4)).unwrap();
        assert_eq!(quantized.codes, array![[15, 0, 10, 7]]);
        assert_eq!(quantized.absmax, array![4.0]);
        assert_eq!(quantized.output, array![[4.0, -4.0, 0.984_449_207_782_745_4, 0.0]]);
        assert_eq!(pack(quantized.codes.view()).unwrap(), [240, 167]);
        assert_eq!(unpack(&[240, 167], (1, 4)).unwrap(), quantized.codes);
    }

    #[test]
    fn example_of_q19() {
        let quantized = double_quantize(array![1.0, 3.0].view()).unwrap();
        assert_eq!(quantized.absmax_codes, array![0, 255]);
        assert_eq!(quantized.absmax_scale, array![1.0]);
        assert_eq!(quantized.absmax_offset, 2.0);
        let lowest = f64::from((1271.0 / 1280.0) as f32);
        assert_eq!(quantized.dequantize().unwrap(), array![2.0 - lowest, 3.0]);
    }

    #[test]
    fn every_level_is_its_own_code() {
        for precision_is_f32 in [false, true] {
            for (code, &level) in LEVELS.iter().enumerate() {
                assert_eq!(f64::from(level as f32), level, "a binary32 number");
                let seen = if precision_is_f32 {
                    nearest(&LEVELS, level as f32)
                } else {
                    nearest(&LEVELS, level)
                };
                assert_eq!(usize::from(seen), code);
            }
        }
    }

    #[test]
    fn a_value_halfway_between_two_levels_is_the_lower_one() {
        for (code, pair) in LEVELS.windows(2).enumerate() {
            let middle = f64::midpoint(pair[0], pair[1]);
            assert_eq!(middle - pair[0], pair[1] - middle, "the halfway point is exact");
            // With a 1 in the block the quotient is the weight.
            let weight = array![[1.0, middle, middle.next_up(), middle.next_down()]];
            let codes = quantize(weight.view(), blocks_of(4)).unwrap().codes;
            let code = code as u8;
            assert_eq!(codes, array![[15, code, code + 1, code]]);
        }
    }

    /// Halfway points are not binary32 numbers; the two beside one fall on either side of it.
    #[test]
    fn f32_is_compared_with_the_exact_halfway_point() {
        for (code, pair) in LEVELS.windows(2).enumerate() {
            let middle = f64::midpoint(pair[0], pair[1]);
            let near = middle as f32;
            let expected = code + usize::from(f64::from(near) > middle);
            assert_eq!(usize::from(nearest(&LEVELS, near)), expected, "{middle}");
        }
    }

    #[test]
    fn blocks_run_on_over_rows_and_the_last_is_short() {
        let weight = array![[1.0, -2.0, 4.0], [0.5, 8.0, -16.0], [3.0, 0.0, -0.5]];
        let quantized = quantize(weight.view(), blocks_of(4)).unwrap();
        assert_eq!(quantized.absmax, array![4.0, 16.0, 0.5]);
        assert_eq!(quantized.codes[[1, 0]], nearest(&LEVELS, 0.125));
        assert_eq!(quantized.codes[[2, 2]], 0);
    }

    #[test]
    fn an_empty_block_is_level_zero() {
        let weight = array![[0.0, -0.0, 1.0, 1.0]];
        let quantized = quantize(weight.view(), blocks_of(2)).unwrap();
        assert_eq!(quantized.codes, array![[7, 7, 15, 15]]);
        assert_eq!(quantized.absmax, array![0.0, 1.0]);
        assert_eq!(quantized.output, array![[0.0, 0.0, 1.0, 1.0]]);
    }

    #[test]
    fn a_block_of_the_smallest_numbers_is_divided_and_not_multiplied() {
        // 1 / absmax is infinite.
        let tiny = f32::from_bits(1);
        let quantized = quantize(array![[tiny, -tiny, 0.0]].view(), blocks_of(3)).unwrap();
        assert_eq!(quantized.codes, array![[15, 0, 7]]);
    }

    #[test]
    fn codes_above_15_and_bytes_of_another_length_are_refused() {
        let refused = dequantize(array![[3, 16]].view(), array![1.0].view(), blocks_of(2));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "nf4.dequantize: codes[0, 1] is 16, expected 0 to 15"
        );
        assert!(pack(array![[200]].view()).is_err());
        assert!(unpack(&[1, 2], (1, 5)).is_err());
        assert_eq!(pack(array![[1, 2, 3]].view()).unwrap(), [0x12, 0x37]);
    }

    #[test]
    fn an_absmax_without_spread_has_the_code_of_zero() {
        let quantized = double_quantize(array![0.375, 0.375].view()).unwrap();
        assert_eq!(quantized.absmax_codes, array![127, 127]);
        assert_eq!(quantized.dequantize().unwrap(), array![0.375, 0.375]);
    }

    #[test]
    fn scales_are_for_256_and_the_offset_is_for_all() {
        let absmax =
            Array1::from_shape_fn(300, |b| if b < 256 { 1.0 } else { 2.0 + (b % 2) as f64 });
        let quantized = double_quantize(absmax.view()).unwrap();
        let offset = quantized.absmax_offset;
        assert_eq!(offset, (256.0 + 44.0 * 2.5) / 300.0);
        assert_eq!(quantized.absmax_scale, array![offset - 1.0, 3.0 - offset]);
        assert_eq!((quantized.absmax_codes[0], quantized.absmax_codes[299]), (0, 255));
    }

    #[test]
    fn a_mean_that_overflows_is_refused() {
        let refused = double_quantize(array![3e38_f32, 3e38].view()).unwrap_err();
        assert_eq!(refused.to_string(), "nf4.double_quantize: absmax_offset[] is inf");
        let none = double_quantize(Array1::<f64>::zeros(0).view()).unwrap_err();
        assert_eq!(none.to_string(), "nf4.double_quantize: no block");
    }
}
