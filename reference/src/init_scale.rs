//! Scale and offset before training, from the weights alone.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, Slice};

use crate::quantize::{argument, code, raised_scale};
use crate::spec::{InitScaleRule, QuantSpec};
use crate::{Error, Real, check};

/// A grid for every group.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleOffset<T> {
    /// `[out, groups]`
    pub scale: Array2<T>,
    /// `[out, groups]`, in units of the weight.
    pub offset: Array2<T>,
}

/// Chooses a grid for every group. Eq. (Q8).
///
/// ```text
/// l4q:        scale = max(|min / qmin|, |max / qmax|)
/// lsq:        scale = 2 * mean(|weight|) / sqrt(qmax)
/// lsq_plus:   scale = max(|mean - 3 * sigma|, |mean + 3 * sigma|) / 2^(bits-1)
/// symmetric:  scale = absmax / 2^(bits-1)
/// asymmetric: scale = (max - min) / (qmax - qmin), offset = max - scale * qmax
/// min_max:    scale = absmax / qmax
/// lit_gpt:    scale = absmax / (qmax where bits = 4, else 2^(bits-1))
/// lp:         scale = T[k] / qmax, T[k] = k * absmax / steps,
///             first k of 1 to steps with least error[k],
///             error[k] = sum_(i in g) |weight[o,i] - fake_quantize(weight[o,i])|^p
/// ```
///
/// `offset` is 0 where the rule does not say. A group for which the rule gives scale 0 gets
/// scale 1 and an offset of `max` (`asymmetric`) or 0 (the others), so that code 0 reproduces it.
///
/// # Shapes
/// `weight [out, in]` -> `scale, offset [out, groups]`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn init_scale<T: Real>(
    weight: ArrayView2<T>,
    spec: &QuantSpec,
    rule: InitScaleRule,
) -> Result<ScaleOffset<T>, Error> {
    const OPERATION: &str = "init_scale";
    check::input(OPERATION, "weight", &weight, &[weight.nrows(), spec.in_features()])?;
    let mut scale = Array2::zeros((weight.nrows(), spec.groups()));
    let mut offset = Array2::zeros((weight.nrows(), spec.groups()));
    for ((o, g), scale) in scale.indexed_iter_mut() {
        let first = g * spec.group_size();
        let row = weight.row(o);
        let group = row.slice_axis(Axis(0), Slice::from(first..first + spec.group_size()));
        (*scale, offset[[o, g]]) = group_grid(group, spec, rule);
    }
    Ok(ScaleOffset {
        scale: check::result(OPERATION, "scale", scale)?,
        offset: check::result(OPERATION, "offset", offset)?,
    })
}

/// Scale and offset of one group.
fn group_grid<T: Real>(group: ArrayView1<T>, spec: &QuantSpec, rule: InitScaleRule) -> (T, T) {
    let qmin = T::of(f64::from(spec.qmin()));
    let qmax = T::of(f64::from(spec.qmax()));
    let min = group.iter().copied().fold(T::infinity(), T::min);
    let max = group.iter().copied().fold(-T::infinity(), T::max);
    let absmax = min.abs().max(max.abs());
    let half_range = -qmin;
    let scale = match rule {
        InitScaleRule::L4q => (min / qmin).abs().max((max / qmax).abs()),
        InitScaleRule::Lsq => T::of(2.0) * mean(group.iter().map(|w| w.abs())) / qmax.sqrt(),
        InitScaleRule::LsqPlus => {
            let mean = mean(group.iter().copied());
            let reach = T::of(3.0) * unbiased_deviation(group, mean);
            (mean - reach).abs().max((mean + reach).abs()) / half_range
        }
        InitScaleRule::Symmetric => absmax / half_range,
        InitScaleRule::Asymmetric => (max - min) / (qmax - qmin),
        InitScaleRule::MinMax => absmax / qmax,
        InitScaleRule::LitGpt => absmax / if spec.bits().count() == 4 { qmax } else { half_range },
        InitScaleRule::Lp { p, steps } => least_error_scale(group, spec, T::of(p), steps, absmax),
    };
    match (rule, scale == T::zero()) {
        (InitScaleRule::Asymmetric, true) => (T::one(), max),
        (InitScaleRule::Asymmetric, false) => (scale, max - scale * qmax),
        (_, true) => (T::one(), T::zero()),
        (_, false) => (scale, T::zero()),
    }
}

fn mean<T: Real>(values: impl ExactSizeIterator<Item = T>) -> T {
    let count = T::of(values.len() as f64);
    values.fold(T::zero(), |sum, value| sum + value) / count
}

/// `sqrt(sum (weight - mean)^2 / (count - 1))`; a group of one has no spread.
fn unbiased_deviation<T: Real>(group: ArrayView1<T>, mean: T) -> T {
    if group.len() == 1 {
        return T::zero();
    }
    let squares = group.iter().map(|&w| w - mean).fold(T::zero(), |sum, d| sum + d * d);
    (squares / T::of((group.len() - 1) as f64)).sqrt()
}

/// Tries `steps` ranges up to `absmax` and keeps the first of least error. Eq. (Q8g).
fn least_error_scale<T: Real>(
    group: ArrayView1<T>,
    spec: &QuantSpec,
    p: T,
    steps: usize,
    absmax: T,
) -> T {
    let qmax = T::of(f64::from(spec.qmax()));
    let mut best = (T::infinity(), T::zero());
    for k in 1..=steps {
        let scale = T::of(k as f64) * absmax / T::of(steps as f64) / qmax;
        let error = group.iter().fold(T::zero(), |sum, &w| {
            let code = code(argument(w, scale, T::zero()), spec);
            let rounded = T::of(f64::from(code)) * raised_scale(scale);
            sum + (w - rounded).abs().powf(p)
        });
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::quantize;
    use crate::spec::Bits;
    use ndarray::array;

    const RULES: [InitScaleRule; 8] = [
        InitScaleRule::L4q,
        InitScaleRule::Lsq,
        InitScaleRule::LsqPlus,
        InitScaleRule::Symmetric,
        InitScaleRule::Asymmetric,
        InitScaleRule::MinMax,
        InitScaleRule::LitGpt,
        InitScaleRule::Lp { p: 2.0, steps: 2 },
    ];

    fn three_bits(in_features: usize) -> QuantSpec {
        QuantSpec::new(Bits::new(3).unwrap(), None, in_features).unwrap()
    }

    #[test]
    fn example_of_q8() {
        let weight = array![[-4.0, 2.0, 0.0, 2.0]];
        let expected = [
            (1.0, 0.0),
            (4.0 / 3.0_f64.sqrt(), 0.0),
            (3.0 * 8.0_f64.sqrt() / 4.0, 0.0),
            (1.0, 0.0),
            (6.0 / 7.0, -4.0 / 7.0),
            (4.0 / 3.0, 0.0),
            (1.0, 0.0),
            (4.0 / 3.0, 0.0),
        ];
        for (rule, (scale, offset)) in RULES.into_iter().zip(expected) {
            let chosen = init_scale(weight.view(), &three_bits(4), rule).unwrap();
            approx::assert_relative_eq!(chosen.scale[[0, 0]], scale, epsilon = 1e-15);
            approx::assert_relative_eq!(chosen.offset[[0, 0]], offset, epsilon = 1e-15);
        }
    }

    #[test]
    fn lit_gpt_divides_by_qmax_at_four_bits_alone() {
        let weight = array![[56.0, -28.0]];
        for (bits, scale) in [(2, 28.0), (3, 14.0), (4, 8.0), (5, 3.5), (8, 0.4375)] {
            let spec = QuantSpec::new(Bits::new(bits).unwrap(), None, 2).unwrap();
            let chosen = init_scale(weight.view(), &spec, InitScaleRule::LitGpt).unwrap();
            assert_eq!(chosen.scale, array![[scale]], "{bits} bits");
        }
    }

    #[test]
    fn lp_prefers_a_clipped_range_when_it_pays() {
        // One outlier: at p = 0.5 its error counts little, and half the range serves the others.
        let weight = array![[12.0, 2.0, 2.0, 2.0, -2.0, -2.0]];
        let chosen = |p| {
            let rule = InitScaleRule::Lp { p, steps: 2 };
            init_scale(weight.view(), &three_bits(6), rule).unwrap().scale[[0, 0]]
        };
        assert_eq!(chosen(0.5), 2.0);
        assert_eq!(chosen(4.0), 4.0);
    }

    #[test]
    fn a_group_without_a_scale_is_reproduced_by_code_zero() {
        for rule in RULES {
            for value in [0.0_f32, 2.5] {
                let weight = Array2::from_elem((1, 4), value);
                let chosen = init_scale(weight.view(), &three_bits(4), rule).unwrap();
                if value == 0.0 || rule == InitScaleRule::Asymmetric {
                    assert_eq!((chosen.scale[[0, 0]], chosen.offset[[0, 0]]), (1.0, value));
                    let (scale, offset) = (chosen.scale.view(), chosen.offset.view());
                    let codes = quantize(weight.view(), scale, offset, &three_bits(4)).unwrap();
                    assert_eq!(codes, array![[0, 0, 0, 0]], "{rule:?}");
                } else {
                    assert!(chosen.scale[[0, 0]] > 0.0 && chosen.offset[[0, 0]] == 0.0);
                }
            }
        }
    }

    #[test]
    fn a_group_of_one_has_no_spread() {
        let spec = QuantSpec::new(Bits::new(3).unwrap(), Some(1), 1).unwrap();
        let chosen = init_scale(array![[2.0]].view(), &spec, InitScaleRule::LsqPlus).unwrap();
        assert_eq!(chosen.scale, array![[0.5]]);
    }

    #[test]
    fn a_range_that_overflows_is_refused() {
        let weight = array![[3e38_f32, -3e38]];
        let refused = init_scale(weight.view(), &three_bits(2), InitScaleRule::Asymmetric);
        assert_eq!(refused.unwrap_err().to_string(), "init_scale: scale[0, 0] is inf");
    }
}
