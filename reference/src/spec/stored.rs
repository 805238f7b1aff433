//! Types that numbers are stored in.

use serde::{Deserialize, Serialize};

use super::{SpecError, out_of_range};

/// A narrow float type. Eq. (Q9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredType {
    /// bfloat16: the exponents of f32, 8 significant bits.
    Bf16,
    /// IEEE 754 binary16: 11 significant bits.
    F16,
}

/// Width of a packed code: 2, 3, 4 or 8 bits. Eq. (Q10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackedBits(u8);

impl PackedBits {
    /// Accepts 2, 3, 4 and 8.
    ///
    /// # Errors
    /// `OutOfRange` for anything else.
    pub fn new(bits: u32) -> Result<Self, SpecError> {
        if ![2, 3, 4, 8].contains(&bits) {
            out_of_range("bits", bits, "2, 3, 4 or 8")?;
        }
        Ok(Self(bits as u8))
    }

    /// The number of bits.
    pub fn count(self) -> usize {
        usize::from(self.0)
    }

    /// Largest unsigned code, `2^bits - 1`.
    pub fn largest(self) -> u8 {
        (u16::MAX >> (16 - self.0)) as u8
    }

    /// Bytes of a packed row, `ceil(in_features * bits / 8)`.
    pub fn row_bytes(self, in_features: usize) -> usize {
        // As `in_features * bits` could overflow: whole bytes of codes, then the rest.
        in_features / 8 * self.count() + (in_features % 8 * self.count()).div_ceil(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_and_row_lengths() {
        for bits in 0..=9 {
            assert_eq!(PackedBits::new(bits).is_ok(), [2, 3, 4, 8].contains(&bits), "{bits}");
        }
        for (bits, largest) in [(2, 3), (3, 7), (4, 15), (8, 255)] {
            let bits = PackedBits::new(bits).unwrap();
            assert_eq!(bits.largest(), largest);
            for in_features in 0..40 {
                let bytes = (in_features * bits.count()).div_ceil(8);
                assert_eq!(bits.row_bytes(in_features), bytes);
            }
            assert!(bits.row_bytes(usize::MAX) > 0);
        }
        let refused = PackedBits::new(5).unwrap_err();
        assert_eq!(refused.to_string(), "bits is 5, expected 2, 3, 4 or 8");
    }
}
