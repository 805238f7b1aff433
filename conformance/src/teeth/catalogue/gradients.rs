//! Faults of the gradients of the quantizer and of L4Q.

use ndarray::{Array2, Axis};
use plumbline_reference::linear::linear_backward;
use plumbline_reference::quantize::in_range;
use plumbline_reference::spec::MaskRule;
use plumbline_reference::straight_through::grad_scale_factor;
use serde_json::Value;

use super::super::Fault::{Answer, Arithmetic, Request as Asked};
use super::super::Mutant;
use super::super::arithmetic::Slip;
use super::edits::{
    Edited, as_if, by_columns, first_row_alone, input, map_input, map_output, output, set_input,
    set_output, spec, swap_param,
};
use super::grid::Grid;
use super::{equivalent, fault};
use crate::case::Request;
use crate::params;
use crate::tensor::Tensors;

const BACKWARD: &[&str] = &["fake_quantize.backward"];
const L4Q_BACKWARD: &[&str] = &["l4q.backward"];

/// Wrong gradients.
#[rustfmt::skip]
pub(super) static MUTANTS: &[Mutant] = &[
    fault("no_mask", "(public: a) clipped weights get gradient",
        BACKWARD, &["unmasked"], Answer(|r, o| set_output(o, "d_weight", &input(r, "d_output")?))),
    fault("no_mask_in_l4q", "(public: a) the factors see the unmasked gradient",
        L4Q_BACKWARD, &["unmasked"], Answer(no_mask)),
    fault("open_mask", "an argument at an end of the range counts as clipped",
        BACKWARD, &["closed_mask"],
        Answer(|r, o| other_mask(r, o, |v, qmin, qmax| qmin < v && v < qmax))),
    fault("mask_after_rounding", "the mask tests the rounded argument",
        BACKWARD, &["pre_round_mask"],
        Answer(|r, o| {
            other_mask(r, o, |v, qmin, qmax| (qmin..=qmax).contains(&v.round_ties_even()))
        })),
    fault("mask_on_codes", "a code at an end of the range counts as clipped",
        BACKWARD, &["closed_mask", "unmasked"], Answer(mask_on_codes)),
    fault("half_away_in_backward", "the backward rounds ties away",
        BACKWARD, &["tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("no_residual", "d_scale without - argument",
        BACKWARD, &["rounding_residual"], Answer(|r, o| slope(r, o, |code, _, _| code))),
    fault("argument_outside_too", "d_scale subtracts clipped arguments",
        BACKWARD, &["clipped_scale"], Answer(|r, o| slope(r, o, |code, v, _| code - v))),
    fault("clipped_scale_forgotten", "clipped weights do not move the scale",
        BACKWARD, &["clipped_scale"],
        Answer(|r, o| slope(r, o, |code, v, passes| if passes { code - v } else { 0.0 }))),
    fault("offset_inside", "d_offset sums what passes",
        BACKWARD, &["offset_gradient"], Answer(|r, o| offset_sum(r, o, |passes| passes))),
    fault("offset_everywhere", "d_offset sums everything",
        BACKWARD, &["offset_gradient"], Answer(|r, o| offset_sum(r, o, |_| true))),
    fault("offset_over_outputs", "(public: c) d_offset is grouped over outputs",
        BACKWARD, &["group_sum"], Answer(|_, o| transposed_output(o, "d_offset"))),
    fault("scale_over_outputs", "d_scale is grouped over outputs",
        BACKWARD, &["group_sum"], Answer(|_, o| transposed_output(o, "d_scale"))),
    fault("below_the_floor_moves", "a scale below the floor gets gradient",
        BACKWARD, &["scale_floor"],
        Asked(|r| map_input(r, "scale", |s| if s < 1e-8 { 1e-8 } else { s }))),
    fault("lsq_by_default", "(public: g) the LSQ factor where none was asked for",
        BACKWARD, &["grad_scale_default"],
        Asked(|r| swap_param(r, "grad_scale", Value::Null, "lsq"))),
    fault("lit_gpt_for_lsq", "(public: g) groups in place of group_size",
        BACKWARD, &["grad_scale"], Asked(|r| swap_param(r, "grad_scale", "lsq", "lit_gpt"))),
    fault("peft_for_lsq", "(public: g) qmax outside the root",
        BACKWARD, &["grad_scale"], Asked(|r| swap_param(r, "grad_scale", "lsq", "peft"))),
    fault("lit_gpt_for_lsq_in_l4q", "(public: g) groups in place of group_size",
        L4Q_BACKWARD, &["grad_scale"], Asked(|r| swap_param(r, "grad_scale", "lsq", "lit_gpt"))),
    fault("factor_on_the_weight", "the factor multiplies d_weight too",
        BACKWARD, &["grad_scale"], Answer(factor_on_the_weight)),
    fault("no_offset_in_d_x", "(public: b) d_x uses codes * scale alone",
        L4Q_BACKWARD, &["offset_in_d_x"], Answer(no_offset_in_d_x)),
    fault("frozen_weight_in_d_x", "d_x uses the weight before the quantizer",
        L4Q_BACKWARD, &["quantized_d_x"], Answer(frozen_weight_in_d_x)),
    fault("first_sample_only", "(public: d) only the first token trains",
        L4Q_BACKWARD, &["all_tokens"], Answer(first_sample_only)),
    fault("grid_does_not_train", "(public: e) scale and offset get no gradient",
        L4Q_BACKWARD, &["rounding_residual", "offset_gradient"],
        Answer(|_, o| {
            map_output(o, "d_scale", |_| 0.0).and_then(|()| map_output(o, "d_offset", |_| 0.0))
        })),
    fault("lora_a_without_scaling", "d_lora_a lacks lora_scaling",
        L4Q_BACKWARD, &["scaling"], Answer(|r, o| unscaled(r, o, "d_lora_a"))),
    fault("lora_b_without_scaling", "d_lora_b lacks lora_scaling",
        L4Q_BACKWARD, &["scaling"], Answer(|r, o| unscaled(r, o, "d_lora_b"))),
    fault("grid_gradient_scaled", "lora_scaling multiplies d_scale",
        L4Q_BACKWARD, &["scaling"], Answer(grid_gradient_scaled)),
    fault("stale_quantized_weight", "the backward quantizes without the update",
        L4Q_BACKWARD, &["quantized_d_x", "scaling"], Answer(stale)),
    equivalent("tokens_in_reverse", "the weight gradient sums the last token first", L4Q_BACKWARD,
        "the bounds hold for every order of a sum", Answer(tokens_in_reverse)),
    fault("bf16_sums", "the weight gradient is accumulated in bf16",
        L4Q_BACKWARD, &["one_precision"], Arithmetic(Slip::Bf16Sum)),
];

fn transposed_output(outputs: &mut Tensors, name: &str) -> Edited {
    let transposed = by_columns(&output(outputs, name)?);
    set_output(outputs, name, &transposed)
}

/// The gradient of the quantized weight, and what `x` and `d_y` give through it.
fn d_fake_quantized(request: &Request) -> Result<Array2<f32>, String> {
    let (x, d_y, grid) = (input(request, "x")?, input(request, "d_y")?, Grid::of(request)?);
    let gradients = linear_backward(x.view(), grid.quantized()?.view(), d_y.view());
    Ok(gradients.map_err(|e| e.to_string())?.d_weight)
}

fn set_factors(request: &Request, outputs: &mut Tensors, d_weight: &Array2<f32>) -> Edited {
    let lora_scaling = params::lora_scaling(&request.params)? as f32;
    let (lora_a, lora_b) = (input(request, "lora_a")?, input(request, "lora_b")?);
    set_output(outputs, "d_lora_a", &(lora_b.t().dot(d_weight) * lora_scaling))?;
    set_output(outputs, "d_lora_b", &(d_weight.dot(&lora_a.t()) * lora_scaling))
}

fn no_mask(request: &Request, outputs: &mut Tensors) -> Edited {
    set_factors(request, outputs, &d_fake_quantized(request)?)
}

fn other_mask(
    request: &Request,
    outputs: &mut Tensors,
    passes: fn(f32, f32, f32) -> bool,
) -> Edited {
    let (grid, d_output) = (Grid::of(request)?, input(request, "d_output")?);
    let (qmin, qmax) = grid.ends();
    let mask = grid.map(|argument, _, _| f32::from(passes(argument, qmin, qmax)));
    set_output(outputs, "d_weight", &(&d_output * &mask))?;
    let outside = grid.group_sums(&(&d_output * &mask.mapv(|mask| 1.0 - mask)));
    if request.params.optional::<String>("grad_scale")?.is_none() {
        set_output(outputs, "d_offset", &outside)?;
    }
    Ok(())
}

fn mask_on_codes(request: &Request, outputs: &mut Tensors) -> Edited {
    other_mask(request, outputs, |argument, qmin, qmax| {
        let code = argument.clamp(qmin, qmax).round_ties_even();
        qmin < code && code < qmax
    })
}

/// Another slope of the scale; only where no factor stands on it.
fn slope(request: &Request, outputs: &mut Tensors, slope: fn(f32, f32, bool) -> f32) -> Edited {
    if request.params.optional::<String>("grad_scale")?.is_some_and(|factor| factor != "none") {
        return Ok(());
    }
    let (grid, d_output) = (Grid::of(request)?, input(request, "d_output")?);
    let (qmin, qmax) = grid.ends();
    let slopes = grid.map(|argument, _, _| {
        let code = argument.clamp(qmin, qmax).round_ties_even();
        slope(code, argument, in_range(argument, &grid.spec, MaskRule::PreRound))
    });
    set_output(outputs, "d_scale", &grid.group_sums(&(&d_output * &slopes)))
}

fn offset_sum(request: &Request, outputs: &mut Tensors, counts: fn(bool) -> bool) -> Edited {
    let (grid, d_output) = (Grid::of(request)?, input(request, "d_output")?);
    let counted = grid.map(|argument, _, _| {
        f32::from(counts(in_range(argument, &grid.spec, MaskRule::PreRound)))
    });
    set_output(outputs, "d_offset", &grid.group_sums(&(&d_output * &counted)))
}

fn factor_on_the_weight(request: &Request, outputs: &mut Tensors) -> Edited {
    let quantizer = params::Quantizer::read(&request.params)?;
    let factor = grad_scale_factor(&spec(request)?, quantizer.grad_scale);
    map_output(outputs, "d_weight", |d| d * factor as f32)
}

fn no_offset_in_d_x(request: &Request, outputs: &mut Tensors) -> Edited {
    let (grid, d_y) = (Grid::of(request)?, input(request, "d_y")?);
    let without = grid.quantized()? - grid.map(|_, _, offset| offset);
    set_output(outputs, "d_x", &d_y.dot(&without))
}

fn frozen_weight_in_d_x(request: &Request, outputs: &mut Tensors) -> Edited {
    let (grid, d_y) = (Grid::of(request)?, input(request, "d_y")?);
    set_output(outputs, "d_x", &d_y.dot(&grid.weight))
}

fn first_sample_only(request: &Request, outputs: &mut Tensors) -> Edited {
    let names = ["d_lora_a", "d_lora_b", "d_scale", "d_offset"];
    as_if(request, outputs, &names, |r| first_row_alone(r, "d_y"))
}

fn unscaled(request: &Request, outputs: &mut Tensors, name: &str) -> Edited {
    let lora_scaling = params::lora_scaling(&request.params)? as f32;
    map_output(outputs, name, |d| d / lora_scaling)
}

fn grid_gradient_scaled(request: &Request, outputs: &mut Tensors) -> Edited {
    let lora_scaling = params::lora_scaling(&request.params)? as f32;
    map_output(outputs, "d_scale", |d| d * lora_scaling)
}

fn stale(request: &Request, outputs: &mut Tensors) -> Edited {
    let weight = input(request, "weight")?;
    let (grid, d_y) = (Grid { weight, ..Grid::of(request)? }, input(request, "d_y")?);
    set_output(outputs, "d_x", &d_y.dot(&grid.quantized()?))
}

fn tokens_in_reverse(request: &Request, outputs: &mut Tensors) -> Edited {
    let names = ["d_lora_a", "d_lora_b", "d_scale", "d_offset"];
    as_if(request, outputs, &names, |r| {
        for name in ["x", "d_y"] {
            let mut reversed = input(r, name)?;
            reversed.invert_axis(Axis(0));
            set_input(r, name, &reversed)?;
        }
        Ok(())
    })
}
