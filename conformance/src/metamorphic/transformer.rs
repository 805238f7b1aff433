//! What positions, causality, the loss and the optimizer promise.

use serde_json::json;

use super::along::Along;
use super::answer::Bounded;
use super::powers::edit;
use super::tensors::{axis_of, join, multiplied, take};
use super::trial::{Checked, Equal, Trial, unusable};
use crate::case::Request;
use crate::ops::Operation;
use crate::params;
use crate::precision::Precision;
use crate::tensor::{Data, Tensor};

/// What comes later in a sequence changes nothing before it.
pub(super) fn causal(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let word = if op.name.starts_with("llama.") { "length" } else { "tokens" };
    let mut request = trial.draw_several(op, Along::Word(word), 2)?;
    let count = Along::Word(word).count(&request);
    let kept = trial.sampler.size(1, count - 1);
    silence_from(&mut request, kept).map_err(unusable(op))?;
    let mut changed = request.clone();
    let specs = op.tensors(&request.params).map_err(unusable(op))?;
    for spec in &specs.inputs {
        let Some(axis) = axis_of(spec, word).filter(|_| *spec.name != *"d_output") else {
            continue;
        };
        let old = request.tensor(&spec.name).map_err(unusable(op))?;
        let head = take(old, axis, &(0..kept).collect::<Vec<_>>());
        // The later ones in another order, and shifted: the largest may come to stand elsewhere.
        let mut order: Vec<usize> = (kept..count).collect();
        order.reverse();
        let tail = take(old, axis, &order);
        let tail = match tail.data() {
            Data::I32(ids) => {
                let largest = old.values().fold(0.0, f64::max) as i32;
                let ids = ids.iter().map(|id| largest - id).collect();
                Tensor::new(tail.shape().to_vec(), Data::I32(ids)).map_err(unusable(op))?
            }
            _ => multiplied(&tail, |place| if place % 2 == 0 { -4.0 } else { 2.0 }),
        };
        changed.inputs.insert(spec.name.to_string(), join(&[&head, &tail], axis));
    }
    let (before, after) = (trial.ask(&request)?, trial.ask(&changed)?);
    for spec in specs.outputs {
        let Some(axis) = axis_of(&spec, word) else { continue };
        let head = |tensor: &Tensor| take(tensor, axis, &(0..kept).collect::<Vec<_>>());
        // What comes later adds zeros, or nothing, to sums that stay where they are.
        trial.compare(Equal::Bits, &spec.name, (&before, &head), (&after, &head))?;
    }
    Ok(())
}

/// A backward pass sees later tokens where their own outputs have a gradient.
fn silence_from(request: &mut Request, kept: usize) -> Result<(), String> {
    if !request.inputs.contains_key("d_output") {
        return Ok(());
    }
    let d_output = request.tensor("d_output")?;
    let [_, tokens, heads, head_dim] = request.sizes("d_output")?;
    let silent = multiplied(d_output, |place| {
        let token = place / (heads * head_dim) % tokens;
        f64::from(u8::from(token < kept))
    });
    request.inputs.insert("d_output".to_owned(), silent);
    Ok(())
}

/// A rotation depends on the position and not on the place in the tensor.
pub(super) fn position_is_place(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let mut request = trial.draw(op)?;
    let name = &*op.inputs[0].name;
    let tokens = Along::Word("tokens").count(&request);
    let shift = trial.sampler.size(1, 9);
    let first = trial.sampler.pick(&[0, 1, 100]);
    let position = |request: &mut Request, at: usize| {
        request.params.0.insert("first_position".to_owned(), json!(at));
    };
    position(&mut request, first + shift);
    let mut longer = request.clone();
    position(&mut longer, first);
    let x = request.tensor(name).map_err(unusable(op))?;
    let mut shape = x.shape().to_vec();
    shape[0] = shift;
    let front = trial.sampler.normal(&shape, 1.0);
    longer.inputs.insert(name.to_owned(), join(&[&front, x], 0));
    let (alone, behind) = (trial.ask(&request)?, trial.ask(&longer)?);
    let output = &*op.outputs[0].name;
    let tail = |tensor: &Tensor| take(tensor, 0, &(shift..shift + tokens).collect::<Vec<_>>());
    trial.compare(Equal::Bits, output, (&alone, &Tensor::clone), (&behind, &tail))
}

/// The backward rotation undoes the forward one.
pub(super) fn rotation_back(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let (forward, backward) = (ops[0], ops[1]);
    let request = trial.draw(forward)?;
    let precision = trial.precision();
    let turned = trial.ask(&request)?;
    let inputs = [("d_output".to_owned(), turned.output("output").clone())];
    let back = Request { op: backward, params: request.params.clone(), inputs: inputs.into() };
    let back = trial.ask(&back)?;
    let mut is = back.bounded("d_x", precision)?;
    // The errors of the pair are turned back with it, so each element may have those of both.
    let error = turned.bounded("output", precision)?.allowed;
    let head_dim = error.shape()[2];
    let half = head_dim / 2;
    let other = |place: usize| {
        if place % head_dim < half { place + half } else { place - half }
    };
    let allowed = is.allowed.values().enumerate();
    let allowed = allowed.map(|(at, own)| own + error.value(at) + error.value(other(at)));
    is.allowed = Tensor::from_f64s(error.shape().to_vec(), allowed, Precision::F64);
    let x = request.tensor("x").map_err(unusable(forward))?.to_precision(Precision::F64);
    let nothing = multiplied(&x, |_| 0.0);
    trial.close(backward, "d_x", &Bounded { value: x, allowed: nothing }, &is)
}

/// Logits of the loss, and which tokens count.
fn counted(request: &Request) -> Result<Vec<bool>, String> {
    let ignore: i32 = request.params.required("ignore_index")?;
    let targets = request.tokens::<ndarray::Ix1>("targets")?;
    Ok(targets.iter().map(|target| *target != ignore).collect())
}

/// What is ignored does not matter and does not learn.
pub(super) fn ignored_tokens(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let mut request = trial.draw_several(op, Along::Word("tokens"), 2)?;
    let ignore: i32 = request.params.required("ignore_index").map_err(unusable(op))?;
    // The last token is ignored in any case, and the first one counts.
    if let Some(Data::I32(ids)) = request.inputs.get_mut("targets").map(Tensor::data_mut)
        && let Some(last) = ids.last_mut()
    {
        *last = ignore;
    }
    let counts = counted(&request).map_err(unusable(op))?;
    let logits = request.tensor("logits").map_err(unusable(op))?;
    let vocab = logits.shape()[1];
    let louder = multiplied(logits, |place| {
        let factor = if place % 3 == 0 { -3.0 } else { 2.0 };
        if counts[place / vocab] { 1.0 } else { factor }
    });
    let mut changed = request.clone();
    changed.inputs.insert("logits".to_owned(), louder);
    let (before, after) = (trial.ask(&request)?, trial.ask(&changed)?);
    for name in before.outputs.keys().cloned().collect::<Vec<_>>() {
        trial.compare(Equal::Bits, &name, (&before, &Tensor::clone), (&after, &Tensor::clone))?;
    }
    if let Some(d_logits) = after.outputs.get("d_logits") {
        let zeros = multiplied(d_logits, |place| f64::from(u8::from(counts[place / vocab])));
        trial.same(op, "d_logits", &zeros, d_logits)?;
    }
    Ok(())
}

/// The mean over a batch that comes twice is the mean; each token then counts for half.
pub(super) fn mean_of_twice(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let request = trial.draw(op)?;
    let mut twice = request.clone();
    for tensor in twice.inputs.values_mut() {
        *tensor = join(&[&tensor.clone(), tensor], 0);
    }
    let tokens = Along::Word("tokens").count(&request);
    let (once, twice) = (trial.ask(&request)?, trial.ask(&twice)?);
    if once.outputs.contains_key("loss") {
        let keep = Tensor::clone;
        trial.compare(Equal::Bounds, "loss", (&once, &keep), (&twice, &keep))?;
    }
    if once.outputs.contains_key("d_logits") {
        let half = |tensor: &Tensor| multiplied(tensor, |_| 0.5);
        for start in [0, tokens] {
            let order: Vec<usize> = (start..start + tokens).collect();
            let slice = |tensor: &Tensor| take(tensor, 0, &order);
            trial.compare(Equal::Bounds, "d_logits", (&once, &half), (&twice, &slice))?;
        }
    }
    Ok(())
}

/// A constant on all logits of a token changes nothing. Logits and constants are multiples of
/// 2^-10, so that their sums are exact.
pub(super) fn shifted_logits(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let mut request = trial.draw(op)?;
    edit(&mut request, "logits", |x| (x.clamp(-100.0, 100.0) * 1024.0).trunc() / 1024.0);
    let logits = request.tensor("logits").map_err(unusable(op))?;
    let (tokens, vocab) = (logits.shape()[0], logits.shape()[1]);
    let shifts: Vec<f64> =
        (0..tokens).map(|_| trial.sampler.size(0, 1 << 18) as f64 / 1024.0 - 128.0).collect();
    let shifted = logits.values().enumerate().map(|(place, x)| x + shifts[place / vocab]);
    let shifted = Tensor::from_f64s(vec![tokens, vocab], shifted, Precision::F32);
    let mut changed = request.clone();
    changed.inputs.insert("logits".to_owned(), shifted);
    let (before, after) = (trial.ask(&request)?, trial.ask(&changed)?);
    for name in before.outputs.keys().cloned().collect::<Vec<_>>() {
        let keep = Tensor::clone;
        trial.compare(Equal::Bounds, &name, (&before, &keep), (&after, &keep))?;
    }
    Ok(())
}

/// Without gradient, moments and decay a parameter stays where it is.
pub(super) fn nothing_to_learn(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let mut request = trial.draw(op)?;
    for name in ["gradient", "first_moment", "second_moment"] {
        edit(&mut request, name, |_| 0.0);
    }
    request.params.0.insert("weight_decay".to_owned(), json!(0.0));
    let after = trial.ask(&request)?;
    for name in ["parameter", "first_moment", "second_moment"] {
        trial.same(op, name, &after.request.inputs[name], after.output(name))?;
    }
    Ok(())
}

/// The state of an optimizer is in its tensors: two steps are the same whether or not something
/// else was trained between them.
pub(super) fn continued(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let first = trial.draw(op)?;
    let step = params::AdamW::read(&first.params).map_err(unusable(op))?.step;
    let gradient = first.tensor("gradient").map_err(unusable(op))?;
    let gradient = multiplied(gradient, |place| if place % 2 == 0 { -0.5 } else { 2.0 });
    let other = trial.draw(op)?;
    let mut results = Vec::new();
    for interrupted in [false, true] {
        let mut state = trial.ask(&first)?;
        if interrupted {
            trial.ask(&other)?;
        }
        let mut second = first.clone();
        second.params.0.insert("step".to_owned(), json!(step + 1));
        second.inputs.insert("gradient".to_owned(), gradient.clone());
        for (name, tensor) in std::mem::take(&mut state.outputs) {
            second.inputs.insert(name, tensor);
        }
        results.push(trial.ask(&second)?);
    }
    let [straight, continued] = &results[..] else { return Ok(()) };
    for (name, tensor) in &straight.outputs {
        trial.same(op, name, tensor, continued.output(name))?;
    }
    Ok(())
}

/// The same request has the same answer, every bit of it.
pub(super) fn deterministic(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let request = trial.draw(op)?;
    let first = trial.ask(&request)?;
    for _ in 1..trial.options.repeats {
        let again = trial.ask(&request)?;
        for (name, tensor) in &first.outputs {
            trial.identical(op, name, tensor, again.output(name))?;
        }
    }
    Ok(())
}
