//! f32 sums and products with one rounding in a given direction.
//!
//! The product of two f32 is exact in f64. Its sum with a third is rounded to odd in f64 (an
//! inexact result gets an odd last bit), which keeps what a second rounding to f32 needs to know:
//! f64 has more than two bits beyond twice those of f32.

/// Direction of a rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// To the nearest, ties to even: `.rn`.
    Nearest,
    /// Towards zero: `.rz`.
    Zero,
    /// Towards minus infinity: `.rm`.
    Down,
    /// Towards plus infinity: `.rp`.
    Up,
}

/// `a * b + c`, rounded once.
#[inline(always)]
pub(super) fn fma(a: f32, b: f32, c: f32, round: Round) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // What the sum lost (Knuth's two-sum).
    let other = sum - product;
    let lost = (product - (sum - other)) + (c - other);
    if sum == 0.0 && round == Round::Down {
        // An exact zero of unequal parts is negative in this direction only.
        let positive = product.is_sign_positive() && c.is_sign_positive();
        return if positive { 0.0 } else { -0.0 };
    }
    let odd = if lost != 0.0 && sum.is_finite() && sum.to_bits() & 1 == 0 {
        let outwards = (lost > 0.0) == (sum > 0.0);
        f64::from_bits(if outwards { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
    } else {
        sum
    };
    narrow(odd, round)
}

/// An f64 as f32.
#[inline(always)]
pub(super) fn narrow(x: f64, round: Round) -> f32 {
    let y = x as f32;
    match round {
        Round::Nearest => y,
        Round::Down if f64::from(y) > x => y.next_down(),
        Round::Up if f64::from(y) < x => y.next_up(),
        Round::Zero if f64::from(y).abs() > x.abs() => {
            if x > 0.0 {
                y.next_down()
            } else {
                y.next_up()
            }
        }
        _ => y,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: [Round; 4] = [Round::Nearest, Round::Zero, Round::Down, Round::Up];

    #[test]
    fn an_exact_result_is_the_same_in_every_direction() {
        for round in ROUNDS {
            assert_eq!(fma(3.0, 5.0, 1.0, round), 16.0);
            assert_eq!(fma(f32::INFINITY, 1.0, 1.0, round), f32::INFINITY);
            assert!(fma(f32::INFINITY, 1.0, f32::NEG_INFINITY, round).is_nan());
            assert!(fma(f32::INFINITY, 0.0, 1.0, round).is_nan());
        }
    }

    #[test]
    fn a_tiny_rest_moves_the_result_in_its_direction_only() {
        let tiny = f32::from_bits(1);
        let up = 1.0f32.next_up();
        let down = 1.0f32.next_down();
        let all = |c| ROUNDS.map(|round| fma(1.0, 1.0, c, round));
        assert_eq!(all(tiny), [1.0, 1.0, 1.0, up]);
        assert_eq!(all(-tiny), [1.0, down, down, 1.0]);
        let minus = |c| ROUNDS.map(|round| fma(-1.0, 1.0, c, round));
        assert_eq!(minus(tiny), [-1.0, -down, -1.0, -down]);
        assert_eq!(minus(-tiny), [-1.0, -1.0, -up, -1.0]);
    }

    #[test]
    fn a_sum_is_not_rounded_twice() {
        // The product is 1 + 2^-11 + 2^-24, half way between two f32. The rest is far below the
        // last bit of an f64 and decides.
        let (a, tiny) = (1.0 + 2.0f32.powi(-12), f32::from_bits(1));
        let even = 1.0 + 2.0f32.powi(-11);
        assert_eq!(fma(a, a, 0.0, Round::Nearest), even);
        assert_eq!(fma(a, a, tiny, Round::Nearest), even.next_up());
        assert_eq!(fma(a, a, -tiny, Round::Nearest), even);
        assert_eq!(fma(-a, a, -tiny, Round::Nearest), -even.next_up());
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // the other way to compute it in one rounding
    fn the_nearest_agrees_with_the_processor() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(state)
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next(), next(), next());
            let (ours, theirs) = (fma(a, b, c, Round::Nearest), a.mul_add(b, c));
            let same = ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
            assert!(same, "{a} {b} {c}");
        }
    }

    #[test]
    fn overflow_and_zero_follow_the_direction() {
        let all = |a, c| ROUNDS.map(|round| fma(a, 2.0, c, round));
        let (max, inf) = (f32::MAX, f32::INFINITY);
        assert_eq!(all(max, 0.0), [inf, max, max, inf]);
        assert_eq!(all(-max, 0.0), [-inf, -max, -inf, -max]);
        assert!(fma(1.0, 1.0, -1.0, Round::Down).is_sign_negative());
        assert!(fma(1.0, 1.0, -1.0, Round::Nearest).is_sign_positive());
        assert!(fma(0.0, 1.0, 0.0, Round::Down).is_sign_positive());
    }
}
