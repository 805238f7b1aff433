//! `awq.scale` and `awq.clip`.
//!
//! Both choose the candidate of least error. The error of each is computed in binary64 with a bound
//! on what a subject's may differ by; every candidate that may so be the least is accepted, and in
//! it every code that may be rounded either way. Where nothing is rounded, neither is open.

use ndarray::{Array2, ArrayView2, arr0};
use plumbline_reference::awq::{search_channel_scale, search_clip};
use plumbline_reference::spec::QuantSpec;
use serde_json::json;

use super::Operation;
use super::near::Near;
use super::quantizer::Steps;
use super::row::{GROUPS, WEIGHT, X, bounded, given, runs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, TRANSCENDENTAL, named};
use crate::params::{Params, Quantizer};
use crate::precision::{Precision, Scalar, Unit};
use crate::sampler::{QuantizerShape, Sampler};
use crate::tensor::{Tensor, Tensors};

/// The public code's.
const DEFAULT_STEPS: usize = 20;
/// Least power of a magnitude, least range of a group.
const LEAST: (f64, f64) = (1e-4, 1e-5);

const SEARCHED: &str = "gamma(roundings) * |terms|, of every candidate that may have least error";

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "awq.scale",
        params: &["bits", "group_size", "steps"],
        inputs: &[given("weight", WEIGHT), given("x", X)],
        outputs: &[
            bounded("channel_scale", &["in"], SEARCHED),
            bounded("ratio", &[], SEARCHED),
            bounded("output", WEIGHT, SEARCHED),
        ],
        weights: None,
        sizes,
        run: runs!(scale),
        grid: None,
        bounds: scale_bounds,
        sample: sample_scale,
    },
    Operation {
        name: "awq.clip",
        params: &["bits", "group_size", "steps"],
        inputs: &[given("weight", WEIGHT), given("x", X)],
        outputs: &[bounded("max_value", GROUPS, SEARCHED), bounded("output", WEIGHT, SEARCHED)],
        weights: None,
        sizes,
        run: runs!(clip),
        grid: None,
        bounds: clip_bounds,
        sample: sample_clip,
    },
];

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    steps(&request.params)?;
    super::fake_quantize::sizes(request)
}

fn steps(params: &Params) -> Result<usize, String> {
    Ok(params.optional("steps")?.unwrap_or(DEFAULT_STEPS))
}

/// Weight, activations, grid and steps.
type Layer<T> = (Array2<T>, Array2<T>, QuantSpec, usize);

fn layer<T: Scalar>(request: &Request) -> Result<Layer<T>, String> {
    let weight: Array2<T> = request.array("weight")?;
    let spec = Quantizer::read(&request.params)?.spec(weight.ncols())?;
    Ok((weight, request.array("x")?, spec, steps(&request.params)?))
}

fn scale<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (weight, x, spec, steps) = layer::<T>(request)?;
    let found =
        search_channel_scale(weight.view(), x.view(), &spec, steps).map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("channel_scale", Tensor::floats(&found.channel_scale)),
        ("ratio", Tensor::floats(&arr0(found.ratio))),
        ("output", Tensor::floats(&found.output)),
    ]))
}

fn clip<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (weight, x, spec, steps) = layer::<T>(request)?;
    let found = search_clip(weight.view(), x.view(), &spec, steps).map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("max_value", Tensor::floats(&found.max_value)),
        ("output", Tensor::floats(&found.output)),
    ]))
}

/// A quantized weight: with the code that binary64 finds, then with the other ones that the subject
/// may find.
struct Rounded(Vec<Near>);

impl Rounded {
    fn near(&self) -> Near {
        self.0[0]
    }

    /// How far the subject's may be, whichever code it finds.
    fn reach(&self) -> f64 {
        let distances =
            self.0.iter().map(|near| (near.value() - self.near().value()).abs() + near.error);
        distances.fold(0.0, f64::max)
    }

    fn over(self, divisor: Near) -> Self {
        Self(self.0.into_iter().map(|near| near.over(divisor)).collect())
    }
}

/// (Q21c) of one group.
fn range_quantized(group: &[Near], spec: &QuantSpec, unit: Unit) -> Vec<Rounded> {
    let last_code = f64::from(spec.bits().unsigned_max());
    let min = group.iter().copied().fold(group[0], Near::min);
    let max = group.iter().copied().fold(group[0], Near::max);
    let range = max.plus(min.negated()).max(Near::of(LEAST.1, unit));
    let scale = range.over(Near::of(last_code, unit));
    let on_grid = |code: f64| code.clamp(0.0, last_code);
    let integers = |number: Near| number.over(scale).integers(2.0 * last_code + 1.0);
    let zero_points: Vec<f64> = integers(min).into_iter().map(|n| on_grid(-n)).collect();
    let rounded = group.iter().map(|weight| {
        let mut levels: Vec<f64> = Vec::new();
        for rounded in integers(*weight) {
            for zero_point in &zero_points {
                let level = on_grid(rounded + zero_point) - zero_point;
                if !levels.contains(&level) {
                    levels.push(level);
                }
            }
        }
        Rounded(levels.into_iter().map(|level| Near::of(level, unit).times(scale)).collect())
    });
    rounded.collect()
}

/// A candidate of a search over `values` (channel scales or one range): its error and the bound on
/// the subject's difference from it.
struct Candidate {
    values: Vec<Near>,
    output: Vec<Rounded>,
    error: Steps,
    slack: f64,
}

impl Candidate {
    /// Squared differences of sums over the inputs, `output` and `weight` being rows.
    fn new(
        values: Vec<Near>,
        output: Vec<Rounded>,
        weight: ArrayView2<f64>,
        x: ArrayView2<f64>,
        unit: Unit,
    ) -> Self {
        let inputs = weight.ncols();
        let (mut error, mut slack, mut exact) = (Steps::start(0.0), 0.0, true);
        for token in x.rows() {
            for (row, rounded) in weight.rows().into_iter().zip(output.chunks(inputs)) {
                let (mut given, mut wanted) = (Steps::start(0.0), Steps::start(0.0));
                let (mut magnitude, mut inherited) = (0.0, 0.0);
                let terms = token.iter().zip(row).zip(rounded);
                for ((x, weight), rounded) in terms.filter(|((x, _), _)| **x != 0.0) {
                    let x = Steps::start(*x);
                    given = given.plus(x.times(rounded.near().steps));
                    wanted = wanted.plus(x.times(Steps::start(*weight)));
                    magnitude +=
                        (x.value * weight).abs() + (x.value * rounded.near().value()).abs();
                    inherited += x.value.abs() * rounded.reach();
                }
                let change = given.plus(Steps { value: -wanted.value, ..wanted });
                let off = inherited + unit.gamma(inputs as f64 + 1.0) * (magnitude + inherited);
                error = error.plus(change.times(change));
                slack += off * (2.0 * change.value.abs() + off);
                exact &= inherited == 0.0;
            }
        }
        let count = (x.nrows() * weight.nrows()) as f64;
        let error = error.over(Steps::start(count));
        let slack = slack / count + unit.gamma(count + 2.0) * (error.value + slack / count);
        let exact = exact && error.exact_in_f32;
        Self { values, output, error, slack: if exact { 0.0 } else { slack + unit.tiny } }
    }
}

/// The candidates that may have the least error, the first of the least in binary64 first.
fn nearly_least(candidates: Vec<Candidate>) -> Vec<Candidate> {
    let reach = candidates.iter().map(|c| c.error.value + c.slack).fold(f64::INFINITY, f64::min);
    let least = candidates.iter().map(|c| c.error.value).fold(f64::INFINITY, f64::min);
    let mut near: Vec<Candidate> =
        candidates.into_iter().filter(|c| c.error.value - c.slack <= reach).collect();
    if near.iter().all(|candidate| candidate.slack == 0.0) {
        // Equal and exact: the first is the only answer.
        near.truncate(1);
        return near;
    }
    let first = near.iter().position(|c| c.error.value == least).unwrap_or(0);
    near.swap(0, first);
    near
}

/// The allowance of one element for which the candidates give these numbers.
fn accept(allowance: &mut Allowance, numbers: &[Near]) {
    let index = allowance.bound.len();
    if numbers.len() > 1 {
        allowance.open += 1;
        allowance.alternatives.extend(numbers.iter().map(|near| (index, near.value())));
    }
    allowance.bound.push(numbers.iter().map(|near| near.error).fold(0.0, f64::max));
}

/// The values at one place of every candidate.
fn accept_values(allowance: &mut Allowance, near: &[Candidate], at: usize) {
    accept(allowance, &near.iter().map(|candidate| candidate.values[at]).collect::<Vec<_>>());
}

/// The quantized weights of every candidate.
fn accept_outputs(allowance: &mut Allowance, near: &[Candidate]) {
    for at in 0..near[0].output.len() {
        let numbers = near.iter().flat_map(|candidate| &candidate.output[at].0);
        accept(allowance, &numbers.copied().collect::<Vec<_>>());
    }
}

fn scale_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let (weight, x, spec, steps) = layer::<f64>(evidence.request)?;
    let unit = evidence.unit;
    let candidates = (0..steps).map(|k| {
        let ratio = Near::of(k as f64 / steps as f64, unit);
        let scales = channel_scales(x.view(), ratio, unit);
        let mut output = Vec::with_capacity(weight.len());
        for row in weight.rows() {
            let scaled: Vec<Near> =
                row.iter().zip(&scales).map(|(w, s)| Near::of(*w, unit).times(*s)).collect();
            let groups = scaled.chunks(spec.group_size());
            let rounded = groups.flat_map(|group| range_quantized(group, &spec, unit));
            output.extend(rounded.zip(&scales).map(|(rounded, scale)| rounded.over(*scale)));
        }
        let values = [scales, vec![ratio]].concat();
        Candidate::new(values, output, weight.view(), x.view(), unit)
    });
    let near = nearly_least(candidates.collect());
    let [mut scale, mut ratio, mut output] = [(); 3].map(|()| Allowance::default());
    for at in 0..x.ncols() {
        accept_values(&mut scale, &near, at);
    }
    accept_values(&mut ratio, &near, x.ncols());
    accept_outputs(&mut output, &near);
    Ok(named([("channel_scale", scale), ("ratio", ratio), ("output", output)]))
}

/// (Q21a): the sum over tokens may run in any order.
fn channel_scales(x: ArrayView2<f64>, ratio: Near, unit: Unit) -> Vec<Near> {
    let tokens = x.nrows() as f64;
    let powers: Vec<Near> = x
        .columns()
        .into_iter()
        .map(|channel| {
            let mean = channel.iter().map(|x| x.abs()).sum::<f64>() / tokens;
            let magnitude = if tokens == 1.0 {
                Near::of(mean, unit)
            } else {
                Near::within(mean, unit.gamma(tokens) * mean, unit)
            };
            magnitude.power(ratio, TRANSCENDENTAL).max(Near::of(LEAST.0, unit))
        })
        .collect();
    let largest = powers.iter().copied().fold(powers[0], Near::max);
    let smallest = powers.iter().copied().fold(powers[0], Near::min);
    let middle = largest.times(smallest).sqrt();
    powers.into_iter().map(|power| power.over(middle)).collect()
}

fn clip_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let (weight, x, spec, steps) = layer::<f64>(evidence.request)?;
    let unit = evidence.unit;
    let (mut max_value, mut output) = (Allowance::default(), Allowance::default());
    for row in weight.rows() {
        let row = row.insert_axis(ndarray::Axis(0));
        let groups = row.axis_chunks_iter(ndarray::Axis(1), spec.group_size());
        let channels = x.axis_chunks_iter(ndarray::Axis(1), spec.group_size());
        for (group, x) in groups.zip(channels) {
            let absmax = group.iter().fold(0.0_f64, |largest, w| largest.max(w.abs()));
            let candidates = (0..steps / 2).map(|k| {
                let ratio = Near::of(1.0 - k as f64 / steps as f64, unit);
                let end = Near::of(absmax, unit).times(ratio);
                let clamped = |w: &f64| Near::of(*w, unit).max(end.negated()).min(end);
                let clipped: Vec<Near> = group.iter().map(clamped).collect();
                let rounded = range_quantized(&clipped, &spec, unit);
                Candidate::new(vec![end], rounded, group, x, unit)
            });
            let near = nearly_least(candidates.collect());
            accept_values(&mut max_value, &near, 0);
            accept_outputs(&mut output, &near);
        }
    }
    Ok(named([("max_value", max_value), ("output", output)]))
}

/// A layer whose channels differ in magnitude, now and then with a silent one, and now and then on
/// a lattice where arguments are exact ties.
fn sample(sampler: &mut Sampler, fewest_steps: usize) -> (Params, Tensors) {
    let shape = sampler.quantizer();
    let mut params = shape.params();
    let lattice = sampler.chance(0.2);
    if lattice || sampler.chance(0.7) {
        let steps = if lattice { fewest_steps } else { sampler.pick(&[2, 4, 7, 20]) };
        params.0.insert("steps".to_owned(), json!(steps));
    }
    let (inputs, tokens) = (shape.in_features, sampler.size(1, 6));
    let powers: Vec<f64> = sampler.normal(&[inputs], 1.5).values().map(f64::exp2).collect();
    let silent: Vec<bool> = (0..inputs).map(|_| sampler.chance(0.05)).collect();
    let x = sampler.normal(&[tokens, inputs], 1.0);
    let x = x.values().enumerate().map(|(index, x)| {
        let channel = index % inputs;
        if silent[channel] { 0.0 } else { x * powers[channel] }
    });
    let x = Tensor::from_f64s(vec![tokens, inputs], x, Precision::F32);
    let weight = if lattice {
        on_lattice(sampler, &shape)
    } else {
        sampler.normal(&shape.weight_shape(), 0.05)
    };
    (params, super::tensors([("weight", weight), ("x", x)]))
}

/// Half steps of a grid with a step of a power of two, which every group of two spans.
fn on_lattice(sampler: &mut Sampler, shape: &QuantizerShape) -> Tensor {
    let last_code = shape.bits.unsigned_max() as usize;
    let step = sampler.pick(&[0.25, 0.0625]);
    let values: Vec<f64> = (0..shape.out_features * shape.in_features)
        .map(|index| match index % shape.group_size {
            0 => -(2.0 * step),
            1 => (last_code as f64 - 2.0) * step,
            _ => (sampler.size(0, 2 * last_code) as f64 / 2.0 - 2.0) * step,
        })
        .collect();
    Tensor::from_f64s(shape.weight_shape().to_vec(), values.into_iter(), Precision::F32)
}

fn sample_scale(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    Ok(sample(sampler, 1))
}

fn sample_clip(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    Ok(sample(sampler, 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::generated_case;
    use ndarray::array;
    use std::path::Path;

    fn spec(bits: u32, in_features: usize) -> QuantSpec {
        let params = Params::from_json(&format!(r#"{{"bits": {bits}}}"#)).unwrap();
        Quantizer::read(&params).and_then(|quantizer| quantizer.spec(in_features)).unwrap()
    }

    fn rounded(weights: &[f64], bits: u32) -> Vec<Rounded> {
        let unit = Unit::of(Precision::F32);
        let weights: Vec<Near> = weights.iter().map(|w| Near::of(*w, unit)).collect();
        range_quantized(&weights, &spec(bits, weights.len()), unit)
    }

    #[test]
    fn an_exact_tie_of_a_group_leaves_no_choice() {
        let values = [-2.0, 0.0, 0.0, 1.0];
        for (rounded, value) in rounded(&[-2.0, -0.5, 0.5, 1.0], 2).iter().zip(values) {
            assert_eq!((rounded.near().value(), rounded.near().error), (value, 0.0));
            assert_eq!(rounded.0.len(), 1);
        }
    }

    #[test]
    fn a_range_that_clips_both_ends_leaves_the_zero_point_open() {
        // min / scale is -7.5, and the scale 2 / 15 is rounded.
        let open: Vec<_> =
            rounded(&[-1.0, 1.0, 0.25], 4).iter().map(|rounded| rounded.0.len() > 1).collect();
        assert_eq!(open, [true, true, false]);
    }

    #[test]
    fn only_a_near_tie_of_errors_is_open() {
        let unit = Unit::of(Precision::F32);
        let (weight, x) = (array![[1.0]], array![[1.0]]);
        let candidate = |value: f64, exact: bool| {
            let near = if exact { Near::of(value, unit) } else { Near::within(value, 1e-7, unit) };
            let output = vec![Rounded(vec![near])];
            Candidate::new(vec![near], output, weight.view(), x.view(), unit)
        };
        let of = |values: &[(f64, bool)]| {
            nearly_least(values.iter().map(|(value, exact)| candidate(*value, *exact)).collect())
        };
        assert_eq!(of(&[(0.5, true), (1.5, true)]).len(), 1);
        assert_eq!(of(&[(0.5, false), (1.5, false), (0.25, false)]).len(), 2);
        let clear = of(&[(0.5, false), (0.75, false)]);
        assert_eq!((clear.len(), clear[0].values[0].value()), (1, 0.75));
    }

    #[test]
    fn most_generated_cases_leave_no_choice() {
        for name in ["awq.scale", "awq.clip"] {
            let op = super::super::find(name).unwrap();
            let open = (0..40).filter(|index| {
                let case = generated_case(Path::new(""), op, 3, *index).unwrap();
                let expected = Tensors::new();
                let unit = Unit::of(Precision::F32);
                let request = case.request.to_precision(Precision::F64);
                let evidence = Evidence {
                    request: &request,
                    expected: &expected,
                    actual: &expected,
                    codes: None,
                    unit,
                };
                (op.bounds)(&evidence).unwrap()["output"].open > 0
            });
            let open = open.count();
            println!("{name}: {open} of 40 are open");
            assert!(open <= 20, "{name}: {open} of 40 are open");
        }
    }
}
