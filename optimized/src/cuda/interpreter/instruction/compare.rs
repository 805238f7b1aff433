//! Comparisons that make predicates.

use std::cmp::Ordering;

use super::{Lanes, Value};

/// A comparison of two registers, one bit for each lane.
pub(in super::super) type Compare = fn(&Lanes, &Lanes) -> u32;

/// What a comparison's result is combined with: another predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Combine {
    And,
    Or,
    Xor,
}

/// The comparison of `setp.<comparison>.<type>`.
pub(in super::super) fn compare(comparison: &str, kind: &str) -> Option<Compare> {
    macro_rules! lanes {
        ($t:ty, $a:ident, $b:ident => $body:expr) => {
            Some(
                (|a: &Lanes, b: &Lanes| {
                    (0..32).fold(0, |mask, lane| {
                        let ($a, $b): ($t, $t) = (Value::of(a[lane]), Value::of(b[lane]));
                        mask | u32::from($body) << lane
                    })
                }) as Compare,
            )
        };
    }
    macro_rules! ordered {
        ($t:ty) => {
            match comparison {
                "eq" => lanes!($t, a, b => a == b),
                "ne" => lanes!($t, a, b => a != b),
                "lt" | "lo" => lanes!($t, a, b => a < b),
                "le" | "ls" => lanes!($t, a, b => a <= b),
                "gt" | "hi" => lanes!($t, a, b => a > b),
                "ge" | "hs" => lanes!($t, a, b => a >= b),
                _ => None,
            }
        };
    }
    // Ordered comparisons are false for a NaN, `ne` too; those with a `u` are true.
    macro_rules! float {
        ($t:ty) => {
            match comparison {
                "eq" => lanes!($t, a, b => a.partial_cmp(&b).is_some_and(Ordering::is_eq)),
                "ne" => lanes!($t, a, b => a.partial_cmp(&b).is_some_and(Ordering::is_ne)),
                "lt" => lanes!($t, a, b => a.partial_cmp(&b).is_some_and(Ordering::is_lt)),
                "le" => lanes!($t, a, b => a.partial_cmp(&b).is_some_and(Ordering::is_le)),
                "gt" => lanes!($t, a, b => a.partial_cmp(&b).is_some_and(Ordering::is_gt)),
                "ge" => lanes!($t, a, b => a.partial_cmp(&b).is_some_and(Ordering::is_ge)),
                "equ" => lanes!($t, a, b => a.partial_cmp(&b).is_none_or(Ordering::is_eq)),
                "neu" => lanes!($t, a, b => a.partial_cmp(&b).is_none_or(Ordering::is_ne)),
                "ltu" => lanes!($t, a, b => a.partial_cmp(&b).is_none_or(Ordering::is_lt)),
                "leu" => lanes!($t, a, b => a.partial_cmp(&b).is_none_or(Ordering::is_le)),
                "gtu" => lanes!($t, a, b => a.partial_cmp(&b).is_none_or(Ordering::is_gt)),
                "geu" => lanes!($t, a, b => a.partial_cmp(&b).is_none_or(Ordering::is_ge)),
                "num" => lanes!($t, a, b => a.partial_cmp(&b).is_some()),
                "nan" => lanes!($t, a, b => a.partial_cmp(&b).is_none()),
                _ => None,
            }
        };
    }
    match kind {
        "u16" | "b16" => ordered!(u16),
        "s16" => ordered!(i16),
        "u32" | "b32" => ordered!(u32),
        "s32" => ordered!(i32),
        "u64" | "b64" => ordered!(u64),
        "s64" => ordered!(i64),
        "f32" => float!(f32),
        "f64" => float!(f64),
        _ => None,
    }
}

/// The name of a combination.
pub(in super::super) fn combine(name: &str) -> Option<Combine> {
    Some(match name {
        "and" => Combine::And,
        "or" => Combine::Or,
        "xor" => Combine::Xor,
        _ => return None,
    })
}

impl Combine {
    pub(in super::super) fn of(self, a: u32, b: u32) -> u32 {
        match self {
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(comparison: &str, kind: &str, a: u64, b: u64) -> bool {
        let mut lanes = [0; 32];
        lanes[5] = a;
        let mask = compare(comparison, kind).unwrap()(&lanes, &{
            let mut lanes = [0; 32];
            lanes[5] = b;
            lanes
        });
        mask >> 5 & 1 == 1
    }

    #[test]
    fn the_sign_is_the_type_s() {
        let minus = u64::from(u32::MAX);
        assert!(holds("lt", "s32", minus, 0));
        assert!(!holds("lt", "u32", minus, 0));
        assert!(holds("hi", "u32", minus, 0));
        assert!(holds("ge", "s64", 0, u64::MAX));
    }

    #[test]
    fn a_nan_is_unordered() {
        let (nan, one) = (u64::from(f32::NAN.to_bits()), u64::from(1f32.to_bits()));
        for comparison in ["eq", "ne", "lt", "le", "gt", "ge", "num"] {
            assert!(!holds(comparison, "f32", nan, one), "{comparison}");
        }
        for comparison in ["equ", "neu", "ltu", "leu", "gtu", "geu", "nan"] {
            assert!(holds(comparison, "f32", nan, one), "{comparison}");
        }
        assert!(holds("equ", "f32", one, one) && !holds("neu", "f32", one, one));
        assert!(!holds("ltu", "f32", one, one) && holds("leu", "f32", one, one));
        assert!(holds("eq", "f32", 0, u64::from((-0f32).to_bits())));
    }

    #[test]
    fn combinations() {
        assert_eq!(combine("and").unwrap().of(0b1100, 0b1010), 0b1000);
        assert_eq!(combine("or").unwrap().of(0b1100, 0b1010), 0b1110);
        assert_eq!(combine("xor").unwrap().of(0b1100, 0b1010), 0b0110);
        assert!(combine("nand").is_none());
    }
}
