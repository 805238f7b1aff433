//! `lwc.forward` and `.backward`.

use ndarray::{Array2, ArrayD};
use plumbline_reference::Real;
use plumbline_reference::lwc::Lwc;
use plumbline_reference::spec::QuantSpec;
use serde_json::json;
use std::collections::BTreeMap;

use super::Operation;
use super::quantizer::{Grid, Steps};
use super::row::{GROUPS, STEPS, WEIGHT, ZERO_POINT, bounded, given, runs, unsigned_codes};
use super::zero_point::{
    Estimate, element, estimates, extremes, passed_allowance, steps_allowance, zero_point_allowance,
};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::judge::tracked::{self, Outputs};
use crate::params::{Params, Quantizer};
use crate::precision::{Precision, Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

const LOGIT: &str = "the group sum's, times the slope of the logit; more where a choice is open";

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "lwc.forward",
        params: &["bits", "group_size", "symmetric"],
        inputs: &[given("weight", WEIGHT), given("upper", GROUPS), given("lower", GROUPS)],
        outputs: &[
            unsigned_codes(WEIGHT),
            bounded("scale", GROUPS, "first-order error of two sigmoids and a difference"),
            bounded("zero_point", GROUPS, ZERO_POINT),
            bounded("output", WEIGHT, STEPS),
        ],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: Some(grid),
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "lwc.backward",
        params: &["bits", "group_size", "symmetric"],
        inputs: &[
            given("weight", WEIGHT),
            given("upper", GROUPS),
            given("lower", GROUPS),
            given("d_output", WEIGHT),
        ],
        outputs: &[
            bounded("d_weight", WEIGHT, "0: a copy of d_output, or zero"),
            bounded("d_upper", GROUPS, LOGIT),
            bounded("d_lower", GROUPS, LOGIT),
        ],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: backward_bounds,
        sample: sample_backward,
    },
];

fn symmetric(params: &Params) -> Result<bool, String> {
    Ok(params.optional("symmetric")?.unwrap_or_default())
}

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    symmetric(&request.params)?;
    super::fake_quantize::sizes(request)
}

/// Owns what the reference borrows.
struct Clipped<T> {
    weight: Array2<T>,
    upper: Array2<T>,
    lower: Array2<T>,
}

impl<T: Real> Clipped<T> {
    fn read(request: &Request) -> Result<Self, String> {
        Ok(Self {
            weight: request.array("weight")?,
            upper: request.array("upper")?,
            lower: request.array("lower")?,
        })
    }

    fn lwc(&self, request: &Request) -> Result<Lwc<'_, T>, String> {
        Ok(Lwc {
            weight: self.weight.view(),
            upper: self.upper.view(),
            lower: self.lower.view(),
            spec: Quantizer::read(&request.params)?.spec(self.weight.ncols())?,
            symmetric: symmetric(&request.params)?,
        })
    }
}

fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let forward =
        Clipped::<T>::read(request)?.lwc(request)?.forward().map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("codes", Tensor::unsigned(&forward.codes)),
        ("scale", Tensor::floats(&forward.scale)),
        ("zero_point", Tensor::floats(&forward.zero_point)),
        ("output", Tensor::floats(&forward.output)),
    ]))
}

fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let d_output = request.array("d_output")?;
    let clipped = Clipped::<T>::read(request)?;
    let gradients = clipped.lwc(request)?.backward(d_output.view()).map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("d_weight", Tensor::floats(&gradients.d_weight)),
        ("d_upper", Tensor::floats(&gradients.d_upper)),
        ("d_lower", Tensor::floats(&gradients.d_lower)),
    ]))
}

/// (Q17) for the logits with every choice (codes, zero points, masks, ends) as binary64 makes it:
/// run on tracked numbers it bounds what is smooth, and [`open_slopes`] the rest.
fn logit_gradients<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let plain = Clipped::<f64>::read(request)?;
    let chosen = plain.lwc(request)?.forward().map_err(|e| e.to_string())?;
    let spec = Quantizer::read(&request.params)?.spec(plain.weight.ncols())?;
    let symmetric = symmetric(&request.params)?;
    let d_output: Array2<T> = request.array("d_output")?;
    let decisions: BTreeMap<_, _> = decisions::<T>(request)?.into_iter().collect();
    let mut d_scale = Array2::<T>::zeros(plain.upper.dim());
    for ((o, i), &weight) in plain.weight.indexed_iter() {
        let place = [o, i / spec.group_size()];
        let steps = f64::from(chosen.codes[[o, i]]) - chosen.zero_point[place];
        let in_range = (weight / chosen.scale[place]).round_ties_even() == steps;
        let argument = decisions["argument"][[o, i].as_slice()];
        let slope = T::of(steps) - if in_range { argument } else { T::zero() };
        d_scale[place] += d_output[[o, i]] * slope;
    }
    let divisor = if symmetric { spec.qmax() } else { spec.bits().unsigned_max() };
    let gradient = |end: &str, other: &str, logits: &Array2<f64>| {
        Array2::from_shape_fn(logits.dim(), |place: (usize, usize)| {
            let at = [place.0, place.1];
            let value = |name: &str| decisions[name][at.as_slice()].value();
            let held = value("range_scale") != value("scale");
            let larger = value(end).abs() > value(other).abs()
                || value(end).abs() == value(other).abs() && end == "high";
            if held || symmetric && !larger {
                return T::zero();
            }
            let keep = T::one() / (T::one() + (-T::of(logits[at])).exp());
            // d end / d logit, where end = keep * extreme.
            let slope = decisions[end][at.as_slice()] * (T::one() - keep);
            d_scale[at] / T::of(f64::from(divisor)) * slope
        })
    };
    Ok(vec![
        ("d_upper", gradient("high", "low", &plain.upper).into_dyn()),
        ("d_lower", gradient("low", "high", &plain.lower).into_dyn()),
    ])
}

/// Everything that a choice is made by: the two ends of the kept range, the scale before and after
/// its clamp, the zero point before it is rounded, the arguments, and `d scale / d logit` without
/// its sign.
fn decisions<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let Clipped::<T> { weight, upper, lower } = Clipped::read(request)?;
    let spec = Quantizer::read(&request.params)?.spec(weight.ncols())?;
    let symmetric = symmetric(&request.params)?;
    let (steps, qmax) = (f64::from(spec.bits().unsigned_max()), f64::from(spec.qmax()));
    let divisor = T::of(if symmetric { qmax } else { steps });
    let keep = |logit: T| T::one() / (T::one() + (-logit).exp());
    let extremes = extremes(&request.array("weight")?, &spec);
    let [low, high] = [(&lower, &extremes[0]), (&upper, &extremes[1])].map(|(logits, ends)| {
        Array2::from_shape_fn(logits.dim(), |place| keep(logits[place]) * T::of(ends[place]))
    });
    let range_scale = Array2::from_shape_fn(low.dim(), |place| {
        if symmetric {
            high[place].abs().max(low[place].abs()) / divisor
        } else {
            (high[place] - low[place]) / divisor
        }
    });
    let scale = range_scale.mapv(|scale| scale.max(T::of(1e-5)).min(T::of(1e4)));
    let zero_point = Array2::from_shape_fn(low.dim(), |place| {
        let quotient = (-low[place] / scale[place]).max(T::of(-1e4)).min(T::of(1e4));
        if symmetric { T::of(qmax) } else { quotient }
    });
    let argument = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        weight[[o, i]] / scale[[o, i / spec.group_size()]]
    });
    let named: [(&'static str, Array2<T>); 6] = [
        ("low", low),
        ("high", high),
        ("range_scale", range_scale),
        ("scale", scale),
        ("zero_point", zero_point),
        ("argument", argument),
    ];
    Ok(named.into_iter().map(|(name, array)| (name, array.into_dyn())).collect())
}

/// The decisions with their errors.
struct Parts {
    spec: QuantSpec,
    named: BTreeMap<&'static str, Array2<Estimate>>,
}

impl Parts {
    fn read(request: &Request, unit: Unit) -> Result<Self, String> {
        let [_, in_features] = request.sizes("weight")?;
        let spec = Quantizer::read(&request.params)?.spec(in_features)?;
        let errors = tracked::errors(request, unit, decisions, decisions)?;
        let matrix = |array: ArrayD<f64>| -> Result<Array2<f64>, String> {
            array.into_dimensionality().map_err(|e| e.to_string())
        };
        let mut named = BTreeMap::new();
        for (name, values) in decisions::<f64>(request)? {
            let bound = errors[name].bound.clone();
            let errors =
                ArrayD::from_shape_vec(values.raw_dim(), bound).map_err(|e| e.to_string())?;
            named.insert(name, estimates(&matrix(values)?, &matrix(errors)?));
        }
        let mut parts = Self { spec, named };
        parts.find_exact_groups(request)?;
        Ok(parts)
    }

    fn get(&self, name: &str) -> &Array2<Estimate> {
        &self.named[name]
    }

    /// Where both logits are 0 the fractions are halves, and the rest may be exact in binary32 too:
    /// then no rounding excuses the other side of a tie.
    fn find_exact_groups(&mut self, request: &Request) -> Result<(), String> {
        let Clipped::<f64> { weight, upper, lower } = Clipped::read(request)?;
        let [least, greatest] = extremes(&weight, &self.spec);
        let symmetric = symmetric(&request.params)?;
        for ((o, g), scale) in self.get("scale").clone().indexed_iter() {
            if upper[[o, g]] != 0.0 || lower[[o, g]] != 0.0 {
                continue;
            }
            let half = |end: f64| Steps::start(end).times(Steps::start(0.5));
            let (low, high) = (half(least[[o, g]]), half(greatest[[o, g]]));
            let steps = if symmetric {
                let larger = high.value.abs().max(low.value.abs());
                Steps::start(larger).over(Steps::start(f64::from(self.spec.qmax())))
            } else {
                let last = f64::from(self.spec.bits().unsigned_max());
                high.plus(Steps { value: -low.value, ..low }).over(Steps::start(last))
            };
            if steps.value != scale.value || !steps.exact_in_f32 {
                continue;
            }
            let settle = |estimate: &mut Estimate, number: Steps| {
                if number.over(steps).exact_in_f32 {
                    estimate.error = 0.0;
                }
            };
            for name in ["low", "high", "range_scale", "scale"] {
                self.named.get_mut(name).expect("named")[[o, g]].error = 0.0;
            }
            settle(&mut self.named.get_mut("zero_point").expect("named")[[o, g]], low);
            let first = g * self.spec.group_size();
            for i in first..first + self.spec.group_size() {
                let argument = &mut self.named.get_mut("argument").expect("named")[[o, i]];
                settle(argument, Steps::start(weight[[o, i]]));
            }
        }
        Ok(())
    }

    fn grid(&self) -> Grid {
        let [scale, zero_point, argument] =
            ["scale", "zero_point", "argument"].map(|name| self.get(name));
        Grid::unsigned(self.spec, scale, zero_point, argument)
    }
}

fn grid(request: &Request, unit: Unit) -> Result<Grid, String> {
    Ok(Parts::read(request, unit)?.grid())
}

fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let parts = Parts::read(evidence.request, evidence.unit)?;
    let scale = Allowance::absolute(parts.get("scale").iter().map(|scale| scale.error));
    let mut grid = parts.grid();
    let zero_point = zero_point_allowance(&grid);
    grid.adopt_zero_points(evidence.actual);
    let output = steps_allowance(&grid, evidence);
    Ok(named([("scale", scale), ("zero_point", zero_point), ("output", output)]))
}

fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let parts = Parts::read(request, unit)?;
    let grid = parts.grid();
    let d_output: Array2<f64> = request.array("d_output")?;
    let mut bounds = tracked::bounds(evidence, logit_gradients, logit_gradients)?;
    bounds.insert("d_weight".to_owned(), passed_allowance(&grid, &d_output));
    let open = open_slopes(&grid, &d_output);
    let (low, high) = (parts.get("low"), parts.get("high"));
    let symmetric = symmetric(&request.params)?;
    let keeps = Clipped::<f64>::read(request)?;
    for (name, logits, ends, other) in
        [("d_upper", &keeps.upper, high, low), ("d_lower", &keeps.lower, low, high)]
    {
        let divisor = if symmetric { parts.spec.qmax() } else { parts.spec.bits().unsigned_max() };
        let slope = Array2::from_shape_fn(logits.dim(), |place| {
            // The end is keep * extreme, and d keep / d logit = keep * (1 - keep).
            let keep = 1.0 / (1.0 + (-logits[place]).exp());
            (ends[place].value * (1.0 - keep)).abs() / f64::from(divisor)
        });
        let extra = Array2::from_shape_fn(logits.dim(), |place| {
            let (sum, moved) = open[place];
            let (end, opposite) = (ends[place], other[place]);
            let apart = (end.value.abs() - opposite.value.abs()).abs();
            let either_end = symmetric
                && end.error + opposite.error > 0.0
                && apart <= end.error + opposite.error;
            let smaller = symmetric && end.value.abs() < opposite.value.abs();
            let range = parts.get("range_scale")[place];
            let at_clamp =
                [1e-5, 1e4].iter().any(|limit| (range.value - limit).abs() <= range.error);
            let held = !(1e-5..=1e4).contains(&range.value);
            let whole = if either_end || at_clamp { sum.abs() + moved } else { 0.0 };
            let used = if (smaller && !either_end) || (held && !at_clamp) { 0.0 } else { moved };
            slope[place] * whole.max(used) * (1.0 + unit.gamma(64.0))
        });
        if let Some(allowance) = bounds.remove(name) {
            bounds.insert(name.to_owned(), allowance.plus(&extra));
        }
    }
    Ok(bounds)
}

/// `sum d_output * slope` of every group, and how far open codes, masks and zero points may move
/// it.
fn open_slopes(grid: &Grid, d_output: &Array2<f64>) -> Array2<(f64, f64)> {
    let mut sums = Array2::from_elem(grid.scale.dim(), (0.0, 0.0));
    for ((o, i), at) in grid.elements.indexed_iter() {
        let place = [o, i / grid.spec.group_size()];
        let slope = |at: &super::quantizer::Element| {
            at.code - at.zero_point - if at.in_range { at.argument } else { 0.0 }
        };
        let mut moved: f64 = 0.0;
        if at.at_tie(grid.ends) {
            moved += 1.0 + at.error.floor();
        }
        if at.at_edge {
            moved += at.argument.abs() + at.error;
        }
        let argument = Estimate { value: at.argument, error: at.error };
        let estimate = grid.zero_points.as_ref().map(|zero_points| zero_points.estimate[place]);
        let others = estimate.into_iter().flat_map(Estimate::integers);
        moved += others
            .map(|other| (slope(&element(argument, other, grid.ends)) - slope(at)).abs())
            .fold(0.0, f64::max);
        let d = d_output[[o, i]];
        let (sum, open) = sums[place];
        sums[place] = (sum + d * slope(at), open + d.abs() * moved);
    }
    sums
}

fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let shape = sampler.quantizer();
    let mut params = shape.params();
    if sampler.chance(0.5) {
        params.0.insert("symmetric".to_owned(), json!(sampler.chance(0.6)));
    }
    let groups = [shape.out_features, shape.in_features / shape.group_size];
    let halves = sampler.chance(0.25);
    let mut weight = sampler.normal(&shape.weight_shape(), 0.5);
    let (mut upper, mut lower) =
        (sampler.around(&groups, 2.0, 2.0), sampler.around(&groups, 2.0, 2.0));
    if halves {
        let count = groups[0] * groups[1];
        let stepped =
            (0..count).flat_map(|_| sampler.stepped_group(shape.group_size, shape.bits, 2.0));
        let stepped: Vec<f64> = stepped.map(f64::from).collect();
        weight = Tensor::from_f64s(weight.shape().to_vec(), stepped.into_iter(), Precision::F32);
        let zeros = || std::iter::repeat_n(0.0, count);
        upper = Tensor::from_f64s(groups.to_vec(), zeros(), Precision::F32);
        lower = Tensor::from_f64s(groups.to_vec(), zeros(), Precision::F32);
    }
    Ok((params, super::tensors([("weight", weight), ("upper", upper), ("lower", lower)])))
}

fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = sample_forward(sampler)?;
    let shape = inputs["weight"].shape().to_vec();
    inputs.insert("d_output".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}
