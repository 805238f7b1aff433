//! Narrow float types: what is left of a number that was stored in one.

use half::{bf16, f16};
use ndarray::{Array, ArrayView, Dimension};

use crate::spec::StoredType;
use crate::{Error, Real, check};

/// Rounds once to the stored type and reads back. Eq. (Q9).
///
/// ```text
/// quantum = 2^(max(floor(log2(|input|)), emin) - digits)
/// output = quantum * round_half_even(input / quantum)
/// bf16: digits = 7, emin = -126
/// f16:  digits = 10, emin = -14
/// ```
///
/// # Shapes
/// Any -> the same
///
/// # Errors
/// `NonFinite`, for an `output` too where the stored type does not reach the number.
pub fn cast<T: Real, D: Dimension>(
    input: ArrayView<T, D>,
    stored: StoredType,
) -> Result<Array<T, D>, Error> {
    const OPERATION: &str = "cast";
    check::finite(OPERATION, "input", &input)?;
    check::result(OPERATION, "output", input.mapv(|number| nearest(number, stored)))
}

/// One number of [`cast`]; infinite where the stored type does not reach it. Eq. (Q9).
pub(crate) fn nearest<T: Real>(number: T, stored: StoredType) -> T {
    let short = to_f32_odd(number.value());
    T::of(match stored {
        StoredType::Bf16 => bf16::from_f32(short).to_f64(),
        StoredType::F16 => f16::from_f32(short).to_f64(),
    })
}

/// Rounds to odd: of the two neighbours of an inexact number the one whose last bit is set.
///
/// A type that has at least two bits less than f32 rounds the result as it would round the number
/// itself: what lies beside one of its ties stays beside it. Going to the nearest f32 first would
/// round twice, and so does reading the upper half of an f64, which `half` does from f64.
fn to_f32_odd(number: f64) -> f32 {
    let nearest = number as f32;
    if f64::from(nearest) == number {
        return nearest;
    }
    let away = f64::from(nearest).abs() > number.abs();
    f32::from_bits((nearest.to_bits() - u32::from(away)) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{arr0, array};

    /// Every finite number of the type from 0 up.
    fn positive(stored: StoredType) -> Vec<f64> {
        let all = (0..=0x7fff_u16).map(|bits| match stored {
            StoredType::Bf16 => bf16::from_bits(bits).to_f64(),
            StoredType::F16 => f16::from_bits(bits).to_f64(),
        });
        all.filter(|number| number.is_finite()).collect()
    }

    fn assert_nearest(number: f64, expected: f64, stored: StoredType) {
        for (number, expected) in [(number, expected), (-number, -expected)] {
            let actual: f64 = nearest(number, stored);
            assert_eq!(actual.to_bits(), expected.to_bits(), "{number:e} as {stored:?}");
        }
    }

    #[test]
    fn example_of_q9() {
        let input = array![1.0 + 2_f64.powi(-8), 1.0 + 3.0 * 2_f64.powi(-8), 2_f64.powi(-134)];
        let output = cast(input.view(), StoredType::Bf16).unwrap();
        assert_eq!(output, array![1.0, 1.0 + 2_f64.powi(-6), 0.0]);
        let input = array![2049.0, 2051.0, 65519.0, 3.0 * 2_f64.powi(-25)];
        let output = cast(input.view(), StoredType::F16).unwrap();
        assert_eq!(output, array![2048.0, 2052.0, 65504.0, 2_f64.powi(-23)]);
    }

    #[test]
    fn every_number_of_the_type_stays() {
        for stored in [StoredType::Bf16, StoredType::F16] {
            let numbers = positive(stored);
            assert!(numbers.len() > 31_000);
            for number in numbers {
                assert_nearest(number, number, stored);
                assert_eq!(nearest(number as f32, stored), number as f32);
            }
        }
    }

    /// Patterns of neighbours are neighbours, so the even one has the even pattern.
    #[test]
    fn between_neighbours_the_nearer_wins_and_a_tie_is_even() {
        for stored in [StoredType::Bf16, StoredType::F16] {
            for (pattern, pair) in positive(stored).windows(2).enumerate() {
                let (low, high) = (pair[0], pair[1]);
                let tie = f64::midpoint(low, high);
                assert_nearest(tie, if pattern % 2 == 0 { low } else { high }, stored);
                // The nearest f64 to the tie, of which f32 knows nothing.
                assert_nearest(tie.next_down(), low, stored);
                assert_nearest(tie.next_up(), high, stored);
                // Past the first f32 above the tie, which is odd already.
                let past = f64::from((tie as f32).next_up()).next_up();
                assert_nearest(past, high, stored);
            }
        }
    }

    #[test]
    fn below_the_smallest_number_is_zero_and_above_the_largest_a_refusal() {
        for stored in [StoredType::Bf16, StoredType::F16] {
            let numbers = positive(stored);
            let (smallest, largest) = (numbers[1], *numbers.last().unwrap());
            assert_nearest(smallest / 2.0, 0.0, stored);
            assert_nearest(1e-300, 0.0, stored);
            let end = largest + (largest - numbers[numbers.len() - 2]) / 2.0;
            assert_nearest(end.next_down(), largest, stored);
            for beyond in [end, 1e300] {
                let refused = cast(arr0(beyond).view(), stored).unwrap_err();
                assert_eq!(refused.to_string(), "cast: output[] is inf");
            }
        }
        assert_eq!(f64::from(f16::MAX) + 16.0, 65520.0);
    }
}
