//! Powers of two: where a result is homogeneous in some of the inputs, a factor of `2^k` on them
//! comes out of it bit for bit, because it changes exponents and no rounding.
//!
//! This holds for every order of summation, and with contraction too. It does not hold beside the
//! ends of the exponent's range, nor at a fixed threshold: requests stay away from both.

use serde_json::json;

use super::along::Along;
use super::tensors::{axis_of, multiplied};
use super::trial::{Checked, Equal, Trial, unusable};
use crate::case::Request;
use crate::ops::Operation;
use crate::params::Quantizer;
use crate::precision::Precision;
use crate::tensor::{Data, Tensor};

/// A tensor or parameter, and the power of the factor that it carries.
type Powers = &'static [(&'static str, i32)];

/// One way in which an operation is homogeneous: inputs, parameters, outputs. What is not listed
/// stays.
pub(super) struct Row(&'static str, Powers, Powers, Powers);

/// The tensors of a quantizer.
const GRID: Powers = &[("weight", 1), ("scale", 1), ("offset", 1)];
/// The same with an update inside it or beside it.
const INSIDE: Powers = &[("weight", 1), ("lora_b", 1), ("scale", 1), ("offset", 1)];
const INSIDE_BY_A: Powers = &[("weight", 1), ("lora_a", 1), ("scale", 1), ("offset", 1)];
/// The tensors of LR-QAT, whose update is in steps of the grid.
const STEPS: Powers = &[("weight", 1), ("initial_scale", 1), ("scale", 1)];
const AFFINE: Powers = &[("scale", 1), ("lora_b", 1)];
const BESIDE: Powers = &[("weight", 1), ("lora_b", 1)];
const X: Powers = &[("x", 1)];
const D_Y: Powers = &[("d_y", 1)];
const D_OUTPUT: Powers = &[("d_output", 1)];
const QK: Powers = &[("q", 1), ("k", -1)];
const MOMENTS: Powers = &[("first_moment", 1), ("second_moment", 2)];
const GRADIENT: Powers = &[("gradient", 1), ("first_moment", 1), ("second_moment", 2)];
const DECAY: Powers = &[("lr", 1), ("weight_decay", -1)];

const Y: Powers = &[("y", 1)];
const OUTPUT: Powers = &[("output", 1)];
const D_X: Powers = &[("d_x", 1)];
const LAYER: Powers = &[("y", 1), ("fake_quantized", 1)];
const CHOSEN: Powers = &[("scale", 1), ("offset", 1)];
const D_GRID: Powers = &[("d_weight", 1), ("d_scale", 1), ("d_offset", 1)];
const D_QAT: Powers = &[("d_x", 1), ("d_weight", 1), ("d_scale", 1), ("d_offset", 1)];
const D_FACTORS: Powers = &[("d_lora_a", 1), ("d_lora_b", 1)];
const D_LORA: Powers = &[("d_x", 1), ("d_lora_a", 1), ("d_lora_b", 1)];
const D_X_AND_A: Powers = &[("d_x", 1), ("d_lora_a", 1)];
const D_X_AND_B: Powers = &[("d_x", 1), ("d_lora_b", 1)];
const D_TRAINED: Powers = &[("d_lora_a", 1), ("d_lora_b", 1), ("d_scale", 1), ("d_offset", 1)];
const D_ALL: Powers =
    &[("d_x", 1), ("d_lora_a", 1), ("d_lora_b", 1), ("d_scale", 1), ("d_offset", 1)];
const NF4: Powers = &[("absmax", 1), ("output", 1), ("absmax_scale", 1), ("absmax_offset", 1)];

/// `2^k` on inputs and parameters comes out of the listed outputs and leaves the others.
pub(super) static HOMOGENEOUS: &[Row] = &[
    Row("fake_quantize.forward", GRID, &[], OUTPUT),
    Row("fake_quantize.backward", GRID, &[], &[]),
    Row("fake_quantize.backward", D_OUTPUT, &[], D_GRID),
    Row("affine.quantize", &[("weight", 1), ("scale", 1)], &[], &[]),
    Row("affine.dequantize", &[("scale", 1)], &[], OUTPUT),
    Row("init_scale", &[("weight", 1)], &[], CHOSEN),
    Row("dynamic_quantize.forward", X, &[], &[("scale", 1), ("output", 1)]),
    Row("dynamic_quantize.backward", X, &[], &[]),
    Row("dynamic_quantize.backward", D_OUTPUT, &[], D_X),
    Row("l4q.forward", INSIDE, &[], LAYER),
    Row("l4q.forward", INSIDE_BY_A, &[], LAYER),
    Row("l4q.forward", X, &[], Y),
    Row("l4q.backward", INSIDE, &[], D_X_AND_A),
    Row("l4q.backward", INSIDE_BY_A, &[], D_X_AND_B),
    Row("l4q.backward", X, &[], D_TRAINED),
    Row("l4q.backward", D_Y, &[], D_ALL),
    Row("l4q.merge", INSIDE, &[], CHOSEN),
    Row("lr_qat.downcast", STEPS, &[], &[]),
    Row("lr_qat.forward", STEPS, &[], LAYER),
    Row("lr_qat.forward", X, &[], Y),
    Row("lr_qat.backward", STEPS, &[], D_LORA),
    Row("lr_qat.backward", X, &[], D_TRAINED),
    Row("lr_qat.backward", D_Y, &[], D_ALL),
    Row("lr_qat.merge", STEPS, &[], CHOSEN),
    Row("qa_lora.forward", AFFINE, &[], Y),
    Row("qa_lora.forward", X, &[], Y),
    Row("qa_lora.backward", AFFINE, &[], D_X_AND_A),
    Row("qa_lora.backward", X, &[], D_FACTORS),
    Row("qa_lora.backward", D_Y, &[], D_LORA),
    Row("qa_lora.merge", AFFINE, &[], &[]),
    Row("qat.forward", GRID, &[], Y),
    Row("qat.forward", X, &[], Y),
    Row("qat.backward", GRID, &[], D_X),
    Row("qat.backward", X, &[], D_GRID),
    Row("qat.backward", D_Y, &[], D_QAT),
    Row("qat_lora.forward", INSIDE, &[], Y),
    Row("qat_lora.forward", X, &[], Y),
    Row("qat_lora.backward", INSIDE, &[], D_X_AND_A),
    Row("qat_lora.backward", X, &[], D_TRAINED),
    Row("qat_lora.backward", D_Y, &[], D_ALL),
    Row("lora.forward", BESIDE, &[], Y),
    Row("lora.forward", X, &[], Y),
    Row("lora.backward", BESIDE, &[], D_X_AND_A),
    Row("lora.backward", X, &[], D_FACTORS),
    Row("lora.backward", D_Y, &[], D_LORA),
    Row("peqa.forward", &[("scale", 1)], &[], Y),
    Row("peqa.forward", X, &[], Y),
    Row("peqa.backward", &[("scale", 1)], &[], D_X),
    Row("peqa.backward", X, &[], &[("d_scale", 1)]),
    Row("peqa.backward", D_Y, &[], &[("d_x", 1), ("d_scale", 1)]),
    Row("rtn.quantize", &[("weight", 1)], &[], &[("scale", 1), ("output", 1)]),
    Row("nf4.quantize", &[("weight", 1)], &[], NF4),
    Row("rms_norm.forward", &[("weight", 1)], &[], OUTPUT),
    Row("rms_norm.backward", &[("weight", 1)], &[], D_X),
    Row("rms_norm.backward", D_OUTPUT, &[], &[("d_x", 1), ("d_weight", 1)]),
    Row("rope.forward", X, &[], OUTPUT),
    Row("rope.backward", D_OUTPUT, &[], D_X),
    Row("attention.forward", &[("v", 1)], &[], OUTPUT),
    Row("attention.forward", QK, &[], &[]),
    Row("attention.backward", &[("v", 1)], &[], &[("d_q", 1), ("d_k", 1)]),
    Row("attention.backward", D_OUTPUT, &[], &[("d_q", 1), ("d_k", 1), ("d_v", 1)]),
    Row("attention.backward", QK, &[], &[("d_q", -1), ("d_k", 1)]),
    Row("swiglu.forward", &[("up", 1)], &[], OUTPUT),
    Row("swiglu.backward", &[("up", 1)], &[], &[("d_gate", 1)]),
    Row("swiglu.backward", D_OUTPUT, &[], &[("d_gate", 1), ("d_up", 1)]),
    Row("adamw.step", GRADIENT, &[("eps", 1)], MOMENTS),
    Row("adamw.step", &[("parameter", 1)], DECAY, &[("parameter", 1)]),
];

const FLIPPED: Powers = &[("weight", 1), ("offset", 1)];
const FLIPPED_INSIDE: Powers = &[("weight", 1), ("lora_b", 1), ("offset", 1)];
const CODED: Powers = &[("y", 1), ("codes", 1), ("fake_quantized", 1)];
const D_ODD: Powers = &[("d_x", 1), ("d_lora_a", 1), ("d_scale", 1)];

/// With the sign changed in place of the factor, for arguments within the symmetric range.
pub(super) static ODD: &[Row] = &[
    Row("fake_quantize.forward", FLIPPED, &[], &[("codes", 1), ("output", 1)]),
    Row("fake_quantize.backward", FLIPPED, &[], &[("d_scale", 1)]),
    Row("l4q.forward", FLIPPED_INSIDE, &[], CODED),
    Row("l4q.backward", FLIPPED_INSIDE, &[], D_ODD),
    Row("l4q.merge", FLIPPED_INSIDE, &[], &[("codes", 1), ("offset", 1)]),
    Row("qat.forward", FLIPPED, &[], Y),
    Row("qat.backward", FLIPPED, &[], &[("d_x", 1), ("d_scale", 1)]),
    Row("qat_lora.forward", FLIPPED_INSIDE, &[], Y),
    Row("qat_lora.backward", FLIPPED_INSIDE, &[], D_ODD),
    Row("lr_qat.forward", FLIPPED_INSIDE, &[], CODED),
    Row("lr_qat.merge", FLIPPED_INSIDE, &[], &[("codes", 1)]),
];

/// What normalises does not see the size of what it divides.
pub(super) static SCALE_FREE: &[Row] = &[
    Row("rms_norm.forward", X, &[("eps", 2)], &[]),
    Row("rms_norm.backward", X, &[("eps", 2)], &[("d_x", -1)]),
];

fn power_of(powers: Powers, name: &str) -> i32 {
    powers.iter().find(|(own, _)| *own == name).map_or(0, |(_, power)| *power)
}

impl Row {
    fn applied(&self, request: &Request, factor: f64) -> Result<Request, String> {
        let Self(_, inputs, params, _) = self;
        let mut changed = request.clone();
        for (name, power) in *inputs {
            // An input that is optional may be absent.
            if let Some(tensor) = changed.inputs.get_mut(*name) {
                *tensor = multiplied(tensor, |_| factor.powi(*power));
            }
        }
        for (name, power) in *params {
            let value = changed.params.number(name)? * factor.powi(*power);
            changed.params.0.insert((*name).to_owned(), json!(value));
        }
        Ok(changed)
    }

    fn check(&self, trial: &mut Trial, request: &Request, factor: f64) -> Checked {
        let changed = self.applied(request, factor).map_err(unusable(request.op))?;
        let (before, after) = (trial.ask(request)?, trial.ask(&changed)?);
        for name in before.outputs.keys().cloned().collect::<Vec<_>>() {
            let by = factor.powi(power_of(self.3, &name));
            let grown = |tensor: &Tensor| multiplied(tensor, |_| by);
            trial.compare(Equal::Bits, &name, (&before, &grown), (&after, &Tensor::clone))?;
        }
        Ok(())
    }
}

/// The rows of the operation, one after the other on the same request.
fn check_rows(trial: &mut Trial, rows: &'static [Row], request: &Request, factor: f64) -> Checked {
    for row in rows.iter().filter(|row| row.0 == request.op.name) {
        row.check(trial, request, factor)?;
    }
    Ok(())
}

pub(super) fn powers_of_two(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    scaled(trial, ops, HOMOGENEOUS)
}

pub(super) fn norm_ignores_size(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    scaled(trial, ops, SCALE_FREE)
}

fn scaled(trial: &mut Trial, ops: &[&'static Operation], rows: &'static [Row]) -> Checked {
    let mut request = trial.draw(ops[0])?;
    away_from_thresholds(&mut request);
    let power = trial.sampler.pick(&[-5, -4, -3, -2, -1, 1, 2, 3, 4, 5]);
    check_rows(trial, rows, &request, 2_f64.powi(power))
}

/// Changes every element of an input of binary32 numbers.
pub(super) fn edit(request: &mut Request, name: &str, change: impl Fn(f32) -> f32) {
    if let Some(Data::F32(values)) = request.inputs.get_mut(name).map(Tensor::data_mut) {
        values.iter_mut().for_each(|value| *value = change(*value));
    }
}

/// No scale near its floor, no empty range, no probability near the smallest numbers.
fn away_from_thresholds(request: &mut Request) {
    let op = request.op.name;
    for name in ["scale", "initial_scale"] {
        edit(request, name, |scale| if scale < 1e-4 { 0.0078125 } else { scale });
    }
    match op {
        // A group without a range has a scale of its own, which is 1; the error of a search is a
        // power that no library need round like its multiple.
        "init_scale" if ["asymmetric", "lp"].contains(&rule(request)) => {
            request.params.0.retain(|name, _| !["p", "steps"].contains(&name.as_str()));
            request.params.0.insert("rule".to_owned(), json!("lsq_plus"));
        }
        "rtn.quantize" => {
            request.params.0.retain(|name, _| !["range", "p", "steps"].contains(&name.as_str()));
            edit(request, "weight", |w| if w == 0.0 { 0.0078125 } else { w });
        }
        "nf4.quantize" | "dynamic_quantize.forward" | "dynamic_quantize.backward" => {
            for name in ["weight", "x"] {
                edit(request, name, |w| if w == 0.0 { 0.0078125 } else { w });
            }
        }
        "attention.forward" | "attention.backward" => {
            for name in ["q", "k"] {
                edit(request, name, |x| x.clamp(-2.0, 2.0));
            }
        }
        "swiglu.forward" | "swiglu.backward" => {
            edit(request, "gate", |gate| gate.clamp(-20.0, 20.0));
        }
        _ => {}
    }
}

fn rule(request: &Request) -> &str {
    request.params.0.get("rule").and_then(|rule| rule.as_str()).unwrap_or_default()
}

pub(super) fn negation(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let mut request = trial.draw(ops[0])?;
    request.inputs.remove("zero_point");
    into_symmetric_range(&mut request).map_err(unusable(ops[0]))?;
    check_rows(trial, ODD, &request, -1.0)
}

/// Moves weights so that every argument lies a quarter of a step or more within `-qmax` to `qmax`:
/// there rounding to nearest even is odd, and neither end nor mask is reached.
fn into_symmetric_range(request: &mut Request) -> Result<(), String> {
    for name in ["scale", "initial_scale"] {
        edit(request, name, |scale| if scale < 1e-4 { 0.0078125 } else { scale });
    }
    let in_steps = request.op.name.starts_with("lr_qat.");
    if in_steps {
        // The update is in steps of the grid here: at most an eighth, and quarters stay quarters.
        edit(request, "lora_b", |b| b.clamp(-1.0, 1.0) / 512.0);
        edit(request, "lora_a", |a| a.clamp(-2.0, 2.0));
        if !request.inputs.contains_key("initial_scale") {
            // The live scale divides the weight.
            let scale = request.inputs["scale"].clone();
            return clamp_weight(request, &scale);
        }
        let initial_scale = request.inputs["initial_scale"].clone();
        return clamp_weight(request, &initial_scale);
    }
    let scale = request.inputs["scale"].clone();
    clamp_weight(request, &scale)
}

fn clamp_weight(request: &mut Request, scale: &Tensor) -> Result<(), String> {
    let [_, in_features] = request.sizes("weight")?;
    let spec = Quantizer::read(&request.params)?.spec(in_features)?;
    let update = match request.op.name {
        op if op.starts_with("l4q.") => low_rank(request)?,
        _ => vec![0.0; request.tensor("weight")?.len()],
    };
    let offset = request.inputs.get("offset").cloned();
    let reach = f64::from(spec.qmax()) - 0.25;
    let weight = request.tensor("weight")?;
    let clamped: Vec<f64> = weight
        .values()
        .zip(update)
        .enumerate()
        .map(|(place, (weight, update))| {
            let group = place / spec.group_size();
            let offset = offset.as_ref().map_or(0.0, |offset| offset.value(group));
            let reach = reach * scale.value(group);
            (weight + update).clamp(offset - reach, offset + reach) - update
        })
        .collect();
    let shape = weight.shape().to_vec();
    let clamped = Tensor::from_f64s(shape, clamped.into_iter(), Precision::F32);
    request.inputs.insert("weight".to_owned(), clamped);
    Ok(())
}

/// `lora_scaling * lora_b @ lora_a`
fn low_rank(request: &Request) -> Result<Vec<f64>, String> {
    let (lora_a, lora_b): (ndarray::Array2<f64>, ndarray::Array2<f64>) =
        (request.array("lora_a")?, request.array("lora_b")?);
    let lora_scaling = crate::params::lora_scaling(&request.params)?;
    Ok((lora_b.dot(&lora_a) * lora_scaling).into_iter().collect())
}

/// `lora_a -> P @ lora_a, lora_b -> lora_b @ P^-1` with powers of two on the diagonal of `P`.
pub(super) fn factors_rebalanced(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let request = trial.draw(op)?;
    let rank = Along::Word("rank").count(&request);
    let factors: Vec<f64> =
        (0..rank).map(|_| 2_f64.powi(trial.sampler.size(0, 10) as i32 - 5)).collect();
    let along_rank = |name: &str, tensor: &Tensor, inverse: bool| {
        let spec = op.inputs.iter().find(|spec| *spec.name == *name);
        let axis = spec.and_then(|spec| axis_of(spec, "rank")).unwrap_or_default();
        let inner: usize = tensor.shape()[axis + 1..].iter().product();
        let factors = factors.clone();
        multiplied(tensor, move |place| {
            let factor = factors[place / inner % rank];
            if inverse { 1.0 / factor } else { factor }
        })
    };
    let mut changed = request.clone();
    for (name, inverse) in [("lora_a", false), ("lora_b", true)] {
        let tensor = along_rank(name, request.tensor(name).map_err(unusable(op))?, inverse);
        changed.inputs.insert(name.to_owned(), tensor);
    }
    let (before, after) = (trial.ask(&request)?, trial.ask(&changed)?);
    for name in before.outputs.keys().cloned().collect::<Vec<_>>() {
        let moved = |tensor: &Tensor| match name.as_str() {
            // A gradient scales against its factor.
            "d_lora_a" => along_rank("lora_a", tensor, true),
            "d_lora_b" => along_rank("lora_b", tensor, false),
            _ => tensor.clone(),
        };
        trial.compare(Equal::Bits, &name, (&before, &moved), (&after, &Tensor::clone))?;
    }
    Ok(())
}
