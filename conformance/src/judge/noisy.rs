//! How much the roundings of a precision matter to a result: the reference, run again and again on
//! numbers that round at random.
//!
//! A bound that follows the worst case through a whole model is true and says little: thousands of
//! roundings never all err the same way. Here every inexact operation takes one of the two
//! neighbours of its result with equal chance (random rounding, as in J. Vignes, A stochastic
//! arithmetic for reliable scientific computation, 1993), in the precision of the subject. The
//! spread of [`RUNS`] such runs around the binary64 result is what this model makes of roundings
//! that are, in the mean square, twice those of rounding to nearest. An element is rejected beyond
//! [`DEVIATIONS`] standard deviations of its own spread or of its tensor's, whichever is larger:
//! an element that happened to be still is not held to zero.

use ndarray::ArrayD;
use plumbline_reference::Real;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::{Add, Div, Mul, Neg};
use std::thread::LocalKey;

use super::bound::{Allowance, Bounds, Evidence, TRANSCENDENTAL};
use super::computed_in;
use crate::case::Request;
use crate::number::number;
use crate::precision::{Precision, Unit};
use crate::teeth::arithmetic::{Slip, with_slip};
use crate::tensor::{Tensor, Tensors};

/// Runs at random.
pub const RUNS: u64 = 16;

/// Student's t with 15 degrees of freedom leaves 1e-6 beyond 7.8, and the subject rounds to
/// nearest: its own deviation is half of the one that is measured.
pub const DEVIATIONS: f64 = 8.0;

/// How an output so judged is described.
pub const RULE: &str =
    "8 standard deviations of the reference run 16 times with every rounding at random";

thread_local! {
    static STATE: Cell<u64> = const { Cell::new(1) };
}

/// Begins run `run`. The state is any number but zero; neighbouring ones part after a few steps.
fn begin(run: u64) {
    STATE.set(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(run + 1));
    for _ in 0..8 {
        bits();
    }
}

/// A fair coin.
pub(crate) fn coin() -> bool {
    bits() & 1 == 0
}

/// Xorshift (G. Marsaglia, 2003): a fair coin is all that is asked of it.
fn bits() -> u64 {
    let mut x = STATE.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    STATE.set(x);
    x
}

/// A number of the subject's precision (`Noisy<true>`: binary32, else binary64) that rounds at
/// random.
#[derive(Debug, Clone, Copy)]
pub struct Noisy<const NARROW: bool> {
    value: f64,
}

impl<const NARROW: bool> Noisy<NARROW> {
    /// `value + rest`, rounded one way or the other; `rest` is below half an ulp of binary64.
    fn round(value: f64, rest: f64) -> Self {
        let (below, above) = if NARROW {
            neighbours_f32(value, rest)
        } else if rest == 0.0 || !value.is_finite() {
            (value, value)
        } else if rest < 0.0 {
            (value.next_down(), value)
        } else {
            (value, value.next_up())
        };
        Self { value: if coin() { below } else { above } }
    }

    /// A value of a function that libraries promise to a few roundings.
    fn approximate(value: f64) -> Self {
        let ulps = TRANSCENDENTAL / 2.0;
        let ulp = 2.0 * if NARROW { 2_f64.powi(-24) } else { 2_f64.powi(-53) } * value.abs();
        // Evenly between -1 and 1.
        let at = (bits() >> 11) as f64 / 2_f64.powi(52) - 1.0;
        Self::round(value + at * ulps * ulp, 0.0)
    }
}

/// The binary32 numbers on either side of `value + rest`; twice the same where it is one.
fn neighbours_f32(value: f64, rest: f64) -> (f64, f64) {
    let nearest = value as f32;
    let (wide, exact) = (f64::from(nearest), rest == 0.0);
    if !nearest.is_finite() || (wide == value && exact) {
        return (wide, wide);
    }
    if wide > value || (wide == value && rest < 0.0) {
        (f64::from(nearest.next_down()), wide)
    } else {
        (wide, f64::from(nearest.next_up()))
    }
}

impl<const NARROW: bool> Real for Noisy<NARROW> {
    fn of(value: f64) -> Self {
        Self { value: if NARROW { f64::from(value as f32) } else { value } }
    }

    fn value(self) -> f64 {
        self.value
    }

    fn round_half_even(self) -> Self {
        Self { value: self.value.round_ties_even() }
    }

    fn abs(self) -> Self {
        Self { value: self.value.abs() }
    }

    fn sqrt(self) -> Self {
        let root = self.value.sqrt();
        Self::round(root, remainder(self.value, root, root) / (2.0 * root).max(f64::MIN_POSITIVE))
    }

    fn exp(self) -> Self {
        Self::approximate(self.value.exp())
    }

    fn ln(self) -> Self {
        Self::approximate(self.value.ln())
    }

    fn powf(self, exponent: Self) -> Self {
        Self::approximate(self.value.powf(exponent.value))
    }
}

/// `value - a * b`, rounded once.
#[expect(clippy::disallowed_methods, reason = "the exact remainder of a rounded result")]
fn remainder(value: f64, a: f64, b: f64) -> f64 {
    f64::mul_add(-a, b, value)
}

number!(const NARROW: bool, Noisy<NARROW>);

impl<const NARROW: bool> Add for Noisy<NARROW> {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        // D. E. Knuth's exact sum: sum + rest is what no rounding lost.
        let (a, b) = (self.value, other.value);
        let sum = a + b;
        let of_b = sum - a;
        let rest = (a - (sum - of_b)) + (b - of_b);
        Self::round(sum, rest)
    }
}

impl<const NARROW: bool> Neg for Noisy<NARROW> {
    type Output = Self;

    fn neg(self) -> Self {
        Self { value: -self.value }
    }
}

impl<const NARROW: bool> Mul for Noisy<NARROW> {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        let product = self.value * other.value;
        Self::round(product, -remainder(product, self.value, other.value))
    }
}

impl<const NARROW: bool> Div for Noisy<NARROW> {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        let quotient = self.value / other.value;
        Self::round(quotient, remainder(self.value, quotient, other.value) / other.value)
    }
}

/// Outputs of an operation under their names.
type Outputs<T> = Vec<(String, ArrayD<T>)>;

/// The allowances of an operation, from its reference over numbers that round at random.
///
/// # Errors
/// Where the reference refuses the request.
pub fn bounds(
    evidence: &Evidence,
    narrow: fn(&Request) -> Result<Outputs<Noisy<true>>, String>,
    wide: fn(&Request) -> Result<Outputs<Noisy<false>>, String>,
) -> Result<Bounds, String> {
    remembered(&OF_ROUNDINGS, evidence.request, evidence.expected, evidence.unit, || {
        let mut spreads = Spreads::default();
        for run in 0..RUNS {
            begin(run);
            if evidence.unit == Unit::of(Precision::F32) {
                spreads.add_arrays(evidence, narrow(evidence.request)?)?;
            } else {
                spreads.add_arrays(evidence, wide(evidence.request)?)?;
            }
        }
        Ok(spreads.allowances(Least::OfTensor))
    })
}

/// What rounding the factors of products to bf16 may add to the difference of each float output:
/// [`DEVIATIONS`] standard deviations of the reference run [`RUNS`] times with each factor at random
/// one of its two neighbours. An element that no rounded factor reaches may not differ more; but in
/// a whole model, as above, none is held to less than its tensor is.
///
/// # Errors
/// Where the reference refuses the request.
pub fn of_factors(request: &Request, expected: &Tensors) -> Result<Bounds, String> {
    remembered(&OF_FACTORS, request, expected, Unit::of(Precision::F32), || {
        let mut spreads = Spreads::default();
        for run in 0..RUNS {
            begin(run);
            let outputs =
                with_slip(Slip::Bf16FactorsAtRandom, || (request.op.run.faulty)(request))?;
            for (name, tensor) in expected.iter().filter(|(_, x)| computed_in(x).is_some()) {
                let answered = outputs.get(name);
                let answered = answered.ok_or_else(|| format!("out.{name} is not there"))?;
                spreads.add(name, tensor, answered.values());
            }
        }
        let is_model = request.op.name.starts_with("llama.");
        Ok(spreads.allowances(if is_model { Least::OfTensor } else { Least::Zero }))
    })
}

/// Allowances, and all that they were derived from.
struct Derived {
    request: Request,
    expected: Tensors,
    unit: Unit,
    bounds: Bounds,
}

type Last = RefCell<Option<Derived>>;

thread_local! {
    static OF_ROUNDINGS: Last = const { RefCell::new(None) };
    static OF_FACTORS: Last = const { RefCell::new(None) };
}

/// A subject is often judged on the case of another before it: sixteen runs are worth keeping.
fn remembered(
    last: &'static LocalKey<Last>,
    request: &Request,
    expected: &Tensors,
    unit: Unit,
    derive: impl FnOnce() -> Result<Bounds, String>,
) -> Result<Bounds, String> {
    let is_same = |known: &Derived| {
        known.request.op.name == request.op.name
            && known.request.params == request.params
            && known.request.inputs == request.inputs
            && known.expected == *expected
            && known.unit == unit
    };
    let known = last.with_borrow(|last| {
        last.as_ref().filter(|known| is_same(known)).map(|known| known.bounds.clone())
    });
    if let Some(known) = known {
        return Ok(known);
    }
    let bounds = derive()?;
    let (request, expected) = (request.clone(), expected.clone());
    last.set(Some(Derived { request, expected, unit, bounds: bounds.clone() }));
    Ok(bounds)
}

/// Sums of squared distances from the expected values.
#[derive(Default)]
struct Spreads(BTreeMap<String, Vec<f64>>);

/// What no element of a tensor is held to less than.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Least {
    /// Nothing.
    Zero,
    /// The spread of its tensor.
    OfTensor,
}

impl Spreads {
    fn add_arrays<const NARROW: bool>(
        &mut self,
        evidence: &Evidence,
        outputs: Outputs<Noisy<NARROW>>,
    ) -> Result<(), String> {
        for (name, array) in outputs {
            let expected = evidence.expected.get(&name);
            let expected = expected.ok_or_else(|| format!("out.{name} is not expected"))?;
            self.add(&name, expected, array.iter().map(|noisy| noisy.value));
        }
        Ok(())
    }

    fn add(&mut self, name: &str, expected: &Tensor, values: impl Iterator<Item = f64>) {
        let zeros = || vec![0.0; expected.len()];
        let squares = self.0.entry(name.to_owned()).or_insert_with(zeros);
        for ((square, value), expected) in squares.iter_mut().zip(values).zip(expected.values()) {
            *square += (value - expected).powi(2);
        }
    }

    fn allowances(self, least: Least) -> Bounds {
        let of_tensor = |squares: Vec<f64>| {
            let mean = squares.iter().sum::<f64>() / squares.len().max(1) as f64;
            let least = if least == Least::OfTensor { mean } else { 0.0 };
            Allowance::absolute(squares.into_iter().map(|square| {
                let deviation = (square.max(least) / RUNS as f64).sqrt();
                DEVIATIONS * deviation
            }))
        };
        self.0.into_iter().map(|(name, squares)| (name, of_tensor(squares))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Narrow = Noisy<true>;

    /// What a thousand runs of one operation come to.
    fn results(run: impl Fn() -> f64) -> Vec<f64> {
        STATE.set(7);
        let mut results: Vec<f64> = (0..1000).map(|_| run()).collect();
        results.sort_by(f64::total_cmp);
        results.dedup();
        results
    }

    #[test]
    fn an_inexact_result_is_one_of_two_neighbours() {
        let (one, three) = (Narrow::of(1.0), Narrow::of(3.0));
        let third = 1.0_f32 / 3.0;
        let expected = [third.next_down(), third].map(f64::from);
        assert_eq!(results(|| (one / three).value), expected);
        let (one, three) = (Noisy::<false>::of(1.0), Noisy::<false>::of(3.0));
        let third = 1.0_f64 / 3.0;
        assert_eq!(results(|| (one / three).value), [third, third.next_up()]);
        let tiny = Noisy::<false>::of(2_f64.powi(-80));
        assert_eq!(results(|| (one + -tiny).value), [1_f64.next_down(), 1.0]);
        let root = 2_f64.sqrt();
        assert_eq!(results(|| Noisy::<false>::of(2.0).sqrt().value), [root.next_down(), root]);
    }

    #[test]
    fn what_is_exact_stays() {
        let (a, b) = (Narrow::of(1.5), Narrow::of(-2.25));
        assert_eq!(results(|| (a + b).value), [-0.75]);
        assert_eq!(results(|| (a * b).value), [-3.375]);
        assert_eq!(results(|| (b / a).value), [-1.5]);
        assert_eq!(results(|| Narrow::of(2.25).sqrt().value), [1.5]);
    }

    #[test]
    fn a_sum_that_rounds_to_nearest_lies_within_the_spread() {
        let terms: Vec<f32> = (1..2000).map(|k| (k as f32).sin() / k as f32).collect();
        let exact: f64 = terms.iter().map(|&term| f64::from(term)).sum();
        let nearest: f32 = terms.iter().sum();
        STATE.set(11);
        let noisy = |_| {
            let sum: Narrow = terms.iter().map(|&term| Narrow::of(f64::from(term))).sum();
            (sum.value - exact).powi(2)
        };
        let deviation = ((0..200).map(noisy).sum::<f64>() / 200.0).sqrt();
        let off = (f64::from(nearest) - exact).abs();
        assert!(deviation > 1e-7 && off < DEVIATIONS * deviation, "{off:e} {deviation:e}");
    }
}
