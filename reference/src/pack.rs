//! Codes side by side in bytes.

use ndarray::{Array2, ArrayView2};

use crate::spec::PackedBits;
use crate::{Error, check};

/// Codes in as few bytes a row as hold them. Eq. (Q10a).
///
/// ```text
/// bytes = ceil(in * bits / 8)
/// bit[o,n] = (codes[o, n / bits] / 2^(n % bits)) % 2 where n < in * bits, else 0
/// packed[o,k] = sum_j 2^j * bit[o, 8 * k + j], j in 0..8
/// ```
///
/// # Shapes
/// `codes [out, in]` -> `[out, bytes]`
///
/// # Errors
/// `CodeTooWide`.
pub fn pack(codes: ArrayView2<u8>, bits: PackedBits) -> Result<Array2<u8>, Error> {
    for ((row, column), &code) in codes.indexed_iter() {
        if code > bits.largest() {
            return Err(Error::CodeTooWide { row, column, code: code.into(), bits: bits.count() });
        }
    }
    let (rows, in_features) = codes.dim();
    let mut packed = Array2::zeros((rows, bits.row_bytes(in_features)));
    for ((o, i), code) in codes.indexed_iter() {
        for j in 0..bits.count() {
            let n = i * bits.count() + j;
            packed[[o, n / 8]] |= (code >> j & 1) << (n % 8);
        }
    }
    Ok(packed)
}

/// The codes of packed rows. Eq. (Q10b).
///
/// ```text
/// bit[o,n] = (packed[o, n / 8] / 2^(n % 8)) % 2
/// codes[o,i] = sum_j 2^j * bit[o, i * bits + j], j in 0..bits
/// ```
///
/// # Shapes
/// `packed [out, bytes]` -> `[out, in_features]`
///
/// # Errors
/// `Shape`, and `Padding` for a bit behind the last code of a row.
pub fn unpack(
    packed: ArrayView2<u8>,
    bits: PackedBits,
    in_features: usize,
) -> Result<Array2<u8>, Error> {
    let (rows, bytes) = (packed.nrows(), bits.row_bytes(in_features));
    check::shape("unpack", "packed", packed.shape(), &[rows, bytes])?;
    let used = in_features * bits.count() % 8;
    if used > 0 {
        for (row, &byte) in packed.column(bytes - 1).indexed_iter() {
            if byte >> used != 0 {
                return Err(Error::Padding { row, byte, used });
            }
        }
    }
    Ok(Array2::from_shape_fn((rows, in_features), |(o, i)| {
        (0..bits.count()).fold(0, |code, j| {
            let n = i * bits.count() + j;
            code | (packed[[o, n / 8]] >> (n % 8) & 1) << j
        })
    }))
}

/// Signed codes as the low bits of their two's complement. Eq. (Q10c).
///
/// ```text
/// unsigned = signed + 2^bits where signed < 0, else signed
/// ```
///
/// # Shapes
/// `codes [out, in]` -> `[out, bytes]`
///
/// # Errors
/// `CodeTooWide`.
pub fn pack_signed(codes: ArrayView2<i8>, bits: PackedBits) -> Result<Array2<u8>, Error> {
    let half = (bits.largest() / 2) as i8;
    for ((row, column), &code) in codes.indexed_iter() {
        if !(-half - 1..=half).contains(&code) {
            return Err(Error::CodeTooWide { row, column, code: code.into(), bits: bits.count() });
        }
    }
    pack(codes.mapv(|code| code as u8 & bits.largest()).view(), bits)
}

/// The signed codes of packed rows. Eq. (Q10c).
///
/// ```text
/// signed = unsigned - 2^bits where unsigned >= 2^(bits-1), else unsigned
/// ```
///
/// # Shapes
/// `packed [out, bytes]` -> `[out, in_features]`
///
/// # Errors
/// As [`unpack`].
pub fn unpack_signed(
    packed: ArrayView2<u8>,
    bits: PackedBits,
    in_features: usize,
) -> Result<Array2<i8>, Error> {
    let sign = 8 - bits.count();
    // Shifting up puts the sign of the code where that of the byte is, and shifting back copies it.
    Ok(unpack(packed, bits, in_features)?.mapv(|code| (code << sign) as i8 >> sign))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn width(bits: u32) -> PackedBits {
        PackedBits::new(bits).unwrap()
    }

    #[test]
    fn examples_of_q10() {
        let packed = pack(array![[1, 8, 7]].view(), width(4)).unwrap();
        assert_eq!(packed, array![[0x81, 0x07]]);
        assert_eq!(pack_signed(array![[1, -8, 7]].view(), width(4)).unwrap(), packed);
        let packed = pack(array![[1, 2, 7]].view(), width(3)).unwrap();
        assert_eq!(packed, array![[0xd1, 0x01]]);
        assert_eq!(unpack(packed.view(), width(3), 3).unwrap(), array![[1, 2, 7]]);
    }

    /// The row as one number: the definition, without the way through single bits.
    fn as_number(row: &[u8], bits: usize) -> u128 {
        row.iter().rev().fold(0, |number, byte| number << bits | u128::from(*byte))
    }

    #[test]
    fn every_code_at_every_place_of_a_row_of_every_length() {
        for bits in [2, 3, 4, 8].map(width) {
            for length in 1..=11 {
                for place in 0..length {
                    for code in 0..=bits.largest() {
                        let mut codes = Array2::from_elem((2, length), bits.largest());
                        codes.row_mut(1).fill(0);
                        codes[[0, place]] = code;
                        codes[[1, place]] = code;
                        let packed = pack(codes.view(), bits).unwrap();
                        for row in 0..2 {
                            assert_eq!(
                                as_number(&packed.row(row).to_vec(), 8),
                                as_number(&codes.row(row).to_vec(), bits.count())
                            );
                        }
                        assert_eq!(unpack(packed.view(), bits, length).unwrap(), codes);
                        let signed = unpack_signed(packed.view(), bits, length).unwrap();
                        assert_eq!(pack_signed(signed.view(), bits).unwrap(), packed);
                    }
                }
            }
        }
    }

    #[test]
    fn signed_codes_are_twos_complement() {
        for (bits, qmin, qmax) in [(2, -2, 1), (3, -4, 3), (4, -8, 7), (8, -128, 127_i8)] {
            for code in qmin..=qmax {
                let packed = pack_signed(array![[code]].view(), width(bits)).unwrap();
                let unsigned = i16::from(code).rem_euclid(1 << bits);
                assert_eq!(i16::from(packed[[0, 0]]), unsigned, "{code} in {bits} bits");
                let back = unpack_signed(packed.view(), width(bits), 1).unwrap();
                assert_eq!(back, array![[code]]);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_place() {
        let refused = pack(array![[0, 3], [8, 0]].view(), width(3)).unwrap_err();
        assert_eq!(refused.to_string(), "pack: codes[1, 0] is 8, which 3 bits do not hold");
        for code in [4_i8, -5] {
            let refused = pack_signed(array![[code]].view(), width(3)).unwrap_err();
            let message = format!("pack: codes[0, 0] is {code}, which 3 bits do not hold");
            assert_eq!(refused.to_string(), message);
        }
        let padding = array![[0x21, 0x01], [0x21, 0x11]];
        let refused = unpack(padding.view(), width(4), 3).unwrap_err();
        let message = "unpack: packed row 1 ends in 0x11, of which only 4 bits hold codes";
        assert_eq!(refused.to_string(), message);
        assert_eq!(
            unpack(padding.view(), width(4), 4).unwrap(),
            array![[1, 2, 1, 0], [1, 2, 1, 1]]
        );
        let refused = unpack(padding.view(), width(4), 5).unwrap_err();
        assert_eq!(refused.to_string(), "unpack: packed has shape [2, 2], expected [2, 3]");
    }

    #[test]
    fn rows_without_codes_have_no_bytes() {
        let packed = pack(Array2::zeros((2, 0)).view(), width(3)).unwrap();
        assert_eq!(packed.dim(), (2, 0));
        assert_eq!(unpack(packed.view(), width(3), 0).unwrap().dim(), (2, 0));
    }
}
