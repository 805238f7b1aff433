//! Faults of the quantizer and of L4Q around it.

use ndarray::{Array2, Axis};
use plumbline_reference::linear::linear_backward;
use plumbline_reference::lora::delta_weight;
use plumbline_reference::quantize::{argument, dequantize, in_range, quantize};
use plumbline_reference::spec::MaskRule;

use super::super::Fault::{Answer, Arithmetic, Request as Asked};
use super::super::Mutant;
use super::super::arithmetic::Slip;
use super::edits::{
    Edited, input, map_input, map_output, map_param, output, set_input, set_output, set_param,
    spec, without_ragged_columns,
};
use super::fault;
use crate::case::Request;
use crate::params;
use crate::tensor::{Tensor, Tensors};

const FORWARD: &[&str] = &["fake_quantize.forward"];
const BACKWARD: &[&str] = &["fake_quantize.backward"];
const L4Q: &[&str] = &["l4q.forward"];
const L4Q_BACKWARD: &[&str] = &["l4q.backward"];
const L4Q_MERGE: &[&str] = &["l4q.merge"];
const INIT: &[&str] = &["init_scale"];

/// Codes that are rounded or divided in another way.
#[rustfmt::skip]
pub(super) static ROUNDING: &[Mutant] = &[
    fault("round_half_away", "ties go away from zero",
        FORWARD, &["tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("round_half_up", "ties go up: floor(x + 0.5)",
        FORWARD, &["tie"], Arithmetic(Slip::RoundHalfUp)),
    fault("round_half_down", "ties go towards zero",
        FORWARD, &["tie"], Arithmetic(Slip::RoundHalfDown)),
    fault("truncate", "codes are truncated",
        FORWARD, &["tie", "odd_size"], Arithmetic(Slip::Truncate)),
    fault("floor", "codes are rounded down",
        FORWARD, &["tie", "odd_size"], Arithmetic(Slip::Floor)),
    fault("ceil", "codes are rounded up",
        FORWARD, &["tie", "odd_size"], Arithmetic(Slip::Ceil)),
    fault("reciprocal", "weight * (1 / scale)",
        FORWARD, &["true_division"], Arithmetic(Slip::Reciprocal)),
    fault("bf16_argument", "the quotient is bf16",
        FORWARD, &["one_ulp"], Arithmetic(Slip::Bf16Quotient)),
    fault("half_away_in_l4q", "ties go away from zero",
        L4Q, &["combined_tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("half_away_in_merge", "merge rounds ties away",
        L4Q_MERGE, &["combined_tie", "same_codes"], Arithmetic(Slip::RoundHalfAway)),
    fault("half_away_in_backward", "the backward rounds ties away",
        BACKWARD, &["tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("divided_apart", "weight / scale - offset / scale",
        FORWARD, &["one_division"], Answer(divided_apart)),
    fault("merge_in_bf16", "(public: h) the merge computes in bf16",
        L4Q_MERGE, &["same_codes"], Asked(in_bf16)),
];

/// Wrong grids, groups and operands.
#[rustfmt::skip]
pub(super) static GRID: &[Mutant] = &[
    fault("one_bit_more", "clamps to the range of one bit more",
        FORWARD, &["saturation", "grid_width"],
        Asked(|r| map_param(r, "bits", |bits| bits + 1.0).and_then(|()| whole_bits(r)))),
    fault("one_bit_less", "clamps to the range of one bit less",
        FORWARD, &["range_end", "grid_width"],
        Asked(|r| map_param(r, "bits", |bits| bits - 1.0).and_then(|()| whole_bits(r)))),
    fault("qmax_is_free", "no clamp at the top: qmax + 1 appears",
        FORWARD, &["saturation", "range_end"], Answer(unclamped_top)),
    fault("symmetric_range", "clamps to -qmax",
        FORWARD, &["range_end", "saturation"], Answer(symmetric_range)),
    fault("offset_forgotten", "the offset is not used",
        FORWARD, &["real_offset"], Asked(|r| map_input(r, "offset", |_| 0.0))),
    fault("offset_not_added_back", "codes * scale without the offset",
        FORWARD, &["real_offset"], Answer(offset_not_added_back)),
    fault("offset_as_zero_point", "the offset is rounded to whole steps",
        FORWARD, &["real_offset"], Asked(offset_in_steps)),
    fault("offset_inside_the_clamp", "the offset moves the ends of the grid",
        L4Q, &["offset_outside"], Answer(offset_inside)),
    fault("group_index_stale", "every group uses the first group's scale",
        FORWARD, &["group_index"], Asked(first_group)),
    fault("group_index_off_by_one", "a group uses its neighbour's scale",
        FORWARD, &["group_index"], Asked(next_group)),
    fault("groups_over_outputs", "scales are read column by column",
        FORWARD, &["group_index"], Asked(transposed_groups)),
    fault("no_scale_floor", "a scale below the floor is used as it is",
        FORWARD, &["scale_floor"],
        Asked(|r| map_input(r, "scale", |s| if s < 1e-8 { 2e-8 } else { s }))),
    fault("absolute_scale", "a negative scale acts as its magnitude",
        FORWARD, &["scale_floor"], Asked(|r| map_input(r, "scale", f32::abs))),
    fault("last_tile_missing", "columns beyond the last whole tile are zero",
        FORWARD, &["odd_size"], Answer(|_, o| last_tile(o, "output"))),
    fault("scaling_omitted", "lora_scaling is not applied",
        L4Q, &["scaling"], Asked(|r| set_param(r, "lora_scaling", 1.0))),
    fault("scaling_twice", "lora_scaling is applied twice",
        L4Q, &["scaling"], Asked(|r| map_param(r, "lora_scaling", |s| s * s))),
    fault("scaling_by_rank", "lora_scaling is divided by the rank again",
        L4Q, &["scaling"], Asked(scaling_by_rank)),
    fault("adapter_beside", "the update is added after the quantizer",
        L4Q, &["adapter_inside"], Answer(adapter_beside)),
    fault("adapter_forgotten", "the update is not quantized at all",
        L4Q, &["scaling", "adapter_inside"], Asked(|r| map_input(r, "lora_b", |_| 0.0))),
    fault("merge_without_adapter", "merge quantizes the frozen weight",
        L4Q_MERGE, &["same_codes", "scaling"], Asked(|r| map_input(r, "lora_b", |_| 0.0))),
    fault("merge_drops_offset", "merge answers offset zero",
        L4Q_MERGE, &["offset_kept"], Answer(|_, o| map_output(o, "offset", |_| 0.0))),
    fault("merge_keeps_raw_scale", "merge answers the scale below the floor",
        L4Q_MERGE, &["scale_floor"], Answer(raw_scale)),
    fault("init_of_the_peft_code", "(public: f) lsq_plus in place of the paper's rule",
        INIT, &["each_end"], Asked(|r| replace_rule(r, "l4q", "lsq_plus"))),
    fault("init_symmetric", "(public: f) symmetric in place of the paper's rule",
        INIT, &["each_end"], Asked(|r| replace_rule(r, "l4q", "symmetric"))),
    fault("init_min_max", "min_max in place of the paper's rule",
        INIT, &["each_end"], Asked(|r| replace_rule(r, "l4q", "min_max"))),
    fault("biased_deviation", "sigma divides by n",
        INIT, &["unbiased"], Answer(biased_deviation)),
    fault("root_forgotten", "lsq divides by qmax, not by its root",
        INIT, &["root_of_qmax"], Answer(lsq_without_root)),
    fault("fewer_ranges", "lp leaves out the full range",
        INIT, &["steps", "first_minimum", "clipping_error"], Answer(without_full_range)),
];

/// Wrong gradients.
#[rustfmt::skip]
pub(super) static GRADIENTS: &[Mutant] = &[
    fault("no_mask", "(public: a) clipped weights get gradient",
        BACKWARD, &["unmasked"], Answer(|r, o| set_output(o, "d_weight", &input(r, "d_output")?))),
    fault("no_mask_in_l4q", "(public: a) the factors see the unmasked gradient",
        L4Q_BACKWARD, &["unmasked"], Answer(no_mask)),
    fault("open_mask", "an argument at an end of the range counts as clipped",
        BACKWARD, &["closed_mask"],
        Answer(|r, o| other_mask(r, o, |v, qmin, qmax| qmin < v && v < qmax))),
    fault("mask_after_rounding", "the mask tests the rounded argument",
        BACKWARD, &["pre_round_mask"],
        Answer(|r, o| other_mask(r, o, |v, qmin, qmax| qmin <= v.round_ties_even() && v.round_ties_even() <= qmax))),
    fault("mask_on_codes", "a code at an end of the range counts as clipped",
        BACKWARD, &["closed_mask", "unmasked"], Answer(mask_on_codes)),
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
        BACKWARD, &["grad_scale_default"], Asked(|r| default_grad_scale(r, "lsq"))),
    fault("lit_gpt_for_lsq", "(public: g) groups in place of group_size",
        BACKWARD, &["grad_scale"], Asked(|r| replace_grad_scale(r, "lsq", "lit_gpt"))),
    fault("peft_for_lsq", "(public: g) qmax outside the root",
        BACKWARD, &["grad_scale"], Asked(|r| replace_grad_scale(r, "lsq", "peft"))),
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
        Answer(|_, o| map_output(o, "d_scale", |_| 0.0).and_then(|()| map_output(o, "d_offset", |_| 0.0)))),
    fault("lora_a_without_scaling", "d_lora_a lacks lora_scaling",
        L4Q_BACKWARD, &["scaling"], Answer(|r, o| unscaled(r, o, "d_lora_a"))),
    fault("lora_b_without_scaling", "d_lora_b lacks lora_scaling",
        L4Q_BACKWARD, &["scaling"], Answer(|r, o| unscaled(r, o, "d_lora_b"))),
    fault("grid_gradient_scaled", "lora_scaling multiplies d_scale",
        L4Q_BACKWARD, &["scaling"], Answer(grid_gradient_scaled)),
    fault("stale_quantized_weight", "the backward quantizes without the update",
        L4Q_BACKWARD, &["quantized_d_x", "scaling"], Answer(stale)),
    fault("bf16_sums", "the weight gradient is accumulated in bf16",
        L4Q_BACKWARD, &["all_tokens", "odd_size"], Arithmetic(Slip::Bf16Sum)),
];

fn whole_bits(request: &mut Request) -> Edited {
    // Widths are integers, and stay where there is none on the other side.
    let bits = request.params.number("bits")?.clamp(2.0, 8.0);
    set_param(request, "bits", bits as u64)
}

fn in_bf16(request: &mut Request) -> Edited {
    for name in ["weight", "lora_a", "lora_b", "scale", "offset"] {
        map_input(request, name, |value| half::bf16::from_f32(value).to_f32())?;
    }
    Ok(())
}

/// The tensors of a quantizer, and of L4Q around it.
struct Grid {
    weight: Array2<f32>,
    scale: Array2<f32>,
    offset: Array2<f32>,
    spec: plumbline_reference::spec::QuantSpec,
}

impl Grid {
    /// With the update added to the weight, where there is one.
    fn of(request: &Request) -> Result<Self, String> {
        let mut weight = input(request, "weight")?;
        if request.inputs.contains_key("lora_a") {
            let (lora_a, lora_b) = (input(request, "lora_a")?, input(request, "lora_b")?);
            let lora_scaling = params::lora_scaling(&request.params)?;
            let delta = delta_weight(lora_a.view(), lora_b.view(), lora_scaling);
            weight += &delta.map_err(|e| e.to_string())?;
        }
        let (scale, offset) = (input(request, "scale")?, input(request, "offset")?);
        Ok(Self { weight, scale, offset, spec: spec(request)? })
    }

    /// The weight on the grid.
    fn quantized(&self) -> Result<Array2<f32>, String> {
        let (scale, offset) = (self.scale.view(), self.offset.view());
        quantize(self.weight.view(), scale, offset, &self.spec)
            .and_then(|codes| dequantize(codes.view(), scale, offset, &self.spec))
            .map_err(|e| e.to_string())
    }

    /// Something of every element's argument, scale and offset.
    fn map(&self, f: impl Fn(f32, f32, f32) -> f32) -> Array2<f32> {
        Array2::from_shape_fn(self.weight.dim(), |(o, i)| {
            let g = i / self.spec.group_size();
            let (scale, offset) = (self.scale[[o, g]].max(1e-8), self.offset[[o, g]]);
            f(argument(self.weight[[o, i]], scale, offset), scale, offset)
        })
    }

    fn ends(&self) -> (f32, f32) {
        (self.spec.qmin() as f32, self.spec.qmax() as f32)
    }

    fn group_sums(&self, terms: &Array2<f32>) -> Array2<f32> {
        let mut sums = Array2::zeros(self.scale.dim());
        for ((o, i), term) in terms.indexed_iter() {
            sums[[o, i / self.spec.group_size()]] += term;
        }
        sums
    }
}

/// Codes and the values they stand for, both from arguments that a fault made.
fn answer_codes(grid: &Grid, outputs: &mut Tensors, codes: &Array2<f32>) -> Edited {
    outputs.insert("codes".to_owned(), Tensor::codes(&codes.mapv(|code| code as i8)));
    let values = Array2::from_shape_fn(codes.dim(), |(o, i)| {
        let g = i / grid.spec.group_size();
        codes[[o, i]] * grid.scale[[o, g]].max(1e-8) + grid.offset[[o, g]]
    });
    set_output(outputs, "output", &values)
}

fn divided_apart(request: &Request, outputs: &mut Tensors) -> Edited {
    let grid = Grid::of(request)?;
    let (qmin, qmax) = grid.ends();
    let codes = Array2::from_shape_fn(grid.weight.dim(), |(o, i)| {
        let g = i / grid.spec.group_size();
        let scale = grid.scale[[o, g]].max(1e-8);
        let argument = grid.weight[[o, i]] / scale - grid.offset[[o, g]] / scale;
        argument.clamp(qmin, qmax).round_ties_even()
    });
    answer_codes(&grid, outputs, &codes)
}

fn unclamped_top(request: &Request, outputs: &mut Tensors) -> Edited {
    let grid = Grid::of(request)?;
    let (qmin, qmax) = grid.ends();
    // An i8 wraps or saturates at 8 bits; the other widths have room for one code more.
    let top = (qmax + 1.0).min(127.0);
    let codes = grid.map(|argument, _, _| argument.clamp(qmin, top).round_ties_even());
    answer_codes(&grid, outputs, &codes)
}

fn symmetric_range(request: &Request, outputs: &mut Tensors) -> Edited {
    let grid = Grid::of(request)?;
    let (_, qmax) = grid.ends();
    let codes = grid.map(|argument, _, _| argument.clamp(-qmax, qmax).round_ties_even());
    answer_codes(&grid, outputs, &codes)
}

fn offset_not_added_back(request: &Request, outputs: &mut Tensors) -> Edited {
    let grid = Grid::of(request)?;
    let values = &output(outputs, "output")? - &grid.map(|_, _, offset| offset);
    set_output(outputs, "output", &values)
}

fn offset_in_steps(request: &mut Request) -> Edited {
    let (scale, mut offset) = (input(request, "scale")?, input(request, "offset")?);
    offset.zip_mut_with(&scale, |offset, &scale| {
        let scale = scale.max(1e-8);
        *offset = (*offset / scale).round_ties_even() * scale;
    });
    set_input(request, "offset", &offset)
}

/// `clamp(weight / scale) - offset / scale` in place of the clamp around both.
fn offset_inside(request: &Request, outputs: &mut Tensors) -> Edited {
    let grid = Grid::of(request)?;
    let (qmin, qmax) = grid.ends();
    let values = grid.map(|argument, scale, offset| {
        let shift = (offset / scale).round_ties_even();
        (argument + shift).clamp(qmin, qmax).round_ties_even() * scale
    });
    set_output(outputs, "fake_quantized", &values)?;
    let x = input(request, "x")?;
    set_output(outputs, "y", &x.dot(&values.t()))
}

fn first_group(request: &mut Request) -> Edited {
    for name in ["scale", "offset"] {
        let mut grid = input(request, name)?;
        for mut row in grid.rows_mut() {
            let first = row[0];
            row.fill(first);
        }
        set_input(request, name, &grid)?;
    }
    Ok(())
}

fn next_group(request: &mut Request) -> Edited {
    let scale = input(request, "scale")?;
    let groups = scale.ncols();
    let shifted = Array2::from_shape_fn(scale.dim(), |(o, g)| scale[[o, (g + 1) % groups]]);
    set_input(request, "scale", &shifted)
}

/// The same numbers, as if the matrix had been laid out by columns.
fn by_columns(matrix: &Array2<f32>) -> Array2<f32> {
    let flat: Vec<f32> = matrix.t().iter().copied().collect();
    Array2::from_shape_vec(matrix.dim(), flat).expect("as many elements")
}

fn transposed_groups(request: &mut Request) -> Edited {
    let scale = by_columns(&input(request, "scale")?);
    set_input(request, "scale", &scale)
}

fn transposed_output(outputs: &mut Tensors, name: &str) -> Edited {
    let transposed = by_columns(&output(outputs, name)?);
    set_output(outputs, name, &transposed)
}

fn last_tile(outputs: &mut Tensors, name: &str) -> Edited {
    let mut matrix = output(outputs, name)?;
    without_ragged_columns(&mut matrix);
    set_output(outputs, name, &matrix)
}

fn scaling_by_rank(request: &mut Request) -> Edited {
    let rank = input(request, "lora_a")?.nrows() as f64;
    map_param(request, "lora_scaling", |scaling| scaling / rank)
}

fn adapter_beside(request: &Request, outputs: &mut Tensors) -> Edited {
    let with_update = Grid::of(request)?;
    let weight = input(request, "weight")?;
    let update = &with_update.weight - &weight;
    let values = Grid { weight, ..with_update }.quantized()? + update;
    set_output(outputs, "fake_quantized", &values)?;
    let x = input(request, "x")?;
    set_output(outputs, "y", &x.dot(&values.t()))
}

fn raw_scale(request: &Request, outputs: &mut Tensors) -> Edited {
    set_output(outputs, "scale", &input(request, "scale")?)
}

fn replace_rule(request: &mut Request, from: &str, to: &str) -> Edited {
    let rule: String = request.params.required("rule")?;
    if rule == from { set_param(request, "rule", to) } else { Ok(()) }
}

/// Answers a scale of one rule from the groups of the weight.
fn rescaled(
    request: &Request,
    outputs: &mut Tensors,
    rule: &str,
    factor: impl Fn(usize, f32) -> f32,
) -> Edited {
    if request.params.required::<String>("rule")? != rule {
        return Ok(());
    }
    let spec = spec(request)?;
    map_output(outputs, "scale", |scale| factor(spec.group_size(), scale))
}

fn biased_deviation(request: &Request, outputs: &mut Tensors) -> Edited {
    // Exact where the mean is zero, and visibly wrong everywhere else too.
    rescaled(request, outputs, "lsq_plus", |count, scale| {
        scale * ((count as f32 - 1.0).max(1.0) / count as f32).sqrt()
    })
}

fn lsq_without_root(request: &Request, outputs: &mut Tensors) -> Edited {
    let qmax = spec(request)?.qmax() as f32;
    rescaled(request, outputs, "lsq", |_, scale| scale / qmax.sqrt())
}

fn without_full_range(request: &Request, outputs: &mut Tensors) -> Edited {
    if request.params.required::<String>("rule")? != "lp" {
        return Ok(());
    }
    let steps = request.params.number("steps")?;
    let (weight, spec) = (input(request, "weight")?, spec(request)?);
    let mut scale = output(outputs, "scale")?;
    for ((o, g), scale) in scale.indexed_iter_mut() {
        let group = g * spec.group_size()..(g + 1) * spec.group_size();
        let absmax = group.fold(0.0_f32, |largest, i| largest.max(weight[[o, i]].abs()));
        let full = absmax / spec.qmax() as f32;
        if (*scale - full).abs() <= 1e-6 * full {
            *scale = full * ((steps - 1.0) / steps) as f32;
        }
    }
    set_output(outputs, "scale", &scale)
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

fn default_grad_scale(request: &mut Request, factor: &str) -> Edited {
    let given: Option<String> = request.params.optional("grad_scale")?;
    if given.is_none() { set_param(request, "grad_scale", factor) } else { Ok(()) }
}

fn replace_grad_scale(request: &mut Request, from: &str, to: &str) -> Edited {
    let given: Option<String> = request.params.optional("grad_scale")?;
    if given.as_deref() == Some(from) { set_param(request, "grad_scale", to) } else { Ok(()) }
}

fn factor_on_the_weight(request: &Request, outputs: &mut Tensors) -> Edited {
    let quantizer = params::Quantizer::read(&request.params)?;
    let factor = plumbline_reference::straight_through::grad_scale_factor(
        &spec(request)?,
        quantizer.grad_scale,
    );
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

/// Everything of the request, with the later tokens' `d_y` set to zero.
fn rerun(request: &Request, edit: impl Fn(&mut Request) -> Edited) -> Result<Tensors, String> {
    let mut edited = request.clone();
    edit(&mut edited)?;
    (request.op.run.f32)(&edited)
}

fn first_sample_only(request: &Request, outputs: &mut Tensors) -> Edited {
    let faulty = rerun(request, |request| {
        let mut d_y = input(request, "d_y")?;
        for mut row in d_y.axis_iter_mut(Axis(0)).skip(1) {
            row.fill(0.0);
        }
        set_input(request, "d_y", &d_y)
    })?;
    for name in ["d_lora_a", "d_lora_b", "d_scale", "d_offset"] {
        set_output(outputs, name, &output(&faulty, name)?)?;
    }
    Ok(())
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
