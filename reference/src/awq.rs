//! AWQ: a scale for every input channel and a range for every group, both searched.

use ndarray::{Array, Array1, Array2, ArrayView, ArrayView1, ArrayView2, Axis, Dimension};
use ndarray::{RemoveAxis, Slice, arr0};

use crate::linear::linear;
use crate::spec::QuantSpec;
use crate::{Error, Real, check};

/// Below this a power of a channel's magnitude is raised to it.
const SMALLEST_POWER: f64 = 1e-4;
/// Below this the range of a group is raised to it.
const SMALLEST_RANGE: f64 = 1e-5;

/// What one ratio of the search over channel scales gives, or the best of them.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelScale<T> {
    /// `[in]`
    pub channel_scale: Array1<T>,
    /// The exponent of the magnitudes.
    pub ratio: T,
    /// `[out, in]`, the quantized weight in its own units.
    pub output: Array2<T>,
    /// The mean squared change of the layer's output.
    pub error: T,
}

/// What one range of the search over ranges gives for a group, or the best of them.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRange<T> {
    /// The magnitude at which weights are clipped.
    pub max_value: T,
    /// `[group_size]`, the clipped and quantized weights.
    pub output: Array1<T>,
    /// The mean squared change of the group's part of the output.
    pub error: T,
}

/// The ranges of all groups.
#[derive(Debug, Clone, PartialEq)]
pub struct Clipped<T> {
    /// `[out, groups]`
    pub max_value: Array2<T>,
    /// `[out, in]`
    pub output: Array2<T>,
}

/// The weight quantized at one ratio. Eq. (Q21a).
///
/// ```text
/// magnitude[i] = (sum_t |x[t,i]|) / tokens
/// ratio = k / steps, power[i] = max(magnitude[i]^ratio, 1e-4)
/// channel_scale[i] = power[i] / sqrt((max_i power[i]) * (min_i power[i]))
/// output[o,i] = range_quantize(weight[o,i] * channel_scale[i]) / channel_scale[i]
/// error[k] = (sum_(t,o) (linear(x, output)[t,o] - linear(x, weight)[t,o])^2) / (tokens * out)
/// ```
///
/// # Shapes
/// `weight [out, in]`, `x [tokens, in]` -> `channel_scale [in]`, `output [out, in]`
///
/// # Errors
/// `Shape`, `NonFinite`, `Empty` without tokens, `Spec` where `k` is not below `steps`.
pub fn channel_scale<T: Real>(
    weight: ArrayView2<T>,
    x: ArrayView2<T>,
    spec: &QuantSpec,
    k: usize,
    steps: usize,
) -> Result<ChannelScale<T>, Error> {
    const OPERATION: &str = "awq.scale";
    check_layer(OPERATION, &weight, &x, spec)?;
    if k >= steps {
        return Err(check::out_of_range("k", k, "0 to steps exclusive"));
    }
    let tokens = T::of(x.nrows() as f64);
    let ratio = T::of(k as f64 / steps as f64);
    let power: Array1<T> = x
        .columns()
        .into_iter()
        .map(|channel| {
            let sum = channel.iter().fold(T::zero(), |sum, x| sum + x.abs());
            (sum / tokens).powf(ratio).max(T::of(SMALLEST_POWER))
        })
        .collect();
    let (smallest, largest) = ends(power.view());
    let middle = (largest * smallest).sqrt();
    let channel_scale = check::result(OPERATION, "channel_scale", power.mapv(|p| p / middle))?;
    let mut output = range_quantized((&weight * &channel_scale).view(), spec);
    output.zip_mut_with(&channel_scale, |output, &scale| *output /= scale);
    let output = check::result(OPERATION, "output", output)?;
    let change = linear(x, output.view())? - linear(x, weight)?;
    let squares = change.iter().fold(T::zero(), |sum, &change| sum + change * change);
    let error = check::result(OPERATION, "error", arr0(squares / T::of(change.len() as f64)))?;
    Ok(ChannelScale { channel_scale, ratio, output, error: error.into_scalar() })
}

/// The channel scales with which quantization changes the layer's output least. Eq. (Q21b).
///
/// ```text
/// k = the first of 0..steps with least error[k]
/// ```
///
/// # Shapes
/// `weight [out, in]`, `x [tokens, in]` -> `channel_scale [in]`, `output [out, in]`
///
/// # Errors
/// `Shape`, `NonFinite`, `Empty` without tokens, `Spec` for 0 steps.
pub fn search_channel_scale<T: Real>(
    weight: ArrayView2<T>,
    x: ArrayView2<T>,
    spec: &QuantSpec,
    steps: usize,
) -> Result<ChannelScale<T>, Error> {
    if steps == 0 {
        return Err(check::out_of_range("steps", steps, "at least 1"));
    }
    let mut best = channel_scale(weight, x, spec, 0, steps)?;
    for k in 1..steps {
        let candidate = channel_scale(weight, x, spec, k, steps)?;
        if candidate.error < best.error {
            best = candidate;
        }
    }
    Ok(best)
}

/// Every group on an unsigned grid that spans its own range. Eq. (Q21c).
///
/// ```text
/// least[o,g] = min_(i in g) weight[o,i]
/// range[o,g] = max((max_(i in g) weight[o,i]) - least[o,g], 1e-5)
/// scale[o,g] = range[o,g] / (2^bits - 1)
/// zero_point[o,g] = clamp(-round_half_even(least[o,g] / scale[o,g]), 0, 2^bits - 1)
/// codes[o,i] = clamp(round_half_even(weight[o,i] / scale[o,g]) + zero_point[o,g], 0, 2^bits - 1)
/// range_quantize(weight)[o,i] = (codes[o,i] - zero_point[o,g]) * scale[o,g]
/// ```
fn range_quantized<T: Real>(weight: ArrayView2<T>, spec: &QuantSpec) -> Array2<T> {
    let last_code = T::of(f64::from(spec.bits().unsigned_max()));
    let clamped = |code: T| code.max(T::zero()).min(last_code);
    let mut output = weight.to_owned();
    for mut row in output.rows_mut() {
        for mut group in row.exact_chunks_mut(spec.group_size()) {
            let (min, max) = ends(group.view());
            let scale = (max - min).max(T::of(SMALLEST_RANGE)) / last_code;
            let zero_point = clamped(-(min / scale).round_half_even());
            group.mapv_inplace(|weight| {
                let code = clamped((weight / scale).round_half_even() + zero_point);
                (code - zero_point) * scale
            });
        }
    }
    output
}

/// Divides what the layer reads by its channel scales, in the operation before: the weight of a
/// norm, or the rows of a linear layer. Eq. (Q21d).
///
/// ```text
/// folded[i,..] = previous[i,..] / channel_scale[i]
/// ```
///
/// # Shapes
/// `previous [in]` or `[in, ..]`, `channel_scale [in]` -> like `previous`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn fold<T: Real, D: Dimension + RemoveAxis>(
    previous: ArrayView<T, D>,
    channel_scale: ArrayView1<T>,
) -> Result<Array<T, D>, Error> {
    const OPERATION: &str = "awq.fold";
    check::finite(OPERATION, "previous", &previous)?;
    check::input(OPERATION, "channel_scale", &channel_scale, &previous.shape()[..1])?;
    let mut folded = previous.to_owned();
    for (mut row, &scale) in folded.outer_iter_mut().zip(&channel_scale) {
        row.mapv_inplace(|element| element / scale);
    }
    check::result(OPERATION, "folded", folded)
}

/// One group, clipped at one range and quantized. Eq. (Q22a).
///
/// ```text
/// max_value[o,g] = (max_(i in g) |weight[o,i]|) * (1 - k / steps)
/// clipped[o,i] = clamp(weight[o,i], -max_value[o,g], max_value[o,g])
/// output[o,i] = range_quantize(clipped[o,i])
/// change[t] = (sum_(i in g) x[t,i] * output[o,i]) - (sum_(i in g) x[t,i] * weight[o,i])
/// error[k] = (sum_t change[t]^2) / tokens
/// ```
///
/// # Shapes
/// `weight [group_size]`, `x [tokens, group_size]` -> `output [group_size]`
///
/// # Errors
/// `Shape`, `NonFinite`, `Empty` without tokens, `Spec` where `k` is not below half of `steps`.
pub fn group_range<T: Real>(
    weight: ArrayView1<T>,
    x: ArrayView2<T>,
    spec: &QuantSpec,
    k: usize,
    steps: usize,
) -> Result<GroupRange<T>, Error> {
    const OPERATION: &str = "awq.clip";
    check::input(OPERATION, "weight", &weight, &[spec.group_size()])?;
    check::input(OPERATION, "x", &x, &[x.nrows(), spec.group_size()])?;
    check_tokens(OPERATION, &x)?;
    if k >= steps / 2 {
        return Err(check::out_of_range("k", k, "0 to steps / 2 exclusive"));
    }
    let absmax = weight.iter().fold(T::zero(), |largest, w| largest.max(w.abs()));
    let max_value = absmax * T::of(1.0 - k as f64 / steps as f64);
    let clipped = weight.mapv(|w| w.max(-max_value).min(max_value));
    let output = range_quantized(clipped.insert_axis(Axis(0)).view(), spec);
    let output = check::result(OPERATION, "output", output.row(0).to_owned())?;
    let squares = x.rows().into_iter().fold(T::zero(), |sum, x| {
        let change = check::dot(x, output.view()) - check::dot(x, weight);
        sum + change * change
    });
    let error = check::result(OPERATION, "error", arr0(squares / T::of(x.nrows() as f64)))?;
    Ok(GroupRange { max_value, output, error: error.into_scalar() })
}

/// The range of every group with which its part of the output changes least. Eq. (Q22b).
///
/// ```text
/// k = the first of 0..steps / 2 with least error[k]
/// ```
///
/// # Shapes
/// `weight [out, in]`, `x [tokens, in]` -> `max_value [out, groups]`, `output [out, in]`
///
/// # Errors
/// `Shape`, `NonFinite`, `Empty` without tokens, `Spec` for fewer than 2 steps.
pub fn search_clip<T: Real>(
    weight: ArrayView2<T>,
    x: ArrayView2<T>,
    spec: &QuantSpec,
    steps: usize,
) -> Result<Clipped<T>, Error> {
    check_layer("awq.clip", &weight, &x, spec)?;
    if steps < 2 {
        return Err(check::out_of_range("steps", steps, "at least 2"));
    }
    let mut max_value = Array2::zeros((weight.nrows(), spec.groups()));
    let mut output = Array2::zeros(weight.dim());
    for ((o, g), max_value) in max_value.indexed_iter_mut() {
        let inputs = Slice::from(g * spec.group_size()..(g + 1) * spec.group_size());
        let (row, x) = (weight.row(o), x.slice_axis(Axis(1), inputs));
        let group = row.slice_axis(Axis(0), inputs);
        let mut best = group_range(group, x, spec, 0, steps)?;
        for k in 1..steps / 2 {
            let candidate = group_range(group, x, spec, k, steps)?;
            if candidate.error < best.error {
                best = candidate;
            }
        }
        *max_value = best.max_value;
        output.row_mut(o).slice_axis_mut(Axis(0), inputs).assign(&best.output);
    }
    Ok(Clipped { max_value, output })
}

/// Smallest and largest element of what is not empty.
fn ends<T: Real>(values: ArrayView1<T>) -> (T, T) {
    let first = values[0];
    let smallest = values.iter().copied().fold(first, T::min);
    (smallest, values.iter().copied().fold(first, T::max))
}

fn check_layer<T: Real>(
    operation: &'static str,
    weight: &ArrayView2<T>,
    x: &ArrayView2<T>,
    spec: &QuantSpec,
) -> Result<(), Error> {
    check::input(operation, "weight", weight, &[weight.nrows(), spec.in_features()])?;
    check::input(operation, "x", x, &[x.nrows(), spec.in_features()])?;
    if weight.nrows() == 0 {
        return Err(Error::Empty { operation, what: "no output of the layer to compare" });
    }
    check_tokens(operation, x)
}

fn check_tokens<T>(operation: &'static str, x: &ArrayView2<T>) -> Result<(), Error> {
    if x.nrows() == 0 {
        return Err(Error::Empty { operation, what: "no token to measure the error on" });
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
    fn example_of_q21() {
        let (weight, x) = (array![[-4.0, 0.5, 2.0]], array![[1.0, 16.0, 1.0]]);
        let spec = row_of(3, 2);
        let plain = channel_scale(weight.view(), x.view(), &spec, 0, 2).unwrap();
        assert_eq!(plain.output, array![[-4.0, 0.0, 2.0]]);
        assert_eq!(plain.error, 64.0);
        let best = search_channel_scale(weight.view(), x.view(), &spec, 2).unwrap();
        assert_eq!((best.ratio, best.error), (0.5, 0.0));
        assert_eq!(best.channel_scale, array![0.5, 2.0, 0.5]);
        assert_eq!(best.output, weight);
        let folded = fold(array![1.0, 1.0, 3.0].view(), best.channel_scale.view()).unwrap();
        assert_eq!(folded, array![2.0, 0.5, 6.0]);
    }

    #[test]
    fn example_of_q22() {
        let (weight, x) = (array![[0.0, 1.0, 4.0]], array![[1.0, 4.0, 1.0]]);
        let whole = group_range(weight.row(0), x.view(), &row_of(3, 2), 0, 4).unwrap();
        approx::assert_relative_eq!(whole.error, 16.0 / 9.0, epsilon = 1e-14);
        let clipped = search_clip(weight.view(), x.view(), &row_of(3, 2), 4).unwrap();
        assert_eq!(clipped.max_value, array![[3.0]]);
        assert_eq!(clipped.output, array![[0.0, 1.0, 3.0]]);
    }

    #[test]
    fn ties_go_to_the_even_code_and_the_ends_saturate() {
        // Scale 1, zero_point 2: -0.5 and 0.5 are ties, and both go to 0.
        let output = range_quantized(array![[-2.0, -0.5, 0.5, 1.0]].view(), &row_of(4, 2));
        assert_eq!(output, array![[-2.0, 0.0, 0.0, 1.0]]);
        // Scale 1 again, but min at a tie: zero_point is 2, -1.5 rounds to -2, and 1.5 to 2, whose
        // code 4 saturates.
        let output = range_quantized(array![[-1.5, 1.5]].view(), &row_of(2, 2));
        assert_eq!(output, array![[-2.0, 1.0]]);
    }

    #[test]
    fn a_group_of_one_sign_saturates_because_its_range_leaves_out_zero() {
        // Range 1 from 5 to 6: scale 1/3, min / scale = 15, zero_point stays at 0, codes at 3.
        let output = range_quantized(array![[5.0, 6.0]].view(), &row_of(2, 2));
        assert_eq!(output, array![[1.0, 1.0]]);
        // From -6 to -5: zero_point 3, codes 0.
        let output = range_quantized(array![[-5.0, -6.0]].view(), &row_of(2, 2));
        assert_eq!(output, array![[-1.0, -1.0]]);
    }

    #[test]
    fn a_group_without_extent_has_the_smallest_range() {
        let zero = range_quantized(array![[0.0, 0.0]].view(), &row_of(2, 4));
        assert_eq!(zero, array![[0.0, 0.0]]);
        // 15 steps of 1e-5 / 15 are all that a constant group reaches.
        let constant = range_quantized(array![[0.5_f64, 0.5]].view(), &row_of(2, 4));
        approx::assert_relative_eq!(constant[[0, 0]], 1e-5, epsilon = 1e-20);
    }

    #[test]
    fn the_first_of_equal_errors_is_kept() {
        // All magnitudes are 1: every ratio gives the same scales.
        let (weight, x) = (array![[-1.0, 0.4, 2.0]], array![[1.0, -1.0, 1.0]]);
        let best = search_channel_scale(weight.view(), x.view(), &row_of(3, 2), 5).unwrap();
        assert_eq!(best.ratio, 0.0);
        // Without activations no range is better than another.
        let silent = array![[0.0, 0.0, 0.0]];
        let clipped = search_clip(weight.view(), silent.view(), &row_of(3, 2), 20).unwrap();
        assert_eq!(clipped.max_value, array![[2.0]]);
    }

    #[test]
    fn a_silent_channel_has_the_smallest_power() {
        let (weight, x) = (array![[1.0, -2.0]], array![[0.0, 1.0]]);
        let half = channel_scale(weight.view(), x.view(), &row_of(2, 4), 1, 2).unwrap();
        // 1e-4 and 1 over the root of their product.
        approx::assert_relative_eq!(half.channel_scale, array![1e-2, 1e2], epsilon = 1e-15);
        let plain = channel_scale(weight.view(), x.view(), &row_of(2, 4), 0, 2).unwrap();
        assert_eq!(plain.channel_scale, array![1.0, 1.0]);
    }

    #[test]
    fn searches_without_candidates_or_tokens_are_refused() {
        let (weight, x) = (array![[1.0, -2.0]], array![[0.0, 1.0]]);
        let spec = row_of(2, 4);
        let refused = search_channel_scale(weight.view(), x.view(), &spec, 0).unwrap_err();
        assert_eq!(refused.to_string(), "steps is 0, expected at least 1");
        let refused = search_clip(weight.view(), x.view(), &spec, 1).unwrap_err();
        assert_eq!(refused.to_string(), "steps is 1, expected at least 2");
        assert!(channel_scale(weight.view(), x.view(), &spec, 2, 2).is_err());
        assert!(group_range(weight.row(0), x.view(), &spec, 1, 2).is_err());
        let none = Array2::zeros((0, 2));
        let refused = search_channel_scale(weight.view(), none.view(), &spec, 2).unwrap_err();
        assert_eq!(refused.to_string(), "awq.scale: no token to measure the error on");
        assert!(search_clip(weight.view(), none.view(), &spec, 2).is_err());
        assert!(search_clip(none.view(), x.view(), &spec, 2).is_err());
    }

    #[test]
    fn what_overflows_is_refused() {
        let (weight, x) = (array![[3e38_f32, -3e38]], array![[1.0, 1.0]]);
        let refused = search_channel_scale(weight.view(), x.view(), &row_of(2, 4), 2).unwrap_err();
        assert_eq!(refused.to_string(), "awq.scale: output[0, 0] is NaN");
        let x = array![[1e20_f32, 1e20]];
        let weight = array![[1e10_f32, 3.3e9]];
        let refused = search_clip(weight.view(), x.view(), &row_of(2, 4), 2).unwrap_err();
        assert_eq!(refused.to_string(), "awq.clip: error[] is inf");
        let refused = fold(array![1.0].view(), array![0.0].view()).unwrap_err();
        assert_eq!(refused.to_string(), "awq.fold: folded[0] is inf");
    }
}
