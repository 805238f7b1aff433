//! Unsigned grids with a zero point: weights to codes and codes to weights.
//!
//! The zero point is in units of the code, so that an integer one maps the weight 0 to a code
//! exactly. A real one, as merging a QA-LoRA adapter leaves, only dequantizes.

use ndarray::{Array2, ArrayView2};

use crate::quantize::raised_scale;
use crate::spec::QuantSpec;
use crate::{Error, Real, check};

/// The code of one weight. Eq. (Q11).
pub(crate) fn affine_code<T: Real>(weight: T, scale: T, zero_point: T, spec: &QuantSpec) -> u8 {
    let largest = T::of(f64::from(spec.unsigned_max()));
    // A quotient that overflowed is clamped like any other that is far outside.
    let code = (weight / raised_scale(scale)).round_half_even() + zero_point;
    code.max(T::zero()).min(largest).value() as u8
}

/// The weight that one code stands for. Eq. (Q12).
pub(crate) fn affine_value<T: Real>(code: u8, scale: T, zero_point: T) -> T {
    raised_scale(scale) * (T::of(f64::from(code)) - zero_point)
}

/// Rounds weights to unsigned codes. Eq. (Q11).
///
/// ```text
/// codes[o,i] = clamp(round_half_even(weight[o,i] / raised_scale[o,g]) + zero_point[o,g],
///                    0, 2^bits - 1)
/// ```
///
/// The quotient is rounded before the zero point is added: an odd zero point does not turn a tie.
///
/// # Shapes
/// `weight [out, in]`, `scale, zero_point [out, groups]` -> `[out, in]`
///
/// # Errors
/// `Shape`, `NonFinite`, and `ZeroPoint` for one that is not a code of the grid.
pub fn affine_quantize<T: Real>(
    weight: ArrayView2<T>,
    scale: ArrayView2<T>,
    zero_point: ArrayView2<T>,
    spec: &QuantSpec,
) -> Result<Array2<u8>, Error> {
    const OPERATION: &str = "affine_quantize";
    let rows = weight.nrows();
    check::input(OPERATION, "weight", &weight, &[rows, spec.in_features()])?;
    check::input(OPERATION, "scale", &scale, &[rows, spec.groups()])?;
    check::input(OPERATION, "zero_point", &zero_point, &[rows, spec.groups()])?;
    let largest = spec.unsigned_max();
    for ((row, group), &zero_point) in zero_point.indexed_iter() {
        let value = zero_point.value();
        if value != value.trunc() || !(0.0..=f64::from(largest)).contains(&value) {
            return Err(Error::ZeroPoint { operation: OPERATION, row, group, value, largest });
        }
    }
    Ok(Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let g = i / spec.group_size();
        affine_code(weight[[o, i]], scale[[o, g]], zero_point[[o, g]], spec)
    }))
}

/// The weights that unsigned codes stand for. Eq. (Q12).
///
/// ```text
/// output[o,i] = raised_scale[o,g] * (codes[o,i] - zero_point[o,g])
/// ```
///
/// The difference and the product are each rounded; with an integer zero point the difference is
/// exact.
///
/// # Shapes
/// `codes [out, in]`, `scale, zero_point [out, groups]` -> `[out, in]`
///
/// # Errors
/// `Shape`, `NonFinite`, and `CodeOutOfRange` for a code that the grid does not have.
pub fn affine_dequantize<T: Real>(
    codes: ArrayView2<u8>,
    scale: ArrayView2<T>,
    zero_point: ArrayView2<T>,
    spec: &QuantSpec,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "affine_dequantize";
    affine_layer(OPERATION, &codes, &scale, &zero_point, spec)?;
    let output = Array2::from_shape_fn(codes.dim(), |(o, i)| {
        let g = i / spec.group_size();
        affine_value(codes[[o, i]], scale[[o, g]], zero_point[[o, g]])
    });
    check::result(OPERATION, "output", output)
}

/// Codes of the grid, and a finite scale and zero point for each of their groups.
pub(crate) fn affine_layer<T: Real>(
    operation: &'static str,
    codes: &ArrayView2<u8>,
    scale: &ArrayView2<T>,
    zero_point: &ArrayView2<T>,
    spec: &QuantSpec,
) -> Result<(), Error> {
    let rows = codes.nrows();
    check::shape(operation, "codes", codes.shape(), &[rows, spec.in_features()])?;
    check::input(operation, "scale", scale, &[rows, spec.groups()])?;
    check::input(operation, "zero_point", zero_point, &[rows, spec.groups()])?;
    let (qmin, qmax) = (0, spec.unsigned_max());
    for ((row, column), &code) in codes.indexed_iter() {
        let code = i32::from(code);
        if code > qmax {
            return Err(Error::CodeOutOfRange { operation, row, column, code, qmin, qmax });
        }
    }
    Ok(())
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
    fn example_of_q11() {
        let weight = array![[1.25, -1.25, 0.75, 9.0, -9.0]];
        let (scale, zero_point) = (array![[0.5]], array![[7.0]]);
        let codes = affine_quantize(weight.view(), scale.view(), zero_point.view(), &row_of(5, 4));
        assert_eq!(codes.unwrap(), array![[9, 5, 9, 15, 0]]);
    }

    #[test]
    fn example_of_q12() {
        let (codes, scale) = (array![[9_u8, 0]], array![[0.5]]);
        let output = |zero_point: f64| {
            let zero_point = array![[zero_point]];
            affine_dequantize(codes.view(), scale.view(), zero_point.view(), &row_of(2, 4)).unwrap()
        };
        assert_eq!(output(7.0), array![[1.0, -3.5]]);
        assert_eq!(output(6.75), array![[1.125, -3.375]]);
    }

    #[test]
    fn ties_and_ends_at_every_width_and_zero_point() {
        for bits in 2..=8 {
            let largest = f64::from(row_of(1, bits).unsigned_max());
            for zero_point in 0..=row_of(1, bits).unsigned_max() {
                let zero_point = f64::from(zero_point);
                let (low, high) = (-zero_point, largest - zero_point);
                for (quotient, expected) in [
                    (0.5, 0.0),
                    (1.5, 2.0),
                    (-0.5, 0.0),
                    (-1.5, -2.0),
                    (2.5, 2.0),
                    (low, low),
                    (low - 0.5, low),
                    (low.next_down(), low),
                    (high, high),
                    (high + 0.5, high),
                    (high.next_up(), high),
                    (f64::INFINITY, high),
                    (f64::NEG_INFINITY, low),
                ] {
                    let code = affine_code(quotient, 1.0, zero_point, &row_of(1, bits));
                    let expected = expected.clamp(low, high) + zero_point;
                    assert_eq!(f64::from(code), expected, "{bits} bits, {zero_point}, {quotient}");
                }
            }
        }
    }

    #[test]
    fn the_quotient_is_a_true_one() {
        // In f32 the reciprocal of 7 is too large: it would give -6.5000005 and code -7.
        assert_eq!(affine_code(-45.5_f32, 7.0, 8.0, &row_of(1, 4)), 2);
    }

    #[test]
    fn a_zero_point_that_is_no_code_is_refused() {
        let (weight, scale) = (array![[1.0]], array![[1.0]]);
        for (zero_point, shown) in [(0.5, "0.5"), (-1.0, "-1"), (16.0, "16")] {
            let zero_point = array![[zero_point]];
            let refused =
                affine_quantize(weight.view(), scale.view(), zero_point.view(), &row_of(1, 4))
                    .unwrap_err();
            let expected = "affine_quantize: zero_point[0, 0] is ";
            let expected = format!("{expected}{shown}, expected an integer, 0 to 15");
            assert_eq!(refused.to_string(), expected);
        }
    }

    #[test]
    fn a_code_that_the_grid_does_not_have_is_refused() {
        let (scale, zero_point) = (array![[0.5]], array![[0.0]]);
        let codes = array![[15_u8, 16]];
        let refused =
            affine_dequantize(codes.view(), scale.view(), zero_point.view(), &row_of(2, 4));
        let refused = refused.unwrap_err().to_string();
        assert_eq!(refused, "affine_dequantize: codes[0, 1] is 16, expected 0 to 15");
    }

    #[test]
    fn a_scale_below_the_floor_acts_as_the_floor() {
        let (codes, zero_point) = (array![[1_u8]], array![[0.0_f32]]);
        for scale in [0.0_f32, -2.0, 1e-9] {
            let scale = array![[scale]];
            let output =
                affine_dequantize(codes.view(), scale.view(), zero_point.view(), &row_of(1, 4));
            assert_eq!(output.unwrap(), array![[1e-8]]);
            assert_eq!(affine_code(2.5e-8_f32, scale[[0, 0]], 0.0, &row_of(1, 4)), 2);
        }
    }

    #[test]
    fn an_output_that_overflows_is_refused() {
        let (codes, scale, zero_point) = (array![[15_u8]], array![[3e37_f32]], array![[0.0]]);
        let refused =
            affine_dequantize(codes.view(), scale.view(), zero_point.view(), &row_of(1, 4));
        let refused = refused.unwrap_err().to_string();
        assert_eq!(refused, "affine_dequantize: output[0, 0] is inf");
    }
}
