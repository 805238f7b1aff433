//! `llama.train`.
//!
//! Codes are not answered. A case is one in which no argument of a rounding comes close to a tie or
//! an end of its grid on all of the way (`sample.rs`, and `golden/torch_trajectories.py`).

mod method;
mod sample;

use std::borrow::Cow;
use std::collections::BTreeMap;

use ndarray::{Array1, Array2, Array3, ArrayD, Axis, stack};
use plumbline_reference::Real;
use plumbline_reference::model::train::{LayerShape, Moments, Step, Training};
use plumbline_reference::model::{expected_shapes, linear_shapes};

use super::Operation;
use super::row::{bounded, ids, runs};
use super::{Class, Shape, TensorSpec, TensorSpecs};
use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::judge::noisy;
use crate::params::{self, Params};
use crate::precision::Scalar;
use crate::tensor::{Kind, Tensor, Tensors};

pub use method::{FIRST_MOMENT, SECOND_MOMENT, method, method_name, optimizer};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[Operation {
    name: "llama.train",
    params: &[
        "config",
        "method",
        "bits",
        "group_size",
        "lora_scaling",
        "grad_scale",
        "mask",
        "downcast",
        "inner_scale",
        "dialect",
        "pool",
        "quantizer",
        "lr",
        "beta1",
        "beta2",
        "eps",
        "weight_decay",
        "first_step",
    ],
    inputs: &[ids("tokens", &["steps", "batch", "length"])],
    outputs: &[
        bounded("loss", &["steps"], noisy::RULE),
        bounded("logits", &["batch", "length", "vocab"], noisy::RULE),
    ],
    weights: Some(tensors),
    sizes,
    run: runs!(run),
    grid: None,
    bounds,
    sample: sample::sample,
}];

const TOKENS: &str = "tokens";

/// Everything whose name depends on the model or the method.
fn tensors(params: &Params) -> Result<TensorSpecs, String> {
    let config = params::llama_config(params)?;
    let method = method(params)?;
    let float = |name: String, shape: Shape, optional, class| TensorSpec {
        name: Cow::Owned(name),
        kind: Kind::Float,
        shape,
        optional,
        factor: false,
        class,
    };
    let mut specs = TensorSpecs::default();
    for (name, shape) in expected_shapes(&config) {
        if !linear_shapes(&config).contains_key(name.trim_end_matches(".weight")) {
            specs.inputs.push(float(name, Shape::Exact(shape), false, Class::Given));
        }
    }
    for (layer, size) in linear_shapes(&config) {
        let groups = method.groups(size[1]).map_err(|e| format!("params: {e}"))?;
        for tensor in method.layer_tensors() {
            let name = format!("{layer}.{}", tensor.name);
            // The rank is that of the factors; `sizes` holds them against each other.
            let shape = || match tensor.shape {
                LayerShape::LoraA | LayerShape::PooledLoraA | LayerShape::LoraB => Shape::Any,
                shape => Shape::Exact(shape.sizes(size, groups, 0).to_vec()),
            };
            let given = float(name.clone(), shape(), tensor.optional, Class::Given);
            let is_codes = tensor.shape == LayerShape::Codes;
            let kind = if is_codes { Kind::UnsignedCodes } else { Kind::Float };
            specs.inputs.push(TensorSpec { kind, ..given });
            if !tensor.trained {
                continue;
            }
            let judged = Class::Bounded(noisy::RULE);
            specs.outputs.push(float(format!("d_{name}"), Shape::Any, false, judged));
            for moment in [FIRST_MOMENT, SECOND_MOMENT] {
                let name = format!("{moment}{name}");
                specs.inputs.push(float(name.clone(), shape(), true, Class::Given));
                specs.outputs.push(float(name, shape(), false, Class::Bounded(noisy::RULE)));
            }
            specs.outputs.push(float(name, shape(), false, Class::Bounded(noisy::RULE)));
        }
    }
    Ok(specs)
}

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    optimizer(&request.params)?;
    training::<f64>(request)?;
    if request.tensor(TOKENS)?.shape().first() == Some(&0) {
        return Err("in.tokens has no step".to_owned());
    }
    Ok(vec![("vocab", params::llama_config(&request.params)?.vocab_size)])
}

/// The model of a request, before its first step.
fn training<T: Real>(request: &Request) -> Result<Training<T>, String> {
    let config = params::llama_config(&request.params)?;
    let (mut tensors, mut codes) = (BTreeMap::<String, ArrayD<T>>::new(), BTreeMap::new());
    for (name, tensor) in &request.inputs {
        let is_moment = [FIRST_MOMENT, SECOND_MOMENT].iter().any(|m| name.starts_with(m));
        if name.ends_with(".codes") {
            let of_layer: Array2<u8> = request.unsigned(name)?;
            codes.insert(name.clone(), of_layer);
        } else if name != TOKENS && !is_moment {
            tensors.insert(name.clone(), tensor.array());
        }
    }
    let refused = |e: plumbline_reference::Error| e.to_string();
    let mut training =
        Training::new(config, method(&request.params)?, tensors, codes).map_err(refused)?;
    let trained: Vec<_> = training.moments().keys().cloned().collect();
    for name in trained {
        let zero = &training.moments()[&name];
        let given = |moment: &str| request.inputs.get(&format!("{moment}{name}"));
        let first = given(FIRST_MOMENT).map_or_else(|| zero.first.clone(), Tensor::array);
        let second = given(SECOND_MOMENT).map_or_else(|| zero.second.clone(), Tensor::array);
        training = training.with_moments(&name, Moments { first, second }).map_err(refused)?;
    }
    Ok(training)
}

/// Outputs under their names, over any scalar.
fn output<T: Real>(request: &Request) -> Result<Vec<(String, ArrayD<T>)>, String> {
    let mut training = training::<T>(request)?;
    let (optimizer, first_step) = optimizer(&request.params)?;
    let tokens: Array3<i32> = request.tokens(TOKENS)?;
    let refused = |e: plumbline_reference::Error| e.to_string();
    let mut losses = Vec::new();
    let mut gradients: BTreeMap<String, Vec<ArrayD<T>>> = BTreeMap::new();
    for (batch, number) in tokens.outer_iter().zip(first_step..) {
        let Step { loss, gradients: of_step } =
            training.step(batch, &optimizer, number).map_err(refused)?;
        losses.push(loss);
        for (name, gradient) in of_step {
            gradients.entry(name).or_default().push(gradient);
        }
    }
    let last = tokens.outer_iter().next_back().ok_or("in.tokens has no step")?;
    let logits = training.logits(last).map_err(refused)?.into_dyn();
    let loss = Array1::from(losses).into_dyn();
    let mut outputs = vec![("loss".to_owned(), loss), ("logits".to_owned(), logits)];
    for (name, of_steps) in gradients {
        let of_steps: Vec<_> = of_steps.iter().map(|gradient| gradient.view()).collect();
        let stacked = stack(Axis(0), &of_steps).map_err(|e| e.to_string())?;
        outputs.push((format!("d_{name}"), stacked));
    }
    for (name, Moments { first, second }) in training.moments() {
        outputs.push((name.clone(), training.tensors()[name].clone()));
        outputs.push((format!("{FIRST_MOMENT}{name}"), first.clone()));
        outputs.push((format!("{SECOND_MOMENT}{name}"), second.clone()));
    }
    Ok(outputs)
}

fn run<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let outputs = output::<T>(request)?.into_iter();
    Ok(outputs.map(|(name, array)| (name, Tensor::floats(&array))).collect())
}

fn bounds(evidence: &Evidence) -> Result<Bounds, String> {
    noisy::bounds(evidence, output, output)
}
