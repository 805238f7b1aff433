//! The scalar that the equations are generic over.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

use ndarray::ScalarOperand;
use num_traits::{One, Zero};

/// A number as the equations use it: what they need and no more, so that beside f32 and f64 a
/// number that carries its derivative or its rounding errors can run the same lines.
///
/// Constants of an operation (`lora_scaling`, `eps`, ...) are f64 and enter through [`Real::of`],
/// rounded once. Comparisons compare values.
pub trait Real:
    Copy
    + PartialOrd
    + Zero
    + One
    + Neg<Output = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
    + ScalarOperand
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
    /// The nearest number of this type.
    fn of(value: f64) -> Self;

    /// The value as f64; exact for f32 and f64.
    fn value(self) -> f64;

    /// The nearest integer, ties to even: the only rounding of a quantizer argument.
    fn round_half_even(self) -> Self;

    /// `|self|`
    fn abs(self) -> Self;

    /// The square root.
    fn sqrt(self) -> Self;

    /// `e^self`
    fn exp(self) -> Self;

    /// The natural logarithm.
    fn ln(self) -> Self;

    /// `self^exponent`, for a `self` of at least 0.
    fn powf(self, exponent: Self) -> Self;

    /// The larger of two numbers.
    fn max(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    /// The smaller of two numbers.
    fn min(self, other: Self) -> Self {
        if other < self { other } else { self }
    }

    /// The number as a factor in a product of matrices: itself, but for numbers that stand for
    /// hardware that rounds such factors to a shorter type.
    #[must_use]
    fn operand(self) -> Self {
        self
    }

    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool {
        self.value().is_finite()
    }

    /// Above every number.
    fn infinity() -> Self {
        Self::of(f64::INFINITY)
    }
}

macro_rules! impl_real {
    ($float:ty) => {
        impl Real for $float {
            fn of(value: f64) -> Self {
                value as $float
            }

            fn value(self) -> f64 {
                f64::from(self)
            }

            fn round_half_even(self) -> Self {
                self.round_ties_even()
            }

            fn abs(self) -> Self {
                <$float>::abs(self)
            }

            fn sqrt(self) -> Self {
                <$float>::sqrt(self)
            }

            fn exp(self) -> Self {
                <$float>::exp(self)
            }

            fn ln(self) -> Self {
                <$float>::ln(self)
            }

            fn powf(self, exponent: Self) -> Self {
                <$float>::powf(self, exponent)
            }
        }
    };
}

impl_real!(f32);
impl_real!(f64);

#[cfg(test)]
mod tests {
    use super::Real;

    #[test]
    fn ties_go_to_the_even_neighbour() {
        for (value, rounded) in [(0.5, 0.0), (1.5, 2.0), (2.5, 2.0), (-0.5, 0.0), (-1.5, -2.0)] {
            assert_eq!(f64::of(value).round_half_even(), rounded, "{value}");
            assert_eq!(f32::of(value).round_half_even().value(), rounded, "{value}");
        }
    }

    #[test]
    fn beside_a_tie_the_nearest_wins() {
        assert_eq!(0.5_f32.next_up().round_half_even(), 1.0);
        assert_eq!(1.5_f32.next_down().round_half_even(), 1.0);
        assert_eq!(2.5_f64.next_up().round_half_even(), 3.0);
    }
}
