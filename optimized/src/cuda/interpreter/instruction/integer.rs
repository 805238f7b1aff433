//! Integers and bits.

use super::{Arithmetic, Value, lanewise};

/// `match`es the opcode, once for each type of a list.
macro_rules! typed {
    ($opcode:expr; $($name:literal: $t:ident as $u:ident),*; $make:ident) => {
        match $opcode {
            $($name => Some($make!($t, $u)),)*
            _ => None,
        }
    };
}

macro_rules! add { ($t:ident, $u:ident) => { lanewise!(Two a: $t, b: $t => a.wrapping_add(b)) } }
macro_rules! sub { ($t:ident, $u:ident) => { lanewise!(Two a: $t, b: $t => a.wrapping_sub(b)) } }
macro_rules! mul_lo {
    ($t:ident, $u:ident) => { lanewise!(Two a: $t, b: $t => a.wrapping_mul(b)) };
}
macro_rules! mul_hi {
    ($t:ident, $u:ident) => {
        lanewise!(Two a: $t, b: $t => {
            (i128::from(a).wrapping_mul(i128::from(b)) >> <$t>::BITS) as $t
        })
    };
}
macro_rules! mul_wide {
    ($t:ident, $u:ident) => {
        lanewise!(Two a: $t, b: $t => (a as $u).wrapping_mul(b as $u))
    };
}
macro_rules! mad_lo {
    ($t:ident, $u:ident) => {
        lanewise!(Three a: $t, b: $t, c: $t => a.wrapping_mul(b).wrapping_add(c))
    };
}
macro_rules! mad_hi {
    ($t:ident, $u:ident) => {
        lanewise!(Three a: $t, b: $t, c: $t => {
            ((i128::from(a).wrapping_mul(i128::from(b)) >> <$t>::BITS) as $t).wrapping_add(c)
        })
    };
}
macro_rules! mad_wide {
    ($t:ident, $u:ident) => {
        lanewise!(Three a: $t, b: $t, c: $u => (a as $u).wrapping_mul(b as $u).wrapping_add(c))
    };
}
// A lane that does not take part may hold a zero: it gets a value that nobody sees.
macro_rules! div {
    ($t:ident, $u:ident) => {
        lanewise!(Quotient a, b: $t => if b == 0 { 0 } else { a.wrapping_div(b) })
    };
}
macro_rules! rem {
    ($t:ident, $u:ident) => {
        lanewise!(Quotient a, b: $t => if b == 0 { 0 } else { a.wrapping_rem(b) })
    };
}
macro_rules! min { ($t:ident, $u:ident) => { lanewise!(Two a: $t, b: $t => a.min(b)) } }
macro_rules! max { ($t:ident, $u:ident) => { lanewise!(Two a: $t, b: $t => a.max(b)) } }
macro_rules! neg { ($t:ident, $u:ident) => { lanewise!(One a: $t => a.wrapping_neg()) } }
macro_rules! abs { ($t:ident, $u:ident) => { lanewise!(One a: $t => a.wrapping_abs()) } }
macro_rules! copy { ($t:ident, $u:ident) => { lanewise!(One a: $t => a) } }
macro_rules! and { ($t:ident, $u:ident) => { lanewise!(Two a: $t, b: $t => a & b) } }
macro_rules! or { ($t:ident, $u:ident) => { lanewise!(Two a: $t, b: $t => a | b) } }
macro_rules! xor { ($t:ident, $u:ident) => { lanewise!(Two a: $t, b: $t => a ^ b) } }
macro_rules! not { ($t:ident, $u:ident) => { lanewise!(One a: $t => !a) } }
// Amounts are unsigned and clamp at the width.
macro_rules! shl {
    ($t:ident, $u:ident) => {
        lanewise!(Two a: $t, b: u32 => a.checked_shl(b).unwrap_or(0))
    };
}
macro_rules! shr_unsigned {
    ($t:ident, $u:ident) => {
        lanewise!(Two a: $t, b: u32 => a.checked_shr(b).unwrap_or(0))
    };
}
macro_rules! shr_signed {
    ($t:ident, $u:ident) => {
        lanewise!(Two a: $t, b: u32 => a >> b.min(<$t>::BITS - 1))
    };
}

pub(super) fn integer(opcode: &str) -> Option<Arithmetic> {
    let (name, kind) = opcode.split_once('.')?;
    match name {
        "add" => typed!(kind; "u16": u16 as u16, "s16": i16 as u16, "u32": u32 as u32,
            "s32": i32 as u32, "u64": u64 as u64, "s64": i64 as u64; add),
        "sub" => typed!(kind; "u16": u16 as u16, "s16": i16 as u16, "u32": u32 as u32,
            "s32": i32 as u32, "u64": u64 as u64, "s64": i64 as u64; sub),
        "mul" | "mad" => product(name, kind),
        "div" => typed!(kind; "u16": u16 as u16, "s16": i16 as u16, "u32": u32 as u32,
            "s32": i32 as u32, "u64": u64 as u64, "s64": i64 as u64; div),
        "rem" => typed!(kind; "u16": u16 as u16, "s16": i16 as u16, "u32": u32 as u32,
            "s32": i32 as u32, "u64": u64 as u64, "s64": i64 as u64; rem),
        "min" => typed!(kind; "u16": u16 as u16, "s16": i16 as u16, "u32": u32 as u32,
            "s32": i32 as u32, "u64": u64 as u64, "s64": i64 as u64; min),
        "max" => typed!(kind; "u16": u16 as u16, "s16": i16 as u16, "u32": u32 as u32,
            "s32": i32 as u32, "u64": u64 as u64, "s64": i64 as u64; max),
        "neg" => typed!(kind; "s16": i16 as u16, "s32": i32 as u32, "s64": i64 as u64; neg),
        "abs" => typed!(kind; "s16": i16 as u16, "s32": i32 as u32, "s64": i64 as u64; abs),
        "mov" => typed!(kind; "u16": u16 as u16, "s16": u16 as u16, "b16": u16 as u16,
            "u32": u32 as u32, "s32": u32 as u32, "b32": u32 as u32, "f32": u32 as u32,
            "u64": u64 as u64, "s64": u64 as u64, "b64": u64 as u64, "f64": u64 as u64; copy),
        "and" => typed!(kind; "b16": u16 as u16, "b32": u32 as u32, "b64": u64 as u64; and),
        "or" => typed!(kind; "b16": u16 as u16, "b32": u32 as u32, "b64": u64 as u64; or),
        "xor" => typed!(kind; "b16": u16 as u16, "b32": u32 as u32, "b64": u64 as u64; xor),
        "not" => typed!(kind; "b16": u16 as u16, "b32": u32 as u32, "b64": u64 as u64; not),
        "shl" => typed!(kind; "b16": u16 as u16, "b32": u32 as u32, "b64": u64 as u64; shl),
        "shr" if kind.starts_with('s') => typed!(kind; "s16": i16 as u16, "s32": i32 as u32,
            "s64": i64 as u64; shr_signed),
        "shr" => typed!(kind; "b16": u16 as u16, "u16": u16 as u16, "b32": u32 as u32,
            "u32": u32 as u32, "b64": u64 as u64, "u64": u64 as u64; shr_unsigned),
        _ => bits(opcode),
    }
}

/// Products: the low half, the high half or all of their bits, perhaps with a third added.
fn product(name: &str, kind: &str) -> Option<Arithmetic> {
    let (half, kind) = kind.split_once('.')?;
    match (name, half) {
        ("mul", "lo") => typed!(kind; "u16": u16 as u16, "s16": i16 as u16, "u32": u32 as u32,
            "s32": i32 as u32, "u64": u64 as u64, "s64": i64 as u64; mul_lo),
        ("mul", "hi") => typed!(kind; "u16": u16 as u16, "s16": i16 as i16, "u32": u32 as u32,
            "s32": i32 as i32, "u64": u64 as u64, "s64": i64 as i64; mul_hi),
        ("mul", "wide") => typed!(kind; "u16": u16 as u32, "s16": i16 as i32, "u32": u32 as u64,
            "s32": i32 as i64; mul_wide),
        ("mad", "lo") => typed!(kind; "u16": u16 as u16, "s16": i16 as i16, "u32": u32 as u32,
            "s32": i32 as u32, "u64": u64 as u64, "s64": i64 as u64; mad_lo),
        ("mad", "hi") => typed!(kind; "u32": u32 as u32, "s32": i32 as i32; mad_hi),
        ("mad", "wide") => typed!(kind; "u16": u16 as u32, "s16": i16 as i32, "u32": u32 as u64,
            "s32": i32 as i64; mad_wide),
        _ => None,
    }
}

/// Counts, permutations and fields of bits.
fn bits(opcode: &str) -> Option<Arithmetic> {
    Some(match opcode {
        "popc.b32" => lanewise!(One a: u32 => a.count_ones()),
        "popc.b64" => lanewise!(One a: u64 => a.count_ones()),
        "clz.b32" => lanewise!(One a: u32 => a.leading_zeros()),
        "clz.b64" => lanewise!(One a: u64 => a.leading_zeros()),
        "brev.b32" => lanewise!(One a: u32 => a.reverse_bits()),
        "brev.b64" => lanewise!(One a: u64 => a.reverse_bits()),
        "bfind.u32" => lanewise!(One a: u32 => a.checked_ilog2().unwrap_or(u32::MAX)),
        "bfe.u32" => lanewise!(Three a: u32, start: u32, len: u32 => {
            extract(u64::from(a), start, len, 32) as u32
        }),
        "bfe.u64" => lanewise!(Three a: u64, start: u32, len: u32 => extract(a, start, len, 64)),
        "bfe.s32" => lanewise!(Three a: u32, start: u32, len: u32 => {
            extract_signed(u64::from(a), start, len, 32) as u32
        }),
        "bfe.s64" => {
            lanewise!(Three a: u64, start: u32, len: u32 => extract_signed(a, start, len, 64))
        }
        "bfi.b32" => lanewise!(Four a: u32, b: u32, start: u32, len: u32 => {
            insert(u64::from(a), u64::from(b), start, len) as u32
        }),
        "bfi.b64" => {
            lanewise!(Four a: u64, b: u64, start: u32, len: u32 => insert(a, b, start, len))
        }
        "lop3.b32" => lanewise!(Four a: u32, b: u32, c: u32, table: u32 => look_up(a, b, c, table)),
        "prmt.b32" => lanewise!(Three a: u32, b: u32, selector: u32 => permute(a, b, selector)),
        "shf.l.wrap.b32" => lanewise!(Three low: u32, high: u32, by: u32 => {
            ((u64::from(high) << 32 | u64::from(low)) << (by & 31) >> 32) as u32
        }),
        "shf.r.wrap.b32" => lanewise!(Three low: u32, high: u32, by: u32 => {
            ((u64::from(high) << 32 | u64::from(low)) >> (by & 31)) as u32
        }),
        "shf.l.clamp.b32" => lanewise!(Three low: u32, high: u32, by: u32 => {
            ((u64::from(high) << 32 | u64::from(low)) << by.min(32) >> 32) as u32
        }),
        "shf.r.clamp.b32" => lanewise!(Three low: u32, high: u32, by: u32 => {
            ((u64::from(high) << 32 | u64::from(low)) >> by.min(32)) as u32
        }),
        _ => return None,
    })
}

/// A mask of `len` low bits.
fn low_bits(len: u32) -> u64 {
    if len >= 64 { u64::MAX } else { (1 << len) - 1 }
}

/// Bits `start..start + len`; the low byte of both counts.
fn extract(a: u64, start: u32, len: u32, width: u32) -> u64 {
    let (start, len) = (start & 0xFF, len & 0xFF);
    if start >= width { 0 } else { a >> start & low_bits(len) }
}

/// The same, filled up with the field's topmost bit, or with the sign of `a` where the field leaves
/// it.
fn extract_signed(a: u64, start: u32, len: u32, width: u32) -> u64 {
    let (start, len) = (start & 0xFF, len & 0xFF);
    if len == 0 {
        return 0;
    }
    let sign = a >> (start + len - 1).min(width - 1) & 1;
    let inside = len.min(width.saturating_sub(start));
    extract(a, start, inside, width) | if sign == 1 { !low_bits(inside) } else { 0 }
}

/// `b` with `a` at bits `start..start + len`.
fn insert(a: u64, b: u64, start: u32, len: u32) -> u64 {
    let (start, len) = (start & 0xFF, len & 0xFF);
    let mask = low_bits(len).checked_shl(start).unwrap_or(0);
    (b & !mask) | (a.checked_shl(start).unwrap_or(0) & mask)
}

/// Any function of three bits: `table` holds its value at `a * 4 + b * 2 + c`.
fn look_up(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|row| table >> row & 1 == 1).fold(0, |result, row| {
        let pick = |value: u32, bit: u32| if row >> bit & 1 == 1 { value } else { !value };
        result | (pick(a, 2) & pick(b, 1) & pick(c, 0))
    })
}

/// Four bytes of `b:a`; bit 3 of a selector spreads the byte's sign instead.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |result, i| {
        let select = selector >> (4 * i) & 0xF;
        let byte = (bytes >> (8 * (select & 7))) as u8;
        let byte = if select & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        result | u32::from(byte) << (8 * i)
    })
}

#[cfg(test)]
mod tests {
    use crate::cuda::interpreter::instruction::{apply, arithmetic};

    fn s32(value: i32) -> u64 {
        u64::from(value as u32)
    }

    #[test]
    fn shifts_clamp_at_the_width() {
        assert_eq!(apply("shl.b32", &[1, 31]), 1 << 31);
        assert_eq!(apply("shl.b32", &[1, 32]), 0);
        assert_eq!(apply("shl.b64", &[1, 40]), 1 << 40);
        assert_eq!(apply("shr.u32", &[s32(-1), 40]), 0);
        assert_eq!(apply("shr.s32", &[s32(-8), 1]), s32(-4));
        assert_eq!(apply("shr.s32", &[s32(-8), 99]), s32(-1));
        assert_eq!(apply("shr.s64", &[-8i64 as u64, 64]), u64::MAX);
    }

    #[test]
    fn sums_wrap_inside_their_width() {
        assert_eq!(apply("add.s32", &[s32(i32::MAX), 1]), s32(i32::MIN));
        assert_eq!(apply("sub.u16", &[0, 1]), 0xFFFF);
        assert_eq!(apply("neg.s32", &[s32(i32::MIN)]), s32(i32::MIN));
        assert_eq!(apply("not.b16", &[0]), 0xFFFF);
    }

    #[test]
    fn products_have_a_low_a_high_and_a_wide_form() {
        let (a, b) = (s32(-3), 0x8000_0001);
        assert_eq!(
            apply("mul.lo.s32", &[a, b]),
            u64::from(0x8000_0001u32.wrapping_mul(-3i32 as u32))
        );
        assert_eq!(apply("mul.hi.u32", &[u32::MAX.into(), u32::MAX.into()]), 0xFFFF_FFFE);
        assert_eq!(apply("mul.hi.s32", &[s32(-1), 1]), s32(-1));
        assert_eq!(apply("mul.hi.u64", &[u64::MAX, u64::MAX]), u64::MAX - 1);
        assert_eq!(apply("mul.wide.s32", &[a, 5]), -15i64 as u64);
        assert_eq!(apply("mul.wide.u32", &[u32::MAX.into(), 2]), 0x1_FFFF_FFFE);
        assert_eq!(apply("mad.wide.s32", &[a, 5, 15]), 0);
        assert_eq!(apply("mad.lo.s32", &[a, 5, 1]), s32(-14));
    }

    #[test]
    fn quotients_truncate_towards_zero() {
        assert_eq!(apply("div.s32", &[s32(-7), 2]), s32(-3));
        assert_eq!(apply("rem.s32", &[s32(-7), 2]), s32(-1));
        assert_eq!(apply("rem.s32", &[7, s32(-2)]), 1);
        assert_eq!(apply("div.u32", &[s32(-7), 2]), 0x7FFF_FFFC);
        assert_eq!(apply("div.s32", &[s32(i32::MIN), s32(-1)]), s32(i32::MIN));
    }

    #[test]
    fn comparisons_know_the_sign() {
        assert_eq!(apply("min.s32", &[s32(-1), 1]), s32(-1));
        assert_eq!(apply("min.u32", &[s32(-1), 1]), 1);
        assert_eq!(apply("max.s64", &[u64::MAX, 1]), 1);
    }

    #[test]
    fn fields_of_bits() {
        assert_eq!(apply("bfe.u32", &[0xABCD_1234, 4, 8]), 0x23);
        assert_eq!(apply("bfe.u32", &[0xABCD_1234, 32, 8]), 0);
        assert_eq!(apply("bfe.s32", &[0x80, 4, 4]), s32(-8));
        assert_eq!(apply("bfe.s32", &[0x8000_0000, 28, 8]), s32(-8));
        assert_eq!(apply("bfe.s32", &[0x8000_0000, 40, 4]), s32(-1));
        assert_eq!(apply("bfe.s32", &[0xFF, 3, 0]), 0);
        assert_eq!(apply("bfi.b32", &[0xF, 0, 4, 8]), 0xF0);
        assert_eq!(apply("bfi.b32", &[0xFF, 0x1111_1111, 28, 8]), 0xF111_1111);
        assert_eq!(apply("bfi.b32", &[5, 10, 5, 27]), 10 | 5 << 5);
    }

    #[test]
    fn counts_and_permutations() {
        assert_eq!(apply("popc.b32", &[0xFF0F]), 12);
        assert_eq!(apply("clz.b32", &[0]), 32);
        assert_eq!(apply("clz.b64", &[1]), 63);
        assert_eq!(apply("brev.b32", &[1]), 1 << 31);
        assert_eq!(apply("prmt.b32", &[0x3322_1180, 0x7766_5544, 0x7410]), 0x7744_1180);
        assert_eq!(apply("prmt.b32", &[0x3322_1180, 0, 0x8]), 0x8080_80FF);
        assert_eq!(apply("shf.l.wrap.b32", &[0x8000_0000, 1, 1]), 3);
        assert_eq!(apply("shf.r.clamp.b32", &[1, 7, 32]), 7);
    }

    #[test]
    fn a_table_of_three_bits_is_any_function() {
        let (a, b, c) = (0xF0F0_1234u64, 0xCCCC_5678, 0xAAAA_9ABC);
        assert_eq!(apply("lop3.b32", &[a, b, c, 0x96]), a ^ b ^ c);
        assert_eq!(apply("lop3.b32", &[a, b, c, 0xE8]), a & b | a & c | b & c);
    }

    #[test]
    fn an_unknown_modifier_is_not_ignored() {
        for opcode in ["add.sat.s32", "add.cc.u32", "mul.lo.b32", "shl.b8", "mad24.lo.s32", "min"] {
            assert!(arithmetic(opcode).is_none(), "{opcode}");
        }
    }
}
