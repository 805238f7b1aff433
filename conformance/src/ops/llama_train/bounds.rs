//! How far a run may be from the expected one.
//!
//! A trajectory has no bound that follows from its formula element by element: an error of one step
//! is in the tensors of every later one. As in [`crate::ops::llama`], what stands for the model is
//! one bound for each tensor, relative to its largest element. From the gradients on, AdamW is
//! followed element by element.
//!
//! | output | relative to | bound |
//! |---|---|---|
//! | `loss`, `logits` | largest logit, or the loss | `gamma(3 * path * steps so far)` |
//! | `d_` of a tensor, step `s` | largest of that step and kind of tensor in the block | `gamma(3 * path * steps so far)` |
//! | moments, trained tensor | each element | what the gradients' bounds come to, step by step |
//!
//! Where the second moment is small against its own error, the direction of AdamW moves by up to
//! `2 / eps` for a gradient's 1. An `eps` far below the gradients would leave nothing of such an
//! element to judge: it is 1e-2 and more in the cases here.

use std::collections::BTreeMap;

use plumbline_reference::model::train::Optimizer;

use super::{FIRST_MOMENT, SECOND_MOMENT, TOKENS, optimizer};
use crate::judge::bound::{Allowance, Bounds, Evidence};
use crate::ops::llama::path;
use crate::params;
use crate::precision::Unit;
use crate::tensor::{Tensor, Tensors};

pub(super) fn bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, expected, .. } = *evidence;
    let config = params::llama_config(&request.params)?;
    let (optimizer, first_step) = optimizer(&request.params)?;
    let [steps, _, length] = request.sizes(TOKENS)?;
    let of_a_step = 3.0 * path(&config, length);
    let largest = largest_gradients(expected, steps);
    let mut bounds = Bounds::new();
    for name in ["loss", "logits"] {
        let tensor = expected.get(name).ok_or_else(|| format!("out.{name} is missing"))?;
        let condition = expected.get("logits").map_or(0.0, whole).max(whole(tensor));
        let condition = std::iter::repeat_n(condition, tensor.len());
        let allowance = Allowance::new(condition, of_a_step * steps as f64, unit);
        bounds.insert(name.to_owned(), allowance);
    }
    for (name, gradient) in expected {
        let Some(trained) = name.strip_prefix("d_") else { continue };
        let errors: Vec<f64> = largest[&kind(trained)]
            .iter()
            .zip(1..)
            .map(|(largest, step)| unit.gamma(of_a_step * f64::from(step)) * largest + unit.tiny)
            .collect();
        let start = ["", FIRST_MOMENT, SECOND_MOMENT]
            .map(|prefix| request.inputs.get(&format!("{prefix}{trained}")));
        let run = Run { optimizer, first_step, unit, start, gradient, errors: &errors };
        let each = gradient.len() / steps.max(1);
        let of_gradient = errors.iter().flat_map(|error| std::iter::repeat_n(*error, each));
        bounds.insert(name.clone(), Allowance::absolute(of_gradient));
        let mut outputs = [(); 3].map(|()| Vec::with_capacity(each));
        for index in 0..each {
            let errors = run.follow(index, each);
            outputs.iter_mut().zip(errors).for_each(|(output, error)| output.push(error));
        }
        for (prefix, output) in ["", FIRST_MOMENT, SECOND_MOMENT].into_iter().zip(outputs) {
            bounds.insert(format!("{prefix}{trained}"), Allowance::absolute(output));
        }
    }
    Ok(bounds)
}

fn whole(tensor: &Tensor) -> f64 {
    tensor.values().fold(0.0, |max, x| max.max(x.abs()))
}

/// The largest gradient of each step, of the tensors of one kind in one block: those of queries and
/// keys are differences of terms as large as those of values, and the sum over the outputs of a
/// narrow layer may cancel in all of a factor.
fn largest_gradients(expected: &Tensors, steps: usize) -> BTreeMap<String, Vec<f64>> {
    let mut of_block: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, gradient) in expected {
        let Some(trained) = name.strip_prefix("d_") else { continue };
        let largest = of_block.entry(kind(trained)).or_insert_with(|| vec![0.0; steps]);
        let each = (gradient.len() / steps.max(1)).max(1);
        for (index, value) in gradient.values().enumerate() {
            largest[index / each] = largest[index / each].max(value.abs());
        }
    }
    of_block
}

/// `model.layers.0` and the tensor's own name, without the layer between.
fn kind(trained: &str) -> String {
    let parts: Vec<_> = trained.split('.').collect();
    let own = parts.last().copied().unwrap_or_default();
    format!("{}.{own}", parts[..parts.len().min(3)].join("."))
}

/// The steps of one tensor, with the errors of its gradients.
struct Run<'a> {
    optimizer: Optimizer,
    first_step: u64,
    unit: Unit,
    /// The tensor and its moments, where they are given, before the first step.
    start: [Option<&'a Tensor>; 3],
    /// `[steps, ...]`
    gradient: &'a Tensor,
    /// Of any element of each step's gradient.
    errors: &'a [f64],
}

/// A value and a bound on its error.
#[derive(Clone, Copy)]
struct Near {
    value: f64,
    error: f64,
}

impl Run<'_> {
    /// Errors of the trained element and of its two moments after the last step. Eq. (T1), with
    /// the errors of first order and the one square that is not small beside them.
    fn follow(&self, index: usize, each: usize) -> [f64; 3] {
        let Self { optimizer, unit, .. } = self;
        let spec = &optimizer.spec;
        let [mut parameter, mut first, mut second] = self.start.map(|given| {
            let value = given.map_or(0.0, |tensor| tensor.value(index));
            Near { value, error: 0.0 }
        });
        for (step, error) in self.errors.iter().enumerate() {
            let gradient = Near { value: self.gradient.value(step * each + index), error: *error };
            let square = Near {
                value: gradient.value * gradient.value,
                error: (2.0 * gradient.value.abs() + error) * error,
            };
            first = self.mean(spec.beta1, first, gradient);
            second = self.mean(spec.beta2, second, square);
            let number = (self.first_step + step as u64) as f64;
            let corrections = [spec.beta1, spec.beta2].map(|beta| 1.0 - beta.powf(number));
            let direction = self.direction(
                Near { value: first.value / corrections[0], error: first.error / corrections[0] },
                Near { value: second.value / corrections[1], error: second.error / corrections[1] },
            );
            // The decay takes at most the whole parameter with it; three roundings of its size.
            let moved = optimizer.lr * direction.value;
            let size = parameter.value.abs() + moved.abs();
            parameter.value -= moved;
            parameter.error += optimizer.lr * direction.error + unit.gamma(6.0) * size + unit.tiny;
        }
        [parameter, first, second].map(|near| near.error)
    }

    /// `beta * old + (1 - beta) * new`: two constants, two products, a sum, and one of the square.
    fn mean(&self, beta: f64, old: Near, new: Near) -> Near {
        let size = beta * old.value.abs() + (1.0 - beta) * new.value.abs();
        let own = self.unit.gamma(4.0) * size + 4.0 * self.unit.tiny;
        Near {
            value: beta * old.value + (1.0 - beta) * new.value,
            error: beta * old.error + (1.0 - beta) * new.error + own,
        }
    }

    /// `first / (sqrt(second) + eps)`, with the roundings of both corrections, the root, the sum
    /// and the quotient.
    fn direction(&self, first: Near, second: Near) -> Near {
        let eps = self.optimizer.spec.eps;
        let root = second.value.max(0.0).sqrt();
        let lowest = (second.value - second.error).max(0.0).sqrt();
        // sqrt(a) - sqrt(b) = (a - b) / (sqrt(a) + sqrt(b)), downwards further than upwards.
        let down = root - lowest;
        let value = first.value / (root + eps);
        let own = self.unit.gamma(8.0) * value.abs();
        Near { value, error: (first.error + value.abs() * down) / (lowest + eps) + own }
    }
}
