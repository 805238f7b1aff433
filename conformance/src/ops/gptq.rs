//! `gptq.quantize`.

mod factor;
mod replay;

use ndarray::Array2;
use plumbline_reference::gptq::{Cholesky, quantize};
use serde_json::json;

use super::quantizer::Choice;
use super::row::{GROUPS, WEIGHT, bounded, chosen, given, runs, tensor};
use super::{Class, Operation, Shape, TensorSpecs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::params::{self, Params};
use crate::precision::{Precision, Scalar};
use crate::sampler::Sampler;
use crate::tensor::{Data, Kind, Tensor, Tensors};
use replay::{Answer, Replay};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[Operation {
    name: "gptq.quantize",
    params: &[
        "bits",
        "group_size",
        "symmetric",
        "damping",
        "block_size",
        "act_order",
        "static_groups",
    ],
    inputs: &[given("weight", WEIGHT), given("hessian", &["in", "in"])],
    outputs: &[
        chosen("codes", Kind::UnsignedCodes, WEIGHT, codes),
        bounded("scale", GROUPS, "error of the weights in the range and gamma(2)"),
        chosen("zero_point", Kind::Float, GROUPS, zero_points),
        bounded("output", WEIGHT, "gamma(1) * |code * scale| + |code| * error of the scale"),
    ],
    weights: Some(with_order),
    sizes,
    run: runs!(run, linear algebra),
    grid: None,
    bounds,
    sample,
}];

/// Whether the answer says which group each input is in.
fn has_group_index(params: &Params) -> Result<bool, String> {
    let act_order: bool = params.required("act_order")?;
    let static_groups = params.optional("static_groups")?.unwrap_or(false);
    Ok(act_order && !static_groups)
}

fn with_order(params: &Params) -> Result<TensorSpecs, String> {
    let mut specs = TensorSpecs::default();
    if has_group_index(params)? {
        let shape = Shape::Words(&["in"]);
        specs.outputs.push(tensor("group_index", Kind::TokenIds, shape, Class::Exact));
    }
    Ok(specs)
}

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let [out_features, in_features] = request.sizes("weight")?;
    let groups = params::gptq(&request.params, in_features)?.quant.groups();
    Ok(vec![("out", out_features), ("in", in_features), ("groups", groups)])
}

fn run<T: Scalar + Cholesky>(request: &Request) -> Result<Tensors, String> {
    let (weight, hessian): (Array2<T>, Array2<T>) =
        (request.array("weight")?, request.array("hessian")?);
    let spec = params::gptq(&request.params, weight.ncols())?;
    let quantized = quantize(weight.view(), hessian.view(), &spec).map_err(|e| e.to_string())?;
    let mut outputs = super::tensors([
        ("codes", Tensor::unsigned(&quantized.codes)),
        ("scale", Tensor::floats(&quantized.scale)),
        ("zero_point", Tensor::floats(&quantized.zero_point)),
        ("output", Tensor::floats(&quantized.output)),
    ]);
    if has_group_index(&request.params)? {
        let index: Vec<i32> = quantized.group_index.iter().map(|&g| g as i32).collect();
        let index = Tensor::new(vec![index.len()], Data::I32(index))?;
        outputs.insert("group_index".to_owned(), index);
    }
    Ok(outputs)
}

/// Every decision with the subject's own decisions before it.
fn codes(evidence: &Evidence) -> Result<Vec<Choice>, String> {
    let given = evidence.actual.get("codes").and_then(Tensor::small_integers);
    let replay = Replay::new(evidence, given.as_deref())?;
    Ok(replay.codes.iter().copied().collect())
}

fn zero_points(evidence: &Evidence) -> Result<Vec<Choice>, String> {
    let given = evidence.actual.get("codes").and_then(Tensor::small_integers);
    let replay = Replay::new(evidence, given.as_deref())?;
    Ok(replay.zero_points.iter().copied().collect())
}

/// With the codes that were accepted; where they are not the expected ones, neither are the values.
fn bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let replay = Replay::new(evidence, evidence.accepted_codes().as_deref())?;
    let allowance = |values: &Array2<Answer>| {
        let mut allowance = Allowance::absolute(values.iter().map(|answer| answer.error));
        for (index, answer) in values.iter().enumerate() {
            if answer.diverged {
                allowance.replaced.push((index, answer.value));
            }
        }
        allowance
    };
    Ok(named([("scale", allowance(&replay.scale)), ("output", allowance(&replay.output))]))
}

fn sample(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let mut shape = sampler.quantizer();
    // The error of a factor grows with its size and condition; a small one leaves few codes open.
    let columns =
        shape.group_size * (shape.in_features / shape.group_size).min(1 + 8 / shape.group_size);
    shape.in_features = columns;
    let mut params = shape.params();
    let mut set = |name: &str, value| params.0.insert(name.to_owned(), value);
    set("symmetric", json!(sampler.chance(0.5)));
    set("damping", json!(sampler.pick(&[0.01, 0.1, 1.0])));
    set("block_size", json!(sampler.pick(&[1, 2, 3, 5, 8, 128])));
    set("act_order", json!(sampler.chance(0.4)));
    if sampler.chance(0.5) {
        set("static_groups", json!(sampler.chance(0.6)));
    }
    let weight = sampler.normal(&shape.weight_shape(), 0.05);
    // Inputs with a common part, of unlike sizes, one of which may never occur.
    let tokens = 2 * columns + 4;
    let (x, common) = (sampler.normal(&[tokens, columns], 1.0), sampler.normal(&[tokens], 0.5));
    let sizes: Vec<f64> = (0..columns).map(|_| sampler.pick(&[0.5, 1.0, 2.0])).collect();
    let dead = if sampler.chance(0.2) { sampler.size(0, columns - 1) } else { columns };
    let input = |t: usize, i: usize| {
        let alive = if i == dead { 0.0 } else { sizes[i] };
        alive * (x.value(t * columns + i) + common.value(t))
    };
    let hessian = (0..columns * columns).map(|index| {
        let (i, k) = (index / columns, index % columns);
        let sum: f64 = (0..tokens).map(|t| input(t, i) * input(t, k)).sum();
        2.0 * sum / tokens as f64
    });
    let mut hessian: Vec<f64> = hessian.collect();
    if sampler.chance(0.15) {
        // Nothing moves: arguments are quotients of given numbers.
        for (index, h) in hessian.iter_mut().enumerate() {
            *h *= if index / columns == index % columns { 1.0 } else { 0.0 };
        }
    }
    let square = vec![columns, columns];
    let hessian = Tensor::from_f64s(square, hessian.into_iter(), Precision::F32);
    Ok((params, super::tensors([("weight", weight), ("hessian", hessian)])))
}
