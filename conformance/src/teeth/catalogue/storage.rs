//! Faults of unsigned grids, of narrow types and of packed codes.

use ndarray::Array2;
use plumbline_reference::spec::{ScaleRule, StoredType};

use super::super::Fault::{Answer, Arithmetic, Request as Asked};
use super::super::Mutant;
use super::super::arithmetic::Slip;
use super::edits::{
    Edited, by_columns, input, map_bytes, map_input, map_output, output, set_input, set_output,
    set_param, set_unsigned, spec,
};
use super::{equivalent, fault};
use crate::case::Request;
use crate::params::{self, Quantizer};
use crate::tensor::{Tensor, Tensors};

const QUANTIZE: &[&str] = &["affine.quantize"];
const DEQUANTIZE: &[&str] = &["affine.dequantize"];
const CAST: &[&str] = &["cast"];
const ROUND: &[&str] = &["round_scale.forward"];
const ROUND_BACK: &[&str] = &["round_scale.backward"];
const PACK: &[&str] = &["pack"];
const UNPACK: &[&str] = &["unpack"];

/// Faults of `affine.*`, `cast`, `round_scale.*`, `pack` and `unpack`.
#[rustfmt::skip]
pub(super) static MUTANTS: &[Mutant] = &[
    fault("affine_half_away", "ties go away from zero",
        QUANTIZE, &["tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("affine_half_up", "ties go up: floor(x + 0.5)",
        QUANTIZE, &["tie"], Arithmetic(Slip::RoundHalfUp)),
    fault("affine_reciprocal", "weight * (1 / scale)",
        QUANTIZE, &["true_division"], Arithmetic(Slip::Reciprocal)),
    fault("zero_point_before_rounding", "round(weight / scale + zero_point)",
        QUANTIZE, &["zero_point_after_rounding"],
        Answer(|r, o| affine_codes(r, o, |v, z, top| (v + z).round_ties_even().clamp(0.0, top)))),
    fault("quotient_clamped", "the quotient is clamped before the zero point is added",
        QUANTIZE, &["range_end"],
        Answer(|r, o| affine_codes(r, o, |v, z, top| {
            (v.round_ties_even().clamp(0.0, top) + z).clamp(0.0, top)
        }))),
    fault("codes_wrap", "low bits in place of a clamp",
        QUANTIZE, &["saturation"],
        Answer(|r, o| affine_codes(r, o, |v, z, top| {
            ((v.round_ties_even() + z) as i32 & top as i32) as f32
        }))),
    fault("codes_in_signed_bytes", "no code above 127",
        QUANTIZE, &["grid_width"],
        Answer(|r, o| affine_codes(r, o, |v, z, top| {
            (v.round_ties_even() + z).clamp(0.0, top.min(127.0))
        }))),
    fault("largest_code_unused", "clamps to 2^bits - 2",
        QUANTIZE, &["range_end"],
        Answer(|r, o| {
            affine_codes(r, o, |v, z, top| (v.round_ties_even() + z).clamp(0.0, top - 1.0))
        })),
    fault("zero_point_of_a_neighbour", "zero points are read column by column",
        QUANTIZE, &["group_index"], Asked(|r| transposed(r, "zero_point"))),
    equivalent("clamped_about_the_zero_point", "clamp(round(v), -z, top - z) + z", QUANTIZE,
        "integers of this size are added without a rounding",
        Answer(|r, o| affine_codes(r, o, |v, z, top| v.round_ties_even().clamp(-z, top - z) + z))),
    fault("zero_point_plus_one", "a zero point read as one that was stored less 1",
        DEQUANTIZE, &["zero"], Asked(|r| map_input(r, "zero_point", |z| z + 1.0))),
    fault("zero_point_added", "scale * (code + zero_point)",
        DEQUANTIZE, &["zero"], Asked(|r| map_input(r, "zero_point", |z| -z))),
    fault("zero_point_rounded", "a real zero point is rounded",
        DEQUANTIZE, &["real_zero_point"],
        Asked(|r| map_input(r, "zero_point", f32::round_ties_even))),
    fault("codes_read_as_signed", "codes of the upper half are negative",
        DEQUANTIZE, &["grid_width"], Answer(signed_codes)),
    fault("scale_of_a_neighbour", "scales are read column by column",
        DEQUANTIZE, &["group_index"], Asked(|r| transposed(r, "scale"))),
    fault("no_floor_in_dequantize", "a scale below the floor multiplies as it is",
        DEQUANTIZE, &["scale_floor"],
        Asked(|r| map_input(r, "scale", |s| if s < 1e-8 { 2e-8 } else { s }))),
    fault("cast_truncates", "low bits are cut off",
        CAST, &["truncation"], Answer(|r, o| cast_by(r, o, |near| near.towards_zero))),
    fault("cast_half_away", "ties go away from zero",
        CAST, &["tie"],
        Answer(|r, o| cast_by(r, o, |near| {
            if near.part >= 0.5 { near.away } else { near.towards_zero }
        }))),
    fault("cast_flushes", "numbers below the normal range become zero",
        CAST, &["subnormal"],
        Answer(|r, o| cast_by(r, o, |near| if near.subnormal { 0.0 } else { near.even }))),
    fault("carry_lost", "a mantissa that rounds up to the next power of two stays below",
        CAST, &["next_binade"],
        Answer(|r, o| cast_by(r, o, |near| {
            if near.next_binade { near.towards_zero } else { near.even }
        }))),
    fault("scale_truncated", "low bits of a scale are cut off",
        ROUND, &["truncation"], Answer(|r, o| scale_by(r, o, |near| near.towards_zero))),
    fault("scale_half_away", "ties of a scale go away from zero",
        ROUND, &["tie"],
        Answer(|r, o| scale_by(r, o, |near| {
            if near.part >= 0.5 { near.away } else { near.towards_zero }
        }))),
    fault("scale_carry_lost", "a scale that rounds up to the next power of two stays below",
        ROUND, &["next_binade"],
        Answer(|r, o| scale_by(r, o, |near| {
            if near.next_binade { near.towards_zero } else { near.even }
        }))),
    fault("scale_flushed", "a subnormal scale becomes the smallest normal one",
        ROUND, &["subnormal"],
        Answer(|r, o| scale_by(r, o, |near| {
            if near.subnormal { 2_f64.powi(-14) } else { near.even }
        }))),
    fault("scale_of_the_other_rule", "bf16 for f16, and f16 for bf16",
        ROUND, &["scale_rule"], Asked(other_rule)),
    fault("scale_left_below", "a scale below the smallest is rounded to a number of its own type",
        ROUND, &["smallest_scale"],
        Answer(|r, o| where_scale(r, o, "rounded_scale", |scale, rule, given| {
            if scale < rule.smallest() { scale.max(1e-8) as f32 } else { given }
        }))),
    fault("floor_after_rounding", "a scale that rounds to zero is raised to the floor",
        ROUND, &["scale_floor"],
        Answer(|r, o| where_scale(r, o, "rounded_scale", |scale, rule, given| {
            if scale <= 1e-8 { 1e-8_f32.min(rule.smallest() as f32) } else { given }
        }))),
    fault("scale_saturates_at_f16", "the largest of f16 under either rule",
        ROUND, &["largest_scale"],
        Answer(|r, o| where_scale(r, o, "rounded_scale", |scale, rule, given| {
            if scale > rule.largest() { 65504.0 } else { given }
        }))),
    fault("rounded_scale_has_no_slope", "the derivative of the steps",
        ROUND_BACK, &["straight_through"], Answer(|_, o| map_output(o, "d_scale", |_| 0.0))),
    fault("gradient_beyond_the_ends", "the gradient passes everywhere",
        ROUND_BACK, &["unmasked"],
        Answer(|r, o| {
            let given = input(r, "d_rounded_scale")?;
            set_output(o, "d_scale", &given)
        })),
    fault("ends_stand_still", "a scale at an end of its rule has no gradient",
        ROUND_BACK, &["closed_mask"],
        Answer(|r, o| where_scale(r, o, "d_scale", |scale, rule, given| {
            let at_end = scale == rule.smallest() || scale == rule.largest();
            if at_end { 0.0 } else { given }
        }))),
    fault("floor_is_the_only_end", "the gradient stops below the floor alone",
        ROUND_BACK, &["unmasked"],
        Answer(|r, o| {
            let (given, scale) = (input(r, "d_rounded_scale")?, input(r, "scale")?);
            let d_scale = ndarray::Zip::from(&given).and(&scale)
                .map_collect(|given, scale| if *scale < 1e-8 { 0.0 } else { *given });
            set_output(o, "d_scale", &d_scale)
        })),
    fault("ends_of_the_other_rule", "the gradient stops where the other rule ends",
        ROUND_BACK, &["scale_rule"], Asked(other_rule)),
    fault("first_code_high", "the first code stands in the high bits",
        PACK, &["bit_order"], Answer(|r, o| packed(r, o, first_high))),
    fault("interleaved_nibbles", "eight codes of a word in the order 0 2 4 6 1 3 5 7",
        PACK, &["interleaved"], Answer(|r, o| packed(r, o, interleaved))),
    fault("codes_within_bytes", "a code that does not fit into a byte begins the next",
        PACK, &["across_bytes"], Answer(|r, o| packed(r, o, within_bytes))),
    fault("rows_run_on", "rows are packed without padding",
        PACK, &["row_padding"], Answer(|r, o| packed(r, o, run_on))),
    fault("first_code_from_the_top", "the first code is read from the high bits",
        UNPACK, &["bit_order"], Answer(|r, o| unpacked(r, o, first_high))),
    fault("cut_at_the_byte", "codes are read within bytes",
        UNPACK, &["across_bytes"], Answer(|r, o| unpacked(r, o, within_bytes))),
    fault("padding_read_as_codes", "rows are read without padding",
        UNPACK, &["row_padding"], Answer(|r, o| unpacked(r, o, run_on))),
    fault("sign_extended", "codes of the upper half come back negative",
        UNPACK, &["signed"], Answer(sign_extended)),
];

/// Codes from another formula of quotient, zero point and largest code.
fn affine_codes(
    request: &Request,
    outputs: &mut Tensors,
    code: fn(f32, f32, f32) -> f32,
) -> Edited {
    let (weight, spec) = (input(request, "weight")?, spec(request)?);
    let (scale, zero_point) = (input(request, "scale")?, input(request, "zero_point")?);
    let codes = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let place = [o, i / spec.group_size()];
        let quotient = weight[[o, i]] / scale[place].max(1e-8);
        code(quotient, zero_point[place], spec.unsigned_max() as f32)
    });
    set_unsigned(outputs, "codes", &codes)
}

fn transposed(request: &mut Request, name: &str) -> Edited {
    let transposed = by_columns(&input(request, name)?);
    set_input(request, name, &transposed)
}

fn signed_codes(request: &Request, outputs: &mut Tensors) -> Edited {
    let (codes, quantizer) = (input(request, "codes")?, Quantizer::read(&request.params)?);
    let spec = quantizer.spec(codes.ncols())?;
    let (scale, zero_point) = (input(request, "scale")?, input(request, "zero_point")?);
    let values = Array2::from_shape_fn(codes.dim(), |(o, i)| {
        let (place, code) = ([o, i / spec.group_size()], codes[[o, i]]);
        let signed =
            if code > spec.qmax() as f32 { code - 2.0 * -spec.qmin() as f32 } else { code };
        scale[place].max(1e-8) * (signed - zero_point[place])
    });
    set_output(outputs, "output", &values)
}

/// A number between its neighbours in a narrow type.
struct Near {
    towards_zero: f64,
    away: f64,
    /// The right one.
    even: f64,
    /// How far it is from the one towards zero, in parts of the distance between them.
    part: f64,
    subnormal: bool,
    /// Whether the right one is the power of two above the number.
    next_binade: bool,
}

impl Near {
    fn new(number: f64, stored: StoredType) -> Self {
        let (digits, emin) = match stored {
            StoredType::Bf16 => (7, -126),
            StoredType::F16 => (10, -14),
        };
        let exponent =
            |x: f64| if x == 0.0 { emin } else { (x.abs().log2().floor() as i32).max(emin) };
        let quantum = 2_f64.powi(exponent(number) - digits);
        let units = number / quantum;
        let even = units.round_ties_even() * quantum;
        let towards_zero = units.trunc() * quantum;
        let part = units.fract().abs();
        let away = if part == 0.0 { number } else { towards_zero + quantum.copysign(number) };
        let subnormal = even.abs() < 2_f64.powi(emin);
        let next_binade = exponent(even) > exponent(number);
        Self { towards_zero, away, even, part, subnormal, next_binade }
    }
}

fn cast_by(request: &Request, outputs: &mut Tensors, choose: fn(&Near) -> f64) -> Edited {
    let stored = params::stored_type(&request.params)?;
    let input = request.tensor("input")?.array::<f32>();
    let values = input.mapv(|number| choose(&Near::new(f64::from(number), stored)) as f32);
    outputs.insert("output".to_owned(), Tensor::floats(&values));
    Ok(())
}

fn other_rule(request: &mut Request) -> Edited {
    let other = match params::scale_rule(&request.params)? {
        ScaleRule::F16 => "bf16_in_f16",
        ScaleRule::Bf16InF16 => "f16",
    };
    set_param(request, "scale_rule", other)
}

/// Scales between the ends of their rule, chosen among the neighbours of the type.
fn scale_by(request: &Request, outputs: &mut Tensors, choose: fn(&Near) -> f64) -> Edited {
    let stored = match params::scale_rule(&request.params)? {
        ScaleRule::F16 => StoredType::F16,
        ScaleRule::Bf16InF16 => StoredType::Bf16,
    };
    where_scale(request, outputs, "rounded_scale", |scale, rule, given| {
        let inside = rule.reaches(scale);
        if inside { choose(&Near::new(scale, stored)) as f32 } else { given }
    })
}

/// An output changed by the scale of its place.
fn where_scale(
    request: &Request,
    outputs: &mut Tensors,
    name: &str,
    change: impl Fn(f64, ScaleRule, f32) -> f32,
) -> Edited {
    let (rule, scale) = (params::scale_rule(&request.params)?, input(request, "scale")?);
    let mut values = output(outputs, name)?;
    values.zip_mut_with(&scale, |value, scale| *value = change(f64::from(*scale), rule, *value));
    set_output(outputs, name, &values)
}

/// A bit of a code in its matrix.
#[derive(Clone, Copy)]
struct CodeBit {
    row: usize,
    column: usize,
    bit: usize,
    /// Width of a code.
    bits: usize,
    /// Codes in a row.
    columns: usize,
    /// Bytes in a row.
    row_bytes: usize,
}

/// Where a bit stands: the byte, counted over all rows, and the bit in it; nowhere if the rows
/// have no room for it.
type Place = Option<(usize, usize)>;

fn in_row(bit: CodeBit, n: usize) -> Place {
    (n / 8 < bit.row_bytes).then_some((bit.row * bit.row_bytes + n / 8, n % 8))
}

fn first_high(bit: CodeBit) -> Place {
    let (byte, place) = in_row(bit, bit.column * bit.bits + bit.bits - 1 - bit.bit)?;
    Some((byte, 7 - place))
}

fn interleaved(bit: CodeBit) -> Place {
    const ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    let whole_words = bit.columns / 8 * 8;
    let column = match bit.column {
        column if column < whole_words => column / 8 * 8 + ORDER[column % 8],
        column => column,
    };
    in_row(bit, column * bit.bits + bit.bit)
}

fn within_bytes(bit: CodeBit) -> Place {
    let per_byte = 8 / bit.bits;
    in_row(bit, bit.column / per_byte * 8 + bit.column % per_byte * bit.bits + bit.bit)
}

fn run_on(bit: CodeBit) -> Place {
    let n = (bit.row * bit.columns + bit.column) * bit.bits + bit.bit;
    Some((n / 8, n % 8))
}

/// Every bit of a matrix of codes.
fn every_bit(rows: usize, columns: usize, bits: usize, visit: &mut dyn FnMut(CodeBit)) {
    let row_bytes = (columns * bits).div_ceil(8);
    for (row, column, bit) in ndarray::indices((rows, columns, bits)) {
        visit(CodeBit { row, column, bit, bits, columns, row_bytes });
    }
}

fn packed(request: &Request, outputs: &mut Tensors, place: fn(CodeBit) -> Place) -> Edited {
    let codes: Array2<u8> = request.unsigned("codes")?;
    let bits = params::packed_bits(&request.params)?;
    let shape = (codes.nrows(), bits.row_bytes(codes.ncols()));
    let mut bytes = vec![0_u8; shape.0 * shape.1];
    every_bit(codes.nrows(), codes.ncols(), bits.count(), &mut |bit| {
        if let Some((byte, position)) = place(bit) {
            bytes[byte] |= (codes[[bit.row, bit.column]] >> bit.bit & 1) << position;
        }
    });
    let packed = Array2::from_shape_vec(shape, bytes).map_err(|e| e.to_string())?;
    outputs.insert("packed".to_owned(), Tensor::unsigned(&packed));
    Ok(())
}

fn unpacked(request: &Request, outputs: &mut Tensors, place: fn(CodeBit) -> Place) -> Edited {
    let packed: Array2<u8> = request.unsigned("packed")?;
    let bits = params::packed_bits(&request.params)?;
    let mut codes = Array2::zeros((packed.nrows(), request.params.required("in_features")?));
    let bytes: Vec<u8> = packed.iter().copied().collect();
    every_bit(codes.nrows(), codes.ncols(), bits.count(), &mut |bit| {
        if let Some((byte, position)) = place(bit) {
            codes[[bit.row, bit.column]] |= (bytes[byte] >> position & 1) << bit.bit;
        }
    });
    outputs.insert("codes".to_owned(), Tensor::unsigned(&codes));
    Ok(())
}

fn sign_extended(request: &Request, outputs: &mut Tensors) -> Edited {
    let bits = params::packed_bits(&request.params)?;
    let half = bits.largest() / 2;
    map_bytes(outputs, "codes", |code| if code > half { code | !bits.largest() } else { code })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(number: f64) -> (f64, f64, f64) {
        let near = Near::new(number, StoredType::F16);
        (near.towards_zero, near.even, near.away)
    }

    #[test]
    fn neighbours_of_a_narrow_type() {
        assert_eq!(near(2049.0), (2048.0, 2048.0, 2050.0));
        assert_eq!(near(-2051.0), (-2050.0, -2052.0, -2052.0));
        assert_eq!(near(1.5), (1.5, 1.5, 1.5));
        assert_eq!(near(3.0 * 2_f64.powi(-25)).1, 2_f64.powi(-23));
        let carried = Near::new(4095.0, StoredType::F16);
        assert_eq!((carried.even, carried.next_binade), (4096.0, true));
        assert!(Near::new(2_f64.powi(-24), StoredType::F16).subnormal);
        assert!(!Near::new(2_f64.powi(-24), StoredType::Bf16).subnormal);
    }

    /// Positions of a code's lowest bit, in bits of the first row.
    fn starts(place: fn(CodeBit) -> Place, columns: usize, bits: usize) -> Vec<Option<usize>> {
        let mut found = Vec::new();
        every_bit(1, columns, bits, &mut |bit| {
            if bit.bit == 0 {
                found.push(place(bit).map(|(byte, position)| 8 * byte + position));
            }
        });
        found
    }

    #[test]
    fn places_of_packed_codes() {
        assert_eq!(starts(first_high, 3, 4), [Some(4), Some(0), Some(12)]);
        let words = starts(interleaved, 9, 4);
        let nibbles = words.into_iter().map(|bit| bit.unwrap() / 4).collect::<Vec<_>>();
        assert_eq!(nibbles, [0, 4, 1, 5, 2, 6, 3, 7, 8]);
        assert_eq!(starts(within_bytes, 3, 3), [Some(0), Some(3), Some(8)]);
        assert_eq!(starts(within_bytes, 5, 3)[4], None);
        assert_eq!(starts(run_on, 3, 3), [Some(0), Some(3), Some(6)]);
    }
}
