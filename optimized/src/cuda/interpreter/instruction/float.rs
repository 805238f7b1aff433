//! Floating-point arithmetic.
//!
//! Results that the instruction set leaves open (`.approx`) are computed in f64 and rounded: one of
//! the legal values. A kernel whose result hangs on which one it is must be judged by a bound.

use super::exact::{Round, fma, narrow};
use super::{Arithmetic, Value, lanewise};

pub(super) fn float(opcode: &str) -> Option<Arithmetic> {
    exact_f32(opcode).or_else(|| approximate(opcode)).or_else(|| double(opcode))
}

/// What has one right result.
fn exact_f32(opcode: &str) -> Option<Arithmetic> {
    Some(match opcode {
        "add.f32" | "add.rn.f32" => lanewise!(Two a: f32, b: f32 => a + b),
        "sub.f32" | "sub.rn.f32" => lanewise!(Two a: f32, b: f32 => a - b),
        "mul.f32" | "mul.rn.f32" => lanewise!(Two a: f32, b: f32 => a * b),
        "div.rn.f32" => lanewise!(Two a: f32, b: f32 => a / b),
        "rcp.rn.f32" => lanewise!(One a: f32 => 1.0 / a),
        "sqrt.rn.f32" => lanewise!(One a: f32 => a.sqrt()),
        "fma.rn.f32" => {
            lanewise!(Three a: f32, b: f32, c: f32 => fma(a, b, c, Round::Nearest))
        }
        "fma.rz.f32" => lanewise!(Three a: f32, b: f32, c: f32 => fma(a, b, c, Round::Zero)),
        "fma.rm.f32" => lanewise!(Three a: f32, b: f32, c: f32 => fma(a, b, c, Round::Down)),
        "fma.rp.f32" => lanewise!(Three a: f32, b: f32, c: f32 => fma(a, b, c, Round::Up)),
        "add.rz.f32" => lanewise!(Two a: f32, b: f32 => fma(a, 1.0, b, Round::Zero)),
        "add.rm.f32" => lanewise!(Two a: f32, b: f32 => fma(a, 1.0, b, Round::Down)),
        "add.rp.f32" => lanewise!(Two a: f32, b: f32 => fma(a, 1.0, b, Round::Up)),
        "sub.rm.f32" => lanewise!(Two a: f32, b: f32 => fma(a, 1.0, -b, Round::Down)),
        "sub.rp.f32" => lanewise!(Two a: f32, b: f32 => fma(a, 1.0, -b, Round::Up)),
        "mul.rz.f32" => lanewise!(Two a: f32, b: f32 => product(a, b, Round::Zero)),
        "mul.rm.f32" => lanewise!(Two a: f32, b: f32 => product(a, b, Round::Down)),
        "mul.rp.f32" => lanewise!(Two a: f32, b: f32 => product(a, b, Round::Up)),
        "neg.f32" => lanewise!(One a: f32 => -a),
        "abs.f32" => lanewise!(One a: f32 => a.abs()),
        "copysign.f32" => lanewise!(Two sign: f32, a: f32 => a.copysign(sign)),
        "min.f32" => lanewise!(Two a: f32, b: f32 => min(a, b)),
        "max.f32" => lanewise!(Two a: f32, b: f32 => -min(-a, -b)),
        "min.NaN.f32" => lanewise!(Two a: f32, b: f32 => nan_or_min(a, b)),
        "max.NaN.f32" => lanewise!(Two a: f32, b: f32 => -nan_or_min(-a, -b)),
        _ => return None,
    })
}

fn product(a: f32, b: f32, round: Round) -> f32 {
    narrow(f64::from(a) * f64::from(b), round)
}

/// The smaller; of a NaN and a number the number, of the two zeros the negative one.
#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b || b.is_nan() || (a == b && a.is_sign_negative()) { a } else { b }
}

/// The smaller of two numbers; a NaN where one is.
#[inline(always)]
fn nan_or_min(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { min(a, b) }
}

/// Flushes what is not normal to a zero of its sign.
#[inline(always)]
fn ftz(a: f32) -> f32 {
    if a.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(a) } else { a }
}

/// What the instruction set bounds only.
fn approximate(opcode: &str) -> Option<Arithmetic> {
    macro_rules! of {
        ($a:ident => $body:expr) => {
            lanewise!(One x: f32 => { let $a = f64::from(x); ($body) as f32 })
        };
    }
    macro_rules! flushed {
        ($a:ident => $body:expr) => {
            lanewise!(One x: f32 => { let $a = f64::from(ftz(x)); ftz(($body) as f32) })
        };
    }
    Some(match opcode {
        "ex2.approx.f32" => of!(a => a.exp2()),
        "ex2.approx.ftz.f32" => flushed!(a => a.exp2()),
        "lg2.approx.f32" => of!(a => a.log2()),
        "lg2.approx.ftz.f32" => flushed!(a => a.log2()),
        "rsqrt.approx.f32" => of!(a => 1.0 / a.sqrt()),
        "rsqrt.approx.ftz.f32" => flushed!(a => 1.0 / a.sqrt()),
        "rcp.approx.f32" => of!(a => 1.0 / a),
        "rcp.approx.ftz.f32" => flushed!(a => 1.0 / a),
        "sqrt.approx.f32" => of!(a => a.sqrt()),
        "sqrt.approx.ftz.f32" => flushed!(a => a.sqrt()),
        "sin.approx.f32" => of!(a => a.sin()),
        "sin.approx.ftz.f32" => flushed!(a => a.sin()),
        "cos.approx.f32" => of!(a => a.cos()),
        "cos.approx.ftz.f32" => flushed!(a => a.cos()),
        "tanh.approx.f32" => of!(a => a.tanh()),
        "div.approx.f32" | "div.full.f32" => lanewise!(Two a: f32, b: f32 => a / b),
        "div.approx.ftz.f32" | "div.full.ftz.f32" => {
            lanewise!(Two a: f32, b: f32 => ftz(ftz(a) / ftz(b)))
        }
        "mul.ftz.f32" | "mul.rn.ftz.f32" => lanewise!(Two a: f32, b: f32 => ftz(ftz(a) * ftz(b))),
        "add.ftz.f32" | "add.rn.ftz.f32" => lanewise!(Two a: f32, b: f32 => ftz(ftz(a) + ftz(b))),
        "fma.rn.ftz.f32" => lanewise!(Three a: f32, b: f32, c: f32 => {
            ftz(fma(ftz(a), ftz(b), ftz(c), Round::Nearest))
        }),
        _ => return None,
    })
}

fn double(opcode: &str) -> Option<Arithmetic> {
    Some(match opcode {
        "add.f64" | "add.rn.f64" => lanewise!(Two a: f64, b: f64 => a + b),
        "sub.f64" | "sub.rn.f64" => lanewise!(Two a: f64, b: f64 => a - b),
        "mul.f64" | "mul.rn.f64" => lanewise!(Two a: f64, b: f64 => a * b),
        "div.rn.f64" => lanewise!(Two a: f64, b: f64 => a / b),
        "rcp.rn.f64" => lanewise!(One a: f64 => 1.0 / a),
        "sqrt.rn.f64" => lanewise!(One a: f64 => a.sqrt()),
        "neg.f64" => lanewise!(One a: f64 => -a),
        "abs.f64" => lanewise!(One a: f64 => a.abs()),
        "rcp.approx.ftz.f64" => lanewise!(One a: f64 => upper(1.0 / upper(a))),
        "rsqrt.approx.ftz.f64" => lanewise!(One a: f64 => upper(1.0 / upper(a).sqrt())),
        "fma.rn.f64" => lanewise!(Three a: f64, b: f64, c: f64 => fused(a, b, c)),
        _ => return None,
    })
}

/// The upper half of the bits, and zeros: what approximations in f64 read and write. Values that
/// are not normal are flushed.
fn upper(a: f64) -> f64 {
    let kept = f64::from_bits(a.to_bits() >> 32 << 32);
    if kept.abs() < f64::MIN_POSITIVE { 0.0f64.copysign(a) } else { kept }
}

#[allow(clippy::disallowed_methods)] // one rounding is what this instruction is
fn fused(a: f64, b: f64, c: f64) -> f64 {
    a.mul_add(b, c)
}

#[cfg(test)]
mod tests {
    use super::super::{NAN_F32, apply, apply_f32};

    const NAN: f32 = f32::NAN;

    fn f32_of(opcode: &str, operands: &[f32]) -> f32 {
        f32::from_bits(apply_f32(opcode, operands))
    }

    #[test]
    fn a_product_and_a_sum_are_two_roundings_and_fma_is_one() {
        let a = 1.0 + f32::EPSILON;
        let product = f32_of("mul.rn.f32", &[a, a]);
        let sum = f32_of("add.rn.f32", &[product, -product]);
        assert_eq!(sum, 0.0);
        assert_eq!(f32_of("fma.rn.f32", &[a, a, -product]), f32::EPSILON * f32::EPSILON);
    }

    #[test]
    fn min_and_max_prefer_numbers_and_know_zeros() {
        assert_eq!(f32_of("min.f32", &[NAN, 1.0]), 1.0);
        assert_eq!(f32_of("max.f32", &[1.0, NAN]), 1.0);
        assert_eq!(u64::from(apply_f32("min.f32", &[NAN, NAN])), NAN_F32);
        assert_eq!(u64::from(apply_f32("max.NaN.f32", &[1.0, NAN])), NAN_F32);
        assert_eq!(u64::from(apply_f32("min.NaN.f32", &[NAN, 1.0])), NAN_F32);
        for zeros in [[0.0, -0.0], [-0.0, 0.0]] {
            assert!(f32_of("min.f32", &zeros).is_sign_negative());
            assert!(f32_of("max.f32", &zeros).is_sign_positive());
        }
        assert_eq!(f32_of("max.f32", &[-3.0, 2.0]), 2.0);
    }

    #[test]
    fn every_nan_is_the_same() {
        let negative = f32::from_bits(0xFFC0_1234);
        assert_eq!(u64::from(apply_f32("add.f32", &[negative, 1.0])), NAN_F32);
        assert_eq!(u64::from(apply_f32("div.rn.f32", &[0.0, 0.0])), NAN_F32);
    }

    #[test]
    fn division_and_root_are_the_nearest() {
        assert_eq!(f32_of("div.rn.f32", &[1.0, 3.0]), 1.0 / 3.0);
        assert_eq!(f32_of("div.rn.f32", &[-1.0, 0.0]), f32::NEG_INFINITY);
        assert_eq!(f32_of("sqrt.rn.f32", &[2.0]), 2.0f32.sqrt());
        assert_eq!(f32_of("rcp.rn.f32", &[3.0]), 1.0 / 3.0);
    }

    #[test]
    fn directed_products_enclose_the_exact_one() {
        let (a, b) = (1.1f32, -1.7f32);
        let exact = f64::from(a) * f64::from(b);
        let down = f32_of("mul.rm.f32", &[a, b]);
        let up = f32_of("mul.rp.f32", &[a, b]);
        assert!(f64::from(down) < exact && exact < f64::from(up));
        assert_eq!(down.next_up(), up);
        assert_eq!(f32_of("mul.rz.f32", &[a, b]), up);
    }

    #[test]
    fn approximations_are_the_rounded_values_and_flush_where_they_say() {
        assert_eq!(f32_of("ex2.approx.ftz.f32", &[3.0]), 8.0);
        assert_eq!(f32_of("ex2.approx.ftz.f32", &[-130.0]), 0.0);
        assert_eq!(f32_of("ex2.approx.f32", &[-130.0]), 2.0f32.powi(-130));
        assert_eq!(f32_of("lg2.approx.f32", &[8.0]), 3.0);
        assert_eq!(f32_of("rsqrt.approx.f32", &[4.0]), 0.5);
        assert_eq!(f32_of("rcp.approx.ftz.f32", &[f32::from_bits(1)]), f32::INFINITY);
        assert_eq!(f32_of("cos.approx.f32", &[0.0]), 1.0);
    }

    #[test]
    fn doubles_keep_their_bits() {
        let bits = |value: f64| value.to_bits();
        assert_eq!(apply("add.f64", &[bits(1.0), bits(1e-9)]), bits(1.0 + 1e-9));
        let third = apply("rcp.approx.ftz.f64", &[bits(3.0)]);
        assert_eq!(third, bits(1.0 / 3.0) >> 32 << 32);
        assert_eq!(apply("rcp.approx.ftz.f64", &[0]), bits(f64::INFINITY));
        assert_eq!(apply("fma.rn.f64", &[bits(3.0), bits(2.0), bits(1.0)]), bits(7.0));
    }
}
