//! Activations on a grid that is taken from each token as it comes: asymmetric, unsigned, with
//! nothing learned and nothing stored.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, Slice};

use crate::spec::{QuantSpec, SCALE_FLOOR, ZeroPointRule};
use crate::{Error, Real, check};

/// Result of [`dynamic_quantize`].
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicQuantized<T> {
    /// `[tokens, in]`, the levels; absent under [`ZeroPointRule::Float`], where they are no
    /// integers.
    pub codes: Option<Array2<u8>>,
    /// `[tokens, groups]`
    pub scale: Array2<T>,
    /// `[tokens, groups]`
    pub zero_point: Array2<T>,
    /// `[tokens, in]`
    pub output: Array2<T>,
}

/// Rounds every token to a grid between its own extremes. Eq. (Q14).
///
/// ```text
/// low, high = the least and the greatest x[t,i], i in g
/// scale[t,g] = max((high - low) / (2^bits - 1), SCALE_FLOOR) where high > low
/// scale[t,g] = max(|low|, SCALE_FLOOR) where high = low, and 1 where both are 0
/// integer: zero_point[t,g] = round_half_even(-low / scale[t,g])
/// float:   zero_point[t,g] = -low / scale[t,g]
/// level[t,i] = clamp(round_half_even(x[t,i] / scale[t,g]) + zero_point[t,g], 0, 2^bits - 1)
/// output[t,i] = scale[t,g] * (level[t,i] - zero_point[t,g])
/// ```
///
/// `codes` are the levels.
///
/// # Shapes
/// `x [tokens, in]` -> `codes, output [tokens, in]`, `scale, zero_point [tokens, groups]`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn dynamic_quantize<T: Real>(
    x: ArrayView2<T>,
    spec: &QuantSpec,
    rule: ZeroPointRule,
) -> Result<DynamicQuantized<T>, Error> {
    const OPERATION: &str = "dynamic_quantize";
    let (scale, zero_point) = token_grids(OPERATION, x, spec, rule)?;
    let last = T::of(f64::from(spec.bits().unsigned_max()));
    let level = Array2::from_shape_fn(x.dim(), |(t, i)| {
        let g = i / spec.group_size();
        place(x[[t, i]], scale[[t, g]], zero_point[[t, g]]).max(T::zero()).min(last)
    });
    let output = Array2::from_shape_fn(x.dim(), |(t, i)| {
        let g = i / spec.group_size();
        scale[[t, g]] * (level[[t, i]] - zero_point[[t, g]])
    });
    let output = check::result(OPERATION, "output", output)?;
    let codes = match rule {
        ZeroPointRule::Integer => Some(level.mapv(|level| level.value() as u8)),
        ZeroPointRule::Float => None,
    };
    Ok(DynamicQuantized { codes, scale, zero_point, output })
}

/// Gradient of the activations; scale and zero point are constants. Eq. (Q15).
///
/// ```text
/// in_range[t,i] = 0 <= round_half_even(x[t,i] / scale[t,g]) + zero_point[t,g] <= 2^bits - 1
/// d_x[t,i] = d_output[t,i] where in_range[t,i], else 0
/// ```
///
/// # Shapes
/// `x, d_output [tokens, in]` -> `d_x [tokens, in]`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn dynamic_quantize_backward<T: Real>(
    x: ArrayView2<T>,
    d_output: ArrayView2<T>,
    spec: &QuantSpec,
    rule: ZeroPointRule,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "dynamic_quantize_backward";
    check::input(OPERATION, "d_output", &d_output, x.shape())?;
    let (scale, zero_point) = token_grids(OPERATION, x, spec, rule)?;
    let last = T::of(f64::from(spec.bits().unsigned_max()));
    Ok(Array2::from_shape_fn(x.dim(), |(t, i)| {
        let g = i / spec.group_size();
        let place = place(x[[t, i]], scale[[t, g]], zero_point[[t, g]]);
        if T::zero() <= place && place <= last { d_output[[t, i]] } else { T::zero() }
    }))
}

/// Where an activation would lie on a grid without ends.
fn place<T: Real>(x: T, scale: T, zero_point: T) -> T {
    (x / scale).round_half_even() + zero_point
}

/// Scale and zero point of every group of every token.
fn token_grids<T: Real>(
    operation: &'static str,
    x: ArrayView2<T>,
    spec: &QuantSpec,
    rule: ZeroPointRule,
) -> Result<(Array2<T>, Array2<T>), Error> {
    check::input(operation, "x", &x, &[x.nrows(), spec.in_features()])?;
    let mut scale = Array2::zeros((x.nrows(), spec.groups()));
    let mut zero_point = Array2::zeros(scale.dim());
    for ((t, g), scale) in scale.indexed_iter_mut() {
        let first = g * spec.group_size();
        let token = x.row(t);
        let group = token.slice_axis(Axis(0), Slice::from(first..first + spec.group_size()));
        (*scale, zero_point[[t, g]]) = group_grid(group, spec, rule);
    }
    Ok((
        check::result(operation, "scale", scale)?,
        check::result(operation, "zero_point", zero_point)?,
    ))
}

fn group_grid<T: Real>(group: ArrayView1<T>, spec: &QuantSpec, rule: ZeroPointRule) -> (T, T) {
    let low = group.iter().copied().fold(T::infinity(), T::min);
    let high = group.iter().copied().fold(-T::infinity(), T::max);
    let floor = T::of(SCALE_FLOOR);
    let scale = if high > low {
        ((high - low) / T::of(f64::from(spec.bits().unsigned_max()))).max(floor)
    } else if low == T::zero() {
        T::one()
    } else {
        // The constant is one step from zero: zero_point is -1 or 1, and code 0 stands for it.
        low.abs().max(floor)
    };
    let zero_point = -low / scale;
    match rule {
        ZeroPointRule::Integer => (scale, zero_point.round_half_even()),
        ZeroPointRule::Float => (scale, zero_point),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Bits;
    use ndarray::array;

    fn bits(bits: u32, in_features: usize) -> QuantSpec {
        QuantSpec::new(Bits::new(bits).unwrap(), None, in_features).unwrap()
    }

    #[test]
    fn example_of_q14() {
        let x = array![[-1.25, 0.25, 0.75, 1.75]];
        let integer = dynamic_quantize(x.view(), &bits(2, 4), ZeroPointRule::Integer).unwrap();
        assert_eq!(integer.scale, array![[1.0]]);
        assert_eq!(integer.zero_point, array![[1.0]]);
        assert_eq!(integer.codes, Some(array![[0, 1, 2, 3]]));
        assert_eq!(integer.output, array![[-1.0, 0.0, 1.0, 2.0]]);
        let float = dynamic_quantize(x.view(), &bits(2, 4), ZeroPointRule::Float).unwrap();
        assert_eq!(float.zero_point, array![[1.25]]);
        assert_eq!(float.codes, None);
        assert_eq!(float.output, array![[-1.0, 0.0, 1.0, 1.75]]);
    }

    #[test]
    fn example_of_q15() {
        let x = array![[-1.25, 0.25, 0.75, 1.75]];
        let d_output = array![[1.0, 10.0, 100.0, 1000.0]];
        let gradient =
            |rule| dynamic_quantize_backward(x.view(), d_output.view(), &bits(2, 4), rule).unwrap();
        assert_eq!(gradient(ZeroPointRule::Integer), d_output);
        // 2 + 1.25 lies above 3: the greatest activation of the token gets nothing.
        assert_eq!(gradient(ZeroPointRule::Float), array![[1.0, 10.0, 100.0, 0.0]]);
    }

    #[test]
    fn an_integer_zero_point_can_clip_the_greatest_activation_too() {
        // -low / scale = 1.5 and high / scale = 1.5 both round to 2, and 2 + 2 is above 3.
        let x = array![[-1.5, 0.5, 1.5]];
        let quantized = dynamic_quantize(x.view(), &bits(2, 3), ZeroPointRule::Integer).unwrap();
        assert_eq!(quantized.zero_point, array![[2.0]]);
        assert_eq!(quantized.codes, Some(array![[0, 2, 3]]));
        assert_eq!(quantized.output, array![[-2.0, 0.0, 1.0]]);
        let ones = array![[1.0, 1.0, 1.0]];
        let rule = ZeroPointRule::Integer;
        let d_x = dynamic_quantize_backward(x.view(), ones.view(), &bits(2, 3), rule).unwrap();
        assert_eq!(d_x, array![[1.0, 1.0, 0.0]]);
    }

    #[test]
    fn a_constant_group_is_reproduced() {
        for rule in [ZeroPointRule::Integer, ZeroPointRule::Float] {
            for constant in [0.0_f32, 0.3, -0.3, 1e30, -7.0, 1e-7] {
                let x = array![[constant, constant]];
                let quantized = dynamic_quantize(x.view(), &bits(4, 2), rule).unwrap();
                assert_eq!(quantized.output, x, "{rule:?}");
                let scale = if constant == 0.0 { 1.0 } else { constant.abs() };
                assert_eq!(quantized.scale, array![[scale]]);
                assert!(quantized.codes.is_none_or(|codes| codes == array![[0, 0]]));
            }
        }
    }

    #[test]
    fn a_range_below_the_floor_is_widened_to_it() {
        let x = array![[0.0, 1e-9]];
        let quantized = dynamic_quantize(x.view(), &bits(4, 2), ZeroPointRule::Integer).unwrap();
        assert_eq!(quantized.scale, array![[SCALE_FLOOR]]);
        assert_eq!(quantized.output, array![[0.0, 0.0]]);
    }

    #[test]
    fn every_group_of_every_token_has_its_own_grid() {
        let spec = QuantSpec::new(Bits::new(2).unwrap(), Some(2), 4).unwrap();
        let x = array![[0.0, 3.0, 10.0, 16.0], [-3.0, 0.0, 1.0, 1.0]];
        let quantized = dynamic_quantize(x.view(), &spec, ZeroPointRule::Integer).unwrap();
        assert_eq!(quantized.scale, array![[1.0, 2.0], [1.0, 1.0]]);
        assert_eq!(quantized.zero_point, array![[0.0, -5.0], [3.0, -1.0]]);
        assert_eq!(quantized.output, x);
    }

    #[test]
    fn a_range_that_overflows_is_refused() {
        let x = array![[3e38_f32, -3e38]];
        let refused = dynamic_quantize(x.view(), &bits(4, 2), ZeroPointRule::Integer);
        assert_eq!(refused.unwrap_err().to_string(), "dynamic_quantize: scale[0, 0] is inf");
    }
}
