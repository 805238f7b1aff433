//! Places: what is permuted on the way in comes out permuted.
//!
//! An element that sums over something else keeps the order of its sum; one that sums over what
//! was permuted does not, and stays within the bounds.

use super::along::Along;
use super::tensors::gather;
use super::trial::{Checked, Equal, Trial};
use crate::ops::Operation;
use crate::tensor::Tensor;

/// Outputs that have slices along what is permuted are permuted too; the others sum over it.
fn permuted(trial: &mut Trial, op: &'static Operation, along: Along, kept: Equal) -> Checked {
    let request = trial.draw_several(op, along, 2)?;
    let order = trial.permutation(along.count(&request));
    let width = along.width(&request);
    let mut changed = request.clone();
    along.take(&mut changed, &order);
    let (before, after) = (trial.ask(&request)?, trial.ask(&changed)?);
    let specs: Vec<_> = before.specs().cloned().collect();
    for spec in specs {
        let equal = if along.has(&spec) { kept } else { Equal::Bounds };
        let moved = |tensor: &Tensor| along.taken(&spec, tensor, &order, width);
        trial.compare(equal, &spec.name, (&before, &moved), (&after, &Tensor::clone))?;
    }
    Ok(())
}

pub(super) fn rows_permuted(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    permuted(trial, ops[0], Along::Word("out"), Equal::OneOrder)
}

pub(super) fn groups_permuted(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    permuted(trial, ops[0], Along::Groups, Equal::OneOrder)
}

pub(super) fn inputs_permuted(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    // The sum over all inputs is in every output of a norm.
    let (along, kept) = match ops[0].name.starts_with("rms_norm.") {
        true => (Along::Word("hidden"), Equal::Bounds),
        false => (Along::Word("in"), Equal::OneOrder),
    };
    permuted(trial, ops[0], along, kept)
}

pub(super) fn tokens_permuted(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    permuted(trial, ops[0], Along::Word("tokens"), Equal::OneOrder)
}

pub(super) fn sequences_permuted(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    permuted(trial, ops[0], Along::Word("batch"), Equal::OneOrder)
}

pub(super) fn heads_permuted(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let along = match ops[0].name.starts_with("attention.") {
        true => Along::KvHeads,
        false => Along::Word("heads"),
    };
    permuted(trial, ops[0], along, Equal::OneOrder)
}

/// Operations element by element: any permutation of the elements, whatever the shape.
pub(super) fn elements_permuted(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let mut request = trial.draw(op)?;
    // A vector, long enough for whole vector registers and a rest.
    let old = request.inputs.values().map(Tensor::len).next().unwrap_or_default();
    let count = trial.sampler.size(2, trial.options.size.max(2));
    let places: Vec<usize> =
        (0..count).map(|at| if at < old { at } else { trial.sampler.size(0, old - 1) }).collect();
    let order = trial.permutation(count);
    for tensor in request.inputs.values_mut() {
        *tensor = gather(tensor, vec![count], &places);
    }
    let moved = |tensor: &Tensor| gather(tensor, vec![count], &order);
    let mut changed = request.clone();
    for tensor in changed.inputs.values_mut() {
        *tensor = moved(tensor);
    }
    let (before, after) = (trial.ask(&request)?, trial.ask(&changed)?);
    for name in before.outputs.keys().cloned().collect::<Vec<_>>() {
        trial.compare(Equal::Bits, &name, (&before, &moved), (&after, &Tensor::clone))?;
    }
    Ok(())
}
