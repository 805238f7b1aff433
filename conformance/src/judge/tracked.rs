//! A number that knows what rounding may have done to it.
//!
//! The reference is generic over its scalar, so its own lines, run on this one, derive the
//! allowance of every output: no second formula is kept beside the first. A number carries its
//! binary64 `value`, the `condition`, which is the sum of the absolute values of the terms that it
//! was added up from, and a count of `roundings`, such that a subject's value differs by at most
//!
//! ```text
//! gamma(roundings) * condition
//! ```
//!
//! With `a` and `b` so bounded (N. J. Higham, Accuracy and Stability of Numerical Algorithms,
//! chapter 3):
//!
//! | result | condition | roundings |
//! |---|---|---|
//! | input | `abs(a)` | 0 |
//! | `a + b` | the sum of both | the larger, and 1 |
//! | `a * b` | the product of both | the sum of both, and 1 |
//! | `a / b` | the product of both over `b^2` | that of `a`, twice that of `b`, and 1 |
//! | `sqrt(a)` | `sqrt(abs(a))` and the amplification of `a` | that of `a`, and 1 |
//!
//! A sum of `k` products so costs at most `k` roundings of the sum of absolute products, which
//! holds for every order of summation: a subject may split and reorder its sums as it likes.
//!
//! What is not smooth (a code, a mask) takes the branch of the binary64 value; operations with
//! codes have a [`Grid`](crate::ops::quantizer::Grid) that says which branches are open.

use ndarray::{ArrayD, ScalarOperand};
use num_traits::{One, Zero};
use plumbline_reference::Real;
use std::cmp::Ordering;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

use super::bound::{Allowance, Bounds, Evidence, TRANSCENDENTAL};
use crate::case::Request;
use crate::precision::{Precision, Unit};

/// A binary64 value and the bound on its distance from a subject's, whose arithmetic is binary32
/// (`Tracked<true>`) or binary64.
#[derive(Debug, Clone, Copy)]
pub struct Tracked<const NARROW: bool> {
    value: f64,
    condition: f64,
    roundings: f64,
}

impl<const NARROW: bool> Tracked<NARROW> {
    fn unit() -> Unit {
        Unit::of(if NARROW { Precision::F32 } else { Precision::F64 })
    }

    /// Bound of the difference, underflow aside.
    fn error(self) -> f64 {
        if self.roundings == 0.0 {
            0.0
        } else {
            Self::unit().gamma(self.roundings) * self.condition
        }
    }

    /// As many roundings of `condition` as make up an absolute error.
    fn with_error(value: f64, condition: f64, error: f64) -> Self {
        let condition = condition.max(value.abs());
        if error == 0.0 {
            return Self { value, condition, roundings: 0.0 };
        }
        if condition == 0.0 {
            return Self { value, condition: error, roundings: 1.0 / Self::unit().roundoff };
        }
        // gamma(n) >= n * roundoff.
        Self { value, condition, roundings: error / (Self::unit().roundoff * condition) }
    }

    /// A function whose slope is at most `slope` in absolute value wherever the argument may be.
    fn through(self, value: f64, slope: f64, roundings: f64) -> Self {
        let own = Self::unit().gamma(roundings) * value.abs();
        Self::with_error(value, value.abs(), slope * self.error() * (1.0 + own) + own)
    }
}

impl<const NARROW: bool> Real for Tracked<NARROW> {
    /// A constant that the subject's type does not hold is rounded once.
    fn of(value: f64) -> Self {
        let held = !NARROW || f64::from(value as f32) == value || !value.is_finite();
        Self { value, condition: value.abs(), roundings: if held { 0.0 } else { 1.0 } }
    }

    fn value(self) -> f64 {
        self.value
    }

    /// An integer is exact, unless the error reaches a tie: then it may be the neighbour.
    fn round_half_even(self) -> Self {
        let value = self.value.round_ties_even();
        let to_tie = 0.5 - (self.value - value).abs();
        let open = self.error() > 0.0 && to_tie <= self.error();
        Self::with_error(value, value.abs(), if open { 1.0 + self.error().floor() } else { 0.0 })
    }

    fn abs(self) -> Self {
        Self { value: self.value.abs(), ..self }
    }

    fn sqrt(self) -> Self {
        let value = self.value.sqrt();
        let low = (self.value - self.error()).max(0.0).sqrt();
        // sqrt(a) - sqrt(b) = (a - b) / (sqrt(a) + sqrt(b))
        let slope = if value + low > 0.0 { 1.0 / (value + low) } else { 0.0 };
        self.through(value, slope, 1.0)
    }

    fn exp(self) -> Self {
        let value = self.value.exp();
        self.through(value, (self.value + self.error()).exp(), TRANSCENDENTAL)
    }

    fn ln(self) -> Self {
        let low = self.value - self.error();
        self.through(self.value.ln(), if low > 0.0 { 1.0 / low } else { f64::INFINITY }, 4.0)
    }

    fn powf(self, exponent: Self) -> Self {
        let (value, power) = (self.value.powf(exponent.value), exponent.value);
        let at = if power >= 1.0 { self.value + self.error() } else { self.value - self.error() };
        let slope = if power == 0.0 { 0.0 } else { (power * at.powf(power - 1.0)).abs() };
        let of_exponent = value * self.value.max(f64::MIN_POSITIVE).ln().abs() * exponent.error();
        let through = self.through(value, slope, TRANSCENDENTAL);
        Self::with_error(value, value.abs(), through.error() + of_exponent)
    }

    fn max(self, other: Self) -> Self {
        let value = if other > self { other.value } else { self.value };
        self.either(other, value)
    }

    fn min(self, other: Self) -> Self {
        let value = if other < self { other.value } else { self.value };
        self.either(other, value)
    }
}

impl<const NARROW: bool> Tracked<NARROW> {
    /// The one or the other: where their errors overlap, the subject may have taken either.
    fn either(self, other: Self, value: f64) -> Self {
        let (errors, gap) = ((self.error(), other.error()), (self.value - other.value).abs());
        let chosen = if value == self.value { self } else { other };
        if gap > errors.0 + errors.1 {
            return chosen;
        }
        Self::with_error(value, value.abs(), errors.0.max(errors.1))
    }
}

impl<const NARROW: bool> PartialEq for Tracked<NARROW> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<const NARROW: bool> PartialOrd for Tracked<NARROW> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl<const NARROW: bool> ScalarOperand for Tracked<NARROW> {}

impl<const NARROW: bool> Zero for Tracked<NARROW> {
    fn zero() -> Self {
        Self { value: 0.0, condition: 0.0, roundings: 0.0 }
    }

    fn is_zero(&self) -> bool {
        self.value == 0.0
    }
}

impl<const NARROW: bool> One for Tracked<NARROW> {
    fn one() -> Self {
        Self::of(1.0)
    }
}

impl<const NARROW: bool> Add for Tracked<NARROW> {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        // The first term of a sum is added to zero without a rounding.
        match (self.condition == 0.0, other.condition == 0.0) {
            (true, _) => return other,
            (_, true) => return self,
            _ => {}
        }
        Self {
            value: self.value + other.value,
            condition: self.condition + other.condition,
            roundings: self.roundings.max(other.roundings) + 1.0,
        }
    }
}

impl<const NARROW: bool> Neg for Tracked<NARROW> {
    type Output = Self;

    fn neg(self) -> Self {
        Self { value: -self.value, ..self }
    }
}

impl<const NARROW: bool> Sub for Tracked<NARROW> {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl<const NARROW: bool> Mul for Tracked<NARROW> {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self {
            value: self.value * other.value,
            condition: self.condition * other.condition,
            roundings: self.roundings + other.roundings + 1.0,
        }
    }
}

impl<const NARROW: bool> Div for Tracked<NARROW> {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        let value = self.value / other.value;
        // Beyond half the divisor its error has no first order.
        let lost = other.error() > other.value.abs() / 2.0;
        Self {
            value,
            condition: self.condition / other.value.abs() * (other.condition / other.value.abs()),
            roundings: if lost {
                f64::INFINITY
            } else {
                self.roundings + 2.0 * other.roundings + 1.0
            },
        }
    }
}

macro_rules! assigning {
    ($($trait:ident $method:ident $operator:tt)*) => {$(
        impl<const NARROW: bool> $trait for Tracked<NARROW> {
            fn $method(&mut self, other: Self) {
                *self = *self $operator other;
            }
        }
    )*};
}

assigning!(AddAssign add_assign + SubAssign sub_assign - MulAssign mul_assign * DivAssign div_assign /);

impl<const NARROW: bool> Sum for Tracked<NARROW> {
    fn sum<I: Iterator<Item = Self>>(numbers: I) -> Self {
        numbers.fold(Self::zero(), |sum, number| sum + number)
    }
}

/// Float outputs of an operation under their names, over any scalar.
pub type Outputs<T> = Vec<(&'static str, ArrayD<T>)>;

/// The allowances of an operation, from its reference over tracked numbers.
///
/// # Errors
/// Where the reference refuses the request.
pub fn bounds(
    evidence: &Evidence,
    narrow: fn(&Request) -> Result<Outputs<Tracked<true>>, String>,
    wide: fn(&Request) -> Result<Outputs<Tracked<false>>, String>,
) -> Result<Bounds, String> {
    errors(evidence.request, evidence.unit, narrow, wide)
}

/// The same for numbers that an operation does not answer, but decides by.
///
/// # Errors
/// As [`bounds`].
pub fn errors(
    request: &Request,
    unit: Unit,
    narrow: fn(&Request) -> Result<Outputs<Tracked<true>>, String>,
    wide: fn(&Request) -> Result<Outputs<Tracked<false>>, String>,
) -> Result<Bounds, String> {
    Ok(if unit == Unit::of(Precision::F32) {
        allowances(narrow(request)?)
    } else {
        allowances(wide(request)?)
    })
}

fn allowances<const NARROW: bool>(outputs: Outputs<Tracked<NARROW>>) -> Bounds {
    let unit = Tracked::<NARROW>::unit();
    let named = outputs.into_iter().map(|(name, array)| {
        let bound = array.iter().map(|number| {
            let underflow = number.roundings.min(1e6) * unit.tiny;
            if number.roundings == 0.0 { 0.0 } else { number.error() + underflow }
        });
        (name.to_owned(), Allowance::absolute(bound))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Narrow = Tracked<true>;

    fn assert_covers(number: Narrow, actual: f32, name: &str) {
        let difference = (f64::from(actual) - number.value).abs();
        assert!(difference <= number.error(), "{name}: {difference:e} > {:e}", number.error());
    }

    #[test]
    fn inputs_and_short_constants_are_exact() {
        assert_eq!(Narrow::of(0.5).error(), 0.0);
        assert!(Narrow::of(0.3).error() > 0.0);
        assert_eq!(Tracked::<false>::of(0.3).error(), 0.0);
        assert_eq!((Narrow::zero() + Narrow::of(3.0)).error(), 0.0);
    }

    #[test]
    fn every_operation_covers_binary32() {
        let values: Vec<f32> =
            (1..200).map(|k| (k as f32 * 0.618_034).fract() * 4.0 + 0.01).collect();
        for pair in values.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let (ta, tb) = (Narrow::of(f64::from(a)), Narrow::of(f64::from(b)));
            assert_covers(ta + tb, a + b, "sum");
            assert_covers(ta - tb, a - b, "difference");
            assert_covers(ta * tb, a * b, "product");
            assert_covers(ta / tb, a / b, "quotient");
            assert_covers((ta * tb).sqrt(), (a * b).sqrt(), "sqrt");
            assert_covers((ta * tb).exp(), (a * b).exp(), "exp");
            assert_covers((ta * tb).ln(), (a * b).ln(), "ln");
            assert_covers((ta * tb).powf(Narrow::of(2.5)), (a * b).powf(2.5), "powf");
            assert_covers((ta - tb) / (ta + tb), (a - b) / (a + b), "composition");
            assert_covers((ta * tb).max(ta / tb), (a * b).max(a / b), "max");
        }
    }

    #[test]
    fn a_sum_is_covered_in_every_order() {
        let terms = [1e8_f32, 1.0, -1e8, 0.25, 3e7, -3e7];
        let tracked: Narrow = terms.iter().map(|&t| Narrow::of(f64::from(t))).sum();
        assert_covers(tracked, terms.iter().sum(), "forwards");
        assert_covers(tracked, terms.iter().rev().sum(), "backwards");
    }

    #[test]
    fn a_rounding_beside_a_tie_is_open_and_elsewhere_exact() {
        assert_eq!(Narrow::of(2.5).round_half_even().error(), 0.0);
        let third = Narrow::of(1.0) / Narrow::of(3.0);
        assert_eq!(third.round_half_even().error(), 0.0);
        let beside = third * Narrow::of(7.5);
        assert!(beside.round_half_even().error() >= 1.0);
    }
}
