//! `llama.train`.
//!
//! A trajectory has no bound that follows from its formula element by element: an error of one step
//! is in the tensors of every later one. As in [`super::llama`], what stands instead is one bound
//! for each tensor, relative to its largest element, and in one place, [`bounds`]:
//!
//! | output | relative to | bound |
//! |---|---|---|
//! | `loss[s]`, `logits` | largest logit, or the loss | `gamma(3 * path * steps so far)` |
//! | `d_` of a tensor, step `s` | largest of that step and tensor in the attention or the feed-forward layer of the block | `gamma(3 * path * steps so far)` |
//! | moments | the same over all steps, and the moment; squared for the second | `gamma(6 * path * steps)` |
//! | trained tensor | `abs(tensor) + lr * steps * (1 + 2 * largest gradient / eps)` | `gamma(3 * path * steps)` |
//!
//! - The direction of AdamW moves by at most `2 / eps` for a move of all gradients by 1: the mean by
//!   1 and the root of the mean square by 1, each over at least `eps`. So `eps` should not be far
//!   below the gradients, or nothing of a gradient near zero is judged: 1e-2 and more here.
//! - Codes are not answered. A case is one in which no argument of a rounding comes close to a tie
//!   or an end of the grid on all of the way (`sample.rs`, and `golden/trajectories.py`).

mod method;
mod sample;

use std::borrow::Cow;
use std::collections::BTreeMap;

use ndarray::{Array2, Array3, ArrayD, Axis, stack};
use plumbline_reference::model::train::{LayerShape, Moments, Step, Training};
use plumbline_reference::model::{expected_shapes, linear_shapes};

use super::Operation;
use super::row::{bounded, ids, runs};
use super::{Class, Shape, TensorSpec, TensorSpecs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence};
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
        bounded("loss", &["steps"], BOUND),
        bounded("logits", &["batch", "length", "vocab"], BOUND),
    ],
    weights: Some(tensors),
    sizes,
    run: runs!(run),
    grid: None,
    bounds,
    sample: sample::sample,
}];

/// How every output is judged.
pub const BOUND: &str = "gamma(roundings on the longest path, and steps) * largest element";

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
            let judged = Class::Bounded(BOUND);
            specs.outputs.push(float(format!("d_{name}"), Shape::Any, false, judged));
            for moment in [FIRST_MOMENT, SECOND_MOMENT] {
                let name = format!("{moment}{name}");
                specs.inputs.push(float(name.clone(), shape(), true, Class::Given));
                specs.outputs.push(float(name, shape(), false, judged));
            }
            specs.outputs.push(float(name, shape(), false, judged));
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
fn training<T: Scalar>(request: &Request) -> Result<Training<T>, String> {
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

fn run<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let mut training = training::<T>(request)?;
    let (optimizer, first_step) = optimizer(&request.params)?;
    let tokens: Array3<i32> = request.tokens(TOKENS)?;
    let refused = |e: plumbline_reference::Error| e.to_string();
    let mut losses = Vec::new();
    let mut gradients: BTreeMap<String, Vec<ArrayD<T>>> = BTreeMap::new();
    for (batch, number) in tokens.outer_iter().zip(first_step..) {
        let Step { loss, gradients: of_step } =
            training.step(batch, &optimizer, number).map_err(refused)?;
        losses.push(loss.value());
        for (name, gradient) in of_step {
            gradients.entry(name).or_default().push(gradient);
        }
    }
    let last = tokens.outer_iter().next_back().ok_or("in.tokens has no step")?;
    let logits = training.logits(last).map_err(refused)?;
    let loss = Tensor::from_f64s(vec![losses.len()], losses.into_iter(), T::PRECISION);
    let mut outputs = super::tensors([("loss", loss), ("logits", Tensor::floats(&logits))]);
    for (name, of_steps) in gradients {
        let of_steps: Vec<_> = of_steps.iter().map(|gradient| gradient.view()).collect();
        let stacked = stack(Axis(0), &of_steps).map_err(|e| e.to_string())?;
        outputs.insert(format!("d_{name}"), Tensor::floats(&stacked));
    }
    for (name, Moments { first, second }) in training.moments() {
        outputs.insert(name.clone(), Tensor::floats(&training.tensors()[name]));
        outputs.insert(format!("{FIRST_MOMENT}{name}"), Tensor::floats(first));
        outputs.insert(format!("{SECOND_MOMENT}{name}"), Tensor::floats(second));
    }
    Ok(outputs)
}

fn bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, expected, .. } = *evidence;
    let config = params::llama_config(&request.params)?;
    let (optimizer, _) = optimizer(&request.params)?;
    let [steps, _, length] = request.sizes(TOKENS)?;
    let roundings = 3.0 * super::llama::path(&config, length) * steps as f64;
    let largest = LargestGradients::new(expected, steps);
    let whole = |tensor: &Tensor| tensor.values().fold(0.0, |max: f64, x| max.max(x.abs()));
    let logit = expected.get("logits").map_or(0.0, whole);
    let allowances = expected.iter().map(|(name, tensor)| {
        let all = |condition: f64, roundings: f64| {
            Allowance::new(std::iter::repeat_n(condition, tensor.len()), roundings, unit)
        };
        let allowance = if let Some(trained) = name.strip_prefix("d_") {
            let of_steps = largest.of(trained);
            let each = tensor.len() / steps.max(1);
            let bound = of_steps.iter().zip(1..).flat_map(|(largest, step)| {
                let so_far = roundings * f64::from(step) / steps as f64;
                std::iter::repeat_n(unit.gamma(so_far) * largest + so_far * unit.tiny, each)
            });
            Allowance::absolute(bound)
        } else if let Some(trained) = name.strip_prefix(FIRST_MOMENT) {
            all(largest.ever(trained) + whole(tensor), 2.0 * roundings)
        } else if let Some(trained) = name.strip_prefix(SECOND_MOMENT) {
            all(largest.ever(trained).powi(2) + whole(tensor), 2.0 * roundings)
        } else if name == "loss" || name == "logits" {
            all(logit.max(whole(tensor)), roundings)
        } else {
            let direction = 1.0 + 2.0 * largest.ever(name) / optimizer.spec.eps;
            all(whole(tensor) + optimizer.lr * steps as f64 * direction, roundings)
        };
        (name.clone(), allowance)
    });
    Ok(allowances.collect())
}

/// The largest gradient of each step, of the tensors of one kind in one half of a block: those of
/// queries and keys are differences of terms as large as those of values.
struct LargestGradients {
    of_half: BTreeMap<String, Vec<f64>>,
}

impl LargestGradients {
    fn new(expected: &Tensors, steps: usize) -> Self {
        let mut of_half: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (name, gradient) in expected {
            let Some(trained) = name.strip_prefix("d_") else { continue };
            let largest = of_half.entry(half(trained)).or_insert_with(|| vec![0.0; steps]);
            let each = (gradient.len() / steps.max(1)).max(1);
            for (index, value) in gradient.values().enumerate() {
                largest[index / each] = largest[index / each].max(value.abs());
            }
        }
        Self { of_half }
    }

    fn of(&self, trained: &str) -> &[f64] {
        self.of_half.get(&half(trained)).map_or(&[], Vec::as_slice)
    }

    fn ever(&self, trained: &str) -> f64 {
        self.of(trained).iter().copied().fold(0.0, f64::max)
    }
}

/// `model.layers.0.self_attn` and the tensor's own name, without the projection between.
fn half(trained: &str) -> String {
    let parts: Vec<_> = trained.split('.').collect();
    let own = parts.last().copied().unwrap_or_default();
    format!("{}.{own}", parts[..parts.len().saturating_sub(2)].join("."))
}
