//! A number that knows what rounding may have done to it.
//!
//! The reference is generic over its scalar, so its own lines, run on this one, derive the
//! allowance of every output: no second formula is kept beside the first. A number is a sum of
//! terms. It carries its binary64 `value`, the `mass`, which is the sum of the terms' absolute
//! values, the `additions` that make the sum, and the `inherited` errors of the terms. A subject's
//! value differs from it by at most
//!
//! ```text
//! error = inherited + gamma(additions + DISTRIBUTED) * (mass + inherited)
//! ```
//!
//! for every order of summation: a subject may split and reorder its sums as it likes, and may
//! multiply a factor into the terms or into their sum, which is what `DISTRIBUTED` is for
//! (N. J. Higham, Accuracy and Stability of Numerical Algorithms, chapters 3 and 4). With `u` for
//! one rounding:
//!
//! | result | inherited | mass |
//! |---|---|---|
//! | input | 0 | `abs(a)` |
//! | `a + b` | that of both | that of both; one addition more than both |
//! | `a * b` | `abs(a) error(b) + abs(b) error(a) + error(a) error(b)`, and `u` of the product | `abs(a b)` |
//! | `a / b` | `(error(a) + abs(a / b) error(b)) / (abs(b) - error(b))`, and `u` of the quotient | `abs(a / b)` |
//! | `f(a)` | the steepest slope in reach times `error(a)`, and the roundings of `f` | `abs(f(a))` |
//!
//! What is not smooth (a code, a mask) takes the branch of the binary64 value; operations with
//! codes have a [`Grid`](crate::ops::quantizer::Grid) that says which branches are open.

use ndarray::ArrayD;
use plumbline_reference::Real;
use std::ops::{Add, Div, Mul, Neg};

use super::bound::{Allowance, Bounds, Evidence, TRANSCENDENTAL};
use crate::case::Request;
use crate::number::number;
use crate::precision::{Precision, Unit};

/// Roundings of a term that a factor adds when it is multiplied in before the sum: its product, and
/// the product that it is then part of.
const DISTRIBUTED: f64 = 2.0;

/// A binary64 value and the bound on its distance from a subject's, whose arithmetic is binary32
/// (`Tracked<true>`) or binary64.
#[derive(Debug, Clone, Copy)]
pub struct Tracked<const NARROW: bool> {
    value: f64,
    inherited: f64,
    mass: f64,
    additions: f64,
}

impl<const NARROW: bool> Tracked<NARROW> {
    fn unit() -> Unit {
        Unit::of(if NARROW { Precision::F32 } else { Precision::F64 })
    }

    /// Zero, and nothing that cancelled.
    fn is_nothing(self) -> bool {
        self.mass == 0.0 && self.inherited == 0.0
    }

    /// Bound of the difference.
    fn error(self) -> f64 {
        if self.additions == 0.0 {
            return self.inherited;
        }
        let gamma = Self::unit().gamma(self.additions + DISTRIBUTED);
        self.inherited + gamma * (self.mass + self.inherited)
    }

    /// One term with an error of its own.
    fn with_error(value: f64, error: f64) -> Self {
        Self { value, inherited: error, mass: value.abs(), additions: 0.0 }
    }

    /// The result of an operation: what its arguments' errors make of it, and its own roundings,
    /// underflow among them.
    fn rounded(value: f64, propagated: f64, roundings: f64) -> Self {
        if value == 0.0 && propagated == 0.0 {
            return Self::with_error(value, 0.0);
        }
        let own = Self::unit().gamma(roundings) * (value.abs() + propagated);
        Self::with_error(value, propagated + own + Self::unit().tiny)
    }
}

impl<const NARROW: bool> Real for Tracked<NARROW> {
    /// A constant that the subject's type does not hold is rounded once.
    fn of(value: f64) -> Self {
        let held = !NARROW || f64::from(value as f32) == value || !value.is_finite();
        let error = if held { 0.0 } else { Self::unit().roundoff * value.abs() };
        Self::with_error(value, error)
    }

    fn value(self) -> f64 {
        self.value
    }

    /// An integer is exact, unless the error reaches a tie: then it may be the neighbour.
    fn round_half_even(self) -> Self {
        let value = self.value.round_ties_even();
        let to_tie = 0.5 - (self.value - value).abs();
        let open = self.error() > 0.0 && to_tie <= self.error();
        Self::with_error(value, if open { 1.0 + self.error().floor() } else { 0.0 })
    }

    fn abs(self) -> Self {
        Self { value: self.value.abs(), ..self }
    }

    fn sqrt(self) -> Self {
        let value = self.value.sqrt();
        let low = (self.value - self.error()).max(0.0).sqrt();
        // sqrt(a) - sqrt(b) = (a - b) / (sqrt(a) + sqrt(b))
        let slope = if value + low > 0.0 { 1.0 / (value + low) } else { 0.0 };
        Self::rounded(value, slope * self.error(), 1.0)
    }

    fn exp(self) -> Self {
        let slope = (self.value + self.error()).exp();
        Self::rounded(self.value.exp(), slope * self.error(), TRANSCENDENTAL)
    }

    fn ln(self) -> Self {
        let low = self.value - self.error();
        let slope = if low > 0.0 { 1.0 / low } else { f64::INFINITY };
        Self::rounded(self.value.ln(), slope * self.error(), TRANSCENDENTAL)
    }

    fn powf(self, exponent: Self) -> Self {
        let (value, power) = (self.value.powf(exponent.value), exponent.value);
        let at = if power >= 1.0 { self.value + self.error() } else { self.value - self.error() };
        let slope = if power == 0.0 { 0.0 } else { (power * at.powf(power - 1.0)).abs() };
        let of_exponent = value * self.value.max(f64::MIN_POSITIVE).ln().abs() * exponent.error();
        Self::rounded(value, slope * self.error() + of_exponent, TRANSCENDENTAL)
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
        Self::with_error(value, errors.0.max(errors.1))
    }
}

number!(const NARROW: bool, Tracked<NARROW>);

impl<const NARROW: bool> Add for Tracked<NARROW> {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        // The first term of a sum is added to zero without a rounding.
        match (self.is_nothing(), other.is_nothing()) {
            (true, _) => return other,
            (_, true) => return self,
            _ => {}
        }
        Self {
            value: self.value + other.value,
            inherited: self.inherited + other.inherited,
            mass: self.mass + other.mass,
            additions: self.additions + other.additions + 1.0,
        }
    }
}

impl<const NARROW: bool> Neg for Tracked<NARROW> {
    type Output = Self;

    fn neg(self) -> Self {
        Self { value: -self.value, ..self }
    }
}

impl<const NARROW: bool> Mul for Tracked<NARROW> {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        let (a, b) = (self.value.abs(), other.value.abs());
        let (error_a, error_b) = (self.error(), other.error());
        let propagated = a * error_b + b * error_a + error_a * error_b;
        Self::rounded(self.value * other.value, propagated, 1.0)
    }
}

impl<const NARROW: bool> Div for Tracked<NARROW> {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        let value = self.value / other.value;
        let (divisor, error) = (other.value.abs(), other.error());
        // A divisor that may be zero leaves nothing to say.
        let propagated = if error < divisor {
            (self.error() + value.abs() * error) / (divisor - error)
        } else {
            f64::INFINITY
        };
        Self::rounded(value, propagated, 1.0)
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
    let named = outputs.into_iter().map(|(name, array)| {
        let bound = array.iter().map(|number| number.error());
        (name.to_owned(), Allowance::absolute(bound))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_traits::Zero;

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
