//! The scale that a format can hold: rounded in the forward, passed straight through backward.
//!
//! Training keeps a scale in full precision and multiplies with the rounded one, so that a file in
//! that format has every number that training had.

use ndarray::{Array2, ArrayView2, Zip};

use crate::cast::nearest;
use crate::spec::{SCALE_FLOOR, ScaleRule, StoredType};
use crate::{Error, Real, check};

/// The nearest scale that the rule allows. Eq. (Q23a).
///
/// ```text
/// held = min(max(raised_scale, smallest), largest)
/// quantum = 2^(max(floor(log2(held)), emin) - digits)
/// rounded_scale = quantum * round_half_even(held / quantum)
/// f16:         digits = 10, emin = -14, smallest = 2^-24, largest = 65504
/// bf16_in_f16: digits = 7, emin = -126, smallest = 2^-17, largest = 65280
/// ```
///
/// # Shapes
/// `scale [out, groups]` -> `rounded_scale [out, groups]`
///
/// # Errors
/// `NonFinite`.
pub fn round_scale<T: Real>(scale: ArrayView2<T>, rule: ScaleRule) -> Result<Array2<T>, Error> {
    check::finite("round_scale", "scale", &scale)?;
    let [smallest, largest] = [rule.smallest(), rule.largest()].map(T::of);
    let stored = match rule {
        ScaleRule::F16 => StoredType::F16,
        ScaleRule::Bf16InF16 => StoredType::Bf16,
    };
    Ok(scale.mapv(|scale| {
        let raised = scale.max(T::of(SCALE_FLOOR));
        nearest(raised.max(smallest).min(largest), stored)
    }))
}

/// The gradient of the scale behind a rounded one. Eq. (Q23b).
///
/// ```text
/// d_scale = d_rounded_scale where smallest <= scale <= largest, else 0
/// ```
///
/// # Shapes
/// `scale, d_rounded_scale [out, groups]` -> `d_scale [out, groups]`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn round_scale_backward<T: Real>(
    scale: ArrayView2<T>,
    d_rounded_scale: ArrayView2<T>,
    rule: ScaleRule,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "round_scale_backward";
    check::finite(OPERATION, "scale", &scale)?;
    check::input(OPERATION, "d_rounded_scale", &d_rounded_scale, scale.shape())?;
    Ok(Zip::from(&scale).and(&d_rounded_scale).map_collect(|scale, d_rounded_scale| {
        if rule.reaches(scale.value()) { *d_rounded_scale } else { T::zero() }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use ndarray::array;

    fn power(exponent: i32) -> f64 {
        2_f64.powi(exponent)
    }

    fn rounded<T: Real>(scale: T, rule: ScaleRule) -> T {
        round_scale(array![[scale]].view(), rule).unwrap()[[0, 0]]
    }

    #[test]
    fn example_of_q23() {
        let ones = array![[1.0, 1.0, 1.0, 1.0]];
        let scale = array![[2049.0, 3.0 * power(-25), 1e-9, 70000.0]];
        assert_eq!(
            round_scale(scale.view(), ScaleRule::F16).unwrap(),
            array![[2048.0, power(-23), power(-24), 65504.0]]
        );
        let d_scale = round_scale_backward(scale.view(), ones.view(), ScaleRule::F16).unwrap();
        assert_eq!(d_scale, array![[1.0, 1.0, 0.0, 0.0]]);
        let scale = array![[1.0 + power(-8), 1.0 + 3.0 * power(-8), power(-18), 65400.0]];
        assert_eq!(
            round_scale(scale.view(), ScaleRule::Bf16InF16).unwrap(),
            array![[1.0, 1.0 + power(-6), power(-17), 65280.0]]
        );
        let d_scale =
            round_scale_backward(scale.view(), ones.view(), ScaleRule::Bf16InF16).unwrap();
        assert_eq!(d_scale, array![[1.0, 1.0, 0.0, 0.0]]);
    }

    #[test]
    fn at_both_ends_the_gradient_passes_and_beside_them_it_does_not() {
        for rule in ScaleRule::ALL {
            let (smallest, largest) = (rule.smallest(), rule.largest());
            let scale = array![[
                smallest.next_down(),
                smallest,
                smallest.next_up(),
                largest.next_down(),
                largest,
                largest.next_up(),
                0.0,
                -1.0
            ]];
            let given = scale.mapv(|_| 3.0);
            let d_scale = round_scale_backward(scale.view(), given.view(), rule).unwrap();
            assert_eq!(d_scale, array![[0.0, 3.0, 3.0, 3.0, 3.0, 0.0, 0.0, 0.0]]);
            for (scale, end) in [(0.0, smallest), (-1.0, smallest), (1e300, largest)] {
                assert_eq!(rounded(scale, rule), end);
            }
            // The floor lies below every number of either rule.
            for scale in [SCALE_FLOOR, SCALE_FLOOR / 2.0, smallest / 2.0, smallest.next_down()] {
                assert_eq!(rounded(scale, rule), smallest);
            }
        }
    }

    /// Every number of a rule, ascending.
    fn numbers(rule: ScaleRule) -> Vec<f64> {
        let all = (0..=0x7fff_u16).map(|pattern| match rule {
            ScaleRule::F16 => f16::from_bits(pattern).to_f64(),
            ScaleRule::Bf16InF16 => bf16::from_bits(pattern).to_f64(),
        });
        let numbers: Vec<f64> = all.filter(|number| rule.reaches(*number)).collect();
        assert_eq!(numbers.first(), Some(&rule.smallest()));
        assert_eq!(numbers.last(), Some(&rule.largest()));
        numbers
    }

    #[test]
    fn every_number_of_the_rule_stays() {
        for (rule, count) in [(ScaleRule::F16, 0x7bff), (ScaleRule::Bf16InF16, 32 * 128 + 128)] {
            let numbers = numbers(rule);
            assert_eq!(numbers.len(), count, "{rule:?}");
            for number in numbers {
                assert_eq!(rounded(number, rule), number);
                assert_eq!(rounded(number as f32, rule), number as f32);
            }
        }
    }

    /// The rounding is monotone, so that what is between a number and the tie beside it goes where
    /// the last f32 before the tie goes.
    #[test]
    fn every_f32_between_two_neighbours_goes_to_the_nearer_and_a_tie_to_the_even() {
        for rule in ScaleRule::ALL {
            for pair in numbers(rule).windows(2) {
                let (low, high) = (pair[0] as f32, pair[1] as f32);
                // Exact: a tie has one bit more than its neighbours.
                let tie = f32::midpoint(low, high);
                let pattern = match rule {
                    ScaleRule::F16 => f16::from_f32(low).to_bits(),
                    ScaleRule::Bf16InF16 => bf16::from_f32(low).to_bits(),
                };
                let even = if pattern % 2 == 0 { low } else { high };
                for (scale, expected) in [
                    (low.next_up(), low),
                    (tie.next_down(), low),
                    (tie, even),
                    (tie.next_up(), high),
                    (high.next_down(), high),
                ] {
                    assert_eq!(rounded(scale, rule), expected, "{scale:e} under {rule:?}");
                    let exact = rounded(f64::from(scale), rule);
                    assert_eq!(exact, f64::from(expected), "{scale:e} under {rule:?} in f64");
                }
            }
        }
    }
}
