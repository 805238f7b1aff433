//! Two proofs that a gradient is the derivative of a definition.
//!
//! A [`Definition`] is the loss of an operation, written once over any scalar from the formula of
//! the forward pass alone. Rounding is [`Real::round_half_even`], clamping `max` and `min`. Run on
//! two scalars it gives the derivative in two ways that share no line:
//!
//! - [`Dual`] carries its derivative along: rounding passes it on unchanged (the value is the
//!   argument plus a constant residual), clamping passes that of the side it takes.
//! - [`Held`] records at the point itself what every rounding added and which side every clamp
//!   took, and repeats just that at the points nearby: a smooth surrogate, of which differences
//!   say something. It carries a bound on its own rounding errors, so that no tolerance is chosen.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

use ndarray::{Array, Array2, ArrayD, Dimension, ScalarOperand};
use num_traits::{One, Zero};
use plumbline_reference::Real;

/// A loss of some tensors, over any scalar.
pub trait Definition {
    /// The loss; `tensors` come in the order in which they are given to [`assert_gradients`].
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T;
}

/// A tensor of the definition and, where it has one, the gradient to be proved.
pub struct Proved<'a> {
    name: &'a str,
    tensor: ArrayD<f64>,
    gradient: Option<ArrayD<f64>>,
}

/// A tensor with its gradient.
pub fn with_gradient<'a, D: Dimension>(
    name: &'a str,
    tensor: &Array<f64, D>,
    gradient: &Array<f64, D>,
) -> Proved<'a> {
    let gradient = Some(gradient.to_owned().into_dyn());
    Proved { name, tensor: tensor.to_owned().into_dyn(), gradient }
}

/// A tensor that the definition needs and that is not trained.
pub fn constant<'a, D: Dimension>(name: &'a str, tensor: &Array<f64, D>) -> Proved<'a> {
    Proved { name, tensor: tensor.to_owned().into_dyn(), gradient: None }
}

/// A matrix of the definition's tensors.
pub fn matrix<T: Real>(tensor: &ArrayD<T>) -> Array2<T> {
    tensor.clone().into_dimensionality().expect("a matrix")
}

/// `sum weights * array`, the loss whose gradient with respect to `array` is `weights`.
pub fn weighted_sum<T: Real, D: Dimension>(weights: &Array<f64, D>, array: &Array<T, D>) -> T {
    assert_eq!(weights.shape(), array.shape());
    weights.iter().zip(array).map(|(&weight, &element)| T::of(weight) * element).sum()
}

/// `x @ weight^T`
pub fn product<T: Real>(x: &Array2<T>, weight: &Array2<T>) -> Array2<T> {
    Array2::from_shape_fn((x.nrows(), weight.nrows()), |(t, o)| {
        x.row(t).iter().zip(weight.row(o)).map(|(&x, &weight)| x * weight).sum()
    })
}

/// Proves every given gradient element by element, by dual numbers to 1e-12 of the largest and by
/// differences of the surrogate to within the bound of the difference.
pub fn assert_gradients(definition: &impl Definition, tensors: &[Proved]) {
    let base: Vec<_> = tensors.iter().map(|proved| proved.tensor.clone()).collect();
    for (which, Proved { name, tensor, gradient }) in tensors.iter().enumerate() {
        let Some(gradient) = gradient else { continue };
        assert_eq!(tensor.shape(), gradient.shape(), "shape of d_{name}");
        let largest = gradient.iter().fold(1.0_f64, |largest, g| largest.max(g.abs()));
        for (position, &gradient) in gradient.iter().enumerate() {
            let dual = by_dual(definition, &base, which, position);
            assert!(
                (gradient - dual).abs() <= 1e-12 * largest,
                "d_{name}[{position}] is {gradient}, dual numbers give {dual}"
            );
            let (value, error) = by_differences(definition, &base, which, position);
            assert!(
                (gradient - value).abs() <= error,
                "d_{name}[{position}] is {gradient}, differences give {value} +- {error}"
            );
            assert!(error <= 1e-6 * largest, "the bound {error} on d_{name} shows nothing");
        }
    }
}

fn by_dual(d: &impl Definition, base: &[ArrayD<f64>], which: usize, position: usize) -> f64 {
    let mut tensors: Vec<_> = base.iter().map(|tensor| tensor.mapv(Dual::of)).collect();
    tensors[which].iter_mut().nth(position).expect("in range").derivative = 1.0;
    d.loss(&tensors).derivative
}

/// The derivative by central differences of fourth order, and a bound on its error.
///
/// Halving the step divides the truncation error by 16, so the finer value is off by a fifteenth of
/// its difference from the coarser one; the whole difference is taken.
fn by_differences(
    definition: &impl Definition,
    base: &[ArrayD<f64>],
    which: usize,
    position: usize,
) -> (f64, f64) {
    let loss = |moved_by: f64| {
        let mut tensors: Vec<_> = base.iter().map(|tensor| tensor.mapv(Held::of)).collect();
        tensors[which].iter_mut().nth(position).expect("in range").value += moved_by;
        definition.loss(&tensors)
    };
    start_recording();
    loss(0.0);
    let replayed = |moved_by: f64| {
        start_replaying();
        let loss = loss(moved_by);
        assert_everything_was_replayed();
        loss
    };
    let difference = |step: f64| {
        let [near, back, far, far_back] = [step, -step, 2.0 * step, -2.0 * step].map(&replayed);
        let value =
            (8.0 * (near.value - back.value) - (far.value - far_back.value)) / (12.0 * step);
        let noise = 8.0 * (near.error + back.error) + far.error + far_back.error;
        (value, noise / (12.0 * step))
    };
    let size = base[which].iter().nth(position).expect("in range").abs();
    // A power of two beside the tensor's own size, so that moving by it rounds as little as may be.
    let step = 2.0_f64.powi((size.max(1.0 / 64.0).log2().floor() as i32) - 8);
    let (coarse, _) = difference(step);
    let (fine, noise) = difference(step / 2.0);
    (fine, (coarse - fine).abs() + 2.0 * noise)
}

/// A value and its derivative along one direction.
#[derive(Debug, Clone, Copy)]
pub struct Dual {
    value: f64,
    derivative: f64,
}

impl Dual {
    fn through(self, value: f64, slope: f64) -> Self {
        Self { value, derivative: slope * self.derivative }
    }
}

impl Real for Dual {
    fn of(value: f64) -> Self {
        Self { value, derivative: 0.0 }
    }

    fn value(self) -> f64 {
        self.value
    }

    /// Straight through: the argument plus a residual that does not move.
    fn round_half_even(self) -> Self {
        self.through(self.value.round_ties_even(), 1.0)
    }

    fn abs(self) -> Self {
        self.through(self.value.abs(), self.value.signum())
    }

    fn sqrt(self) -> Self {
        let root = self.value.sqrt();
        self.through(root, 0.5 / root)
    }

    fn exp(self) -> Self {
        let value = self.value.exp();
        self.through(value, value)
    }

    fn ln(self) -> Self {
        self.through(self.value.ln(), 1.0 / self.value)
    }

    fn powf(self, exponent: Self) -> Self {
        assert_eq!(exponent.derivative, 0.0, "exponents are constants");
        let slope = exponent.value * self.value.powf(exponent.value - 1.0);
        self.through(self.value.powf(exponent.value), slope)
    }
}

impl Add for Dual {
    type Output = Self;

    fn add(self, b: Self) -> Self {
        Self { value: self.value + b.value, derivative: self.derivative + b.derivative }
    }
}

impl Mul for Dual {
    type Output = Self;

    fn mul(self, b: Self) -> Self {
        let derivative = self.derivative * b.value + self.value * b.derivative;
        Self { value: self.value * b.value, derivative }
    }
}

impl Div for Dual {
    type Output = Self;

    fn div(self, b: Self) -> Self {
        let value = self.value / b.value;
        Self { value, derivative: (self.derivative - value * b.derivative) / b.value }
    }
}

impl Neg for Dual {
    type Output = Self;

    fn neg(self) -> Self {
        Self { value: -self.value, derivative: -self.derivative }
    }
}

/// A value of the surrogate, with a bound on what rounding did to it.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    value: f64,
    error: f64,
}

/// What was discontinuous at the point: residuals of roundings, sides of clamps.
#[derive(Debug, Clone, Copy)]
enum Decision {
    Residual(f64),
    Other(bool),
}

#[derive(Default)]
struct Tape {
    recording: bool,
    decisions: Vec<Decision>,
    next: usize,
}

thread_local! {
    static TAPE: RefCell<Tape> = RefCell::default();
}

fn start_recording() {
    TAPE.set(Tape { recording: true, ..Tape::default() });
}

fn start_replaying() {
    TAPE.with_borrow_mut(|tape| (tape.recording, tape.next) = (false, 0));
}

fn assert_everything_was_replayed() {
    TAPE.with_borrow(|tape| assert_eq!(tape.next, tape.decisions.len(), "another path was taken"));
}

/// The decision made here at the point itself.
fn held(decide: impl FnOnce() -> Decision) -> Decision {
    TAPE.with_borrow_mut(|tape| {
        if tape.recording {
            tape.decisions.push(decide());
            return *tape.decisions.last().expect("just pushed");
        }
        tape.next += 1;
        tape.decisions[tape.next - 1]
    })
}

impl Held {
    /// A correctly rounded operation, or one of `ulps`, on arguments off by `inherited`.
    fn rounded(value: f64, inherited: f64, ulps: f64) -> Self {
        Self { value, error: inherited + ulps * f64::EPSILON / 2.0 * (value.abs() + inherited) }
    }

    fn choose(self, other: Self, takes_other: bool) -> Self {
        match held(|| Decision::Other(takes_other)) {
            Decision::Other(true) => other,
            Decision::Other(false) => self,
            Decision::Residual(_) => panic!("another path was taken"),
        }
    }
}

impl Real for Held {
    fn of(value: f64) -> Self {
        Self { value, error: 0.0 }
    }

    fn value(self) -> f64 {
        self.value
    }

    fn round_half_even(self) -> Self {
        let residual = || Decision::Residual(self.value.round_ties_even() - self.value);
        match held(residual) {
            Decision::Residual(residual) => Self::rounded(self.value + residual, self.error, 1.0),
            Decision::Other(_) => panic!("another path was taken"),
        }
    }

    fn abs(self) -> Self {
        self.choose(-self, self.value < 0.0)
    }

    fn sqrt(self) -> Self {
        let root = self.value.sqrt();
        Self::rounded(root, self.error / root, 1.0)
    }

    fn exp(self) -> Self {
        let value = self.value.exp();
        Self::rounded(value, value * self.error * 1.1, 4.0)
    }

    fn ln(self) -> Self {
        Self::rounded(self.value.ln(), 1.1 * self.error / self.value.abs(), 4.0)
    }

    fn powf(self, exponent: Self) -> Self {
        let value = self.value.powf(exponent.value);
        let slope = exponent.value * self.value.powf(exponent.value - 1.0);
        Self::rounded(value, 1.1 * slope.abs() * self.error, 4.0)
    }

    fn max(self, other: Self) -> Self {
        self.choose(other, other.value > self.value)
    }

    fn min(self, other: Self) -> Self {
        self.choose(other, other.value < self.value)
    }
}

impl Add for Held {
    type Output = Self;

    fn add(self, b: Self) -> Self {
        Self::rounded(self.value + b.value, self.error + b.error, 1.0)
    }
}

impl Mul for Held {
    type Output = Self;

    fn mul(self, b: Self) -> Self {
        let inherited = self.error * (b.value.abs() + b.error) + self.value.abs() * b.error;
        Self::rounded(self.value * b.value, inherited, 1.0)
    }
}

impl Div for Held {
    type Output = Self;

    fn div(self, b: Self) -> Self {
        let value = self.value / b.value;
        let inherited = (self.error + value.abs() * b.error) / (b.value.abs() - b.error);
        Self::rounded(value, inherited, 1.0)
    }
}

impl Neg for Held {
    type Output = Self;

    fn neg(self) -> Self {
        Self { value: -self.value, error: self.error }
    }
}

macro_rules! scalar {
    ($scalar:ty) => {
        impl ScalarOperand for $scalar {}

        impl PartialEq for $scalar {
            fn eq(&self, other: &Self) -> bool {
                self.value == other.value
            }
        }

        impl PartialOrd for $scalar {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                self.value.partial_cmp(&other.value)
            }
        }

        impl Zero for $scalar {
            fn zero() -> Self {
                Self::of(0.0)
            }

            fn is_zero(&self) -> bool {
                self.value == 0.0
            }
        }

        impl One for $scalar {
            fn one() -> Self {
                Self::of(1.0)
            }
        }

        impl Sub for $scalar {
            type Output = Self;

            fn sub(self, other: Self) -> Self {
                self + -other
            }
        }

        impl Sum for $scalar {
            fn sum<I: Iterator<Item = Self>>(numbers: I) -> Self {
                numbers.fold(Self::zero(), |sum, number| sum + number)
            }
        }

        scalar!($scalar, AddAssign add_assign +);
        scalar!($scalar, SubAssign sub_assign -);
        scalar!($scalar, MulAssign mul_assign *);
        scalar!($scalar, DivAssign div_assign /);
    };
    ($scalar:ty, $trait:ident $method:ident $operator:tt) => {
        impl $trait for $scalar {
            fn $method(&mut self, other: Self) {
                *self = *self $operator other;
            }
        }
    };
}

scalar!(Dual);
scalar!(Held);

/// `round(clamp(x)) * x * x`, whose derivative with the rounding straight through is known.
struct Staircase;

impl Definition for Staircase {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let x = tensors[0][[0]];
        x.max(T::of(-2.0)).min(T::of(2.0)).round_half_even() * x * x
    }
}

#[test]
fn both_proofs_know_the_staircase() {
    for (x, derivative) in [(1.25, 1.25 * 1.25 + 2.0 * 1.25), (3.0, 12.0), (-3.0, 12.0)] {
        let (x, derivative) = (ndarray::arr1(&[x]), ndarray::arr1(&[derivative]));
        assert_gradients(&Staircase, &[with_gradient("x", &x, &derivative)]);
    }
}

#[test]
#[should_panic(expected = "dual numbers give")]
fn a_wrong_gradient_is_seen() {
    let x = ndarray::arr1(&[1.25]);
    assert_gradients(&Staircase, &[with_gradient("x", &x, &ndarray::arr1(&[2.5]))]);
}
