//! Faults of the quantizer and of L4Q around it.

use ndarray::Array2;

use super::super::Fault::{Answer, Arithmetic, Request as Asked};
use super::super::Mutant;
use super::super::arithmetic::Slip;
use super::edits::{
    Edited, by_columns, input, map_input, map_output, map_param, output, set_input, set_output,
    set_param, spec, swap_param, without_ragged_columns,
};
use super::grid::Grid;
use super::{equivalent, fault};
use crate::case::Request;
use crate::tensor::{Tensor, Tensors};

const FORWARD: &[&str] = &["fake_quantize.forward"];
const L4Q: &[&str] = &["l4q.forward"];
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
    fault("divided_apart", "weight / scale - offset / scale",
        FORWARD, &["one_division"], Answer(divided_apart)),
    fault("merge_in_bf16", "(public: h) the merge computes in bf16",
        L4Q_MERGE, &["one_precision"], Asked(in_bf16)),
    fault("forward_in_bf16", "the quantizer reads bf16 tensors",
        L4Q, &["one_precision"], Asked(in_bf16)),
    fault("tf32_in_l4q", "products of eleven-bit numbers",
        L4Q, &["one_precision"], Arithmetic(Slip::Tf32Product)),
    equivalent("clamped_after_rounding", "clamp(round(argument))", FORWARD,
        "the ends are integers, which rounding keeps, and rounding never changes an order",
        Answer(clamped_after_rounding)),
    equivalent("fused_argument", "products and sums are rounded once", L4Q_MERGE,
        "a code is demanded only where no rounding error of f32 reaches a tie",
        Arithmetic(Slip::Contract)),
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
        INIT, &["each_end"], Asked(|r| swap_param(r, "rule", "l4q", "lsq_plus"))),
    fault("init_symmetric", "(public: f) symmetric in place of the paper's rule",
        INIT, &["each_end"], Asked(|r| swap_param(r, "rule", "l4q", "symmetric"))),
    fault("init_min_max", "min_max in place of the paper's rule",
        INIT, &["each_end"], Asked(|r| swap_param(r, "rule", "l4q", "min_max"))),
    fault("biased_deviation", "sigma divides by n",
        INIT, &["unbiased"], Answer(biased_deviation)),
    fault("root_forgotten", "lsq divides by qmax, not by its root",
        INIT, &["root_of_qmax"], Answer(lsq_without_root)),
    fault("fewer_ranges", "lp leaves out the full range",
        INIT, &["steps", "first_minimum", "clipping_error"], Answer(without_full_range)),
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

fn clamped_after_rounding(request: &Request, outputs: &mut Tensors) -> Edited {
    let grid = Grid::of(request)?;
    let (qmin, qmax) = grid.ends();
    let codes = grid.map(|argument, _, _| argument.round_ties_even().clamp(qmin, qmax));
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

fn transposed_groups(request: &mut Request) -> Edited {
    let scale = by_columns(&input(request, "scale")?);
    set_input(request, "scale", &scale)
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
