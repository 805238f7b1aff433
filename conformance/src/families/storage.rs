//! Everything that a small format can hold.

use half::{bf16, f16};
use serde_json::json;

use super::{Claim, Draft, Family, Scope, floats};
use crate::ops;
use crate::tensor::{Data, Tensor};

pub(super) static FAMILIES: &[Family] = &[
    Family {
        name: "every_code",
        what: "every code with every zero point of the grid, at every width; every signed code",
        catches: "a width, a sign or a zero point that is right for most codes only",
        build: every_code,
    },
    Family {
        name: "every_packed_code",
        what: "every code at every place of a row, in rows of every length",
        catches: "the order of nibbles, a code across two bytes, the padding of a row",
        build: every_packed_code,
    },
    Family {
        name: "every_bf16",
        what: "every finite bf16 number through the quantizer, on dyadic and crooked scales",
        catches: "an argument in bf16, an overflow that is not clamped",
        build: every_bf16,
    },
    Family {
        name: "narrow_ties",
        what: "every number halfway between two neighbours of bf16 and f16, subnormal ones too",
        catches: "rounding half up or away, truncation, subnormal numbers flushed to zero",
        build: narrow_ties,
    },
    Family {
        name: "narrow_overflow",
        what: "numbers about the largest of bf16 and f16",
        catches: "saturation in place of a refusal, or a refusal one rounding too early",
        build: narrow_overflow,
    },
];

/// Codes along a row, zero points down the rows.
fn every_code(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    for bits in 2..=8_u32 {
        let count = 1_usize << bits;
        let table: Vec<(usize, usize)> =
            (0..count).flat_map(|zero| (0..count).map(move |code| (zero, code))).collect();
        let zero_point = floats(&[count, 1], (0..count).map(|zero| zero as f64));
        // A tenth is no binary number: the order of the operations shows.
        let scale = |zero: usize| if zero.is_multiple_of(2) { 0.1 } else { 0.25 };
        let scales = floats(&[count, 1], (0..count).map(scale));
        let codes = table.iter().map(|(_, code)| *code as u8).collect();
        let codes = Tensor::new(vec![count, count], Data::U8(codes))?;
        let every = [Claim::EveryCode("codes"), Claim::EveryCode("zero_point")];
        drafts.push(Draft::new(
            "affine.dequantize",
            [("bits", json!(bits))],
            [("codes", codes), ("scale", scales), ("zero_point", zero_point.clone())],
            &[&every[..], &[Claim::NonZero("output")]].concat(),
        )?);
        let weight = table.iter().map(|(zero, code)| (*code as f64 - *zero as f64) * 0.25);
        drafts.push(Draft::new(
            "affine.quantize",
            [("bits", json!(bits))],
            [
                ("weight", floats(&[count, count], weight)),
                ("scale", super::filled(&[count, 1], 0.25)),
                ("zero_point", zero_point),
            ],
            &[&every[..], &[Claim::OnBothEnds]].concat(),
        )?);
        let low = -((count / 2) as f64);
        let weight = (0..count).map(|code| (low + code as f64) * 0.5 - 0.75);
        drafts.push(Draft::new(
            "fake_quantize.forward",
            [("bits", json!(bits))],
            [
                ("weight", floats(&[1, count], weight)),
                ("scale", floats(&[1, 1], [0.5])),
                ("offset", floats(&[1, 1], [-0.75])),
            ],
            &[Claim::EveryCode("codes"), Claim::OnBothEnds, Claim::NonZero("output")],
        )?);
    }
    Ok(drafts)
}

/// One row for each code at each place; all others are its complement, so that a bit that strays
/// is seen.
fn every_packed_code(scope: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    for bits in [2_usize, 3, 4, 8] {
        let largest = (1 << bits) - 1;
        // A byte holds one code of 8 bits: longer rows show nothing that short ones do not.
        let longest = if bits == 8 && !scope.exhaustive { 3 } else { 17 };
        for in_features in 1..=longest {
            let rows = (largest + 1) * in_features;
            let codes = (0..rows * in_features).map(|index| {
                let (row, place) = (index / in_features, index % in_features);
                let code = row / in_features;
                (if place == row % in_features { code } else { largest - code }) as u8
            });
            let codes = Tensor::new(vec![rows, in_features], Data::U8(codes.collect()))?;
            let claims = [Claim::EveryCode("codes"), Claim::Size("codes", 1, in_features)];
            let params = [("bits", json!(bits))];
            let pack = Draft::new("pack", params.clone(), [("codes", codes)], &claims)?;
            let packed = (ops::find("pack")?.run.f64)(&pack.request)?;
            drafts.push(pack);
            let [bits] = params;
            drafts.push(Draft::new(
                "unpack",
                [bits, ("in_features", json!(in_features))],
                [("packed", packed["packed"].clone())],
                &claims,
            )?);
        }
    }
    Ok(drafts)
}

fn finite_bf16() -> impl Iterator<Item = f64> {
    let all = (0..=u16::MAX).map(|bits| f64::from(bf16::from_bits(bits)));
    all.filter(|value| value.is_finite())
}

fn every_bf16(scope: &Scope) -> Result<Vec<Draft>, String> {
    let scales: Vec<f64> = if scope.exhaustive {
        // From the floor to 2^24 in equal ratios, every second one a power of two.
        let steps = (0..32).map(|step| 2_f64.powi(step - 26 + step / 2));
        steps.flat_map(|scale| [scale, scale * 1.3]).collect()
    } else {
        vec![2_f64.powi(-7), 0.013, 1e-8]
    };
    let widths: &[u32] = if scope.exhaustive { &[2, 3, 4, 8] } else { &[4] };
    let mut drafts = Vec::new();
    for (bits, scale) in widths.iter().flat_map(|bits| scales.iter().map(move |s| (*bits, *s))) {
        // 2^16 patterns without the 2^8 of infinities and NaN.
        let weight = floats(&[255, 256], finite_bf16());
        let claims = [
            Claim::EveryBf16("weight"),
            Claim::EveryCode("codes"),
            Claim::Clipped,
            Claim::Inside,
            Claim::Subnormal("weight"),
            Claim::NegativeZero("weight"),
        ];
        drafts.push(Draft::new(
            "fake_quantize.forward",
            [("bits", json!(bits)), ("group_size", json!(256))],
            [
                ("weight", weight),
                ("scale", super::filled(&[255, 1], scale)),
                ("offset", super::filled(&[255, 1], 0.0)),
            ],
            &claims,
        )?);
    }
    Ok(drafts)
}

/// Neighbours in the order of their bits, up to the largest finite number.
fn halfway(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let numbers: Vec<f64> = numbers.collect();
    numbers.windows(2).map(|pair| f64::midpoint(pair[0], pair[1])).collect()
}

fn narrow_ties(_: &Scope) -> Result<Vec<Draft>, String> {
    let positive_bf16 = (0..0x7f80).map(|bits| f64::from(bf16::from_bits(bits)));
    let positive_f16 = (0..0x7c00).map(|bits| f64::from(f16::from_bits(bits)));
    let types = [("bf16", halfway(positive_bf16)), ("f16", halfway(positive_f16))];
    let mut drafts = Vec::new();
    for (dtype, ties) in types {
        for sign in [1.0, -1.0] {
            drafts.push(Draft::new(
                "cast",
                [("dtype", json!(dtype))],
                [("input", floats(&[ties.len()], ties.iter().map(|tie| sign * tie)))],
                &[Claim::Halfway(dtype), Claim::NonZero("output")],
            )?);
        }
    }
    Ok(drafts)
}

fn narrow_overflow(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    let ends = [("f16", 65504.0, 65520.0), ("bf16", f64::from(bf16::MAX), 2_f64.powi(128))];
    for (dtype, largest, too_large) in ends {
        let too_large = if dtype == "bf16" { too_large - 2_f64.powi(119) } else { too_large };
        let last = f64::from((too_large as f32).next_down());
        for sign in [1.0, -1.0] {
            let held = [sign * largest, sign * last, sign * largest / 2.0];
            drafts.push(Draft::new(
                "cast",
                [("dtype", json!(dtype))],
                [("input", floats(&[3], held))],
                &[Claim::Reaches("input", last), Claim::Reaches("output", largest)],
            )?);
            drafts.push(Draft::new(
                "cast",
                [("dtype", json!(dtype))],
                [("input", floats(&[2], [1.0, sign * too_large]))],
                &[Claim::Refused("output")],
            )?);
        }
    }
    Ok(drafts)
}
