//! What every number that the reference can run on has in common.

/// The traits that follow from a `value` field, `Add`, `Mul`, `Div`, `Neg`, and from `Real::of`.
/// Two numbers compare as their values do.
macro_rules! number {
    ($(const $parameter:ident: $kind:ty,)? $type:ty) => {
        impl$(<const $parameter: $kind>)? PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.value == other.value
            }
        }

        impl$(<const $parameter: $kind>)? PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                self.value.partial_cmp(&other.value)
            }
        }

        impl$(<const $parameter: $kind>)? ndarray::ScalarOperand for $type {}

        impl$(<const $parameter: $kind>)? num_traits::Zero for $type {
            fn zero() -> Self {
                plumbline_reference::Real::of(0.0)
            }

            fn is_zero(&self) -> bool {
                self.value == 0.0
            }
        }

        impl$(<const $parameter: $kind>)? num_traits::One for $type {
            fn one() -> Self {
                plumbline_reference::Real::of(1.0)
            }
        }

        impl$(<const $parameter: $kind>)? std::ops::Sub for $type {
            type Output = Self;

            fn sub(self, other: Self) -> Self {
                self + -other
            }
        }

        impl$(<const $parameter: $kind>)? std::ops::AddAssign for $type {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl$(<const $parameter: $kind>)? std::ops::SubAssign for $type {
            fn sub_assign(&mut self, other: Self) {
                *self = *self - other;
            }
        }

        impl$(<const $parameter: $kind>)? std::ops::MulAssign for $type {
            fn mul_assign(&mut self, other: Self) {
                *self = *self * other;
            }
        }

        impl$(<const $parameter: $kind>)? std::ops::DivAssign for $type {
            fn div_assign(&mut self, other: Self) {
                *self = *self / other;
            }
        }

        impl$(<const $parameter: $kind>)? std::iter::Sum for $type {
            fn sum<I: Iterator<Item = Self>>(numbers: I) -> Self {
                numbers.fold(num_traits::Zero::zero(), |sum, number| sum + number)
            }
        }
    };
}

pub(crate) use number;
