//! The scalar that the equations are generic over.

use ndarray::ScalarOperand;
use num_traits::{Float, NumAssign};

/// A floating-point number as the equations use it.
///
/// Constants of an operation (`lora_scaling`, `eps`, ...) are f64 and enter through [`Real::of`],
/// rounded once.
pub trait Real:
    Float + NumAssign + ScalarOperand + std::iter::Sum + std::fmt::Debug + Send + Sync + 'static
{
    /// The nearest value of this type.
    fn of(value: f64) -> Self;

    /// The value as f64; exact for f32 and f64.
    fn value(self) -> f64;

    /// The nearest integer, ties to even: the only rounding of a quantizer argument.
    fn round_half_even(self) -> Self;
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }

    fn value(self) -> f64 {
        f64::from(self)
    }

    fn round_half_even(self) -> Self {
        self.round_ties_even()
    }
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn value(self) -> f64 {
        self
    }

    fn round_half_even(self) -> Self {
        self.round_ties_even()
    }
}

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
