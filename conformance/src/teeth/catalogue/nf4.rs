//! Faults of NF4.

use half::bf16;
use ndarray::{Array2, arr0, arr1};
use plumbline_reference::nf4::{ABSMAX_BLOCK, LEVELS, ZERO_CODE, absmax_map};

use super::super::Fault::{Answer, Arithmetic};
use super::super::Mutant;
use super::super::arithmetic::Slip;
use super::edits::{Edited, input, set_output, set_unsigned};
use super::fault;
use crate::case::Request;
use crate::params;
use crate::tensor::{Tensor, Tensors};

const NF4: &[&str] = &["nf4.quantize"];

/// The sixteen values of a float with two exponent bits and one mantissa bit, over the largest.
const FP4: [f32; 16] = [
    -1.0, -0.667, -0.5, -0.333, -0.25, -0.167, -0.083, 0.0, 0.0, 0.083, 0.167, 0.25, 0.333, 0.5,
    0.667, 1.0,
];

/// Faults of NF4.
#[rustfmt::skip]
pub(super) static MUTANTS: &[Mutant] = &[
    fault("absmax_of_the_row", "every block uses the absmax of its row",
        NF4, &["block_index"], Answer(|r, o| blocks(r, o, &RIGHT, |b| b.row))),
    fault("absmax_of_the_tensor", "every block uses the absmax of the tensor",
        NF4, &["block_index"], Answer(|r, o| blocks(r, o, &RIGHT, |b| b.all))),
    fault("absmax_of_the_block_before", "every block uses its neighbour's absmax",
        NF4, &["block_index"], Answer(|r, o| blocks(r, o, &RIGHT, |b| b.before))),
    fault("largest_for_absmax", "max(w) in place of max(|w|)",
        NF4, &["sign"], Answer(|r, o| blocks(r, o, &RIGHT, |b| b.largest))),
    fault("levels_in_bf16", "a table of rounded levels",
        NF4, &["levels"],
        Answer(|r, o| {
            let level = |k: usize| bf16::from_f64(LEVELS[k]).to_f32();
            blocks(r, o, &Table { level, ..RIGHT }, |b| b.own)
        })),
    fault("levels_of_fp4", "the sixteen levels of another table",
        NF4, &["levels"],
        Answer(|r, o| blocks(r, o, &Table { level: |k| FP4[k], ..RIGHT }, |b| b.own))),
    fault("thresholds_of_four_places", "halfway points rounded to four decimal places",
        NF4, &["thresholds"],
        Answer(|r, o| {
            let threshold = |k| (halfway(k) * 1e4).round_ties_even() / 1e4;
            blocks(r, o, &Table { threshold, ..RIGHT }, |b| b.own)
        })),
    fault("level_below", "the level below in place of the nearest one",
        NF4, &["nearest"],
        Answer(|r, o| {
            blocks(r, o, &Table { threshold: |k| LEVELS[k + 1] - 1e-6, ..RIGHT }, |b| b.own)
        })),
    fault("reciprocal_of_absmax", "weight * (1 / absmax)",
        NF4, &["smallest"], Arithmetic(Slip::Reciprocal)),
    fault("absmax_without_its_mean", "double quantization does not take the mean off",
        NF4, &["offset"], Answer(|r, o| doubly(r, o, 0.0, absmax_map()))),
    fault("linear_map", "absmax is quantized to evenly spaced levels",
        NF4, &["map"],
        Answer(|r, o| {
            let offset = o.get("absmax_offset").map_or(0.0, |offset| offset.value(0));
            doubly(r, o, offset as f32, std::array::from_fn(|k| (k as f64 - 127.5) / 127.5))
        })),
    fault("codes_of_the_quantized_absmax", "codes are taken with the absmax that comes back",
        NF4, &["order"],
        Answer(codes_of_the_quantized)),
];

/// How a quotient becomes a code, and a code a level.
struct Table {
    level: fn(usize) -> f32,
    /// Above it a quotient has code `k + 1` or more.
    threshold: fn(usize) -> f64,
}

/// That of the format.
const RIGHT: Table = Table { level: |k| LEVELS[k] as f32, threshold: halfway };

fn halfway(k: usize) -> f64 {
    f64::midpoint(LEVELS[k], LEVELS[k + 1])
}

/// What the absmax of one block may be mistaken for.
struct Block {
    own: f32,
    row: f32,
    all: f32,
    before: f32,
    largest: f32,
}

fn absmax(numbers: impl Iterator<Item = f32>) -> f32 {
    numbers.fold(0.0, |largest, number| largest.max(number.abs()))
}

fn every_block(request: &Request) -> Result<Vec<Block>, String> {
    let weight = input(request, "weight")?;
    let (block_size, _) = params::nf4(&request.params)?;
    let flat: Vec<f32> = weight.iter().copied().collect();
    let own: Vec<f32> =
        flat.chunks(block_size.get()).map(|block| absmax(block.iter().copied())).collect();
    let block = |(n, block): (usize, &[f32])| Block {
        own: own[n],
        row: absmax(weight.row(n * block_size.get() / weight.ncols()).iter().copied()),
        all: absmax(flat.iter().copied()),
        before: own[n.saturating_sub(1)],
        largest: block.iter().copied().fold(0.0, f32::max),
    };
    Ok(flat.chunks(block_size.get()).enumerate().map(block).collect())
}

/// Codes and output with other absmax; where they are not quantized again.
fn blocks(
    request: &Request,
    outputs: &mut Tensors,
    table: &Table,
    absmax: fn(&Block) -> f32,
) -> Edited {
    if outputs.contains_key("absmax_codes") {
        return Ok(());
    }
    let absmax: Vec<f32> = every_block(request)?.iter().map(absmax).collect();
    answer_codes(request, outputs, table, &absmax, &absmax)
}

/// Codes taken with one absmax, and levels that are multiplied by the other.
fn answer_codes(
    request: &Request,
    outputs: &mut Tensors,
    table: &Table,
    taken: &[f32],
    multiplied: &[f32],
) -> Edited {
    let weight = input(request, "weight")?;
    let (block_size, _) = params::nf4(&request.params)?;
    let block_of = |o: usize, i: usize| (o * weight.ncols() + i) / block_size.get();
    let codes = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let absmax = taken[block_of(o, i)];
        if absmax == 0.0 {
            return f32::from(ZERO_CODE);
        }
        let quotient = f64::from(weight[[o, i]] / absmax);
        (0..LEVELS.len() - 1).filter(|&k| quotient > (table.threshold)(k)).count() as f32
    });
    let values = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        (table.level)(codes[[o, i]] as usize) * multiplied[block_of(o, i)]
    });
    set_unsigned(outputs, "codes", &codes)?;
    set_output(outputs, "output", &values)
}

fn codes_of_the_quantized(request: &Request, outputs: &mut Tensors) -> Edited {
    let absmax: Vec<f32> = outputs["absmax"].values().map(|absmax| absmax as f32).collect();
    answer_codes(request, outputs, &RIGHT, &absmax, &absmax)
}

/// Absmax quantized with another offset or another map.
fn doubly(request: &Request, outputs: &mut Tensors, offset: f32, map: [f64; 256]) -> Edited {
    if !outputs.contains_key("absmax_codes") {
        return Ok(());
    }
    let own: Vec<f32> = every_block(request)?.iter().map(|block| block.own).collect();
    let centred: Vec<f32> = own.iter().map(|own| own - offset).collect();
    let scale: Vec<f32> =
        centred.chunks(ABSMAX_BLOCK).map(|block| absmax(block.iter().copied())).collect();
    let nearest = |value: f32| {
        map.windows(2).filter(|pair| f64::from(value) > f64::midpoint(pair[0], pair[1])).count()
    };
    let codes: Vec<usize> = (centred.iter().enumerate())
        .map(|(b, centred)| nearest(centred / scale[b / ABSMAX_BLOCK]))
        .collect();
    let back: Vec<f32> = (codes.iter().enumerate())
        .map(|(b, &code)| map[code] as f32 * scale[b / ABSMAX_BLOCK] + offset)
        .collect();
    let codes: Vec<u8> = codes.into_iter().map(|code| code as u8).collect();
    outputs.insert("absmax_codes".to_owned(), Tensor::unsigned(&arr1(&codes)));
    outputs.insert("absmax_scale".to_owned(), Tensor::floats(&arr1(&scale)));
    outputs.insert("absmax_offset".to_owned(), Tensor::floats(&arr0(offset)));
    outputs.insert("absmax".to_owned(), Tensor::floats(&arr1(&back)));
    answer_codes(request, outputs, &RIGHT, &own, &back)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use crate::sampler::Sampler;

    /// With the right table, offset and map, what is computed once more is the reference's.
    #[test]
    fn without_a_fault_they_are_the_reference() {
        let op = ops::find("nf4.quantize").unwrap();
        for index in 0..40 {
            let (params, inputs) = (op.sample)(&mut Sampler::new(1, op.name, index)).unwrap();
            let request = Request { op, params, inputs };
            let reference = (op.run.f32)(&request).unwrap();
            let mut outputs = reference.clone();
            blocks(&request, &mut outputs, &RIGHT, |block| block.own).unwrap();
            let offset = outputs.get("absmax_offset").map_or(0.0, |offset| offset.value(0));
            let spread = outputs.get("absmax_scale").is_none_or(|s| s.values().all(|s| s > 0.0));
            if spread {
                doubly(&request, &mut outputs, offset as f32, absmax_map()).unwrap();
            }
            assert_eq!(outputs, reference, "{index}");
        }
    }
}
