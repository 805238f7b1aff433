//! Batches: what is computed for one token or sequence does not depend on the others, and
//! gradients of parameters add up over them.

use super::along::Along;
use super::answer::{Answer, Bounded};
use super::powers::edit;
use super::tensors::{axis_of, join, multiplied, take};
use super::trial::{Checked, Equal, Trial, unusable};
use crate::case::Request;
use crate::ops::Operation;
use crate::tensor::{Data, Tensor};

/// What a batch is made of.
fn word_of(op: &Operation) -> &'static str {
    let of_sequences = op.name.starts_with("attention.") || op.name.starts_with("llama.");
    if of_sequences { "batch" } else { "tokens" }
}

/// Whether an output that is no slice of the batch is the mean over it, in place of the sum.
fn is_mean(op: &Operation) -> bool {
    op.name.starts_with("llama.")
}

/// How equal a slice of the batch is beside others and alone: the kernel of a layer may order its
/// sums by how many tokens there are, while attention takes one sequence at a time.
fn beside(op: &Operation) -> Equal {
    if op.name.starts_with("attention.") { Equal::OneOrder } else { Equal::Bounds }
}

/// Another request with the same parameters of the layer and a batch of its own, of `count`.
fn another(trial: &mut Trial, request: &Request, count: usize) -> Request {
    let word = word_of(request.op);
    let mut other = request.clone();
    let Ok(specs) = request.op.tensors(&request.params) else { return other };
    for spec in &specs.inputs {
        let (Some(axis), Some(tensor)) = (axis_of(spec, word), other.inputs.get_mut(&*spec.name))
        else {
            continue;
        };
        let mut shape = tensor.shape().to_vec();
        shape[axis] = count;
        *tensor = match tensor.data() {
            Data::I32(ids) => {
                let largest = ids.iter().copied().max().unwrap_or_default().max(0) as usize;
                let elements = shape.iter().product();
                let ids = (0..elements).map(|_| trial.sampler.size(0, largest) as i32).collect();
                Tensor::new(shape, Data::I32(ids)).expect("as many as the shape holds")
            }
            _ => trial.sampler.normal(&shape, 1.0),
        };
    }
    other
}

/// One request with all the parts behind each other.
fn joined(parts: &[Request]) -> Result<Request, String> {
    let mut whole = parts[0].clone();
    let word = word_of(whole.op);
    for spec in &whole.op.tensors(&whole.params)?.inputs {
        if let Some(axis) = axis_of(spec, word) {
            let tensors: Vec<&Tensor> =
                parts.iter().map(|part| part.tensor(&spec.name)).collect::<Result<_, _>>()?;
            whole.inputs.insert(spec.name.to_string(), join(&tensors, axis));
        }
    }
    Ok(whole)
}

/// The whole against its parts: slices of the batch are those of the parts, the rest adds up.
fn whole_and_parts(trial: &mut Trial, parts: &[Request]) -> Checked {
    let op = parts[0].op;
    let word = word_of(op);
    let whole = joined(parts).map_err(unusable(op))?;
    let sizes: Vec<usize> = parts.iter().map(|part| Along::Word(word).count(part)).collect();
    let total: usize = sizes.iter().sum();
    let whole = trial.ask(&whole)?;
    let answers: Vec<Answer> = parts.iter().map(|part| trial.ask(part)).collect::<Checked<_>>()?;
    let apart = beside(op);
    let specs: Vec<_> = whole.specs().cloned().collect();
    for spec in specs {
        if let Some(axis) = axis_of(&spec, word) {
            let mut start = 0;
            for (answer, size) in answers.iter().zip(&sizes) {
                let order: Vec<usize> = (start..start + size).collect();
                let slice = |tensor: &Tensor| take(tensor, axis, &order);
                trial.compare(apart, &spec.name, (answer, &Tensor::clone), (&whole, &slice))?;
                start += size;
            }
            continue;
        }
        if op.name.ends_with(".forward") {
            // Codes and weights of the layer, which no batch changes.
            let keep = Tensor::clone;
            trial.compare(Equal::Bits, &spec.name, (&answers[0], &keep), (&whole, &keep))?;
            continue;
        }
        let mut sum: Option<Bounded> = None;
        for (answer, size) in answers.iter().zip(&sizes) {
            let mut part = answer.bounded(&spec.name, trial.precision())?;
            if is_mean(op) {
                part = part.times(*size as f64 / total as f64);
            }
            sum = Some(sum.map_or_else(|| part.changed(Tensor::clone), |sum| sum.plus(&part)));
        }
        if let Some(sum) = sum {
            let is = whole.bounded(&spec.name, trial.precision())?;
            trial.close(op, &spec.name, &sum, &is)?;
        }
    }
    Ok(())
}

pub(super) fn batch_twice(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let request = trial.draw(ops[0])?;
    whole_and_parts(trial, &[request.clone(), request])
}

pub(super) fn batches_joined(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let request = trial.draw(ops[0])?;
    let count = trial.sampler.size(1, 9);
    let other = another(trial, &request, count);
    whole_and_parts(trial, &[request, other])
}

pub(super) fn accumulation(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let request = trial.draw(ops[0])?;
    let count = Along::Word(word_of(ops[0])).count(&request);
    let mut parts = vec![request];
    for _ in 0..trial.sampler.size(2, 5) {
        parts.push(another(trial, &parts[0].clone(), count));
    }
    whole_and_parts(trial, &parts)
}

/// Rows whose gradient is zero add zeros to every sum, whatever else is in them, and have a
/// gradient of zero themselves.
pub(super) fn padding(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let word = word_of(op);
    let request = trial.draw(op)?;
    let (rows, count) = (Along::Word(word).count(&request), trial.sampler.size(1, 9));
    let mut padded = Vec::new();
    for _ in 0..2 {
        let mut silent = another(trial, &request, count);
        for name in ["d_y", "d_output"] {
            edit(&mut silent, name, |_| 0.0);
        }
        let whole = joined(&[request.clone(), silent]).map_err(unusable(op))?;
        padded.push(trial.ask(&whole)?);
    }
    let [one, other] = &padded[..] else { return Ok(()) };
    let alone = trial.ask(&request)?;
    let keep = Tensor::clone;
    for spec in alone.specs().cloned().collect::<Vec<_>>() {
        let name = &*spec.name;
        let Some(axis) = axis_of(&spec, word) else {
            trial.compare(Equal::Bits, name, (one, &keep), (other, &keep))?;
            // Without the rows the sum may run in another order.
            trial.compare(Equal::Bounds, name, (&alone, &keep), (one, &keep))?;
            continue;
        };
        let head = |tensor: &Tensor| take(tensor, axis, &(0..rows).collect::<Vec<_>>());
        trial.compare(Equal::Bits, name, (one, &head), (other, &head))?;
        trial.compare(beside(op), name, (&alone, &keep), (one, &head))?;
        let tail = take(one.output(name), axis, &(rows..rows + count).collect::<Vec<_>>());
        trial.same(op, name, &multiplied(&tail, |_| 0.0), &tail)?;
    }
    Ok(())
}
