//! Binary64 numbers that know how far a subject's number may be from them: for operations that
//! choose between candidates, where a difference decides and a tie that is exact leaves no choice.

use super::quantizer::Steps;
use crate::precision::Unit;

/// A value, an absolute bound on the subject's difference from it, and whether every step to it is
/// exact in binary32, which makes the difference 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Near {
    pub(super) steps: Steps,
    pub(super) error: f64,
    unit: Unit,
}

impl Near {
    /// An input, or a constant that the subject rounds once where its type does not hold it.
    pub(super) fn of(value: f64, unit: Unit) -> Self {
        let steps = Steps::start(value);
        Self::rounded(steps, 0.0, 1.0, unit)
    }

    /// What is known to within `error` and is not exact.
    pub(super) fn within(value: f64, error: f64, unit: Unit) -> Self {
        Self { steps: Steps { value, exact_in_f32: false }, error, unit }
    }

    pub(super) fn value(self) -> f64 {
        self.steps.value
    }

    /// A result off by `inherited`, and by `roundings` of its own unless it is exact.
    fn rounded(steps: Steps, inherited: f64, roundings: f64, unit: Unit) -> Self {
        if steps.exact_in_f32 {
            return Self { steps, error: 0.0, unit };
        }
        let own = unit.gamma(roundings) * (steps.value.abs() + inherited) + unit.tiny;
        Self { steps, error: inherited + own, unit }
    }

    pub(super) fn negated(self) -> Self {
        let steps = Steps { value: -self.steps.value, ..self.steps };
        Self { steps, ..self }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self::rounded(self.steps.plus(other.steps), self.error + other.error, 1.0, self.unit)
    }

    pub(super) fn times(self, other: Self) -> Self {
        let inherited =
            self.error * (other.value().abs() + other.error) + self.value().abs() * other.error;
        Self::rounded(self.steps.times(other.steps), inherited, 1.0, self.unit)
    }

    pub(super) fn over(self, other: Self) -> Self {
        let steps = self.steps.over(other.steps);
        let least = other.value().abs() - other.error;
        let inherited = match self.error + steps.value.abs() * other.error {
            0.0 => 0.0,
            _ if least <= 0.0 => f64::INFINITY,
            error => error / least,
        };
        Self::rounded(steps, inherited, 1.0, self.unit)
    }

    pub(super) fn sqrt(self) -> Self {
        let value = self.value().sqrt();
        let root = Steps::start(value);
        let exact =
            self.steps.exact_in_f32 && root.exact_in_f32 && root.times(root).value == self.value();
        let inherited = if value > 0.0 { self.error / value } else { self.error.sqrt() };
        Self::rounded(Steps { value, exact_in_f32: exact }, inherited, 1.0, self.unit)
    }

    /// `self^exponent`; exponent 0 and base 1 give 1 everywhere.
    pub(super) fn power(self, exponent: Self, roundings: f64) -> Self {
        let (base, power) = (self.value(), exponent.value());
        if power == 0.0 || base == 1.0 && self.steps.exact_in_f32 {
            return Self::of(1.0, self.unit);
        }
        let value = base.powf(power);
        if base == 0.0 && self.error == 0.0 {
            return Self::of(0.0, self.unit);
        }
        let ends = [base - self.error, base + self.error].map(|base| base.max(0.0).powf(power));
        let of_base = (ends[1] - value).max(value - ends[0]);
        let of_exponent = 1.1 * value * base.ln().abs() * exponent.error;
        let steps = Steps { value, exact_in_f32: false };
        Self::rounded(steps, of_base + of_exponent, roundings, self.unit)
    }

    /// The larger; where the errors overlap, the subject may have taken the other.
    pub(super) fn max(self, other: Self) -> Self {
        let (larger, smaller) =
            if other.value() > self.value() { (other, self) } else { (self, other) };
        let overlap = larger.value() - smaller.value() <= larger.error + smaller.error;
        if overlap { Self { error: larger.error.max(smaller.error), ..larger } } else { larger }
    }

    pub(super) fn min(self, other: Self) -> Self {
        self.negated().max(other.negated()).negated()
    }

    /// The integers that the subject may round it to, ties to even, the nearest one first; none
    /// beyond `limit`.
    pub(super) fn integers(self, limit: f64) -> Vec<f64> {
        let rounded = |value: f64| value.clamp(-limit, limit).round_ties_even();
        let nearest = rounded(self.value());
        let (mut at, last) =
            (rounded(self.value() - self.error), rounded(self.value() + self.error));
        let mut found = vec![nearest];
        while at <= last {
            if at != nearest {
                found.push(at);
            }
            at += 1.0;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::Precision;

    fn near(value: f64) -> Near {
        Near::of(value, Unit::of(Precision::F32))
    }

    fn assert_covers(number: Near, actual: f32, name: &str) {
        let difference = (f64::from(actual) - number.value()).abs();
        assert!(difference <= number.error, "{name}: {difference:e} > {:e}", number.error);
    }

    #[test]
    fn every_operation_covers_binary32() {
        let values: Vec<f32> =
            (1..200).map(|k| (k as f32 * 0.618_034).fract() * 4.0 + 0.01).collect();
        for pair in values.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let (na, nb) = (near(f64::from(a)), near(f64::from(b)));
            assert_covers(na.plus(nb.negated()), a - b, "difference");
            assert_covers(na.times(nb), a * b, "product");
            assert_covers(na.over(nb), a / b, "quotient");
            assert_covers(na.times(nb).sqrt(), (a * b).sqrt(), "sqrt");
            assert_covers(na.times(nb).power(near(0.3), 4.0), (a * b).powf(0.3), "power");
            assert_covers(na.over(nb).max(na.times(nb)), (a / b).max(a * b), "max");
            assert_covers(na.over(nb).min(na.times(nb)), (a / b).min(a * b), "min");
        }
    }

    #[test]
    fn an_exact_tie_has_one_integer_and_a_rounded_one_two() {
        assert_eq!(near(2.5).integers(9.0), [2.0]);
        assert_eq!(near(5.0).over(near(2.0)).integers(9.0), [2.0]);
        let beside = near(f64::from(0.1_f32) * 25.0).over(near(1.0));
        let rounded = Near::within(2.5, 1e-7, beside.unit);
        assert_eq!(rounded.integers(9.0), [2.0, 3.0]);
        assert_eq!(Near::within(2.25, 1e-7, beside.unit).integers(9.0), [2.0]);
        assert_eq!(Near::within(100.0, 1.0, beside.unit).integers(9.0), [9.0]);
        assert_eq!(Near::within(0.0, f64::INFINITY, beside.unit).integers(1.0), [0.0, -1.0, 1.0]);
    }

    #[test]
    fn powers_that_are_one_everywhere_are_exact() {
        assert_eq!(near(0.0).power(near(0.0), 4.0).error, 0.0);
        assert_eq!(near(1.0).power(near(0.3), 4.0).error, 0.0);
        assert_eq!(near(0.0).power(near(0.3), 4.0).value(), 0.0);
        assert!(near(2.0).power(near(0.5), 4.0).error > 0.0);
    }
}
