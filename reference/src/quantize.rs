//! The grid: weights to codes, codes to weights, and both in one.

use ndarray::{Array2, ArrayView2};

use crate::spec::{MaskRule, QuantSpec, SCALE_FLOOR};
use crate::{Error, Real, check};

/// A weight on the grid, as codes and as the values they stand for.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeQuantized<T> {
    /// `[out, in]`, each from `qmin` to `qmax`.
    pub codes: Array2<i8>,
    /// `[out, in]`, the dequantized codes.
    pub output: Array2<T>,
}

/// The scale that a quantizer divides by and multiplies with. Eq. (Q1).
///
/// ```text
/// raised_scale = max(scale, SCALE_FLOOR)
/// ```
pub fn raised_scale<T: Real>(scale: T) -> T {
    scale.max(T::of(SCALE_FLOOR))
}

/// A weight in units of its grid. Eq. (Q1).
///
/// ```text
/// argument = (weight - offset) / raised_scale
/// ```
///
/// The difference and the quotient are each rounded; a reciprocal would change codes near ties.
pub fn argument<T: Real>(weight: T, scale: T, offset: T) -> T {
    (weight - offset) / raised_scale(scale)
}

/// Whether the straight-through gradient passes. Eq. (Q1).
///
/// ```text
/// pre_round: in_range = qmin <= argument <= qmax
/// rounded:   in_range = qmin <= round_half_even(argument) <= qmax
/// open:      in_range = qmin < argument < qmax
/// ```
pub fn in_range<T: Real>(argument: T, spec: &QuantSpec, mask: MaskRule) -> bool {
    let [qmin, qmax] = [spec.qmin(), spec.qmax()].map(|end| T::of(f64::from(end)));
    match mask {
        MaskRule::PreRound => qmin <= argument && argument <= qmax,
        MaskRule::Rounded => {
            let rounded = argument.round_half_even();
            qmin <= rounded && rounded <= qmax
        }
        MaskRule::Open => qmin < argument && argument < qmax,
    }
}

/// The code of one argument. Eq. (Q2).
pub(crate) fn code<T: Real>(argument: T, spec: &QuantSpec) -> i8 {
    let clamped = argument.max(T::of(f64::from(spec.qmin()))).min(T::of(f64::from(spec.qmax())));
    clamped.round_half_even().value() as i8
}

/// Rounds weights to codes. Eq. (Q2).
///
/// ```text
/// codes[o,i] = round_half_even(clamp(argument[o,i], qmin, qmax))
/// ```
///
/// # Shapes
/// `weight [out, in]`, `scale, offset [out, groups]` -> `[out, in]`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn quantize<T: Real>(
    weight: ArrayView2<T>,
    scale: ArrayView2<T>,
    offset: ArrayView2<T>,
    spec: &QuantSpec,
) -> Result<Array2<i8>, Error> {
    check::quantizer("quantize", &weight, &scale, &offset, spec)?;
    Ok(Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let g = i / spec.group_size();
        code(argument(weight[[o, i]], scale[[o, g]], offset[[o, g]]), spec)
    }))
}

/// The weights that codes stand for. Eq. (Q3).
///
/// ```text
/// output[o,i] = codes[o,i] * raised_scale[o,g] + offset[o,g]
/// ```
///
/// The product and the sum are each rounded. A code is an integer: there is no negative zero.
///
/// # Shapes
/// `codes [out, in]`, `scale, offset [out, groups]` -> `[out, in]`
///
/// # Errors
/// `Shape`, `NonFinite`, and `CodeOutOfRange` for a code that the grid does not have.
pub fn dequantize<T: Real>(
    codes: ArrayView2<i8>,
    scale: ArrayView2<T>,
    offset: ArrayView2<T>,
    spec: &QuantSpec,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "dequantize";
    let rows = codes.nrows();
    check::shape(OPERATION, "codes", codes.shape(), &[rows, spec.in_features()])?;
    check::input(OPERATION, "scale", &scale, &[rows, spec.groups()])?;
    check::input(OPERATION, "offset", &offset, &[rows, spec.groups()])?;
    let (qmin, qmax) = (spec.qmin(), spec.qmax());
    for ((row, column), &code) in codes.indexed_iter() {
        if !(qmin..=qmax).contains(&i32::from(code)) {
            return Err(Error::CodeOutOfRange {
                operation: OPERATION,
                row,
                column,
                code: code.into(),
                qmin,
                qmax,
            });
        }
    }
    let output = Array2::from_shape_fn(codes.dim(), |(o, i)| {
        let g = i / spec.group_size();
        T::of(f64::from(codes[[o, i]])) * raised_scale(scale[[o, g]]) + offset[[o, g]]
    });
    check::result(OPERATION, "output", output)
}

/// Rounds weights to the grid and back. Eq. (Q4).
///
/// ```text
/// output = dequantize(quantize(weight, scale, offset), scale, offset)
/// ```
///
/// # Shapes
/// `weight [out, in]`, `scale, offset [out, groups]` -> `codes, output [out, in]`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn fake_quantize<T: Real>(
    weight: ArrayView2<T>,
    scale: ArrayView2<T>,
    offset: ArrayView2<T>,
    spec: &QuantSpec,
) -> Result<FakeQuantized<T>, Error> {
    check::quantizer("fake_quantize", &weight, &scale, &offset, spec)?;
    let codes = quantize(weight, scale, offset, spec)?;
    let output = dequantize(codes.view(), scale, offset, spec)?;
    Ok(FakeQuantized { codes, output })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Bits;
    use ndarray::array;

    fn row_of(in_features: usize, bits: u32) -> QuantSpec {
        QuantSpec::new(Bits::new(bits).unwrap(), None, in_features).unwrap()
    }

    #[test]
    fn example_of_q1() {
        let spec = row_of(1, 4);
        assert_eq!(argument(1.25, 0.5, 0.25), 2.0);
        for mask in MaskRule::ALL {
            assert!(in_range(argument(1.25, 0.5, 0.25), &spec, mask));
            assert!(!in_range(argument(4.0, 0.5, 0.25), &spec, mask));
        }
        let at_the_end = MaskRule::ALL.map(|mask| in_range(argument(3.75, 0.5, 0.25), &spec, mask));
        assert_eq!(at_the_end, [true, true, false]);
        let beyond = MaskRule::ALL.map(|mask| in_range(argument(3.875, 0.5, 0.25), &spec, mask));
        assert_eq!(beyond, [false, true, false]);
    }

    #[test]
    fn example_of_q2() {
        let weight = array![[1.25, -1.25, 0.75, 9.0, -9.0]];
        let (scale, offset) = (array![[0.5]], array![[0.0]]);
        let codes = quantize(weight.view(), scale.view(), offset.view(), &row_of(5, 4)).unwrap();
        assert_eq!(codes, array![[2, -2, 2, 7, -8]]);
    }

    #[test]
    fn example_of_q3() {
        let (scale, offset) = (array![[0.5]], array![[0.25]]);
        let codes = array![[2, -8]];
        let output = dequantize(codes.view(), scale.view(), offset.view(), &row_of(2, 4)).unwrap();
        assert_eq!(output, array![[1.25, -3.75]]);
    }

    #[test]
    fn a_code_that_the_grid_does_not_have_is_refused() {
        let (scale, offset) = (array![[0.5]], array![[0.0]]);
        let codes = array![[0, 8]];
        let refused =
            dequantize(codes.view(), scale.view(), offset.view(), &row_of(2, 4)).unwrap_err();
        assert_eq!(refused.to_string(), "dequantize: codes[0, 1] is 8, expected -8 to 7");
    }

    #[test]
    fn each_group_uses_its_own_grid() {
        let spec = QuantSpec::new(Bits::new(4).unwrap(), Some(2), 4).unwrap();
        let weight = array![[1.0, 2.0, 1.0, 2.0], [4.0, 8.0, 4.0, 8.0]];
        let scale = array![[1.0, 0.5], [4.0, 2.0]];
        let offset = array![[0.0, 1.0], [4.0, 0.0]];
        let quantized = fake_quantize(weight.view(), scale.view(), offset.view(), &spec).unwrap();
        assert_eq!(quantized.codes, array![[1, 2, 0, 2], [0, 1, 2, 4]]);
        assert_eq!(quantized.output, weight);
    }

    #[test]
    fn the_masks_differ_at_the_ends_and_half_a_step_beyond() {
        for bits in 2..=8 {
            let spec = row_of(1, bits);
            let (qmin, qmax) = (f64::from(spec.qmin()), f64::from(spec.qmax()));
            let (low_tie, high_tie) = (qmin - 0.5, qmax + 0.5);
            // Argument; what pre_round, rounded and open pass; code. qmax is odd and qmin even, so
            // that the tie below rounds onto the grid and the one above does not.
            for (argument, passes, expected) in [
                (qmin, [true, true, false], qmin),
                (qmin.next_down(), [false, true, false], qmin),
                (qmin.next_up(), [true, true, true], qmin),
                (low_tie, [false, true, false], qmin),
                (low_tie.next_down(), [false, false, false], qmin),
                (qmax, [true, true, false], qmax),
                (qmax.next_up(), [false, true, false], qmax),
                (qmax.next_down(), [true, true, true], qmax),
                (high_tie, [false, false, false], qmax),
                (high_tie.next_down(), [false, true, false], qmax),
                (f64::INFINITY, [false, false, false], qmax),
                (f64::NEG_INFINITY, [false, false, false], qmin),
            ] {
                let seen = MaskRule::ALL.map(|mask| in_range(argument, &spec, mask));
                assert_eq!(seen, passes, "{bits} bits, {argument}");
                assert_eq!(f64::from(code(argument, &spec)), expected, "{bits} bits, {argument}");
            }
        }
    }

    #[test]
    fn a_scale_below_the_floor_acts_as_the_floor() {
        let floor = SCALE_FLOOR as f32;
        assert_eq!(raised_scale(0.0_f32), floor);
        assert_eq!(raised_scale(-1.0_f32), floor);
        assert_eq!(raised_scale(floor.next_down()), floor);
        assert_eq!(raised_scale(floor.next_up()), floor.next_up());
    }

    #[test]
    fn the_argument_is_a_true_quotient() {
        // In f32 the reciprocal of 7 is too large: it would give -6.5000005 and code -7 for the
        // first weight, and would take the second, at qmax of 3 bits, out of range.
        assert_eq!(code(argument(-45.5_f32, 7.0, 0.0), &row_of(1, 4)), -6);
        assert!(in_range(argument(21.0_f32, 7.0, 0.0), &row_of(1, 3), MaskRule::PreRound));
        // The same for 49 in f64, too small.
        assert_eq!(code(argument(-367.5_f64, 49.0, 0.0), &row_of(1, 5)), -8);
    }

    #[test]
    fn an_argument_that_overflows_saturates() {
        let (weight, scale, offset) = (array![[3e38_f32, -3e38]], array![[0.0]], array![[0.0]]);
        let codes = quantize(weight.view(), scale.view(), offset.view(), &row_of(2, 4)).unwrap();
        assert_eq!(codes, array![[7, -8]]);
    }

    #[test]
    fn an_output_that_overflows_is_refused() {
        // Argument 1.67, code 2: 2 * 0.6e38 + 2.4e38 is beyond f32.
        let (weight, scale, offset) = (array![[3.4e38_f32]], array![[0.6e38]], array![[2.4e38]]);
        let refused = fake_quantize(weight.view(), scale.view(), offset.view(), &row_of(1, 4));
        assert_eq!(refused.unwrap_err().to_string(), "dequantize: output[0, 0] is inf");
    }
}
