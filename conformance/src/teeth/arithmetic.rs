//! Binary32 arithmetic with one slip in it, as a scalar that the reference runs on.
//!
//! Most slips are faults. Factors in bf16 are one only where a subject does not say that it rounds
//! them; the judge runs them to learn what they cost.

use std::cell::Cell;
use std::cmp::Ordering;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

use half::{bf16, f16};
use ndarray::ScalarOperand;
use num_traits::{One, Zero};
use plumbline_reference::Real;

use crate::judge::noisy;
use crate::precision::{Precision, Scalar};

/// What is wrong with the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Slip {
    /// Nothing.
    #[default]
    None,
    /// A tie goes away from zero.
    RoundHalfAway,
    /// A tie goes up: `floor(x + 0.5)`.
    RoundHalfUp,
    /// A tie goes towards zero.
    RoundHalfDown,
    /// Towards zero, always.
    Truncate,
    /// Down, always.
    Floor,
    /// Up, always.
    Ceil,
    /// A quotient by the rounded reciprocal.
    Reciprocal,
    /// Quotients in bf16.
    Bf16Quotient,
    /// Sums in bf16.
    Bf16Sum,
    /// Sums in f16.
    F16Sum,
    /// Products of numbers with eleven bits, as TF32 has.
    Tf32Product,
    /// Factors in bf16, which a subject may say of itself.
    Bf16Factors,
    /// Factors in bf16, one of the two neighbours with equal chance.
    Bf16FactorsAtRandom,
    /// Results below the normal range become zero.
    FlushToZero,
    /// A product and the sum that takes it are rounded once.
    Contract,
    /// An exponential of a number that was rounded to f16 first.
    CoarseExponential,
    /// Every sum, product and quotient is rounded down.
    Downwards,
    /// Every sum, product and quotient is rounded towards zero.
    Chop,
}

thread_local! {
    static SLIP: Cell<Slip> = const { Cell::new(Slip::None) };
}

/// Runs something with a slip on this thread.
pub fn with_slip<R>(slip: Slip, run: impl FnOnce() -> R) -> R {
    SLIP.set(slip);
    let result = run();
    SLIP.set(Slip::None);
    result
}

/// A binary32 number.
#[derive(Debug, Clone, Copy)]
pub struct Faulty {
    value: f32,
    /// The product before its rounding, where this is one.
    product: Option<f64>,
}

impl Faulty {
    fn new(value: f32) -> Self {
        let flushed = SLIP.get() == Slip::FlushToZero && value.is_subnormal();
        Self { value: if flushed { 0.0 } else { value }, product: None }
    }
}

/// A result whose exact value binary64 knows well enough to say on which side of it this lies.
fn directed(nearest: f32, exact: f64) -> f32 {
    let above = f64::from(nearest) > exact;
    match SLIP.get() {
        Slip::Downwards if above => nearest.next_down(),
        Slip::Chop if above && nearest > 0.0 => nearest.next_down(),
        Slip::Chop if f64::from(nearest) < exact && nearest < 0.0 => nearest.next_up(),
        _ => nearest,
    }
}

fn eleven_bits(value: f32) -> f32 {
    if !value.is_finite() {
        return value;
    }
    // Thirteen bits fewer, to nearest, a tie to even.
    let bits = value.to_bits();
    let kept = bits >> 13;
    let rest = bits & 0x1fff;
    let up = rest > 0x1000 || (rest == 0x1000 && kept & 1 == 1);
    f32::from_bits((kept + u32::from(up)) << 13)
}

/// One of the two neighbours in bf16, which are the same where the value is one.
fn either_bf16(value: f32) -> f32 {
    let (below, rest) = (value.to_bits() & 0xffff_0000, value.to_bits() & 0xffff);
    let up = rest != 0 && value.is_finite() && noisy::coin();
    f32::from_bits(below + (u32::from(up) << 16))
}

impl Real for Faulty {
    fn of(value: f64) -> Self {
        Self::new(value as f32)
    }

    fn value(self) -> f64 {
        f64::from(self.value)
    }

    fn round_half_even(self) -> Self {
        let value = self.value;
        let below = value.floor();
        let tie = value - below == 0.5;
        Self::new(match SLIP.get() {
            Slip::RoundHalfAway if tie => value + 0.5_f32.copysign(value),
            Slip::RoundHalfUp if tie => below + 1.0,
            Slip::RoundHalfDown if tie => value - 0.5_f32.copysign(value),
            Slip::Truncate => value.trunc(),
            Slip::Floor => below,
            Slip::Ceil => value.ceil(),
            _ => value.round_ties_even(),
        })
    }

    fn abs(self) -> Self {
        Self::new(self.value.abs())
    }

    fn sqrt(self) -> Self {
        Self::new(self.value.sqrt())
    }

    fn exp(self) -> Self {
        let coarse = SLIP.get() == Slip::CoarseExponential;
        Self::new(if coarse { f16::from_f32(self.value).to_f32() } else { self.value }.exp())
    }

    fn ln(self) -> Self {
        Self::new(self.value.ln())
    }

    fn powf(self, exponent: Self) -> Self {
        Self::new(self.value.powf(exponent.value))
    }

    fn operand(self) -> Self {
        match SLIP.get() {
            Slip::Bf16Factors => Self::new(bf16::from_f32(self.value).to_f32()),
            Slip::Bf16FactorsAtRandom => Self::new(either_bf16(self.value)),
            _ => self,
        }
    }
}

impl Scalar for Faulty {
    const PRECISION: Precision = Precision::F32;
}

impl Add for Faulty {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let sum = self.value + other.value;
        Self::new(match SLIP.get() {
            Slip::Bf16Sum => bf16::from_f32(sum).to_f32(),
            Slip::F16Sum => f16::from_f32(sum).to_f32(),
            Slip::Contract => match (self.product, other.product) {
                (_, Some(product)) => (f64::from(self.value) + product) as f32,
                (Some(product), None) => (product + f64::from(other.value)) as f32,
                (None, None) => sum,
            },
            _ => directed(sum, f64::from(self.value) + f64::from(other.value)),
        })
    }
}

impl Sub for Faulty {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Faulty {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        let (a, b) = match SLIP.get() {
            Slip::Tf32Product => (eleven_bits(self.value), eleven_bits(other.value)),
            _ => (self.value, other.value),
        };
        let exact = f64::from(a) * f64::from(b);
        Self { product: Some(exact), ..Self::new(directed(a * b, exact)) }
    }
}

impl Div for Faulty {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        let quotient = self.value / other.value;
        Self::new(match SLIP.get() {
            Slip::Reciprocal => self.value * (1.0 / other.value),
            Slip::Bf16Quotient => bf16::from_f32(quotient).to_f32(),
            _ => directed(quotient, f64::from(self.value) / f64::from(other.value)),
        })
    }
}

impl Neg for Faulty {
    type Output = Self;

    fn neg(self) -> Self {
        Self { value: -self.value, product: self.product.map(|product| -product) }
    }
}

impl PartialEq for Faulty {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialOrd for Faulty {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl ScalarOperand for Faulty {}

impl Zero for Faulty {
    fn zero() -> Self {
        Self::new(0.0)
    }

    fn is_zero(&self) -> bool {
        self.value == 0.0
    }
}

impl One for Faulty {
    fn one() -> Self {
        Self::new(1.0)
    }
}

macro_rules! assigning {
    ($($trait:ident $method:ident $operator:tt)*) => {$(
        impl $trait for Faulty {
            fn $method(&mut self, other: Self) {
                *self = *self $operator other;
            }
        }
    )*};
}

assigning! {
    AddAssign add_assign +
    SubAssign sub_assign -
    MulAssign mul_assign *
    DivAssign div_assign /
}

impl Sum for Faulty {
    fn sum<I: Iterator<Item = Self>>(numbers: I) -> Self {
        numbers.fold(Self::zero(), |sum, number| sum + number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(slip: Slip, value: f64) -> f64 {
        with_slip(slip, || Faulty::of(value).round_half_even().value())
    }

    #[test]
    fn each_rounding_is_the_wrong_one_it_is_named_for() {
        let slips = [
            (Slip::None, [2.0, -2.0, 1.0, 2.0]),
            (Slip::RoundHalfAway, [3.0, -3.0, 1.0, 2.0]),
            (Slip::RoundHalfUp, [3.0, -2.0, 1.0, 2.0]),
            (Slip::RoundHalfDown, [2.0, -2.0, 1.0, 1.0]),
            (Slip::Truncate, [2.0, -2.0, 1.0, 1.0]),
            (Slip::Floor, [2.0, -3.0, 1.0, 1.0]),
            (Slip::Ceil, [3.0, -2.0, 2.0, 2.0]),
        ];
        for (slip, expected) in slips {
            let actual = [2.5, -2.5, 1.25, 1.5].map(|value| rounded(slip, value));
            assert_eq!(actual, expected, "{slip:?}");
        }
    }

    #[test]
    fn a_contraction_keeps_what_the_product_lost() {
        let fused = |slip| {
            with_slip(slip, || {
                let third = Faulty::of(1.0 / 3.0);
                (third * Faulty::of(3.0) - Faulty::of(1.0)).value()
            })
        };
        assert_eq!(fused(Slip::None), 0.0);
        assert!(fused(Slip::Contract) != 0.0);
    }

    #[test]
    fn without_a_slip_it_is_binary32() {
        for (a, b) in [(0.1_f32, 0.3_f32), (1e-40, 3.0), (-7.5, 1e8)] {
            let (x, y) = (Faulty::of(f64::from(a)), Faulty::of(f64::from(b)));
            let results = [x + y, x - y, x * y, x / y].map(|result| result.value);
            assert_eq!(results.map(f32::to_bits), [a + b, a - b, a * b, a / b].map(f32::to_bits));
        }
    }

    #[test]
    fn eleven_bits_round_to_nearest() {
        assert_eq!(eleven_bits(1.0 + 1.0 / 1024.0), 1.0 + 1.0 / 1024.0);
        assert_eq!(eleven_bits(1.0 + 1.0 / 2048.0), 1.0);
        assert_eq!(eleven_bits(1.0 + 3.0 / 2048.0), 1.0 + 2.0 / 1024.0);
    }
}
