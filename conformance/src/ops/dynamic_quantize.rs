//! `dynamic_quantize.forward` and `.backward`.

use ndarray::Array2;
use plumbline_reference::dynamic_quantize::{dynamic_quantize, dynamic_quantize_backward};
use plumbline_reference::spec::{QuantSpec, SCALE_FLOOR, ZeroPointRule};
use serde_json::json;

use super::Operation;
use super::quantizer::{Grid, Steps};
use super::row::{
    STEPS, TOKEN_GROUPS, X, ZERO_POINT, bounded, given, optional, runs, unsigned_codes,
};
use super::zero_point::{
    Estimate, extremes, passed_allowance, steps_allowance, zero_point_allowance,
};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::params::{Params, Quantizer};
use crate::precision::{Precision, Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "dynamic_quantize.forward",
        params: &["bits", "group_size", "zero_point"],
        inputs: &[given("x", X)],
        outputs: &[
            optional(unsigned_codes(X)),
            bounded("scale", TOKEN_GROUPS, "gamma(2) * scale: a difference and a quotient"),
            bounded("zero_point", TOKEN_GROUPS, ZERO_POINT),
            bounded("output", X, STEPS),
        ],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: Some(grid),
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "dynamic_quantize.backward",
        params: &["bits", "group_size", "zero_point"],
        inputs: &[given("x", X), given("d_output", X)],
        outputs: &[bounded("d_x", X, "0: a copy of d_output, or zero")],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: backward_bounds,
        sample: sample_backward,
    },
];

fn rule(params: &Params) -> Result<ZeroPointRule, String> {
    Ok(params.optional("zero_point")?.unwrap_or_default())
}

fn spec(request: &Request) -> Result<QuantSpec, String> {
    let [_, in_features] = request.sizes("x")?;
    Quantizer::read(&request.params)?.spec(in_features)
}

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    rule(&request.params)?;
    let spec = spec(request)?;
    Ok(vec![("in", spec.in_features()), ("groups", spec.groups())])
}

fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let x: Array2<T> = request.array("x")?;
    let quantized = dynamic_quantize(x.view(), &spec(request)?, rule(&request.params)?)
        .map_err(|e| e.to_string())?;
    let mut outputs = super::tensors([
        ("scale", Tensor::floats(&quantized.scale)),
        ("zero_point", Tensor::floats(&quantized.zero_point)),
        ("output", Tensor::floats(&quantized.output)),
    ]);
    let codes = quantized.codes.map(|codes| ("codes".to_owned(), Tensor::unsigned(&codes)));
    outputs.extend(codes);
    Ok(outputs)
}

fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (x, d_output): (Array2<T>, Array2<T>) = (request.array("x")?, request.array("d_output")?);
    let (spec, rule) = (spec(request)?, rule(&request.params)?);
    let d_x = dynamic_quantize_backward(x.view(), d_output.view(), &spec, rule)
        .map_err(|e| e.to_string())?;
    Ok(super::tensors([("d_x", Tensor::floats(&d_x))]))
}

/// Scales, unrounded zero points and arguments, in binary64.
struct Parts {
    spec: QuantSpec,
    scale: Array2<Estimate>,
    zero_point: Array2<Estimate>,
    arguments: Array2<Estimate>,
}

impl Parts {
    fn read(request: &Request, unit: Unit) -> Result<Self, String> {
        let x: Array2<f64> = request.array("x")?;
        let spec = spec(request)?;
        let shape = (x.nrows(), spec.groups());
        let [low, high] = extremes(&x, &spec);
        let scales = Array2::from_shape_fn(shape, |place| {
            Scale::new((low[place], high[place]), &spec, unit)
        });
        Ok(Self {
            scale: scales.map(|scale| scale.estimate()),
            zero_point: Array2::from_shape_fn(shape, |place| {
                scales[place].quotient(-low[place], unit)
            }),
            arguments: Array2::from_shape_fn(x.dim(), |(t, i)| {
                scales[[t, i / spec.group_size()]].quotient(x[[t, i]], unit)
            }),
            spec,
        })
    }

    fn grid(&self) -> Grid {
        Grid::unsigned(self.spec, &self.scale, &self.zero_point, &self.arguments)
    }
}

/// The scale of one group and its relative error.
struct Scale {
    steps: Steps,
    relative: f64,
}

impl Scale {
    /// A difference and a quotient; or the floor, which is rounded to the type.
    fn new((low, high): (f64, f64), spec: &QuantSpec, unit: Unit) -> Self {
        let last = f64::from(spec.bits().unsigned_max());
        let range = if high > low {
            Steps::start(high).plus(Steps::start(-low)).over(Steps::start(last))
        } else if low == 0.0 {
            Steps::start(1.0)
        } else {
            Steps::start(low.abs())
        };
        let steps = if range.value < SCALE_FLOOR { Steps::start(SCALE_FLOOR) } else { range };
        let relative = if steps.exact_in_f32 { 0.0 } else { unit.gamma(2.0) };
        Self { steps, relative }
    }

    fn estimate(&self) -> Estimate {
        Estimate { value: self.steps.value, error: self.relative * self.steps.value }
    }

    /// `number / scale`, with `(1 + roundoff) / (1 - relative) - 1` of it as its error.
    fn quotient(&self, number: f64, unit: Unit) -> Estimate {
        let quotient = Steps::start(number).over(self.steps);
        if quotient.exact_in_f32 || quotient.value == 0.0 {
            return Estimate::exact(quotient.value);
        }
        let relative = (unit.roundoff + self.relative) / (1.0 - self.relative);
        Estimate { value: quotient.value, error: relative * quotient.value.abs() + unit.tiny }
    }
}

fn grid(request: &Request, unit: Unit) -> Result<Grid, String> {
    Ok(Parts::read(request, unit)?.grid())
}

fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let parts = Parts::read(evidence.request, evidence.unit)?;
    let scale = Allowance::absolute(parts.scale.iter().map(|scale| scale.error));
    if rule(&evidence.request.params)? == ZeroPointRule::Float {
        let zero_point = Allowance::absolute(parts.zero_point.iter().map(|zero| zero.error));
        let output = floating_output(&parts, evidence.unit);
        return Ok(named([("scale", scale), ("zero_point", zero_point), ("output", output)]));
    }
    let mut grid = parts.grid();
    let zero_point = zero_point_allowance(&grid);
    grid.adopt_zero_points(evidence.actual);
    let output = steps_allowance(&grid, evidence);
    Ok(named([("scale", scale), ("zero_point", zero_point), ("output", output)]))
}

/// Where an activation would lie on a grid without ends: an integer and a real zero point, whose
/// sum rounds.
fn floating_place(rounded: f64, zero_point: Estimate, unit: Unit) -> Estimate {
    let value = rounded + zero_point.value;
    let rounds = Steps::start(rounded).plus(Steps::start(zero_point.value));
    let error = if zero_point.error == 0.0 && rounds.exact_in_f32 {
        0.0
    } else {
        zero_point.error * (1.0 + unit.roundoff) + unit.roundoff * value.abs()
    };
    Estimate { value, error }
}

/// `scale * (level - zero_point)` with real levels. A level is continuous in its place, so that an
/// open end of the grid needs nothing more; an open tie of the argument has two values.
fn floating_output(parts: &Parts, unit: Unit) -> Allowance {
    let last = f64::from(parts.spec.bits().unsigned_max());
    let mut allowance = Allowance::default();
    for (index, ((t, i), argument)) in parts.arguments.indexed_iter().enumerate() {
        let place = [t, i / parts.spec.group_size()];
        let (scale, zero_point) = (parts.scale[place], parts.zero_point[place]);
        let output = |rounded: f64| {
            let place = floating_place(rounded, zero_point, unit);
            let steps = place.value.clamp(0.0, last) - zero_point.value;
            let steps_error =
                place.error + zero_point.error + unit.roundoff * (steps.abs() + place.error);
            let error = scale.value * steps_error + scale.error * (steps.abs() + steps_error);
            let value = scale.value * steps;
            Estimate { value, error: error * (1.0 + unit.roundoff) + unit.roundoff * value.abs() }
        };
        let rounded = argument.value.round_ties_even();
        let other = if argument.value >= rounded { rounded + 1.0 } else { rounded - 1.0 };
        let to_tie = 0.5 - (argument.value - rounded).abs();
        let Estimate { mut error, .. } = output(rounded);
        if argument.error > 0.0 && to_tie <= argument.error {
            let moved = output(other);
            allowance.alternatives.push((index, moved.value));
            allowance.open += 1;
            error = error.max(moved.error);
        }
        allowance.bound.push(if error > 0.0 { error + unit.tiny } else { 0.0 });
    }
    allowance
}

fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let parts = Parts::read(evidence.request, evidence.unit)?;
    let d_output: Array2<f64> = evidence.request.array("d_output")?;
    let d_x = match rule(&evidence.request.params)? {
        ZeroPointRule::Integer => passed_allowance(&parts.grid(), &d_output),
        ZeroPointRule::Float => floating_mask(&parts, &d_output, evidence.unit),
    };
    Ok(named([("d_x", d_x)]))
}

/// The mask is open where an end of the grid lies within the error of a place that the argument may
/// be rounded to, or between two such places.
fn floating_mask(parts: &Parts, d_output: &Array2<f64>, unit: Unit) -> Allowance {
    let last = f64::from(parts.spec.bits().unsigned_max());
    let mut allowance = Allowance::absolute(std::iter::repeat_n(0.0, d_output.len()));
    for (index, ((t, i), argument)) in parts.arguments.indexed_iter().enumerate() {
        let zero_point = parts.zero_point[[t, i / parts.spec.group_size()]];
        let reach = if argument.error > 0.0 { argument.error } else { 0.0 };
        let candidates = [-reach, 0.0, reach].map(|moved| {
            floating_place((argument.value + moved).round_ties_even(), zero_point, unit)
        });
        let passes = |place: &Estimate| (0.0..=last).contains(&place.value);
        let open = candidates.iter().any(|place| {
            let to_end = place.value.abs().min((place.value - last).abs());
            place.error > 0.0 && to_end <= place.error || passes(place) != passes(&candidates[1])
        });
        if open {
            allowance.alternatives.extend([(index, 0.0), (index, d_output[[t, i]])]);
            allowance.open += 1;
        }
    }
    allowance
}

fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let shape = sampler.quantizer();
    let mut params = shape.params();
    if sampler.chance(0.7) {
        let rule = sampler.pick(&[ZeroPointRule::Integer, ZeroPointRule::Float]);
        params.0.insert("zero_point".to_owned(), json!(rule));
    }
    let (tokens, stepped) = (sampler.size(1, 6), sampler.chance(0.3));
    let mean = sampler.pick(&[0.0, 0.0, 3.0]);
    let mut values: Vec<f32> = Vec::new();
    for _ in 0..tokens * shape.in_features / shape.group_size {
        let mut group = if stepped {
            sampler.stepped_group(shape.group_size, shape.bits, 1.0)
        } else {
            let group = sampler.around(&[shape.group_size], mean, 1.0);
            group.values().map(|x| x as f32).collect()
        };
        if sampler.chance(0.1) {
            let constant = group[0];
            group.fill(constant);
        }
        values.extend(group);
    }
    let values = values.into_iter().map(f64::from);
    let x = Tensor::from_f64s(vec![tokens, shape.in_features], values, Precision::F32);
    Ok((params, super::tensors([("x", x)])))
}

fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = sample_forward(sampler)?;
    let shape = inputs["x"].shape().to_vec();
    inputs.insert("d_output".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}
