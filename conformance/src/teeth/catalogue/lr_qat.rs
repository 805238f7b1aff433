//! Faults of LR-QAT.

use ndarray::Array2;
use plumbline_reference::linear::linear_backward;
use plumbline_reference::lora::delta_weight;
use plumbline_reference::methods::lr_qat::downcast;
use plumbline_reference::spec::{Downcast, InnerScale, LrQatSpec};
use serde_json::Value;

use super::super::Fault::{Answer, Arithmetic, Request as Asked};
use super::super::Mutant;
use super::super::arithmetic::Slip;
use super::edits::{
    Edited, as_if, first_row_alone, input, map_bytes, map_input, map_output, map_param, output,
    set_input, set_output, set_param, spec, swap_param,
};
use super::{equivalent, fault};
use crate::case::Request;
use crate::params::{self, Quantizer};
use crate::tensor::{Tensor, Tensors};

const DOWNCAST: &[&str] = &["lr_qat.downcast"];
const FORWARD: &[&str] = &["lr_qat.forward"];
const BACKWARD: &[&str] = &["lr_qat.backward"];
const MERGE: &[&str] = &["lr_qat.merge"];

/// Faults of `lr_qat.*`.
#[rustfmt::skip]
pub(super) static MUTANTS: &[Mutant] = &[
    fault("stored_half_away", "ties of the stored type go away from zero",
        DOWNCAST, &["stored_tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("stored_truncated", "what is stored is cut off",
        DOWNCAST, &["stored_tie"], Arithmetic(Slip::Truncate)),
    fault("one_fraction_bit_less", "7 - bits fraction bits",
        DOWNCAST, &["fraction_bits"],
        Answer(|r, o| fixed(r, o, |v, unit, low, high| {
            (v.clamp(low, high) * unit / 2.0).round_ties_even() / unit * 2.0
        }))),
    fault("no_clip_in_fixed8", "a clip to the byte in place of the grid",
        DOWNCAST, &["stored_clip"],
        Answer(|r, o| {
            fixed(r, o, |v, unit, _, _| (v * unit).round_ties_even().clamp(-128.0, 127.0) / unit)
        })),
    fault("clip_of_floats", "bf16 and f16 are clipped to the grid too",
        DOWNCAST, &["stored_clip"],
        Answer(|r, o| {
            let spec = spec(r)?;
            let signed = !r.inputs.contains_key("zero_point");
            let (low, high) = (spec.qmin() as f32, spec.qmax() as f32);
            map_output(o, "phi", |phi| if signed { phi.clamp(low, high) } else { phi })
        })),
    fault("cast_before_division", "the weight is cast, and the quotient again",
        DOWNCAST, &["one_rounding"], Asked(cast_weight)),
    fault("even_input_high", "the even input in the high nibble",
        DOWNCAST, &["nibbles"],
        Answer(|_, o| nibbles(o, |byte| byte.rotate_left(4)))),
    fault("nibbles_with_a_bias", "codes from 0 in place of two's complement",
        DOWNCAST, &["nibbles"], Answer(|_, o| nibbles(o, |byte| byte ^ 0x88))),
    fault("zero_point_ignored_in_storage", "the signed range whatever the zero point",
        DOWNCAST, &["asymmetric"], Asked(without_zero_point)),
    equivalent("times_the_reciprocal_unit", "fixed * 2^(bits-8) in place of a quotient", DOWNCAST,
        "the reciprocal of a power of two is one, and so far from the ends of the type exact",
        Answer(|r, o| fixed(r, o, |v, unit, low, high| {
            (v.clamp(low, high) * unit).round_ties_even() * unit.recip()
        }))),
    fault("lr_half_away", "ties of the sum go away from zero",
        FORWARD, &["sum_tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("trained_scale_inside", "the frozen weight is divided by the trained scale",
        FORWARD, &["frozen_inner"], Asked(trained_inside)),
    fault("no_scale_inside", "a live weight is not divided at all",
        FORWARD, &["live_inner"], Asked(undivided)),
    fault("downcast_forgotten", "the forward starts from the weight itself",
        FORWARD, &["downcast_kept"], Asked(|r| set_param(r, "downcast", "f32"))),
    fault("update_in_weight_units", "the update is divided by the scale",
        FORWARD, &["grid_units"],
        Answer(|r, o| codes(r, o, |at| (at.inner + at.delta / at.scale).round_ties_even()))),
    fault("update_after_the_clamp", "clamp(round(inner)) + round(update)",
        FORWARD, &["saturation", "sum_tie"],
        Answer(|r, o| codes(r, o, |at| {
            at.inner.round_ties_even().clamp(at.low, at.high) + at.delta.round_ties_even()
        }))),
    fault("codes_beyond_qmax", "a range that is one code too wide",
        FORWARD, &["saturation"],
        Answer(|r, o| codes(r, o, |at| {
            (at.inner + at.delta).round_ties_even().clamp(at.low, at.high + 1.0)
        }))),
    fault("zero_point_in_the_codes", "codes from 0",
        FORWARD, &["asymmetric"],
        Answer(|r, o| codes(r, o, |at| {
            let code = (at.inner + at.delta).round_ties_even().clamp(at.low, at.high);
            if at.asymmetric { code - at.low } else { code }
        }))),
    fault("signed_ends", "the signed range whatever the zero point",
        FORWARD, &["asymmetric"], Asked(without_zero_point)),
    fault("rounding_of_the_public_code", "round(update) is added to a rounded weight",
        FORWARD, &["sum_tie"],
        Asked(|r| match r.params.required::<String>("downcast")?.as_str() {
            "int" => swap_param(r, "dialect", Value::Null, "lr_qat_code"),
            _ => Ok(()),
        })),
    fault("lr_scaling_omitted", "lora_scaling is not applied",
        FORWARD, &["scaling"], Asked(|r| set_param(r, "lora_scaling", 1.0))),
    fault("lr_scaling_twice", "lora_scaling is applied twice",
        FORWARD, &["scaling"], Asked(|r| map_param(r, "lora_scaling", |s| s * s))),
    fault("mask_before_rounding", "the mask tests the argument before it is rounded",
        BACKWARD, &["rounded_mask"],
        Asked(|r| swap_param(r, "mask", Value::Null, "pre_round"))),
    fault("mask_after_lr_rounding", "the mask tests the rounded argument",
        BACKWARD, &["pre_round_mask"], Asked(|r| swap_param(r, "mask", "pre_round", "rounded"))),
    fault("lr_unmasked", "clipped weights give the factors gradient",
        BACKWARD, &["unmasked"], Answer(|r, o| factors(r, o, |at| at.scale))),
    fault("scale_left_out_of_the_factors", "factor gradients without the scale outside",
        BACKWARD, &["scale_in_factors"],
        Answer(|r, o| factors(r, o, |at| f32::from(at.in_range())))),
    fault("residual_of_lsq", "d_scale subtracts the argument of a frozen inner scale",
        BACKWARD, &["no_residual"],
        Answer(|r, o| {
            slopes(r, o, |at| at.code() - if at.live || !at.in_range() { 0.0 } else { at.sum() })
        })),
    fault("residual_forgotten", "d_scale of a live inner scale is the sum of codes",
        BACKWARD, &["live_residual"],
        Answer(|r, o| slopes(r, o, |at| at.code()))),
    fault("residual_of_the_sum", "d_scale of a live inner scale subtracts the update too",
        BACKWARD, &["live_residual"],
        Answer(|r, o| {
            slopes(r, o, |at| at.code() - if at.live && at.in_range() { at.sum() } else { 0.0 })
        })),
    fault("clipped_codes_do_not_move_the_scale", "d_scale sums what passes",
        BACKWARD, &["clipped_scale"],
        Answer(|r, o| slopes(r, o, |at| {
            let slope = at.code() - if at.live { at.inner } else { 0.0 };
            if at.in_range() { slope } else { 0.0 }
        }))),
    fault("lr_scaling_in_d_scale", "lora_scaling multiplies d_scale",
        BACKWARD, &["scaling"],
        Answer(|r, o| {
            let lora_scaling = params::lora_scaling(&r.params)? as f32;
            map_output(o, "d_scale", |d| d * lora_scaling)
        })),
    fault("lr_first_token_only", "only the first token trains",
        BACKWARD, &["all_tokens"],
        Answer(|r, o| {
            as_if(r, o, &["d_lora_a", "d_lora_b", "d_scale"], |r| first_row_alone(r, "d_y"))
        })),
    fault("below_the_lr_floor_moves", "a scale below the floor gets gradient",
        BACKWARD, &["scale_floor"],
        Asked(|r| map_input(r, "scale", |s| if s < 1e-8 { 1e-8 } else { s }))),
    fault("lr_merge_without_update", "the merge rounds the frozen weight",
        MERGE, &["same_codes"], Asked(|r| map_input(r, "lora_b", |_| 0.0))),
    fault("lr_merge_of_the_weight", "the merge starts from the weight, not from what is stored",
        MERGE, &["same_codes"], Asked(|r| set_param(r, "downcast", "f32"))),
    fault("lr_merge_in_another_dialect", "the merge adds a rounded update",
        MERGE, &["dialect"],
        Asked(|r| match r.params.required::<String>("downcast")?.as_str() {
            "int" => swap_param(r, "dialect", Value::Null, "lr_qat_code"),
            _ => Ok(()),
        })),
    fault("lr_merge_of_the_signed_range", "the signed range whatever the zero point",
        MERGE, &["asymmetric"], Asked(without_zero_point)),
    fault("lr_merge_keeps_raw_scale", "the merge answers the scale below the floor",
        MERGE, &["scale_floor"],
        Answer(|r, o| set_output(o, "scale", &input(r, "scale")?))),
];

fn without_zero_point(request: &mut Request) -> Edited {
    request.inputs.remove("zero_point");
    Ok(())
}

fn trained_inside(request: &mut Request) -> Edited {
    if request.inputs.contains_key("initial_scale") {
        let scale = request.tensor("scale")?.clone();
        request.inputs.insert("initial_scale".to_owned(), scale);
    }
    Ok(())
}

/// Multiplies a live weight by the scale that it is going to be divided by.
fn undivided(request: &mut Request) -> Edited {
    if request.inputs.contains_key("initial_scale") {
        return Ok(());
    }
    let (mut weight, scale) = (input(request, "weight")?, input(request, "scale")?);
    let size = Quantizer::read(&request.params)?.spec(weight.ncols())?.group_size();
    for ((o, i), weight) in weight.indexed_iter_mut() {
        *weight *= scale[[o, i / size]].max(1e-8);
    }
    set_input(request, "weight", &weight)
}

fn cast_weight(request: &mut Request) -> Edited {
    match request.params.required::<Downcast>("downcast")? {
        Downcast::Bf16 => map_input(request, "weight", |w| half::bf16::from_f32(w).to_f32()),
        Downcast::F16 => map_input(request, "weight", |w| half::f16::from_f32(w).to_f32()),
        _ => Ok(()),
    }
}

/// Only where codes are stored in nibbles.
fn nibbles(outputs: &mut Tensors, f: fn(u8) -> u8) -> Edited {
    if outputs.contains_key("stored") { map_bytes(outputs, "stored", f) } else { Ok(()) }
}

/// Another `phi` of fixed-point weights, from argument, unit and both ends.
fn fixed(request: &Request, outputs: &mut Tensors, phi: fn(f32, f32, f32, f32) -> f32) -> Edited {
    if request.params.required::<Downcast>("downcast")? != Downcast::Fixed8 {
        return Ok(());
    }
    let (weight, scale) = (input(request, "weight")?, input(request, "initial_scale")?);
    let spec = Quantizer::read(&request.params)?.spec(weight.ncols())?;
    let unit = 2_f32.powi(8 - spec.bits().count() as i32);
    let low = lows(request, &scale)?;
    let at = |o: usize, i: usize| [o, i / spec.group_size()];
    let values = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let (low, argument) = (low[at(o, i)], weight[[o, i]] / scale[at(o, i)].max(1e-8));
        phi(argument, unit, low, low + spec.unsigned_max() as f32)
    });
    let stored = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        (unit * (values[[o, i]] - (low[at(o, i)] - spec.qmin() as f32))) as i8
    });
    outputs.insert("stored".to_owned(), Tensor::codes(&stored));
    set_output(outputs, "phi", &values)
}

/// The smallest code of every group.
fn lows(request: &Request, scale: &Array2<f32>) -> Result<Array2<f32>, String> {
    let bits: i32 = request.params.required("bits")?;
    match request.inputs.contains_key("zero_point") {
        true => Ok(input(request, "zero_point")?.mapv(|zero_point| -zero_point)),
        false => Ok(Array2::from_elem(scale.dim(), -2_f32.powi(bits - 1))),
    }
}

/// One weight on its way to the code.
struct At {
    inner: f32,
    delta: f32,
    /// The trained one, raised to the floor.
    scale: f32,
    low: f32,
    high: f32,
    asymmetric: bool,
    live: bool,
    rounded_mask: bool,
}

impl At {
    fn sum(&self) -> f32 {
        self.inner + self.delta
    }

    fn code(&self) -> f32 {
        self.sum().round_ties_even().clamp(self.low, self.high)
    }

    fn in_range(&self) -> bool {
        let tested = if self.rounded_mask { self.sum().round_ties_even() } else { self.sum() };
        (self.low..=self.high).contains(&tested)
    }
}

/// Something of every weight; of the paper's dialect, whose sum is rounded once.
fn of_every_weight(request: &Request, f: fn(&At) -> f32) -> Result<Array2<f32>, String> {
    let (weight, scale) = (input(request, "weight")?, input(request, "scale")?);
    let spec: LrQatSpec = params::lr_qat(&request.params, weight.ncols())?;
    let (grid, low) = (*spec.grid(), lows(request, &scale)?);
    let lora_scaling = params::lora_scaling(&request.params)?;
    let (lora_a, lora_b) = (input(request, "lora_a")?, input(request, "lora_b")?);
    let delta = delta_weight(lora_a.view(), lora_b.view(), lora_scaling);
    let delta = delta.map_err(|e| e.to_string())?;
    let asymmetric = request.inputs.contains_key("zero_point");
    let inner = match spec.inner_scale() {
        InnerScale::Frozen(kind) => {
            let initial = input(request, "initial_scale")?;
            let zero_point = if asymmetric { Some(input(request, "zero_point")?) } else { None };
            let zero_point = zero_point.as_ref().map(|zero_point| zero_point.view());
            let stored = downcast(weight.view(), initial.view(), zero_point, &grid, kind);
            stored.map_err(|e| e.to_string())?.phi
        }
        InnerScale::Live => Array2::from_shape_fn(weight.dim(), |(o, i)| {
            weight[[o, i]] / scale[[o, i / grid.group_size()]].max(1e-8)
        }),
    };
    let mask: Option<String> = request.params.optional("mask")?;
    Ok(Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let place = [o, i / grid.group_size()];
        f(&At {
            inner: inner[[o, i]],
            delta: delta[[o, i]],
            scale: scale[place].max(1e-8),
            low: low[place],
            high: low[place] + grid.unsigned_max() as f32,
            asymmetric,
            live: spec.inner_scale() == InnerScale::Live,
            rounded_mask: mask.as_deref() != Some("pre_round"),
        })
    }))
}

fn of_the_paper(request: &Request) -> Result<bool, String> {
    Ok(request.params.optional::<String>("dialect")?.is_none_or(|dialect| dialect == "paper"))
}

/// Other codes, and all that follows from them.
fn codes(request: &Request, outputs: &mut Tensors, code: fn(&At) -> f32) -> Edited {
    if !of_the_paper(request)? {
        return Ok(());
    }
    let codes = of_every_weight(request, code)?;
    let scale = of_every_weight(request, |at| at.scale)?;
    outputs.insert("codes".to_owned(), Tensor::codes(&codes.mapv(|code| code as i8)));
    let weight = codes * scale;
    set_output(outputs, "fake_quantized", &weight)?;
    set_output(outputs, "y", &input(request, "x")?.dot(&weight.t()))
}

/// The gradient of the quantized weight.
fn d_fake_quantized(request: &Request) -> Result<Array2<f32>, String> {
    let (x, d_y, weight) =
        (input(request, "x")?, input(request, "d_y")?, input(request, "weight")?);
    let gradients = linear_backward(x.view(), weight.view(), d_y.view());
    Ok(gradients.map_err(|e| e.to_string())?.d_weight)
}

/// Gradients of the factors through another slope of the argument.
fn factors(request: &Request, outputs: &mut Tensors, slope: fn(&At) -> f32) -> Edited {
    if !of_the_paper(request)? {
        return Ok(());
    }
    let d_argument = d_fake_quantized(request)? * of_every_weight(request, slope)?;
    let lora_scaling = params::lora_scaling(&request.params)? as f32;
    let (lora_a, lora_b) = (input(request, "lora_a")?, input(request, "lora_b")?);
    set_output(outputs, "d_lora_a", &(lora_b.t().dot(&d_argument) * lora_scaling))?;
    set_output(outputs, "d_lora_b", &(d_argument.dot(&lora_a.t()) * lora_scaling))
}

/// `d_scale` through another slope, where the floor does not hold the scale.
fn slopes(request: &Request, outputs: &mut Tensors, slope: fn(&At) -> f32) -> Edited {
    if !of_the_paper(request)? {
        return Ok(());
    }
    let terms = d_fake_quantized(request)? * of_every_weight(request, slope)?;
    let (scale, mut d_scale) = (input(request, "scale")?, output(outputs, "d_scale")?);
    let size = terms.ncols() / scale.ncols();
    for ((o, g), d_scale) in d_scale.indexed_iter_mut() {
        if scale[[o, g]] >= 1e-8 {
            *d_scale = (g * size..(g + 1) * size).map(|i| terms[[o, i]]).sum();
        }
    }
    set_output(outputs, "d_scale", &d_scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::judge_outputs;
    use crate::ops;
    use crate::precision::Precision;
    use crate::sampler::Sampler;

    type Again = fn(&Request, &mut Tensors) -> Edited;

    /// With the right code and slopes, what is computed once more is accepted.
    #[test]
    fn without_a_fault_they_are_accepted() {
        let right: [(&str, Again); 4] = [
            ("lr_qat.downcast", |r, o| {
                fixed(r, o, |v, unit, low, high| {
                    (v.clamp(low, high) * unit).round_ties_even() / unit
                })
            }),
            ("lr_qat.forward", |r, o| codes(r, o, At::code)),
            ("lr_qat.backward", |r, o| {
                factors(r, o, |at| if at.in_range() { at.scale } else { 0.0 })
            }),
            ("lr_qat.backward", |r, o| {
                slopes(r, o, |at| at.code() - if at.live && at.in_range() { at.inner } else { 0.0 })
            }),
        ];
        for (name, again) in right {
            let op = ops::find(name).unwrap();
            for index in 0..40 {
                let (params, inputs) = (op.sample)(&mut Sampler::new(1, name, index)).unwrap();
                let request = Request { op, params, inputs };
                let expected = (op.run.f64)(&request).unwrap();
                let mut outputs = (op.run.f32)(&request).unwrap();
                again(&request, &mut outputs).unwrap();
                let precision = Precision::F32;
                let verdicts =
                    judge_outputs(&request, &expected, &outputs, Some(precision), precision);
                for verdict in verdicts.unwrap() {
                    assert!(verdict.failure.is_none(), "{name} {index}: {verdict:?}");
                }
            }
        }
    }
}
