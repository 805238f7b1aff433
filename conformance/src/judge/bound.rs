//! Allowances: how far an output may be from the expected value, per element and from the data.
//!
//! ```text
//! allowance = gamma(n) * condition + n * tiny,   gamma(n) = n * u / (1 - n * u)
//! ```
//!
//! `n` counts the roundings that reach the element, `condition` is the sum of the absolute values
//! of its terms, computed in binary64 from the inputs, `u` is the unit roundoff of the result
//! (2^-24 or 2^-53, plus 2^-53 for the binary64 oracle) and `tiny` what one underflow may lose.
//! No constant is chosen by eye: each operation states its counts beside its formula.

use ndarray::{Array, Dimension};
use std::collections::BTreeMap;

use crate::case::Request;
use crate::precision::Unit;
use crate::tensor::Tensors;

/// Roundings that one exponential, power or logarithm counts for: 2 ulp, which the usual
/// mathematical libraries promise.
pub const TRANSCENDENTAL: f64 = 4.0;

/// What the allowances of one case are computed from.
pub struct Evidence<'a> {
    /// The request as the subject saw it.
    pub request: &'a Request,
    /// Expected outputs, complete.
    pub expected: &'a Tensors,
    /// What the subject answered: an integer that it rounded the other way, where that is legal,
    /// decides what else is right.
    pub actual: &'a Tensors,
    /// The subject's codes where they were accepted and differ from the expected ones: everything
    /// downstream of a legal choice is judged with that choice.
    pub codes: Option<&'a [i16]>,
    /// Rounding errors of the result's type.
    pub unit: Unit,
}

impl Evidence<'_> {
    /// The subject's codes where they were accepted and differ, else the expected ones.
    pub fn accepted_codes(&self) -> Option<Vec<i16>> {
        self.codes.map(<[i16]>::to_vec).or_else(|| self.expected_codes())
    }

    /// The expected codes, where the operation has codes.
    pub fn expected_codes(&self) -> Option<Vec<i16>> {
        self.expected.get("codes")?.small_integers()
    }
}

/// Allowances by output name.
pub type Bounds = BTreeMap<String, Allowance>;

/// Allowances under their names.
pub(crate) fn named<const N: usize>(pairs: [(&str, Allowance); N]) -> Bounds {
    pairs.into_iter().map(|(name, allowance)| (name.to_owned(), allowance)).collect()
}

/// Allowances of one output.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allowance {
    /// Largest accepted difference per element, row-major.
    pub bound: Vec<f64>,
    /// Further accepted values: index, value.
    pub alternatives: Vec<(usize, f64)>,
    /// Expected values that the subject's legal codes replace: index, value.
    pub replaced: Vec<(usize, f64)>,
    /// Elements whose allowance was widened because their mask or code was open.
    pub open: usize,
}

impl Allowance {
    /// `gamma(roundings) * condition + roundings * tiny` per element; an element without terms
    /// must be exact.
    pub fn new(condition: impl IntoIterator<Item = f64>, roundings: f64, unit: Unit) -> Self {
        let gamma = unit.gamma(roundings);
        let bound = condition.into_iter().map(|condition| {
            if condition > 0.0 { gamma * condition + roundings * unit.tiny } else { 0.0 }
        });
        Self { bound: bound.collect(), ..Self::default() }
    }

    /// As [`Allowance::new`], from an array.
    pub fn of<D: Dimension>(condition: &Array<f64, D>, roundings: f64, unit: Unit) -> Self {
        Self::new(condition.iter().copied(), roundings, unit)
    }

    /// Allowances that are already complete.
    pub fn absolute(bound: impl IntoIterator<Item = f64>) -> Self {
        Self { bound: bound.into_iter().collect(), ..Self::default() }
    }

    /// Widens each element by an absolute amount.
    pub fn plus<D: Dimension>(mut self, extra: &Array<f64, D>) -> Self {
        for (bound, extra) in self.bound.iter_mut().zip(extra) {
            *bound += extra;
        }
        self
    }
}
