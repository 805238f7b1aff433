//! `nf4.quantize`.

use ndarray::{Array2, arr0};
use plumbline_reference::nf4::{
    ABSMAX_BLOCK, ABSMAX_ZERO_CODE, LEVELS, ZERO_CODE, absmax_map, dequantize, double_quantize,
    quantize,
};
use plumbline_reference::spec::BlockSize;
use serde_json::json;

use super::quantizer::{Choice, Steps};
use super::row::{BLOCKS, WEIGHT, bounded, chosen, given, runs};
use super::{Operation, TensorSpecs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::params::{self, Params};
use crate::precision::{Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Data, Kind, Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[Operation {
    name: "nf4.quantize",
    params: &["block_size", "double_quantize"],
    inputs: &[given("weight", WEIGHT)],
    outputs: &[
        chosen("codes", Kind::UnsignedCodes, WEIGHT, codes),
        bounded(
            "absmax",
            BLOCKS,
            "0: a maximum; doubly quantized, as scale and offset and gamma(2)",
        ),
        bounded("output", WEIGHT, "gamma(1) * |level * absmax| + |level| * error of absmax"),
    ],
    weights: Some(stored),
    sizes,
    run: runs!(run),
    grid: None,
    bounds,
    sample,
}];

const OFFSET: &str = "gamma(blocks) * mean of absmax; 0 where the mean is exact";
const SCALE: &str = "error of the offset and gamma(1); 0 where both are exact";

/// What is stored in place of `absmax`.
fn stored(params: &Params) -> Result<TensorSpecs, String> {
    let (_, double) = params::nf4(params)?;
    let mut specs = TensorSpecs::default();
    if double {
        specs.outputs = vec![
            chosen("absmax_codes", Kind::UnsignedCodes, BLOCKS, absmax_codes),
            bounded("absmax_scale", &["scales"], SCALE),
            bounded("absmax_offset", &[], OFFSET),
        ];
    }
    Ok(specs)
}

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let (block_size, _) = params::nf4(&request.params)?;
    let [out_features, in_features] = request.sizes("weight")?;
    let blocks = block_size.blocks(out_features * in_features);
    let scales = blocks.div_ceil(ABSMAX_BLOCK);
    Ok(vec![("out", out_features), ("in", in_features), ("blocks", blocks), ("scales", scales)])
}

fn run<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let weight: Array2<T> = request.array("weight")?;
    let (block_size, double) = params::nf4(&request.params)?;
    let quantized = quantize(weight.view(), block_size).map_err(|e| e.to_string())?;
    let codes = Tensor::unsigned(&quantized.codes);
    if !double {
        return Ok(super::tensors([
            ("codes", codes),
            ("absmax", Tensor::floats(&quantized.absmax)),
            ("output", Tensor::floats(&quantized.output)),
        ]));
    }
    let stored = double_quantize(quantized.absmax.view()).map_err(|e| e.to_string())?;
    let absmax = stored.dequantize().map_err(|e| e.to_string())?;
    let output =
        dequantize(quantized.codes.view(), absmax.view(), block_size).map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("codes", codes),
        ("absmax", Tensor::floats(&absmax)),
        ("output", Tensor::floats(&output)),
        ("absmax_codes", Tensor::unsigned(&stored.absmax_codes)),
        ("absmax_scale", Tensor::floats(&stored.absmax_scale)),
        ("absmax_offset", Tensor::floats(&arr0(stored.absmax_offset))),
    ]))
}

/// The weight row by row, and the largest magnitude of each of its blocks.
fn blocks(request: &Request) -> Result<(Vec<f64>, Vec<f64>, BlockSize), String> {
    let weight: Array2<f64> = request.array("weight")?;
    let (block_size, _) = params::nf4(&request.params)?;
    let weight: Vec<f64> = weight.iter().copied().collect();
    let largest = |block: &[f64]| block.iter().fold(0.0_f64, |largest, w| largest.max(w.abs()));
    let absmax = weight.chunks(block_size.get()).map(largest).collect();
    Ok((weight, absmax, block_size))
}

/// A quotient of two given numbers: one rounding, or none.
fn codes(evidence: &Evidence) -> Result<Vec<Choice>, String> {
    let (weight, absmax, block_size) = blocks(evidence.request)?;
    let unit = evidence.unit;
    let choice = |(n, w): (usize, &f64)| {
        let absmax = absmax[n / block_size.get()];
        if absmax == 0.0 {
            return Choice::certain(f64::from(ZERO_CODE));
        }
        let value = Steps::start(*w).over(Steps::start(absmax));
        let rounded = unit.gamma(1.0) * value.value.abs() + unit.tiny;
        Choice::in_table(value.value, if value.exact_in_f32 { 0.0 } else { rounded }, &LEVELS)
    };
    Ok(weight.iter().enumerate().map(choice).collect())
}

/// Double quantization in binary64, and what rounding does to each part.
struct Stored {
    offset: f64,
    offset_error: f64,
    /// One for 256 blocks, with its error.
    scale: Vec<(f64, f64)>,
    choices: Vec<Choice>,
    map: [f64; 256],
}

impl Stored {
    fn new(absmax: &[f64], unit: Unit) -> Result<Self, String> {
        let count = absmax.len() as f64;
        let sum = absmax.iter().fold(Steps::start(0.0), |sum, a| sum.plus(Steps::start(*a)));
        let offset = sum.over(Steps::start(count));
        // `count - 1` additions and the division, over terms of one sign.
        let offset_error =
            if offset.exact_in_f32 { 0.0 } else { unit.gamma(count) * offset.value + unit.tiny };
        let minus = Steps { value: -offset.value, ..offset };
        let (mut scale, mut choices) = (Vec::new(), Vec::new());
        let map = absmax_map();
        for block in absmax.chunks(ABSMAX_BLOCK) {
            let centred: Vec<Steps> = block.iter().map(|a| Steps::start(*a).plus(minus)).collect();
            let error = |centred: &Steps| {
                let rounded = unit.gamma(1.0) * (centred.value.abs() + offset_error);
                if centred.exact_in_f32 { 0.0 } else { offset_error + rounded }
            };
            // The largest of several magnitudes is wrong by no more than the worst of them.
            let largest = centred.iter().fold(0.0_f64, |s, c| s.max(c.value.abs()));
            let largest_error = centred.iter().map(error).fold(0.0, f64::max);
            if largest <= largest_error && largest_error > 0.0 {
                return Err("absmax spreads less than its mean is rounded: no code of it is \
                            determined"
                    .to_owned());
            }
            let exact = largest_error == 0.0;
            let divisor = Steps { value: largest, exact_in_f32: exact };
            choices.extend(centred.iter().map(|centred| {
                if largest == 0.0 {
                    return Choice::certain(f64::from(ABSMAX_ZERO_CODE));
                }
                let value = centred.over(divisor);
                let bound = (error(centred) + value.value.abs() * largest_error)
                    / (largest - largest_error)
                    + unit.gamma(1.0) * value.value.abs()
                    + unit.tiny;
                Choice::in_table(value.value, if value.exact_in_f32 { 0.0 } else { bound }, &map)
            }));
            scale.push((largest, largest_error));
        }
        Ok(Self { offset: offset.value, offset_error, scale, choices, map })
    }

    /// `absmax` of these codes, and its error: a product and a sum.
    fn absmax(&self, b: usize, code: f64, unit: Unit) -> (f64, f64) {
        let value = self.map[code as usize];
        let (scale, scale_error) = self.scale[b / ABSMAX_BLOCK];
        let condition = (value * scale).abs() + self.offset.abs();
        let inherited = value.abs() * scale_error + self.offset_error;
        let rounded = unit.gamma(2.0) * (condition + inherited) + 2.0 * unit.tiny;
        (value * scale + self.offset, inherited + rounded)
    }
}

fn absmax_codes(evidence: &Evidence) -> Result<Vec<Choice>, String> {
    let (_, absmax, _) = blocks(evidence.request)?;
    Ok(Stored::new(&absmax, evidence.unit)?.choices)
}

fn bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let unit = evidence.unit;
    let (weight, largest, block_size) = blocks(evidence.request)?;
    let (_, double) = params::nf4(&evidence.request.params)?;
    // With the subject's codes and with the expected ones: values, and the error of the former.
    let mut absmax: Vec<(f64, f64)> = largest.iter().map(|a| (*a, 0.0)).collect();
    let mut with_expected = largest.clone();
    let mut result = Bounds::new();
    if double {
        let stored = Stored::new(&largest, unit)?;
        for (b, choice) in stored.choices.iter().enumerate() {
            let expected = evidence.expected["absmax_codes"].value(b);
            let answer = evidence.actual.get("absmax_codes").filter(|t| t.len() == largest.len());
            let own = answer.map_or(expected, |answer| answer.value(b));
            let own = if choice.allows(own) { own } else { expected };
            absmax[b] = stored.absmax(b, own, unit);
            with_expected[b] = stored.absmax(b, expected, unit).0;
        }
        let scales = stored.scale.iter().map(|(_, error)| *error);
        result.extend(named([
            ("absmax_scale", Allowance::absolute(scales)),
            ("absmax_offset", Allowance::absolute([stored.offset_error])),
        ]));
    }
    let mut of_absmax = Allowance::absolute(absmax.iter().map(|(_, error)| *error));
    for (b, ((own, _), expected)) in absmax.iter().zip(&with_expected).enumerate() {
        if own != expected {
            of_absmax.replaced.push((b, *own));
        }
    }
    let mut output = Allowance::default();
    let expected_codes = evidence.expected_codes().ok_or("out.codes is no tensor of codes")?;
    let codes = evidence.accepted_codes().ok_or("out.codes is no tensor of codes")?;
    for n in 0..weight.len() {
        let b = n / block_size.get();
        let level = |codes: &[i16]| LEVELS[codes[n].clamp(0, 15) as usize];
        let (own, error) = absmax[b];
        let value = level(&codes) * own;
        let inherited = level(&codes).abs() * error;
        let product = unit.gamma(1.0) * (value.abs() + inherited) + unit.tiny;
        // Level 0, and the ends of the table times a maximum, are exact.
        let exact = error == 0.0 && [0.0, 1.0].contains(&level(&codes).abs());
        output.bound.push(if exact { 0.0 } else { inherited + product });
        if value != level(&expected_codes) * with_expected[b] {
            output.replaced.push((n, value));
        }
    }
    result.extend(named([("absmax", of_absmax), ("output", output)]));
    Ok(result)
}

fn sample(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let double = sampler.chance(0.5);
    let many = double && sampler.chance(0.1);
    let block_size = if many { 1 } else { sampler.pick(&[1, 2, 3, 4, 8, 16, 64]) };
    let shape = if many { [20, 15] } else { [sampler.size(1, 5), sampler.size(1, 24)] };
    let mut weight = sampler.normal(&shape, 0.05);
    if sampler.chance(0.25) {
        // A power of two in every block, and beside it the two numbers about a halfway point.
        if let Data::F32(weights) = weight.data_mut() {
            for (n, weight) in weights.iter_mut().enumerate() {
                let k = sampler.size(0, LEVELS.len() - 2);
                let near = f64::midpoint(LEVELS[k], LEVELS[k + 1]) as f32;
                let near = sampler.pick(&[near, near.next_up(), near.next_down()]);
                *weight = if n % block_size == 0 { -0.125 } else { near / 8.0 };
            }
            // Blocks differ, so that absmax has a spread.
            weights[0] = -0.25;
        }
    }
    let params =
        Params::from_iter([("block_size", json!(block_size)), ("double_quantize", json!(double))]);
    Ok((params, [("weight".to_owned(), weight)].into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::Precision;

    #[test]
    fn a_mean_that_is_exact_leaves_nothing_open() {
        let stored = Stored::new(&[1.0, 3.0], Unit::of(Precision::F32)).unwrap();
        assert_eq!((stored.offset, stored.offset_error), (2.0, 0.0));
        assert_eq!(stored.scale, [(1.0, 0.0)]);
        assert!(stored.choices.iter().all(|choice| choice.error == 0.0));
        let alone = Stored::new(&[0.1_f32.into()], Unit::of(Precision::F32)).unwrap();
        assert_eq!((alone.offset_error, alone.choices[0].code), (0.0, 127.0));
    }

    #[test]
    fn a_spread_below_the_rounding_of_the_mean_is_not_judged() {
        let third = f64::from(1.0_f32 / 3.0);
        let refused = Stored::new(&[third; 3], Unit::of(Precision::F32)).err().unwrap();
        assert!(refused.contains("no code of it is determined"), "{refused}");
        assert!(Stored::new(&[third, 2.0 * third, third], Unit::of(Precision::F32)).is_ok());
    }
}
