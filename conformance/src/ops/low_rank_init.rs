//! `svd_init` and `loftq_init`.

use ndarray::Array2;
use plumbline_reference::lora::delta_weight;
use plumbline_reference::low_rank_init::{Factors, LoftqInit, SingularReal, loftq_init, svd_init};
use plumbline_reference::spec::{LoftqQuantizer, QuantSpec, SCALE_FLOOR};
use serde_json::json;

use super::Operation;
use super::decomposition::Decomposition;
use super::near::Near;
use super::quantizer::{Element, Ends, Grid};
use super::row::{GROUPS, LORA_A, LORA_B, WEIGHT, bounded, codes, given, runs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::params::{self, Params, Quantizer};
use crate::precision::{Precision, Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

const PAIRS: &str = "backward error of the decomposition over the gap, times the root of the value";
const PRODUCT: &str = "backward error, and its share of what is left over the gap at the rank";

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "svd_init",
        params: &["rank", "lora_scaling"],
        inputs: &[given("weight", WEIGHT)],
        outputs: &[
            bounded("lora_a", LORA_A, PAIRS),
            bounded("lora_b", LORA_B, PAIRS),
            bounded("delta_weight", WEIGHT, PRODUCT),
        ],
        weights: None,
        sizes,
        run: runs!(nearest, linear algebra),
        grid: None,
        bounds: nearest_bounds,
        sample: sample_nearest,
    },
    Operation {
        name: "loftq_init",
        params: &["rank", "iterations", "lora_scaling", "bits", "group_size", "quantizer"],
        inputs: &[given("weight", WEIGHT)],
        outputs: &[
            codes(),
            bounded("scale", GROUPS, "gamma(1) * |scale|, and the error of the weights over qmax"),
            bounded("output", WEIGHT, "|code| * error of the scale, and gamma(1) * |output|"),
            bounded("lora_a", LORA_A, PAIRS),
            bounded("lora_b", LORA_B, PAIRS),
            bounded("delta_weight", WEIGHT, PRODUCT),
        ],
        weights: None,
        sizes: loftq_sizes,
        run: runs!(turns, linear algebra),
        grid: Some(grid),
        bounds: turns_bounds,
        sample: sample_turns,
    },
];

/// `rank` and `lora_scaling`.
fn low_rank(params: &Params) -> Result<(usize, f64), String> {
    Ok((params.required("rank")?, params::lora_scaling(params)?))
}

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let (rank, _) = low_rank(&request.params)?;
    let [out_features, in_features] = request.sizes("weight")?;
    Ok(vec![("out", out_features), ("in", in_features), ("rank", rank)])
}

fn loftq_sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let Loftq { rank, .. } = Loftq::read(request)?;
    let mut sizes = super::fake_quantize::sizes(request)?;
    sizes.push(("rank", rank));
    Ok(sizes)
}

/// Parameters of `loftq_init`.
struct Loftq {
    spec: QuantSpec,
    quantizer: LoftqQuantizer,
    rank: usize,
    iterations: usize,
    lora_scaling: f64,
}

impl Loftq {
    fn read(request: &Request) -> Result<Self, String> {
        let params = &request.params;
        let [_, in_features] = request.sizes("weight")?;
        let spec = Quantizer::read(params)?.spec(in_features)?;
        let name: Option<String> = params.optional("quantizer")?;
        let quantizer = LoftqQuantizer::from_name(name.as_deref().unwrap_or("uniform"), spec)
            .map_err(|e| format!("params: {e}"))?;
        let (rank, lora_scaling) = low_rank(params)?;
        Ok(Self { spec, quantizer, rank, iterations: params.required("iterations")?, lora_scaling })
    }

    fn after<T: SingularReal>(
        &self,
        iterations: usize,
        weight: &Array2<T>,
    ) -> Result<LoftqInit<T>, String> {
        loftq_init(weight.view(), self.quantizer, self.rank, iterations, self.lora_scaling)
            .map_err(|e| e.to_string())
    }
}

fn factors_and_product<T: Scalar>(
    factors: &Factors<T>,
    lora_scaling: f64,
) -> Result<[(&'static str, Tensor); 3], String> {
    let Factors { lora_a, lora_b } = factors;
    let product =
        delta_weight(lora_a.view(), lora_b.view(), lora_scaling).map_err(|e| e.to_string())?;
    Ok([
        ("lora_a", Tensor::floats(lora_a)),
        ("lora_b", Tensor::floats(lora_b)),
        ("delta_weight", Tensor::floats(&product)),
    ])
}

fn nearest<T: Scalar + SingularReal>(request: &Request) -> Result<Tensors, String> {
    let weight: Array2<T> = request.array("weight")?;
    let (rank, lora_scaling) = low_rank(&request.params)?;
    let factors = svd_init(weight.view(), rank, lora_scaling).map_err(|e| e.to_string())?;
    Ok(super::tensors(factors_and_product(&factors, lora_scaling)?))
}

fn turns<T: Scalar + SingularReal>(request: &Request) -> Result<Tensors, String> {
    let loftq = Loftq::read(request)?;
    let found = loftq.after::<T>(loftq.iterations, &request.array("weight")?)?;
    let mut outputs = super::tensors([
        ("codes", Tensor::codes(&found.codes)),
        ("scale", Tensor::floats(&found.scale)),
        ("output", Tensor::floats(&found.output)),
    ]);
    outputs.extend(super::tensors(factors_and_product(&found.factors, loftq.lora_scaling)?));
    Ok(outputs)
}

fn nearest_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let weight: Array2<f64> = evidence.request.array("weight")?;
    let low_rank = low_rank(&evidence.request.params)?;
    Ok(named(Decomposition::new(&weight, low_rank, 0.0, evidence.unit)?.allowances()))
}

/// The last turn: its grid, and how far the subject's scales may be.
struct LastTurn {
    grid: Grid,
    scale: Vec<Near>,
    /// The same for the binary64 target: what the subject's own roundings add.
    own_scale: Vec<Near>,
    /// How far the subject's target is, in the Frobenius norm and so in every element.
    target_error: f64,
    /// Groups that may or may not be zero everywhere, which have scale 1.
    maybe_zero: Vec<bool>,
}

/// Follows the turns. What is open in one is an error of the next: a code that may be another one
/// by a whole step, the factors by the perturbation of their matrix.
fn last_turn(request: &Request, unit: Unit) -> Result<LastTurn, String> {
    let loftq = Loftq::read(request)?;
    let weight: Array2<f64> = request.array("weight")?;
    let (mut target, mut target_error) = (weight.clone(), 0.0);
    for turn in 1..=loftq.iterations {
        let last = quantized(&target, target_error, &loftq.spec, unit);
        if turn == loftq.iterations {
            return Ok(last);
        }
        let low_rank = (loftq.rank, loftq.lora_scaling);
        let (residual, error) = lost(&weight, &last, None, unit);
        let found = Decomposition::new(&residual, low_rank, error, unit)?;
        target = &weight - &found.delta_weight()?;
        let largest = target.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        target_error = found.product();
        if target_error > 0.0 {
            target_error += unit.gamma(1.0) * (largest + target_error);
        }
    }
    Err("iterations is 0, expected at least 1".to_owned())
}

/// `min_max` scales and the arguments of a target that is off by `error` in the Frobenius norm.
fn quantized(target: &Array2<f64>, error: f64, spec: &QuantSpec, unit: Unit) -> LastTurn {
    let known_to = |x: f64, off: f64| {
        if error == 0.0 { Near::of(x, unit) } else { Near::within(x, off, unit) }
    };
    let known = |x: f64| known_to(x, error);
    let ends = Ends::signed(spec);
    let groups = (target.nrows(), spec.groups());
    let (mut scale, mut own_scale, mut maybe_zero) = (Vec::new(), Vec::new(), Vec::new());
    for row in target.rows() {
        for group in row.to_vec().chunks(spec.group_size()) {
            let absmax = group.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
            maybe_zero.push(error > 0.0 && absmax <= error);
            // A group of zeros has scale 1.
            let absmax = if absmax == 0.0 { ends.high } else { absmax };
            scale.push(known(absmax).over(Near::of(ends.high, unit)));
            own_scale.push(known_to(absmax, 0.0).over(Near::of(ends.high, unit)));
        }
    }
    let group_of = |o: usize, i: usize| o * spec.groups() + i / spec.group_size();
    let raised = |g: usize| scale[g].max(Near::of(SCALE_FLOOR, unit));
    let elements = Array2::from_shape_fn(target.dim(), |(o, i)| {
        let argument = known(target[[o, i]]).over(raised(group_of(o, i)));
        let open = maybe_zero[group_of(o, i)];
        Element {
            argument: argument.value(),
            error: if open { f64::INFINITY } else { argument.error },
            zero_point: 0.0,
            code: argument.value().clamp(ends.low, ends.high).round_ties_even(),
            in_range: true,
            at_edge: false,
        }
    });
    let per_group = |of: &dyn Fn(usize) -> f64| {
        Array2::from_shape_fn(groups, |(o, g)| of(o * spec.groups() + g))
    };
    let grid = Grid {
        spec: *spec,
        ends,
        scale: per_group(&|g| raised(g).value()),
        offset: Array2::zeros(groups),
        raised: Array2::from_shape_fn(groups, |(o, g)| {
            scale[o * spec.groups() + g].value() < SCALE_FLOOR
        }),
        elements,
        zero_points: None,
    };
    LastTurn { grid, scale, own_scale, target_error: error, maybe_zero }
}

/// `code * scale` of every element, with the given codes or with those of the grid.
fn outputs(last: &LastTurn, scale: &[Near], codes: Option<&[i16]>, unit: Unit) -> Vec<Near> {
    let spec = &last.grid.spec;
    let elements = last.grid.elements.indexed_iter().enumerate();
    let outputs = elements.map(|(index, ((o, i), element))| {
        let code = codes.map_or(element.code, |codes| f64::from(codes[index]));
        let scale = scale[o * spec.groups() + i / spec.group_size()];
        Near::of(code, unit).times(scale.max(Near::of(SCALE_FLOOR, unit)))
    });
    outputs.collect()
}

/// `weight - output`, and how far the subject's may be from it in the Frobenius norm. Without the
/// subject's codes an open one may have moved its element by a step.
///
/// A scale is off by the target's error at one element over `qmax`, and moves an output by that
/// times its code: over all groups by the target's error times the length of a group's codes.
fn lost(
    weight: &Array2<f64>,
    last: &LastTurn,
    codes: Option<&[i16]>,
    unit: Unit,
) -> (Array2<f64>, f64) {
    let Grid { spec, scale, elements, ends, .. } = &last.grid;
    let mut own = 0.0;
    let mut lengths = Array2::<f64>::zeros(scale.dim());
    let mut residual = weight.clone();
    let pairs = residual.indexed_iter_mut().zip(outputs(last, &last.own_scale, codes, unit));
    for (((o, i), residual), output) in pairs {
        let group = [o, i / spec.group_size()];
        let difference = Near::of(*residual, unit).plus(output.negated());
        *residual = difference.value();
        let is_open = codes.is_none() && elements[[o, i]].at_tie(*ends);
        let step = if is_open { scale[group] } else { 0.0 };
        own += (difference.error + step) * (difference.error + step);
        let code = output.value() / scale[group] / ends.high;
        lengths[group] += code * code;
    }
    let longest = lengths.iter().copied().fold(0.0, f64::max).sqrt();
    (residual, own.sqrt() + 1.1 * longest * last.target_error)
}

fn grid(request: &Request, unit: Unit) -> Result<Grid, String> {
    Ok(last_turn(request, unit)?.grid)
}

fn turns_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let loftq = Loftq::read(request)?;
    let weight: Array2<f64> = request.array("weight")?;
    let last = last_turn(request, unit)?;
    let expected = evidence.expected_codes();
    let codes = evidence.codes.or(expected.as_deref());
    let mut scale = Allowance::absolute(last.scale.iter().map(|scale| scale.error));
    for (group, near) in last.scale.iter().enumerate().filter(|(g, _)| last.maybe_zero[*g]) {
        scale.alternatives.extend([(group, 1.0), (group, 0.0), (group, near.value())]);
        scale.open += 1;
    }
    let values = outputs(&last, &last.scale, codes, unit);
    let mut output = Allowance::absolute(values.iter().map(|near| near.error));
    let (residual, error) = lost(&weight, &last, codes, unit);
    let low_rank = (loftq.rank, loftq.lora_scaling);
    let found = Decomposition::new(&residual, low_rank, error, unit)?;
    let [mut a, mut b, mut product] = found.allowances().map(|(_, allowance)| allowance);
    if evidence.codes.is_some() {
        // Everything after a legal choice is judged with that choice.
        let all = |values: &Array2<f64>| values.iter().copied().enumerate().collect();
        output.replaced = values.iter().map(|near| near.value()).enumerate().collect();
        a.replaced = all(&found.factors.lora_a);
        b.replaced = all(&found.factors.lora_b);
        product.replaced = all(&found.delta_weight()?);
    }
    Ok(named([
        ("scale", scale),
        ("output", output),
        ("lora_a", a),
        ("lora_b", b),
        ("delta_weight", product),
    ]))
}

/// Mostly with values that stand apart; now and then equal ones, or fewer than the rank.
fn sample_nearest(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let one = sampler.chance(0.1);
    let shape = if one { [1, 1] } else { [sampler.size(1, 5), sampler.size(1, 5)] };
    let rank = sampler.size(1, shape[0].min(shape[1]));
    let lora_scaling = sampler.pick(&[1.0, 2.0, 0.5, 0.3]);
    let params = [("rank", json!(rank)), ("lora_scaling", json!(lora_scaling))];
    let weight = if sampler.chance(0.1) {
        let values = (0..shape[0] * shape[1])
            .map(|index| if index / shape[1] == index % shape[1] { -0.5 } else { 0.0 });
        Tensor::from_f64s(shape.to_vec(), values, Precision::F32)
    } else {
        let kept = if sampler.chance(0.1) { 1 } else { shape[1] };
        let normal = sampler.normal(&shape, 0.5);
        let graded = normal.values().enumerate().map(|(index, x)| {
            let column = index % shape[1];
            if column < kept { x * 0.25_f64.powi(column as i32) } else { 0.0 }
        });
        Tensor::from_f64s(shape.to_vec(), graded, Precision::F32)
    };
    Ok((Params::from_iter(params), super::tensors([("weight", weight)])))
}

/// Small layers: every turn widens what the next one's target may be, by the number of weights and
/// by their gaps, until nothing is left to judge. Now and then a lattice on which the first turn
/// meets ties.
fn sample_turns(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let bits = sampler.size(2, 8) as u32;
    let (group_size, groups) = (sampler.pick(&[2, 3, 4]), sampler.size(1, 3));
    let iterations = sampler.pick(&[1, 1, 1, 1, 2, 3]);
    let rows = sampler.pick(if iterations == 1 { &[1, 2, 3] } else { &[1, 1, 2] });
    let shape = [rows, group_size * groups];
    let rank = sampler.size(1, shape[0].min(shape[1]));
    let mut params = Params::from_iter([
        ("bits", json!(bits)),
        ("group_size", json!(group_size)),
        ("rank", json!(rank)),
        ("iterations", json!(iterations)),
        ("lora_scaling", json!(sampler.pick(&[1.0, 2.0, 0.5, 0.3]))),
    ]);
    if sampler.chance(0.3) {
        params.0.insert("quantizer".to_owned(), json!("uniform"));
    }
    let weight = if sampler.chance(0.2) {
        let reach = (1_usize << bits) - 2;
        let halves = (0..shape[0] * shape[1]).map(|index| {
            let half_steps = if index % group_size == 0 { reach } else { sampler.size(0, reach) };
            0.125 * half_steps as f64
        });
        let halves: Vec<f64> = halves.collect();
        Tensor::from_f64s(shape.to_vec(), halves.into_iter(), Precision::F32)
    } else {
        sampler.normal(&shape, 0.05)
    };
    Ok((params, super::tensors([("weight", weight)])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn spec(bits: u32, in_features: usize) -> QuantSpec {
        let params = Params::from_json(&format!(r#"{{"bits": {bits}}}"#)).unwrap();
        Quantizer::read(&params).and_then(|quantizer| quantizer.spec(in_features)).unwrap()
    }

    #[test]
    fn an_exact_first_turn_leaves_no_code_open_and_a_known_target_few() {
        let unit = Unit::of(Precision::F32);
        let target = array![[7.0, 2.5, -1.5, 0.25]];
        let exact = quantized(&target, 0.0, &spec(4, 4), unit);
        assert!(exact.grid.elements.iter().all(|element| element.error == 0.0));
        let known = quantized(&target, 1e-6, &spec(4, 4), unit);
        let open = known.grid.elements.iter().map(|element| element.at_tie(known.grid.ends));
        assert_eq!(open.collect::<Vec<_>>(), [false, true, true, false]);
    }

    #[test]
    fn a_group_that_may_be_zero_is_open_altogether() {
        let unit = Unit::of(Precision::F32);
        let target = array![[1e-9, 0.0]];
        let known = quantized(&target, 1e-8, &spec(4, 2), unit);
        assert_eq!(known.maybe_zero, [true]);
        assert!(known.grid.elements.iter().all(|element| element.at_tie(known.grid.ends)));
        let exact = quantized(&array![[0.0, 0.0]], 0.0, &spec(4, 2), unit);
        assert_eq!((exact.maybe_zero[0], exact.scale[0].value()), (false, 1.0));
    }

    #[test]
    fn what_was_open_in_a_turn_is_lost_or_not() {
        let unit = Unit::of(Precision::F32);
        let weight = array![[7.0, 2.5]];
        let open = quantized(&weight, 1e-6, &spec(4, 2), unit);
        let (residual, error) = lost(&weight, &open, None, unit);
        assert_eq!(residual, array![[0.0, 0.5]]);
        assert!((1.0..1.001).contains(&error), "{error}");
        let (residual, error) = lost(&weight, &open, Some(&[7, 3]), unit);
        assert_eq!(residual, array![[0.0, -0.5]]);
        assert!(error < 1e-4, "{error}");
    }
}
