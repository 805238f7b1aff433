//! Faults of QA-LoRA, PEQA, full quantization-aware training and QAT-LoRA.

use ndarray::Array2;
use plumbline_reference::linear::linear_backward;
use plumbline_reference::lora::delta_weight;
use plumbline_reference::quantize::in_range;
use plumbline_reference::spec::MaskRule;
use serde_json::Value;

use super::super::Fault::{Answer, Arithmetic, Request as Asked};
use super::super::Mutant;
use super::super::arithmetic::Slip;
use super::edits::{
    Edited, as_if, by_columns, first_row_alone, input, map_input, map_output, map_param, output,
    rerun, set_input, set_output, set_param, swap_param,
};
use super::fault;
use super::grid::Grid;
use crate::case::Request;
use crate::params::{self, Quantizer};
use crate::tensor::Tensors;

const QA_LORA: &[&str] = &["qa_lora.forward"];
const QA_LORA_BACKWARD: &[&str] = &["qa_lora.backward"];
const QA_LORA_MERGE: &[&str] = &["qa_lora.merge"];
const PEQA: &[&str] = &["peqa.forward"];
const PEQA_BACKWARD: &[&str] = &["peqa.backward"];
const QAT: &[&str] = &["qat.forward"];
const QAT_BACKWARD: &[&str] = &["qat.backward"];
const QAT_LORA: &[&str] = &["qat_lora.forward"];
const QAT_LORA_BACKWARD: &[&str] = &["qat_lora.backward"];

/// Faults of layers over codes that are frozen.
#[rustfmt::skip]
pub(super) static FROZEN: &[Mutant] = &[
    fault("mean_for_sum", "inputs of a group are averaged where their sum is asked for",
        QA_LORA, &["pool"], Asked(|r| swap_param(r, "pool", "sum", "mean"))),
    fault("sum_for_mean", "inputs of a group are added up where their mean is asked for",
        QA_LORA, &["pool"], Asked(|r| swap_param(r, "pool", "mean", "sum"))),
    fault("factor_of_the_variant_forgotten", "the plain mean where a variant has a factor",
        QA_LORA, &["peft_factor"],
        Asked(|r| swap_param(r, "dialect", "hf_peft_qalora", Value::Null))),
    fault("strided_groups", "input i is pooled into group i modulo groups",
        QA_LORA, &["group_index"], Answer(strided_pool)),
    fault("qa_scaling_omitted", "lora_scaling is not applied",
        QA_LORA, &["scaling"], Asked(|r| set_param(r, "lora_scaling", 1.0))),
    fault("qa_scaling_twice", "lora_scaling is applied twice",
        QA_LORA, &["scaling"], Asked(|r| map_param(r, "lora_scaling", |s| s * s))),
    fault("real_zero_point_rounded", "a merged zero point is read as an integer",
        QA_LORA, &["real_zero_point"],
        Asked(|r| map_input(r, "zero_point", f32::round_ties_even))),
    fault("pool_not_undone_in_d_x", "every input gets the gradient of the sum",
        QA_LORA_BACKWARD, &["pool"],
        Answer(|r, o| as_if(r, o, &["d_x"], |r| swap_param(r, "pool", "mean", "sum")))),
    fault("qa_adapter_not_in_d_x", "d_x of the codes alone",
        QA_LORA_BACKWARD, &["adapter_in_d_x"],
        Answer(|r, o| as_if(r, o, &["d_x"], |r| map_input(r, "lora_b", |_| 0.0)))),
    fault("qa_factor_without_scaling", "d_lora_a lacks lora_scaling",
        QA_LORA_BACKWARD, &["scaling"], Answer(|r, o| unscaled(r, o, "d_lora_a"))),
    fault("qa_first_token_only", "only the first token trains",
        QA_LORA_BACKWARD, &["all_tokens"],
        Answer(|r, o| as_if(r, o, &["d_lora_a", "d_lora_b"], |r| first_row_alone(r, "d_y")))),
    fault("zero_point_moved_the_other_way", "merge adds the update to the zero point",
        QA_LORA_MERGE, &["zero_point_update"],
        Asked(|r| map_param(r, "lora_scaling", |scaling| -scaling))),
    fault("zero_point_moved_in_weight_units", "merge does not divide the update by the scale",
        QA_LORA_MERGE, &["zero_point_update"],
        Answer(|r, o| {
            let (scale, zero_point) = (input(r, "scale")?, input(r, "zero_point")?);
            let update = output(o, "zero_point")? - &zero_point;
            set_output(o, "zero_point", &(zero_point + update * scale.mapv(|s| s.max(1e-8))))
        })),
    fault("merged_zero_point_rounded", "merge answers integers",
        QA_LORA_MERGE, &["merged_range", "real_zero_point"],
        Answer(|_, o| map_output(o, "zero_point", f32::round_ties_even))),
    fault("merged_zero_point_clamped", "merge answers codes of the grid",
        QA_LORA_MERGE, &["merged_range"],
        Answer(|r, o| {
            let bits: i32 = r.params.required("bits")?;
            map_output(o, "zero_point", |z| z.clamp(0.0, 2_f32.powi(bits) - 1.0))
        })),
    fault("merge_of_the_sum", "merge moves zero points as for a sum",
        QA_LORA_MERGE, &["pool"], Asked(|r| swap_param(r, "pool", "mean", "sum"))),
    fault("zero_point_forgotten", "scale * codes",
        PEQA, &["zero_point"], Asked(|r| map_input(r, "zero_point", |_| 0.0))),
    fault("peqa_signed_codes", "codes of the upper half are negative",
        PEQA, &["grid_width"], Answer(with_signed_codes)),
    fault("peqa_scale_of_a_neighbour", "scales are read column by column",
        PEQA, &["group_index"],
        Asked(|r| {
            let scale = by_columns(&input(r, "scale")?);
            set_input(r, "scale", &scale)
        })),
    fault("d_scale_without_zero_point", "d_scale sums d_weight * codes",
        PEQA_BACKWARD, &["zero_point"],
        Answer(|r, o| as_if(r, o, &["d_scale"], |r| map_input(r, "zero_point", |_| 0.0)))),
    fault("d_scale_over_outputs", "d_scale is grouped over outputs",
        PEQA_BACKWARD, &["group_sum", "group_index"],
        Answer(|_, o| {
            let transposed = by_columns(&output(o, "d_scale")?);
            set_output(o, "d_scale", &transposed)
        })),
    fault("residual_of_frozen_codes", "d_scale has the residual of a quantizer: it is 0",
        PEQA_BACKWARD, &["no_residual"], Answer(|_, o| map_output(o, "d_scale", |_| 0.0))),
    fault("peqa_first_token_only", "only the first token trains",
        PEQA_BACKWARD, &["all_tokens"],
        Answer(|r, o| as_if(r, o, &["d_scale"], |r| first_row_alone(r, "d_y")))),
    fault("peqa_below_the_floor_moves", "a scale below the floor gets gradient",
        PEQA_BACKWARD, &["scale_floor"],
        Asked(|r| map_input(r, "scale", |s| if s < 1e-8 { 1e-8 } else { s }))),
];

/// Faults of layers whose weight is rounded in every step.
#[rustfmt::skip]
pub(super) static TRAINED: &[Mutant] = &[
    fault("qat_half_away", "ties go away from zero",
        QAT, &["tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("qat_offset_forgotten", "the offset is not used",
        QAT, &["offset_outside"], Asked(|r| map_input(r, "offset", |_| 0.0))),
    fault("qat_offset_made_up", "lsq gets an offset of half a step",
        QAT, &["no_offset"],
        Asked(|r| {
            if !r.inputs.contains_key("offset") {
                let offset = input(r, "scale")?.mapv(|scale| scale / 2.0);
                set_input(r, "offset", &offset)?;
            }
            swap_param(r, "quantizer", "lsq", "lsq_plus")
        })),
    fault("one_range_for_every_width", "a range of 4 bits",
        QAT, &["grid_width"], Asked(|r| set_param(r, "bits", 4))),
    fault("clipped_weights_train", "d_weight is not masked",
        QAT_BACKWARD, &["unmasked"],
        Answer(|r, o| set_output(o, "d_weight", &unmasked(r)?))),
    fault("qat_open_mask", "an argument at an end of the range counts as clipped",
        QAT_BACKWARD, &["closed_mask"], Asked(|r| swap_param(r, "mask", Value::Null, "open"))),
    fault("qat_one_mask_for_all", "the closed mask whatever is asked for",
        QAT_BACKWARD, &["mask_rule"], Asked(|r| set_param(r, "mask", Value::Null))),
    fault("qat_d_x_of_the_weight", "d_x uses the weight before the quantizer",
        QAT_BACKWARD, &["quantized_d_x"],
        Answer(|r, o| set_output(o, "d_x", &input(r, "d_y")?.dot(&input(r, "weight")?)))),
    fault("qat_no_offset_in_d_x", "d_x uses codes * scale alone",
        QAT_BACKWARD, &["offset_in_d_x"], Answer(no_offset_in_d_x)),
    fault("qat_factor_of_lit_gpt", "groups in place of group_size in the gradient scale",
        QAT_BACKWARD, &["grad_scale"], Asked(|r| swap_param(r, "grad_scale", "lsq", "lit_gpt"))),
    fault("qat_first_token_only", "only the first token trains",
        QAT_BACKWARD, &["all_tokens"],
        Answer(|r, o| as_if(r, o, &["d_weight", "d_scale"], |r| first_row_alone(r, "d_y")))),
    fault("qat_offset_over_outputs", "d_offset is grouped over outputs",
        QAT_BACKWARD, &["offset_gradient"],
        Answer(|r, o| {
            if !r.inputs.contains_key("offset") {
                return Ok(());
            }
            let transposed = by_columns(&output(o, "d_offset")?);
            set_output(o, "d_offset", &transposed)
        })),
    fault("adapter_inside_the_quantizer", "L4Q: the update is rounded with the weight",
        QAT_LORA, &["adapter_beside"], Asked(adapter_inside)),
    fault("qat_lora_scaling_omitted", "lora_scaling is not applied",
        QAT_LORA, &["scaling"], Asked(|r| set_param(r, "lora_scaling", 1.0))),
    fault("qat_lora_half_away", "ties go away from zero",
        QAT_LORA, &["tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("masked_factors", "the adapter beside the quantizer gets the masked gradient",
        QAT_LORA_BACKWARD, &["unmasked"], Answer(masked_factors)),
    fault("qat_lora_base_d_x", "d_x of the quantized layer alone",
        QAT_LORA_BACKWARD, &["adapter_in_d_x"],
        Answer(|r, o| as_if(r, o, &["d_x"], |r| map_input(r, "lora_b", |_| 0.0)))),
    fault("qat_lora_factor_without_scaling", "d_lora_b lacks lora_scaling",
        QAT_LORA_BACKWARD, &["scaling"], Answer(|r, o| unscaled(r, o, "d_lora_b"))),
    fault("quantizer_sees_the_adapter", "d_scale and d_offset of the adapted weight",
        QAT_LORA_BACKWARD, &["rounding_residual", "offset_gradient"],
        Answer(|r, o| as_if(r, o, &["d_scale", "d_offset"], adapter_inside))),
];

/// The layer with the inputs of its adapter in another order, which changes the pooled ones alone.
fn strided_pool(request: &Request, outputs: &mut Tensors) -> Edited {
    let x = input(request, "x")?;
    let size = Quantizer::read(&request.params)?.spec(x.ncols())?.group_size();
    let groups = x.ncols() / size;
    // Input n of group g is the one that a stride of `groups` puts there.
    let strided = Array2::from_shape_fn(x.dim(), |(t, i)| x[[t, i % size * groups + i / size]]);
    let through = |x: &Array2<f32>, with_adapter: bool| {
        let outputs = rerun(request, |r| {
            set_input(r, "x", x)?;
            map_input(r, "lora_b", |b| if with_adapter { b } else { 0.0 })
        })?;
        output(&outputs, "y")
    };
    let y = through(&x, false)? + (through(&strided, true)? - through(&strided, false)?);
    set_output(outputs, "y", &y)
}

/// `y` with codes that were read as two's complement: less `2^bits * scale` in the upper half.
fn with_signed_codes(request: &Request, outputs: &mut Tensors) -> Edited {
    let (x, codes, scale) =
        (input(request, "x")?, input(request, "codes")?, input(request, "scale")?);
    let spec = Quantizer::read(&request.params)?.spec(x.ncols())?;
    let whole = spec.unsigned_max() as f32 + 1.0;
    let missing = Array2::from_shape_fn(codes.dim(), |(o, i)| {
        let step = scale[[o, i / spec.group_size()]].max(1e-8);
        if codes[[o, i]] >= whole / 2.0 { whole * step } else { 0.0 }
    });
    let y = output(outputs, "y")? - x.dot(&missing.t());
    set_output(outputs, "y", &y)
}

fn unscaled(request: &Request, outputs: &mut Tensors, name: &str) -> Edited {
    let lora_scaling = params::lora_scaling(&request.params)? as f32;
    map_output(outputs, name, |d| if lora_scaling == 0.0 { d } else { d / lora_scaling })
}

/// The gradient of the quantized weight.
fn unmasked(request: &Request) -> Result<Array2<f32>, String> {
    let (x, d_y, weight) =
        (input(request, "x")?, input(request, "d_y")?, input(request, "weight")?);
    let gradients = linear_backward(x.view(), weight.view(), d_y.view());
    Ok(gradients.map_err(|e| e.to_string())?.d_weight)
}

fn no_offset_in_d_x(request: &Request, outputs: &mut Tensors) -> Edited {
    if !request.inputs.contains_key("offset") {
        return Ok(());
    }
    let (grid, d_y) = (Grid::of(request)?, input(request, "d_y")?);
    let without = grid.quantized()? - grid.map(|_, _, offset| offset);
    set_output(outputs, "d_x", &d_y.dot(&without))
}

/// Moves the update into the weight.
fn adapter_inside(request: &mut Request) -> Edited {
    let (lora_a, lora_b) = (input(request, "lora_a")?, input(request, "lora_b")?);
    let lora_scaling = params::lora_scaling(&request.params)?;
    let delta = delta_weight(lora_a.view(), lora_b.view(), lora_scaling);
    let weight = input(request, "weight")? + delta.map_err(|e| e.to_string())?;
    set_input(request, "weight", &weight)?;
    map_input(request, "lora_b", |_| 0.0)
}

fn masked_factors(request: &Request, outputs: &mut Tensors) -> Edited {
    // The grid without the adapter, as the layer has it.
    let weight = input(request, "weight")?;
    let grid = Grid { weight, ..Grid::of(request)? };
    let mask = grid.map(|v, _, _| f32::from(in_range(v, &grid.spec, MaskRule::PreRound)));
    let d_weight = unmasked(request)? * mask;
    let lora_scaling = params::lora_scaling(&request.params)? as f32;
    let (lora_a, lora_b) = (input(request, "lora_a")?, input(request, "lora_b")?);
    let d_lora_a = lora_b.t().dot(&d_weight) * lora_scaling;
    set_output(outputs, "d_lora_a", &d_lora_a)?;
    set_output(outputs, "d_lora_b", &(d_weight.dot(&lora_a.t()) * lora_scaling))
}
