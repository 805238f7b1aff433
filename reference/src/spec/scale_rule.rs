//! What a format of another program can hold of a scale.

use serde::{Deserialize, Serialize};

/// The numbers that a scale may be. Eq. (Q23).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRule {
    /// Every positive f16. Kernels that dequantize in f32 multiply it exactly with 13 bits.
    F16,
    /// Every bf16 that an f16 holds: from 2^-17 on its 8 significant bits fit. Multiplied with codes
    /// of 4 bits it is exact in f16 and in f32.
    Bf16InF16,
}

impl ScaleRule {
    /// Both.
    pub const ALL: [Self; 2] = [Self::F16, Self::Bf16InF16];

    /// The smallest of the numbers: 2^-24 or 2^-17, both above the floor of a scale.
    pub fn smallest(self) -> f64 {
        match self {
            Self::F16 => 1.0 / 16_777_216.0,
            Self::Bf16InF16 => 1.0 / 131_072.0,
        }
    }

    /// The largest: that of f16, or the bf16 below it.
    pub fn largest(self) -> f64 {
        match self {
            Self::F16 => 65504.0,
            Self::Bf16InF16 => 65280.0,
        }
    }

    /// Whether a scale lies between the two, so that its gradient passes. Eq. (Q23b).
    pub fn reaches(self, scale: f64) -> bool {
        (self.smallest()..=self.largest()).contains(&scale)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn both_ends_are_numbers_of_their_type_and_the_next_ones_are_not() {
        let [f16_rule, bf16_rule] = ScaleRule::ALL;
        assert_eq!(f16_rule.smallest(), f16::from_bits(1).to_f64());
        assert_eq!(f16_rule.largest(), f16::MAX.to_f64());
        let is_f16 = |number: bf16| f16::from_f32(number.to_f32()).to_f64() == number.to_f64();
        let patterns = |number: f64| bf16::from_f64(number).to_bits();
        let ends = patterns(bf16_rule.smallest())..=patterns(bf16_rule.largest());
        for pattern in ends.clone() {
            assert!(is_f16(bf16::from_bits(pattern)), "{pattern:#x}");
        }
        // Below 2^-17 the last of 8 bits is lost; above the largest comes an infinity.
        assert!(!is_f16(bf16::from_bits(ends.start() - 1)));
        assert!(!is_f16(bf16::from_bits(ends.end() + 1)));
    }

    #[test]
    fn names_are_those_of_case_files() {
        let names = ScaleRule::ALL.map(|rule| serde_json::to_string(&rule).unwrap());
        assert_eq!(names, ["\"f16\"", "\"bf16_in_f16\""]);
    }
}
