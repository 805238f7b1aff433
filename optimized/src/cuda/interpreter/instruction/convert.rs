//! Conversions.

use half::{bf16, f16};

use super::{Arithmetic, Value, lanewise};

pub(super) fn convert(opcode: &str) -> Option<Arithmetic> {
    let kind = opcode.strip_prefix("cvt.")?;
    let (rest, source) = kind.rsplit_once('.')?;
    let Some((rounding, target)) = rest.rsplit_once('.') else {
        return between_integers(rest, source);
    };
    match (rounding, source) {
        (_, "f32") => from_f32(rounding, target),
        ("rn", _) if target == "f32" => to_f32(source),
        _ => None,
    }
    .or_else(|| between_floats(rounding, target, source))
}

/// An integer as another, and exact conversions of floats.
fn between_integers(target: &str, source: &str) -> Option<Arithmetic> {
    macro_rules! from {
        ($source:ty) => {
            Some(match target {
                "u16" | "s16" => lanewise!(One a: $source => a as u16),
                "u32" | "s32" => lanewise!(One a: $source => a as u32),
                "u64" | "s64" => lanewise!(One a: $source => a as u64),
                _ => return None,
            })
        };
    }
    match source {
        "u8" => from!(u8),
        "s8" => from!(i8),
        "u16" => from!(u16),
        "s16" => from!(i16),
        "u32" => from!(u32),
        "s32" => from!(i32),
        "u64" => from!(u64),
        "s64" => from!(i64),
        _ => between_floats("", target, source),
    }
}

fn to_f32(source: &str) -> Option<Arithmetic> {
    Some(match source {
        "u8" => lanewise!(One a: u8 => f32::from(a)),
        "s8" => lanewise!(One a: i8 => f32::from(a)),
        "u16" => lanewise!(One a: u16 => f32::from(a)),
        "s16" => lanewise!(One a: i16 => f32::from(a)),
        "u32" => lanewise!(One a: u32 => a as f32),
        "s32" => lanewise!(One a: i32 => a as f32),
        "u64" => lanewise!(One a: u64 => a as f32),
        "s64" => lanewise!(One a: i64 => a as f32),
        _ => return None,
    })
}

/// Integers from f32 clamp to their range; a NaN gives 0, and the topmost bit where 64 are wanted.
fn from_f32(rounding: &str, target: &str) -> Option<Arithmetic> {
    macro_rules! rounded {
        ($round:ident) => {
            Some(match target {
                "f32" => lanewise!(One a: f32 => a.$round()),
                "u16" => lanewise!(One a: f32 => a.$round() as u16),
                "s16" => lanewise!(One a: f32 => a.$round() as i16),
                "u32" => lanewise!(One a: f32 => a.$round() as u32),
                "s32" => lanewise!(One a: f32 => a.$round() as i32),
                "u64" => lanewise!(One a: f32 => {
                    if a.is_nan() { 1 << 63 } else { a.$round() as u64 }
                }),
                "s64" => lanewise!(One a: f32 => {
                    if a.is_nan() { i64::MIN } else { a.$round() as i64 }
                }),
                _ => return None,
            })
        };
    }
    match rounding {
        "rni" => rounded!(round_ties_even),
        "rzi" => rounded!(trunc),
        "rmi" => rounded!(floor),
        "rpi" => rounded!(ceil),
        _ => None,
    }
}

fn between_floats(rounding: &str, target: &str, source: &str) -> Option<Arithmetic> {
    Some(match (rounding, target, source) {
        ("sat", "f32", "f32") => {
            lanewise!(One a: f32 => if a > 0.0 { a.min(1.0) } else { 0.0 })
        }
        ("", "f64", "f32") => lanewise!(One a: f32 => f64::from(a)),
        ("rn", "f32", "f64") => lanewise!(One a: f64 => a as f32),
        ("rn", "f64", "s32") => lanewise!(One a: i32 => f64::from(a)),
        ("rn", "f64", "u32") => lanewise!(One a: u32 => f64::from(a)),
        ("rn", "f64", "s64") => lanewise!(One a: i64 => a as f64),
        ("rn", "f64", "u64") => lanewise!(One a: u64 => a as f64),
        ("", "f32", "f16") => lanewise!(One a: u16 => f16::from_bits(a).to_f32()),
        ("", "f32", "bf16") => lanewise!(One a: u16 => bf16::from_bits(a).to_f32()),
        ("rn", "f16", "f32") => lanewise!(One a: f32 => f16_bits(a)),
        ("rn", "bf16", "f32") => lanewise!(One a: f32 => bf16_bits(a)),
        ("rn", "f16x2", "f32") => lanewise!(Two high: f32, low: f32 => {
            u32::from(f16_bits(high)) << 16 | u32::from(f16_bits(low))
        }),
        ("rn", "bf16x2", "f32") => lanewise!(Two high: f32, low: f32 => {
            u32::from(bf16_bits(high)) << 16 | u32::from(bf16_bits(low))
        }),
        // 10 bits of mantissa, ties away from zero.
        ("rna", "tf32", "f32") => lanewise!(One a: f32 => {
            let bits = a.to_bits();
            if a.is_finite() { bits.wrapping_add(0x1000) & !0x1FFF } else { bits }
        }),
        _ => return None,
    })
}

/// The nearest, ties to even; every NaN is one.
#[inline(always)]
fn f16_bits(a: f32) -> u16 {
    if a.is_nan() { 0x7FFF } else { f16::from_f32(a).to_bits() }
}

#[inline(always)]
fn bf16_bits(a: f32) -> u16 {
    if a.is_nan() { 0x7FFF } else { bf16::from_f32(a).to_bits() }
}

#[cfg(test)]
mod tests {
    use super::super::{NAN_F32, apply, apply_f32, arithmetic};

    #[test]
    fn integers_are_cut_and_extended_by_the_source_s_sign() {
        assert_eq!(apply("cvt.s64.s32", &[0xFFFF_FFFF]), u64::MAX);
        assert_eq!(apply("cvt.u64.u32", &[0xFFFF_FFFF]), 0xFFFF_FFFF);
        assert_eq!(apply("cvt.u32.u64", &[0x1_0000_0002]), 2);
        assert_eq!(apply("cvt.s32.s8", &[0x80]), 0xFFFF_FF80);
        assert_eq!(apply("cvt.s16.s8", &[0xFF80]), 0xFF80);
        assert_eq!(apply("cvt.u32.u16", &[0xFFFF]), 0xFFFF);
    }

    #[test]
    fn rounding_to_integers_goes_where_it_says() {
        let f32_of = |opcode, a| f32::from_bits(apply_f32(opcode, &[a]));
        for (a, nearest, zero, down, up) in
            [(2.5, 2.0, 2.0, 2.0, 3.0), (-1.5, -2.0, -1.0, -2.0, -1.0), (0.5, 0.0, 0.0, 0.0, 1.0)]
        {
            assert_eq!(f32_of("cvt.rni.f32.f32", a), nearest);
            assert_eq!(f32_of("cvt.rzi.f32.f32", a), zero);
            assert_eq!(f32_of("cvt.rmi.f32.f32", a), down);
            assert_eq!(f32_of("cvt.rpi.f32.f32", a), up);
        }
        assert_eq!(apply_f32("cvt.rni.s32.f32", &[-3.5]), -4i32 as u32);
        assert_eq!(apply_f32("cvt.rzi.s32.f32", &[3e9]), i32::MAX as u32);
        assert_eq!(apply_f32("cvt.rzi.u32.f32", &[-3.0]), 0);
        assert_eq!(apply_f32("cvt.rzi.s32.f32", &[f32::NAN]), 0);
        let nan = u64::from(f32::NAN.to_bits());
        assert_eq!(apply("cvt.rzi.s64.f32", &[nan]), 1 << 63);
    }

    #[test]
    fn integers_become_the_nearest_float() {
        assert_eq!(apply("cvt.rn.f32.s32", &[16_777_217]) as u32, 16_777_216f32.to_bits());
        assert_eq!(apply("cvt.rn.f32.u32", &[u32::MAX.into()]) as u32, 4_294_967_296f32.to_bits());
        assert_eq!(apply("cvt.rn.f32.s8", &[0xFF]) as u32, (-1f32).to_bits());
    }

    #[test]
    fn saturation_clamps_to_the_unit_interval_and_drops_nan() {
        let saturated = |a| f32::from_bits(apply_f32("cvt.sat.f32.f32", &[a]));
        assert_eq!([-1.0, 0.25, 7.0, f32::NAN].map(saturated), [0.0, 0.25, 1.0, 0.0]);
        assert!(saturated(-0.0).is_sign_positive());
    }

    #[test]
    fn halves_round_to_even_and_pack_the_first_operand_on_top() {
        // 1 + 2^-8 is half way between two bf16; 1 + 3 * 2^-8 too, and goes up.
        let (even, odd) = (1.0 + 2.0f32.powi(-8), 1.0 + 3.0 * 2.0f32.powi(-8));
        assert_eq!(apply_f32("cvt.rn.bf16.f32", &[even]), 0x3F80);
        assert_eq!(apply_f32("cvt.rn.bf16x2.f32", &[odd, -2.0]), 0x3F82_C000);
        assert_eq!(apply_f32("cvt.rn.f16x2.f32", &[1.0, 65520.0]), 0x3C00_7C00);
        assert_eq!(apply_f32("cvt.rn.bf16.f32", &[f32::NAN]), 0x7FFF);
        assert_eq!(apply("cvt.f32.f16", &[0x3555]) as u32, 0x3EAA_A000);
        assert_eq!(apply("cvt.f32.bf16", &[0x3F82]) as u32, 0x3F82_0000);
        assert_eq!(apply("cvt.f32.f16", &[0x7E01]), NAN_F32);
    }

    #[test]
    fn doubles_round_once() {
        let bits = (1.0 + 2f64.powi(-24) + 2f64.powi(-50)).to_bits();
        assert_eq!(apply("cvt.rn.f32.f64", &[bits]) as u32, 1.0f32.next_up().to_bits());
        assert_eq!(apply("cvt.f64.f32", &[0x3F80_0000]), 1f64.to_bits());
    }

    #[test]
    fn an_unknown_conversion_is_refused() {
        for opcode in ["cvt.rn.satfinite.e4m3x2.f32", "cvt.sat.s8.s32", "cvt.s8.s32", "cvt.f32.f32"]
        {
            assert!(arithmetic(opcode).is_none(), "{opcode}");
        }
    }
}
