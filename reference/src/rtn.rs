//! Round to nearest: the grid of a group from its weights alone, and the weights on it.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, Slice};

use crate::affine::{affine_code, affine_dequantize, affine_quantize, affine_value};
use crate::quantize::raised_scale;
use crate::spec::{QuantSpec, RangeSearch, RtnSpec, SymmetricScale};
use crate::{Error, Real, check};

/// Result of [`rtn`].
#[derive(Debug, Clone, PartialEq)]
pub struct Rtn<T> {
    /// `[out, in]`, each from 0 to `2^bits - 1`.
    pub codes: Array2<u8>,
    /// `[out, groups]`
    pub scale: Array2<T>,
    /// `[out, groups]`, integers from 0 to `2^bits - 1`.
    pub zero_point: Array2<T>,
    /// `[out, in]`, the dequantized codes.
    pub output: Array2<T>,
}

/// Quantizes a weight by itself. Eq. (Q13).
///
/// ```text
/// low = min(0, min_(i in g) weight[o,i])
/// high = max(0, max_(i in g) weight[o,i])
/// absmax = max(-low, high)
/// paper:      scale = absmax / qmax
/// gptq:       scale = 2 * absmax / (2^bits - 1)
/// symmetric:  zero_point = 2^(bits-1)
/// asymmetric: scale = (high - low) / (2^bits - 1)
/// asymmetric: zero_point = round_half_even(-low / raised_scale)
/// codes = affine_quantize(weight, scale, zero_point)
/// output = affine_dequantize(codes, scale, zero_point)
/// lp:         low[k] = k * low / steps, high[k] = k * high / steps,
///             first k of 1 to steps with least error[k],
///             error[k] = sum_(i in g) |weight[o,i] - output[o,i]|^p
/// ```
///
/// A group for which this gives scale 0 gets scale 1 and all its codes are its zero point.
///
/// # Shapes
/// `weight [out, in]` -> `codes, output [out, in]`, `scale, zero_point [out, groups]`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn rtn<T: Real>(
    weight: ArrayView2<T>,
    spec: &QuantSpec,
    rtn: &RtnSpec,
) -> Result<Rtn<T>, Error> {
    const OPERATION: &str = "rtn";
    check::input(OPERATION, "weight", &weight, &[weight.nrows(), spec.in_features()])?;
    let mut scale = Array2::zeros((weight.nrows(), spec.groups()));
    let mut zero_point = Array2::zeros((weight.nrows(), spec.groups()));
    for ((o, g), scale) in scale.indexed_iter_mut() {
        let first = g * spec.group_size();
        let row = weight.row(o);
        let group = row.slice_axis(Axis(0), Slice::from(first..first + spec.group_size()));
        (*scale, zero_point[[o, g]]) = group_grid(group, spec, rtn);
    }
    let scale = check::result(OPERATION, "scale", scale)?;
    let codes = affine_quantize(weight, scale.view(), zero_point.view(), spec)?;
    let output = affine_dequantize(codes.view(), scale.view(), zero_point.view(), spec)?;
    Ok(Rtn { codes, scale, zero_point, output })
}

/// Scale and zero point of one group.
fn group_grid<T: Real>(group: ArrayView1<T>, spec: &QuantSpec, rtn: &RtnSpec) -> (T, T) {
    let low = group.iter().copied().fold(T::zero(), T::min);
    let high = group.iter().copied().fold(T::zero(), T::max);
    let RangeSearch::Lp { p, steps } = rtn.range else {
        return range_grid(low, high, spec, rtn);
    };
    let part = |k: usize| {
        let of_steps = |end: T| T::of(k as f64) * end / T::of(steps as f64);
        range_grid(of_steps(low), of_steps(high), spec, rtn)
    };
    let widest = part(steps);
    if !widest.0.is_finite() {
        // Refused by the caller; a narrower range that does not overflow would be no choice.
        return widest;
    }
    let error = |(scale, zero_point): (T, T)| {
        group.iter().fold(T::zero(), |sum, &w| {
            let code = affine_code(w, scale, zero_point, spec);
            sum + (w - affine_value(code, scale, zero_point)).abs().powf(T::of(p))
        })
    };
    let mut best = part(1);
    let mut least = error(best);
    for k in 2..=steps {
        let error = error(part(k));
        if error < least {
            (best, least) = (part(k), error);
        }
    }
    best
}

/// Scale and zero point of the range from `low` to `high`.
fn range_grid<T: Real>(low: T, high: T, spec: &QuantSpec, rtn: &RtnSpec) -> (T, T) {
    let largest = T::of(f64::from(spec.unsigned_max()));
    let absmax = (-low).max(high);
    let scale = match (rtn.symmetric, rtn.convention) {
        (true, SymmetricScale::Paper) => absmax / T::of(f64::from(spec.qmax())),
        (true, SymmetricScale::Gptq) => T::of(2.0) * absmax / largest,
        (false, _) => (high - low) / largest,
    };
    let scale = if scale == T::zero() { T::one() } else { scale };
    let zero_point = if rtn.symmetric {
        T::of(-f64::from(spec.qmin()))
    } else {
        // 0 - low and not -low: a low of 0 gives the zero point 0, not -0.
        ((T::zero() - low) / raised_scale(scale)).round_half_even()
    };
    (scale, zero_point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Bits;
    use ndarray::array;

    const ASYMMETRIC: RtnSpec =
        RtnSpec { symmetric: false, range: RangeSearch::MinMax, convention: SymmetricScale::Paper };
    const SYMMETRIC: RtnSpec = RtnSpec { symmetric: true, ..ASYMMETRIC };
    const GPTQ: RtnSpec = RtnSpec { convention: SymmetricScale::Gptq, ..SYMMETRIC };
    const CHOICES: [RtnSpec; 6] = [
        ASYMMETRIC,
        SYMMETRIC,
        GPTQ,
        lp(ASYMMETRIC, 2.0, 4),
        lp(SYMMETRIC, 2.0, 4),
        lp(GPTQ, 2.0, 4),
    ];

    const fn lp(rtn: RtnSpec, p: f64, steps: usize) -> RtnSpec {
        RtnSpec { range: RangeSearch::Lp { p, steps }, ..rtn }
    }

    fn row_of(in_features: usize, bits: u32) -> QuantSpec {
        QuantSpec::new(Bits::new(bits).unwrap(), None, in_features).unwrap()
    }

    #[test]
    fn example_of_q13() {
        let weight = array![[-1.0, 2.0, 0.5]];
        let on_grid = |choice| rtn(weight.view(), &row_of(3, 2), &choice).unwrap();
        let asymmetric = on_grid(ASYMMETRIC);
        assert_eq!((asymmetric.scale[[0, 0]], asymmetric.zero_point[[0, 0]]), (1.0, 1.0));
        assert_eq!(asymmetric.codes, array![[0, 3, 1]]);
        assert_eq!(asymmetric.output, array![[-1.0, 2.0, 0.0]]);
        let symmetric = on_grid(SYMMETRIC);
        assert_eq!((symmetric.scale[[0, 0]], symmetric.zero_point[[0, 0]]), (2.0, 2.0));
        assert_eq!(symmetric.codes, array![[2, 3, 2]]);
        let gptq = on_grid(GPTQ);
        assert_eq!((gptq.scale[[0, 0]], gptq.zero_point[[0, 0]]), (4.0 / 3.0, 2.0));
        assert_eq!(gptq.codes, array![[1, 3, 2]]);
        let searched = on_grid(lp(SYMMETRIC, 2.0, 2));
        assert_eq!((searched.scale[[0, 0]], searched.zero_point[[0, 0]]), (1.0, 2.0));
        assert_eq!(searched.codes, array![[1, 3, 2]]);
    }

    #[test]
    fn the_range_holds_zero() {
        for (weight, scale, zero_point, codes) in [
            (array![[2.0, 3.0]], 1.0, 0.0, array![[2, 3]]),
            (array![[-2.0, -3.0]], 1.0, 3.0, array![[1, 0]]),
        ] {
            let on_grid = rtn(weight.view(), &row_of(2, 2), &ASYMMETRIC).unwrap();
            assert_eq!((on_grid.scale[[0, 0]], on_grid.zero_point[[0, 0]]), (scale, zero_point));
            assert_eq!(on_grid.codes, codes);
            assert_eq!(on_grid.output, weight);
        }
    }

    #[test]
    fn a_zero_point_on_a_tie_goes_to_the_even_code() {
        // Scale 1, -low / scale = 0.5 and 1.5.
        for (low, high, zero_point) in [(-0.5, 2.5, 0.0), (-1.5, 1.5, 2.0)] {
            let on_grid = rtn(array![[low, high]].view(), &row_of(2, 2), &ASYMMETRIC).unwrap();
            assert_eq!((on_grid.scale[[0, 0]], on_grid.zero_point[[0, 0]]), (1.0, zero_point));
        }
    }

    #[test]
    fn a_group_of_zeros_has_scale_one_and_the_code_of_zero() {
        for choice in CHOICES {
            for tiny in [0.0_f32, -0.0, f32::from_bits(1)] {
                let weight = array![[tiny, 0.0, -tiny]];
                let on_grid = rtn(weight.view(), &row_of(3, 4), &choice).unwrap();
                let zero_point = if choice.symmetric { 8.0 } else { 0.0 };
                assert_eq!((on_grid.scale[[0, 0]], on_grid.zero_point[[0, 0]]), (1.0, zero_point));
                assert!(on_grid.zero_point[[0, 0]].is_sign_positive());
                assert_eq!(on_grid.codes, Array2::from_elem((1, 3), zero_point as u8));
                assert_eq!(on_grid.output, array![[0.0, 0.0, 0.0]]);
            }
        }
    }

    #[test]
    fn a_scale_below_the_floor_is_raised_in_the_zero_point_too() {
        // The step of 1e-9 acts as 1e-8: 7e-9 of it is 0.7.
        let weight = array![[-7e-9, 8e-9]];
        let on_grid = rtn(weight.view(), &row_of(2, 4), &ASYMMETRIC).unwrap();
        assert_eq!((on_grid.zero_point[[0, 0]], on_grid.codes), (1.0, array![[0, 2]]));
    }

    #[test]
    fn lp_prefers_a_clipped_range_when_it_pays() {
        let weight = array![[12.0, 2.0, 2.0, 2.0, -2.0, -2.0]];
        let chosen =
            |p| rtn(weight.view(), &row_of(6, 3), &lp(SYMMETRIC, p, 2)).unwrap().scale[[0, 0]];
        assert_eq!(chosen(0.5), 2.0);
        assert_eq!(chosen(4.0), 4.0);
    }

    #[test]
    fn lp_keeps_the_first_of_equal_errors() {
        // Both ranges lose 0.5: the narrow one of 1, the wide one of 0.5.
        let on_grid = rtn(array![[1.0, 0.5]].view(), &row_of(2, 2), &lp(SYMMETRIC, 2.0, 2));
        assert_eq!(on_grid.unwrap().scale, array![[0.5]]);
    }

    #[test]
    fn a_range_that_overflows_is_refused() {
        let weight = array![[3e38_f32, -3e38]];
        for choice in [ASYMMETRIC, GPTQ, lp(SYMMETRIC, 2.0, 4)] {
            let refused = rtn(weight.view(), &row_of(2, 4), &choice).unwrap_err();
            assert_eq!(refused.to_string(), "rtn: scale[0, 0] is inf");
        }
    }
}
