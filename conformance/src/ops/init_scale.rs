//! `init_scale`.

use ndarray::{Array2, ArrayView1};
use plumbline_reference::init_scale::init_scale;
use plumbline_reference::spec::{InitScaleRule, QuantSpec, SCALE_FLOOR};
use serde_json::json;

use super::Operation;
use super::quantizer::{Ends, Steps};
use super::row::{GROUPS, INIT, WEIGHT, bounded, given, runs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, TRANSCENDENTAL, named};
use crate::params::{self, Params, Quantizer};
use crate::precision::{Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[Operation {
    name: "init_scale",
    params: &["bits", "group_size", "rule", "p", "steps"],
    inputs: &[given("weight", WEIGHT)],
    outputs: &[bounded("scale", GROUPS, INIT), bounded("offset", GROUPS, INIT)],
    weights: None,
    sizes,
    run: runs!(run),
    grid: None,
    bounds,
    sample,
}];

pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    params::init_rule(&request.params)?;
    super::fake_quantize::sizes(request)
}

pub(super) fn run<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let weight: Array2<T> = request.array("weight")?;
    let spec = Quantizer::read(&request.params)?.spec(weight.ncols())?;
    let rule = params::init_rule(&request.params)?;
    let grid = init_scale(weight.view(), &spec, rule).map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("scale", Tensor::floats(&grid.scale)),
        ("offset", Tensor::floats(&grid.offset)),
    ]))
}

pub(super) fn bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let request = evidence.request;
    let weight: Array2<f64> = request.array("weight")?;
    let spec = Quantizer::read(&request.params)?.spec(weight.ncols())?;
    let rule = params::init_rule(&request.params)?;
    let (mut scale, mut offset) = (Allowance::default(), Allowance::default());
    for row in weight.rows() {
        for group in row.to_vec().chunks(spec.group_size()) {
            let group = ArrayView1::from(group);
            let (scale_bound, offset_bound) = group_bounds(group, &spec, rule, evidence.unit);
            let index = scale.bound.len();
            if let InitScaleRule::Lp { p, steps } = rule {
                let near = nearly_least(group, &spec, (p, steps), evidence.unit);
                scale.open += usize::from(near.len() > 1);
                scale.alternatives.extend(near.into_iter().map(|scale| (index, scale)));
            }
            scale.bound.push(scale_bound);
            offset.bound.push(offset_bound);
        }
    }
    Ok(named([("scale", scale), ("offset", offset)]))
}

/// Allowances of one group's scale and offset; `gamma(1)` per rounding, over absolute terms.
fn group_bounds(
    group: ArrayView1<f64>,
    spec: &QuantSpec,
    rule: InitScaleRule,
    unit: Unit,
) -> (f64, f64) {
    let (qmin, qmax) = (f64::from(spec.qmin()), f64::from(spec.qmax()));
    let count = group.len() as f64;
    let min = group.iter().copied().fold(f64::INFINITY, f64::min);
    let max = group.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let absmax = min.abs().max(max.abs());
    if absmax == 0.0 {
        // The rule gives 0, and the scale is 1 instead.
        return (0.0, 0.0);
    }
    let mean_magnitude = group.iter().map(|w| w.abs()).sum::<f64>() / count;
    let underflow = unit.tiny * (count + 8.0);
    match rule {
        // One division; the larger of two quotients inherits the larger error.
        InitScaleRule::L4q => {
            (unit.gamma(1.0) * (min / qmin).abs().max((max / qmax).abs()) + underflow, 0.0)
        }
        InitScaleRule::MinMax => (unit.gamma(1.0) * absmax / qmax + underflow, 0.0),
        InitScaleRule::LitGpt => {
            let divisor = if spec.bits().count() == 4 { qmax } else { -qmin };
            (unit.gamma(1.0) * absmax / divisor + underflow, 0.0)
        }
        InitScaleRule::Symmetric => (unit.gamma(1.0) * absmax / -qmin + underflow, 0.0),
        // Sum of positive terms, mean, root of qmax, division.
        InitScaleRule::Lsq => {
            let scale = 2.0 * mean_magnitude / qmax.sqrt();
            (unit.gamma(count + 2.0) * scale + underflow, 0.0)
        }
        InitScaleRule::LsqPlus => {
            let mean = group.sum() / count;
            let squares: f64 = group.iter().map(|w| (w - mean) * (w - mean)).sum();
            let deviation = if count > 1.0 { (squares / (count - 1.0)).sqrt() } else { 0.0 };
            let mean_error = unit.gamma(count) * mean_magnitude;
            // A shifted mean shifts every difference: the norm grows by at most the norm of the
            // shift. Differences, squares, their sum, division and root round on top.
            let shift = if count > 1.0 { (count / (count - 1.0)).sqrt() } else { 0.0 };
            let deviation_error = shift * mean_error + unit.gamma(count / 2.0 + 4.0) * deviation;
            let reach = mean.abs() + 3.0 * deviation;
            let error = mean_error + 3.0 * deviation_error + unit.gamma(3.0) * reach;
            (error / -qmin + underflow, 0.0)
        }
        InitScaleRule::Asymmetric if min == max => (0.0, 0.0),
        InitScaleRule::Asymmetric => {
            let scale = (max - min) / (qmax - qmin);
            let offset = unit.gamma(4.0) * (max.abs() + scale * qmax) + underflow * qmax;
            (unit.gamma(2.0) * scale + underflow, offset)
        }
        // k * absmax / steps / qmax: three roundings, of whichever k.
        InitScaleRule::Lp { .. } => (unit.gamma(3.0) * absmax / qmax + underflow, 0.0),
    }
}

/// Every range whose error, within the subject's own error in computing it, may be the least;
/// none where the choice is exact.
///
/// The error `|w - code * scale|^p` is continuous in the scale, so a code that flips at a tie
/// does not matter: both neighbours leave the same remainder there.
fn nearly_least(
    group: ArrayView1<f64>,
    spec: &QuantSpec,
    (p, steps): (f64, usize),
    unit: Unit,
) -> Vec<f64> {
    let absmax = group.iter().fold(0.0_f64, |largest, w| largest.max(w.abs()));
    if absmax == 0.0 {
        return Vec::new();
    }
    let search = Search { group, p, ends: Ends::signed(spec), scale_roundings: 3.0, unit };
    let ranges: Vec<_> = (1..=steps)
        .map(|k| search.range(part_of(k, absmax, steps).over(Steps::start(f64::from(spec.qmax())))))
        .collect();
    if ranges.iter().all(|range| range.error.exact_in_f32) {
        // Nothing was rounded: the first of the least errors is the only answer.
        return Vec::new();
    }
    let reachable =
        ranges.iter().map(|range| range.error.value + range.slack).fold(f64::INFINITY, f64::min);
    let close = ranges.iter().filter(|range| range.error.value - range.slack <= reachable);
    close.map(|range| range.scale).collect()
}

/// `(k * end) / steps`
pub(super) fn part_of(k: usize, end: f64, steps: usize) -> Steps {
    Steps::start(k as f64).times(Steps::start(end)).over(Steps::start(steps as f64))
}

/// What the error of a range depends on beside its scale.
pub(super) struct Search<'a> {
    pub group: ArrayView1<'a, f64>,
    pub p: f64,
    /// Smallest and largest multiple of the scale on the grid.
    pub ends: Ends,
    /// Roundings that the scale carries.
    pub scale_roundings: f64,
    pub unit: Unit,
}

/// One range of the search and the error that it leaves.
pub(super) struct Range {
    pub scale: f64,
    pub error: Steps,
    /// What the subject's error sum may differ by.
    pub slack: f64,
}

impl Search<'_> {
    pub(super) fn range(&self, scale: Steps) -> Range {
        let Self { p, unit, .. } = *self;
        let divisor = if scale.value < SCALE_FLOOR { Steps::start(SCALE_FLOOR) } else { scale };
        let (mut error, mut slack) = (Steps::start(0.0), 0.0);
        for w in self.group {
            let argument = Steps::start(*w).over(divisor);
            let code = argument.value.clamp(self.ends.low, self.ends.high).round_ties_even();
            let rounded = Steps::start(code).times(divisor);
            let rest = Steps::start(*w).plus(Steps { value: -rounded.value, ..rounded });
            let rest = Steps { value: rest.value.abs(), ..rest };
            // Scale, product and difference round; then the power and its exponent.
            let rest_error = unit.gamma(self.scale_roundings + 2.0) * rounded.value.abs()
                + unit.gamma(1.0) * rest.value
                + unit.tiny;
            let power = rest.power(p);
            let exponent = if rest.value > 0.0 { p * rest.value.ln().abs() } else { 0.0 };
            error = error.plus(power);
            slack += (rest.value + rest_error).powf(p) - power.value
                + unit.gamma(TRANSCENDENTAL + exponent) * power.value;
        }
        slack += unit.gamma(self.group.len() as f64) * error.value + unit.tiny;
        Range { scale: scale.value, error, slack }
    }
}

pub(super) fn sample(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let quantizer = sampler.quantizer();
    let mut params = quantizer.params();
    let rules = ["l4q", "lsq", "lsq_plus", "symmetric", "asymmetric", "min_max", "lit_gpt", "lp"];
    let rule = sampler.pick(&rules);
    params.0.insert("rule".to_owned(), json!(rule));
    if rule == "lp" {
        params.0.insert("p".to_owned(), json!(sampler.pick(&[1.0, 2.0, 2.4, 3.5])));
        params.0.insert("steps".to_owned(), json!(sampler.pick(&[1, 7, 20])));
    }
    let weight = sampler.normal(&quantizer.weight_shape(), 0.05);
    Ok((params, [("weight".to_owned(), weight)].into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::Precision;
    use ndarray::array;

    #[test]
    fn the_power_rule_accepts_only_ranges_that_may_be_the_best() {
        let spec = bits(3, 4);
        let group = array![0.31, -0.12, 0.05, 0.9];
        let unit = Unit::of(Precision::F32);
        let near = nearly_least(group.view(), &spec, (2.0, 10), unit);
        assert_eq!(near.len(), 1, "{near:?}");
        // Equal errors, nothing rounded: the first range, and no other.
        let exact = nearly_least(array![1.0, 0.5].view(), &bits(2, 2), (2.0, 2), unit);
        assert!(exact.is_empty(), "{exact:?}");
        // Nearly equal errors of numbers that are rounded: either.
        let third = f64::from(1.0_f32 / 3.0);
        let tied = nearly_least(array![2.0 * third, third].view(), &bits(2, 2), (2.0, 2), unit);
        assert_eq!(tied.len(), 2);
        let zero = nearly_least(array![0.0, 0.0].view(), &bits(2, 2), (2.0, 2), unit);
        assert!(zero.is_empty(), "{zero:?}");
    }

    fn bits(bits: u32, in_features: usize) -> QuantSpec {
        let params = Params::from_json(&format!(r#"{{"bits": {bits}}}"#)).unwrap();
        Quantizer::read(&params).and_then(|quantizer| quantizer.spec(in_features)).unwrap()
    }
}
