//! What arithmetic instructions compute: a table from the text of an instruction to a function of
//! 32 lanes, and the tests that hold it to the instruction set's rules.
//!
//! A register holds its value in the low bits of a `u64`; the bits above are zero. An instruction
//! is looked up by its whole text, so a modifier that is not in the table is an error and not
//! ignored.

mod compare;
mod convert;
mod exact;
mod float;
mod integer;
mod matrix;

pub(super) use compare::{Combine, Compare, combine, compare};
pub(super) use matrix::{Product, fragments};

/// Lanes of a warp.
pub(super) const WARP: usize = 32;

/// One register of a warp.
pub(super) type Lanes = [u64; WARP];

/// A function of registers, by the number of its operands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arithmetic {
    One(fn(&mut Lanes, &Lanes)),
    Two(fn(&mut Lanes, &Lanes, &Lanes)),
    Three(fn(&mut Lanes, &Lanes, &Lanes, &Lanes)),
    Four(fn(&mut Lanes, [&Lanes; 4])),
    /// A quotient or remainder of integers of this many bits: the divisor must not be zero.
    Quotient(fn(&mut Lanes, &Lanes, &Lanes)),
}

/// A value that a register can hold.
pub(super) trait Value: Copy {
    fn of(register: u64) -> Self;
    fn bits(self) -> u64;
}

macro_rules! integers {
    ($($integer:ty as $unsigned:ty),*) => {$(
        impl Value for $integer {
            #[inline(always)]
            fn of(register: u64) -> Self {
                register as Self
            }
            #[inline(always)]
            fn bits(self) -> u64 {
                u64::from(self as $unsigned)
            }
        }
    )*};
}
integers!(
    u8 as u8, i8 as u8, u16 as u16, i16 as u16, u32 as u32, i32 as u32, u64 as u64, i64 as u64
);

/// The NaN that f32 instructions return.
const NAN_F32: u64 = 0x7FFF_FFFF;

impl Value for f32 {
    #[inline(always)]
    fn of(register: u64) -> Self {
        Self::from_bits(register as u32)
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        if self.is_nan() { NAN_F32 } else { u64::from(self.to_bits()) }
    }
}

impl Value for f64 {
    #[inline(always)]
    fn of(register: u64) -> Self {
        Self::from_bits(register)
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

/// `lanewise!(One a: i32 => a.wrapping_neg())`: a function of values as one of lanes.
macro_rules! lanewise {
    (One $a:ident: $t:ty => $body:expr) => {
        $crate::cuda::interpreter::instruction::Arithmetic::One(|out, a| {
            for lane in 0..32 {
                let $a: $t = Value::of(a[lane]);
                out[lane] = Value::bits($body);
            }
        })
    };
    (Quotient $a:ident, $b:ident: $t:ty => $body:expr) => {
        $crate::cuda::interpreter::instruction::Arithmetic::Quotient(|out, a, b| {
            for lane in 0..32 {
                let ($a, $b): ($t, $t) = (Value::of(a[lane]), Value::of(b[lane]));
                out[lane] = Value::bits($body);
            }
        })
    };
    (Two $a:ident: $t:ty, $b:ident: $u:ty => $body:expr) => {
        $crate::cuda::interpreter::instruction::Arithmetic::Two(|out, a, b| {
            for lane in 0..32 {
                let ($a, $b): ($t, $u) = (Value::of(a[lane]), Value::of(b[lane]));
                out[lane] = Value::bits($body);
            }
        })
    };
    (Three $a:ident: $t:ty, $b:ident: $u:ty, $c:ident: $v:ty => $body:expr) => {
        $crate::cuda::interpreter::instruction::Arithmetic::Three(|out, a, b, c| {
            for lane in 0..32 {
                let ($a, $b, $c): ($t, $u, $v) =
                    (Value::of(a[lane]), Value::of(b[lane]), Value::of(c[lane]));
                out[lane] = Value::bits($body);
            }
        })
    };
    (Four $a:ident: $t:ty, $b:ident: $u:ty, $c:ident: $v:ty, $d:ident: $w:ty => $body:expr) => {
        $crate::cuda::interpreter::instruction::Arithmetic::Four(|out, [a, b, c, d]| {
            for lane in 0..32 {
                let ($a, $b, $c, $d): ($t, $u, $v, $w) = (
                    Value::of(a[lane]),
                    Value::of(b[lane]),
                    Value::of(c[lane]),
                    Value::of(d[lane]),
                );
                out[lane] = Value::bits($body);
            }
        })
    };
}
use lanewise;

/// The function of an arithmetic instruction; `None` when the table does not have it.
pub(super) fn arithmetic(opcode: &str) -> Option<Arithmetic> {
    integer::integer(opcode).or_else(|| float::float(opcode)).or_else(|| convert::convert(opcode))
}

/// An instruction on single values.
#[cfg(test)]
fn apply(opcode: &str, operands: &[u64]) -> u64 {
    let lanes = |i: usize| [operands[i]; WARP];
    let mut out = [0; WARP];
    match arithmetic(opcode).unwrap_or_else(|| panic!("{opcode} is not in the table")) {
        Arithmetic::One(f) => f(&mut out, &lanes(0)),
        Arithmetic::Two(f) | Arithmetic::Quotient(f) => f(&mut out, &lanes(0), &lanes(1)),
        Arithmetic::Three(f) => f(&mut out, &lanes(0), &lanes(1), &lanes(2)),
        Arithmetic::Four(f) => f(&mut out, [&lanes(0), &lanes(1), &lanes(2), &lanes(3)]),
    }
    assert!(out.iter().all(|lane| *lane == out[0]));
    out[0]
}

/// An instruction on f32 values, to bits.
#[cfg(test)]
fn apply_f32(opcode: &str, operands: &[f32]) -> u32 {
    let operands: Vec<u64> = operands.iter().map(|value| u64::from(value.to_bits())).collect();
    apply(opcode, &operands) as u32
}
