//! Faults of GPTQ, and of the starts from a singular value decomposition.

use ndarray::{Array2, Axis, Slice};
use plumbline_reference::lora::delta_weight;
use plumbline_reference::low_rank_init::{Factors, svd_init};

use super::super::Fault::{Answer, Request as Asked};
use super::super::Mutant;
use super::edits::{
    Edited, as_if, input, map_output, map_param, output, rerun, set_input, set_output, set_param,
    set_unsigned, swap_param,
};
use super::fault;
use crate::case::Request;
use crate::params;
use crate::tensor::{Data, Tensors};

const GPTQ: &[&str] = &["gptq.quantize"];
const SVD: &[&str] = &["svd_init"];
const LOFTQ: &[&str] = &["loftq_init"];

/// Faults of GPTQ.
#[rustfmt::skip]
pub(super) static MUTANTS: &[Mutant] = &[
    fault("no_compensation", "columns are rounded on their own",
        GPTQ, &["compensation"], Asked(|r| hessian(r, |i, k, h| if i == k { h } else { 0.0 }))),
    fault("wrong_sign_of_the_update", "later columns move the wrong way",
        GPTQ, &["compensation"], Asked(|r| hessian(r, |i, k, h| if i == k { h } else { -h }))),
    fault("no_damping", "nothing is added to the diagonal",
        GPTQ, &["damping"], Asked(|r| set_param(r, "damping", 0.0))),
    fault("damping_of_one", "damping is a multiple of 1, not of the mean of the diagonal",
        GPTQ, &["damping"], Asked(absolute_damping)),
    fault("order_of_the_inputs", "act_order is ignored",
        GPTQ, &["act_order"],
        Answer(|r, o| as_if(r, o, RESULTS, |r| set_param(r, "act_order", false)))),
    fault("order_not_undone", "codes and outputs stay in the order of rounding",
        GPTQ, &["inverse_order"], Answer(order_not_undone)),
    fault("equal_inputs_reversed", "inputs of equal importance change places",
        GPTQ, &["equal_importance"], Answer(unstable_order)),
    fault("fresh_grids", "a group's range has the updates of its own block",
        GPTQ, &["stale_grid"],
        Asked(|r| match r.params.optional::<usize>("group_size")? {
            Some(group_size) => set_param(r, "block_size", group_size),
            None => Ok(()),
        })),
    fault("updates_stop_at_the_block", "columns beyond the block are not updated",
        GPTQ, &["block"], Asked(blocks_apart)),
    fault("grids_found_on_the_way", "static groups are found when they are reached",
        GPTQ, &["static_groups"],
        Answer(|r, o| as_if(r, o, RESULTS, |r| swap_param(r, "static_groups", true, false)))),
    fault("dead_weight_kept", "a weight that no input reaches stays",
        GPTQ, &["dead_input"],
        Asked(|r| hessian(r, |i, k, h| if i == k && h == 0.0 { 1.0 } else { h }))),
    fault("zero_point_less_1", "zero points are stored less 1, as old files have them",
        GPTQ, &["zero_point"], Answer(|_, o| map_output(o, "zero_point", |z| z - 1.0))),
    fault("one_grid_for_a_row", "one group in a row, whatever group_size is",
        GPTQ, &["group_index"], Answer(one_grid)),
];

/// Faults of `svd_init` and `loftq_init`.
#[rustfmt::skip]
pub(super) static DECOMPOSITIONS: &[Mutant] = &[
    fault("singular_value_in_one_factor", "lora_b has the singular value and lora_a none",
        SVD, &["square_root"], Answer(one_sided)),
    fault("svd_scaling_left_out", "the factors are those of lora_scaling 1",
        SVD, &["scaling"],
        Answer(|r, o| as_if(r, o, &["lora_a", "lora_b"], |r| set_param(r, "lora_scaling", 1.0)))),
    fault("other_sign", "the signs of a pair are the other ones",
        SVD, &["sign"],
        Answer(|_, o| {
            map_output(o, "lora_a", |a| -a).and_then(|()| map_output(o, "lora_b", |b| -b))
        })),
    fault("last_singular_values", "the smallest singular values are kept",
        SVD, &["order"], Answer(smallest_values)),
    fault("one_rank_less", "the last pair is zero",
        SVD, &["truncation"], Answer(one_rank_less)),
    fault("factors_of_the_weight", "the factors of the weight, not of what was lost",
        LOFTQ, &["residual"], Answer(factors_of_the_weight)),
    fault("one_turn_more", "one turn more than asked for",
        LOFTQ, &["turns"], Asked(|r| turns(r, |turns| turns + 1))),
    fault("one_turn_less", "the last turn is left out",
        LOFTQ, &["turns"], Asked(|r| turns(r, |turns| (turns - 1).max(1)))),
    fault("factors_of_the_turn_before", "codes of the last turn beside older factors",
        LOFTQ, &["pair"],
        Answer(|r, o| {
            as_if(r, o, &["lora_a", "lora_b", "delta_weight"], |r| turns(r, |n| (n - 1).max(1)))
        })),
    fault("scale_of_the_first_turn", "the scale is not found again",
        LOFTQ, &["min_max", "turns"],
        Answer(|r, o| as_if(r, o, &["scale"], |r| set_param(r, "iterations", 1)))),
    fault("loftq_scaling_left_out", "the factors are those of lora_scaling 1",
        LOFTQ, &["scaling"],
        Answer(|r, o| as_if(r, o, &["lora_a", "lora_b"], |r| set_param(r, "lora_scaling", 1.0)))),
];

const RESULTS: &[&str] = &["codes", "scale", "zero_point", "output"];

/// Another element of the matrix, from row, column and element.
fn hessian(request: &mut Request, f: impl Fn(usize, usize, f32) -> f32) -> Edited {
    let mut hessian = input(request, "hessian")?;
    hessian.indexed_iter_mut().for_each(|((i, k), h)| *h = f(i, k, *h));
    set_input(request, "hessian", &hessian)
}

fn absolute_damping(request: &mut Request) -> Edited {
    let diagonal = input(request, "hessian")?.diag().mapv(|h| if h == 0.0 { 1.0 } else { h });
    let mean = f64::from(diagonal.sum()) / diagonal.len() as f64;
    if request.params.0.contains_key("damping") {
        return map_param(request, "damping", |damping| damping / mean);
    }
    set_param(request, "damping", 0.01 / mean)
}

/// The inputs by descending importance; equals keep their order.
fn order(request: &Request) -> Result<Vec<usize>, String> {
    let hessian = input(request, "hessian")?;
    let mut order: Vec<usize> = (0..hessian.nrows()).collect();
    order.sort_by(|&i, &k| hessian[[k, k]].total_cmp(&hessian[[i, i]]));
    Ok(order)
}

fn reordered(matrix: &Array2<f32>, order: &[usize]) -> Array2<f32> {
    matrix.select(Axis(1), order)
}

fn order_not_undone(request: &Request, outputs: &mut Tensors) -> Edited {
    if !request.params.required::<bool>("act_order")? {
        return Ok(());
    }
    let order = order(request)?;
    let codes = reordered(&output(outputs, "codes")?, &order);
    set_unsigned(outputs, "codes", &codes)?;
    let values = reordered(&output(outputs, "output")?, &order);
    set_output(outputs, "output", &values)
}

/// The inputs are put in reverse, sorted, and put back: of equals the last comes first.
fn unstable_order(request: &Request, outputs: &mut Tensors) -> Edited {
    let params = &request.params;
    if params.optional("static_groups")?.unwrap_or(false)
        || !params.required::<bool>("act_order")?
    {
        return Ok(());
    }
    let back: Vec<usize> = (0..input(request, "hessian")?.nrows()).rev().collect();
    let mut faulty = rerun(request, |r| {
        let weight = reordered(&input(r, "weight")?, &back);
        let hessian = input(r, "hessian")?.select(Axis(0), &back).select(Axis(1), &back);
        set_input(r, "weight", &weight)?;
        set_input(r, "hessian", &hessian)
    })?;
    let (codes, values) = (output(&faulty, "codes")?, output(&faulty, "output")?);
    set_unsigned(&mut faulty, "codes", &reordered(&codes, &back))?;
    set_output(&mut faulty, "output", &reordered(&values, &back))?;
    if let Some(Data::I32(index)) = faulty.get_mut("group_index").map(|index| index.data_mut()) {
        index.reverse();
    }
    *outputs = faulty;
    Ok(())
}

fn blocks_apart(request: &mut Request) -> Edited {
    let block_size: usize = request.params.optional("block_size")?.unwrap_or(128);
    hessian(request, |i, k, h| if i / block_size == k / block_size { h } else { 0.0 })
}

fn one_grid(request: &Request, outputs: &mut Tensors) -> Edited {
    let shape = output(outputs, "scale")?.dim();
    let faulty = rerun(request, |r| set_param(r, "group_size", ()))?;
    for name in ["scale", "zero_point"] {
        let of_rows = output(&faulty, name)?;
        let repeated = Array2::from_shape_fn(shape, |(o, _)| of_rows[[o, 0]]);
        set_output(outputs, name, &repeated)?;
    }
    for name in ["codes", "output"] {
        outputs.insert(name.to_owned(), faulty[name].clone());
    }
    Ok(())
}

fn answer_factors(
    request: &Request,
    outputs: &mut Tensors,
    lora_a: &Array2<f32>,
    lora_b: &Array2<f32>,
) -> Edited {
    let lora_scaling = params::lora_scaling(&request.params)?;
    let delta = delta_weight(lora_a.view(), lora_b.view(), lora_scaling);
    set_output(outputs, "lora_a", lora_a)?;
    set_output(outputs, "lora_b", lora_b)?;
    set_output(outputs, "delta_weight", &delta.map_err(|e| e.to_string())?)
}

/// The left vectors have length 1, so that a column of lora_b is as long as its root.
fn one_sided(_: &Request, outputs: &mut Tensors) -> Edited {
    let (mut lora_a, mut lora_b) = (output(outputs, "lora_a")?, output(outputs, "lora_b")?);
    for (mut row, mut column) in lora_a.rows_mut().into_iter().zip(lora_b.columns_mut()) {
        let root = column.dot(&column).sqrt();
        if root > 0.0 {
            row.mapv_inplace(|a| a / root);
            column.mapv_inplace(|b| b * root);
        }
    }
    set_output(outputs, "lora_a", &lora_a)?;
    set_output(outputs, "lora_b", &lora_b)
}

fn smallest_values(request: &Request, outputs: &mut Tensors) -> Edited {
    let (rows, columns) = input(request, "weight")?.dim();
    let all = rerun(request, |r| set_param(r, "rank", rows.min(columns)))?;
    let rank: usize = request.params.required("rank")?;
    let last = Slice::from(-(rank as isize)..);
    let lora_a = output(&all, "lora_a")?.slice_axis(Axis(0), last).to_owned();
    let lora_b = output(&all, "lora_b")?.slice_axis(Axis(1), last).to_owned();
    answer_factors(request, outputs, &lora_a, &lora_b)
}

fn one_rank_less(request: &Request, outputs: &mut Tensors) -> Edited {
    let (mut lora_a, lora_b) = (output(outputs, "lora_a")?, output(outputs, "lora_b")?);
    if let Some(mut last) = lora_a.rows_mut().into_iter().last() {
        last.fill(0.0);
    }
    answer_factors(request, outputs, &lora_a, &lora_b)
}

fn factors_of_the_weight(request: &Request, outputs: &mut Tensors) -> Edited {
    let (weight, rank) = (input(request, "weight")?, request.params.required("rank")?);
    let factors = svd_init(weight.view(), rank, params::lora_scaling(&request.params)?);
    let Factors { lora_a, lora_b } = factors.map_err(|e| e.to_string())?;
    answer_factors(request, outputs, &lora_a, &lora_b)
}

fn turns(request: &mut Request, f: impl Fn(usize) -> usize) -> Edited {
    let turns = request.params.required("iterations")?;
    set_param(request, "iterations", f(turns))
}
