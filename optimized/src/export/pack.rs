//! Codes side by side in words of 32 bits.

use rayon::prelude::*;
use safetensors::Dtype;

use crate::checkpoint::Stored;

/// Rows of `length` codes, each row in words of its own: codes one after the other from the lowest
/// bit of the first word on, also across words.
pub(super) fn pack_rows(codes: &[u8], length: usize, bits: u32) -> Vec<u32> {
    let width = words(length, bits);
    let pack = |row: &[u8]| {
        let (mut packed, mut room, mut used) = (Vec::with_capacity(width), 0u64, 0);
        for code in row {
            room |= u64::from(*code) << used;
            used += bits;
            if used >= 32 {
                packed.push(room as u32);
                (room, used) = (room >> 32, used - 32);
            }
        }
        if used > 0 {
            packed.push(room as u32);
        }
        packed
    };
    codes.par_chunks(length).flat_map_iter(pack).collect()
}

/// Words of so many codes.
pub(super) fn words(length: usize, bits: u32) -> usize {
    (length * bits as usize).div_ceil(32)
}

/// Rows as columns.
pub(super) fn transposed<T: Copy + Send + Sync>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns;
    let column = |column: usize| (0..rows).map(move |row| values[row * columns + column]);
    (0..columns).into_par_iter().flat_map_iter(column).collect()
}

/// A tensor of words.
pub(super) fn stored(words: &[u32], shape: [usize; 2], dtype: Dtype) -> Stored {
    (dtype, shape.to_vec(), words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every width, every length up to two words and every code, bit by bit.
    #[test]
    fn codes_follow_each_other_from_the_lowest_bit_on() {
        for bits in 2..=8u32 {
            for length in 1..=40 {
                let codes: Vec<u8> =
                    (0..3 * length).map(|at| (at * 37 % (1 << bits)) as u8).collect();
                let packed = pack_rows(&codes, length, bits);
                let width = words(length, bits);
                assert_eq!(packed.len(), 3 * width);
                for (at, code) in codes.iter().enumerate() {
                    for bit in 0..bits as usize {
                        let place = at % length * bits as usize + bit;
                        let word = packed[at / length * width + place / 32];
                        assert_eq!(word >> (place % 32) & 1, u32::from(code >> bit & 1));
                    }
                }
            }
        }
    }

    #[test]
    fn columns_become_rows() {
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], 3), [1, 4, 2, 5, 3, 6]);
        assert_eq!(transposed(&[1, 2, 3], 3), [1, 2, 3]);
    }
}
