//! Where the quantizer decides: ties, ends, the floor of the scale, the smallest numbers.

use serde_json::json;

use super::{Claim, Draft, Family, Scope, filled, floats, integers};
use crate::sampler::Sampler;
use crate::tensor::{Data, Tensor};

pub(super) static FAMILIES: &[Family] = &[
    Family {
        name: "ties",
        what: "arguments halfway between any two codes, over odd and even, above and below zero",
        catches: "rounding half up, half away or by truncation; the zero point in the rounding; \
                  a product with 1 / scale, a difference of two quotients",
        build: ties,
    },
    Family {
        name: "grid_ends",
        what: "arguments on the ends, half a step beyond them and one number beside them",
        catches: "a mask with < for <=, a mask on the rounded argument, a clamp one code off",
        build: grid_ends,
    },
    Family {
        name: "scale_floor",
        what: "scales at the floor, one number beside it, zero and below zero",
        catches: "a division by zero, a gradient through a raised scale, the floor of another type",
        build: scale_floor,
    },
    Family {
        name: "subnormal",
        what: "numbers below the normal ones, and negative zeros",
        catches: "flushing to zero, a reciprocal that overflows, a sign that a code cannot have",
        build: subnormal,
    },
    Family {
        name: "masked_row",
        what: "a row of the weight that is clipped throughout; targets that do not count",
        catches: "a gradient through clipped weights, 0 / 0 where nothing is left of a row",
        build: masked_row,
    },
];

const TIES: [Claim; 4] = [
    Claim::Tie { odd: false, negative: false },
    Claim::Tie { odd: true, negative: false },
    Claim::Tie { odd: false, negative: true },
    Claim::Tie { odd: true, negative: true },
];

/// `offset + scale * argument`, which no rounding disturbs: all three have few bits.
fn on_lattice(arguments: &[f64], scale: f64, offset: f64) -> Tensor {
    floats(&[1, arguments.len()], arguments.iter().map(|argument| offset + scale * argument))
}

/// All of `k + 1/2` within the codes and two beyond either end.
fn ties(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    for bits in 3..=8_u32 {
        let half = 1_i32 << (bits - 1);
        let arguments: Vec<f64> = (-half - 2..half + 2).map(|code| f64::from(code) + 0.5).collect();
        // 41 times its reciprocal is not 1 in binary32, and 49 times its own is not in binary64.
        let dyadic = [(0.5, 0.0), (2_f64.powi(-9), 0.375), (4.0, -17.0)];
        let grids = dyadic.into_iter().chain([(3.0, 5.0), (41.0, 0.0), (49.0, 0.0)]);
        for (scale, offset) in grids {
            let grid = [
                ("weight", on_lattice(&arguments, scale, offset)),
                ("scale", floats(&[1, 1], [scale])),
                ("offset", floats(&[1, 1], [offset])),
            ];
            let claims = [&TIES[..], &[Claim::Clipped, Claim::HalfBeyondBothEnds]].concat();
            let params = [("bits", json!(bits))];
            let forward = grid.clone();
            drafts.push(Draft::new("fake_quantize.forward", params.clone(), forward, &claims)?);
            let d_output = filled(&[1, arguments.len()], 1.0);
            let [weight, scale, offset] = grid;
            let claims = [&claims[..], &[Claim::NonZero("d_weight")]].concat();
            drafts.push(Draft::new(
                "fake_quantize.backward",
                params,
                [weight, scale, offset, ("d_output", d_output)],
                &claims,
            )?);
        }
        // The parity is that of the quotient, whether the zero point is odd or even.
        for zero_point in [half, half - 1] {
            let quotients: Vec<f64> = (-zero_point - 1..2 * half - zero_point)
                .map(|code| f64::from(code) + 0.5)
                .collect();
            drafts.push(Draft::new(
                "affine.quantize",
                [("bits", json!(bits))],
                [
                    ("weight", on_lattice(&quotients, 0.125, 0.0)),
                    ("scale", floats(&[1, 1], [0.125])),
                    ("zero_point", floats(&[1, 1], [f64::from(zero_point)])),
                ],
                &TIES,
            )?);
        }
    }
    Ok(drafts)
}

/// Every mask, at the six places where they differ.
fn grid_ends(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    for bits in [2_u32, 3, 4, 8] {
        let half = f64::from(1_u32 << (bits - 1));
        let (low, high) = (-half, half - 1.0);
        // The scale is 1/4, so that a step of 2^-16 is an exact argument too.
        let beside = 2_f64.powi(-16);
        let arguments: Vec<f64> = [low, high, low - 0.5, high + 0.5]
            .into_iter()
            .flat_map(|end| [end - beside, end, end + beside])
            .collect();
        let count = arguments.len();
        for mask in ["pre_round", "rounded", "open"] {
            for offset in [0.0, 1.25] {
                let inputs = [
                    ("weight", on_lattice(&arguments, 0.25, offset)),
                    ("scale", floats(&[1, 1], [0.25])),
                    ("offset", floats(&[1, 1], [offset])),
                    // Unlike numbers of one sign: no sum of them is zero.
                    ("d_output", floats(&[1, count], (1..=count).map(|d| d as f64))),
                ];
                let claims = [
                    Claim::OnBothEnds,
                    Claim::HalfBeyondBothEnds,
                    Claim::Clipped,
                    Claim::Inside,
                    Claim::NonZero("d_weight"),
                    Claim::NonZero("d_scale"),
                    Claim::NonZero("d_offset"),
                ];
                let params = [("bits", json!(bits)), ("mask", json!(mask))];
                let [weight, scale, shift, _] = inputs.clone();
                drafts.push(Draft::new("fake_quantize.backward", params, inputs, &claims)?);
                if mask == "pre_round" {
                    let params = [("bits", json!(bits))];
                    let forward = [weight, scale, shift];
                    drafts.push(Draft::new(
                        "fake_quantize.forward",
                        params,
                        forward,
                        &claims[..4],
                    )?);
                }
            }
        }
    }
    Ok(drafts)
}

/// Groups of 4 on the grid that their scale spans once it is raised.
fn scale_floor(_: &Scope) -> Result<Vec<Draft>, String> {
    let floor = 1e-8_f32;
    let scales = [floor, floor.next_down(), floor.next_up(), 0.0, -0.5, 1e-30, 2e-8];
    let (groups, tokens, rank) = (scales.len(), 3, 2);
    let columns = 4 * groups;
    let mut sampler = Sampler::new(0, "scale_floor", 0);
    let mut drafts = Vec::new();
    for bits in [2_u32, 4, 8] {
        let half = f64::from(1_u32 << (bits - 1));
        let places = [-half - 3.0, -0.4, 0.7, half + 2.0];
        let weight = scales.iter().flat_map(|_| places.iter().map(|place| place * 1e-8));
        let codes = (0..columns).map(|column| (column % (1 << bits)) as u8).collect();
        let tensors = crate::ops::tensors([
            ("weight", floats(&[1, columns], weight)),
            ("codes", Tensor::new(vec![1, columns], Data::U8(codes))?),
            ("scale", floats(&[1, groups], scales.iter().map(|scale| f64::from(*scale)))),
            ("offset", filled(&[1, groups], 0.0)),
            ("zero_point", filled(&[1, groups], half)),
            ("lora_a", sampler.normal(&[rank, columns], 1e-9)),
            ("lora_b", sampler.normal(&[1, rank], 1.0)),
            ("x", integers(&mut sampler, &[tokens, columns], 3)),
            ("d_y", floats(&[tokens, 1], (1..=tokens).map(|d| d as f64))),
            ("d_output", integers(&mut sampler, &[1, columns], 9)),
        ]);
        let params =
            [("bits", json!(bits)), ("group_size", json!(4)), ("lora_scaling", json!(0.5))];
        for (op, output) in [
            ("fake_quantize.forward", "output"),
            ("fake_quantize.backward", "d_offset"),
            ("l4q.forward", "y"),
            ("l4q.backward", "d_offset"),
            ("l4q.merge", "scale"),
            ("qat.backward", "d_offset"),
            ("peqa.backward", "d_x"),
        ] {
            let mut claims = vec![Claim::NonZero(output)];
            if op.ends_with(".backward") {
                claims.push(Claim::NonZero("d_scale"));
            }
            if op != "peqa.backward" {
                let on_grid = [Claim::FloorScale, Claim::Clipped, Claim::Inside];
                claims.extend(on_grid.into_iter().chain([Claim::Groups(groups)]));
            }
            drafts.push(Draft::picked(op, params.clone(), &tensors, &claims)?);
        }
    }
    Ok(drafts)
}

fn subnormal(_: &Scope) -> Result<Vec<Draft>, String> {
    let tiny = [1e-45, -1e-45, 3e-42, -1e-40, 1.1e-38, -0.0, 0.0, 5e-39];
    let numbers = || floats(&[1, 8], tiny);
    let (small, negative) = (Claim::Subnormal, Claim::NegativeZero);
    let mut drafts = Vec::new();
    for (scale, offset) in [(0.5, 0.0), (1e-8, 0.0), (0.5, 0.25), (0.5, -0.0)] {
        drafts.push(Draft::new(
            "fake_quantize.forward",
            [("bits", json!(4))],
            [
                ("weight", numbers()),
                ("scale", floats(&[1, 1], [scale])),
                ("offset", floats(&[1, 1], [offset])),
            ],
            &[small("weight"), negative("weight"), Claim::Inside],
        )?);
    }
    // Gradients as small as that are sums and copies: nothing may be lost.
    drafts.push(Draft::new(
        "fake_quantize.backward",
        [("bits", json!(4))],
        [
            ("weight", floats(&[1, 8], [9.0, -9.0, 9.0, 0.5, 0.25, 1.0, 1.5, 9.0])),
            ("scale", floats(&[1, 1], [0.5])),
            ("offset", floats(&[1, 1], [0.0])),
            ("d_output", numbers()),
        ],
        &[small("d_output"), small("d_weight"), small("d_offset"), Claim::Clipped],
    )?);
    let identity = floats(&[8, 8], (0..64).map(|at| f64::from(u8::from(at % 9 == 0))));
    drafts.push(Draft::new(
        "lora.forward",
        [("lora_scaling", json!(1))],
        [
            ("x", numbers()),
            ("weight", identity),
            ("lora_a", filled(&[1, 8], 0.0)),
            ("lora_b", filled(&[8, 1], 0.0)),
        ],
        &[small("x"), negative("x"), small("y")],
    )?);
    let norm = [("x", numbers()), ("weight", filled(&[8], 1.0))];
    let params = [("eps", json!(1e-12))];
    drafts.push(Draft::new("rms_norm.forward", params, norm, &[small("x"), negative("x")])?);
    let pair = [("gate", filled(&[1, 8], 2.0)), ("up", numbers())];
    drafts.push(Draft::new("swiglu.forward", [], pair, &[small("up"), small("output")])?);
    for dtype in ["bf16", "f16"] {
        let params = [("dtype", json!(dtype))];
        let claims = [small("input"), negative("input")];
        drafts.push(Draft::new("cast", params, [("input", numbers())], &claims)?);
    }
    Ok(drafts)
}

fn masked_row(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut sampler = Sampler::new(0, "masked_row", 0);
    let mut drafts = Vec::new();
    for clipped_rows in [1_usize, 3] {
        let (rows, columns, tokens) = (3, 8, 5);
        let mut sign = |index: usize| if sampler.chance(0.5) && index > 0 { 1.0 } else { -1.0 };
        let weight = (0..rows * columns).map(|index| {
            let size = if index / columns < clipped_rows { 20.0 } else { 3.0 };
            sign(index) * size
        });
        let weight = floats(&[rows, columns], weight.collect::<Vec<_>>());
        let grid = [
            ("weight", weight),
            ("scale", filled(&[rows, 2], 0.5)),
            ("offset", filled(&[rows, 2], 0.25)),
        ];
        let params = [("bits", json!(4)), ("group_size", json!(4))];
        let row = [Claim::RowClipped, Claim::Clipped, Claim::NonZero("d_offset")];
        let [weight, scale, offset] = grid.clone();
        let d_output = integers(&mut sampler, &[rows, columns], 9);
        let inputs = [weight, scale, offset, ("d_output", d_output)];
        drafts.push(Draft::new("fake_quantize.backward", params.clone(), inputs, &row)?);
        let low_rank = if clipped_rows == rows { Claim::Zero } else { Claim::NonZero };
        let [weight, scale, offset] = grid;
        let [bits, group_size] = params;
        drafts.push(Draft::new(
            "l4q.backward",
            [bits, group_size, ("lora_scaling", json!(0.5))],
            [
                weight,
                scale,
                offset,
                ("x", integers(&mut sampler, &[tokens, columns], 3)),
                ("d_y", integers(&mut sampler, &[tokens, rows], 3)),
                ("lora_a", filled(&[2, columns], 0.125)),
                ("lora_b", filled(&[rows, 2], 0.25)),
            ],
            &[&row[..2], &[low_rank("d_lora_a"), low_rank("d_lora_b"), Claim::NonZero("d_x")]]
                .concat(),
        )?);
    }
    for op in ["cross_entropy.forward", "cross_entropy.backward"] {
        let targets = vec![-100, -100, 3, -100, -100, 0, -100];
        let output = if op.ends_with("forward") { "loss" } else { "d_logits" };
        drafts.push(Draft::new(
            op,
            [("ignore_index", json!(-100))],
            [
                ("logits", sampler.normal(&[7, 11], 4.0)),
                ("targets", Tensor::new(vec![7], Data::I32(targets))?),
            ],
            &[Claim::Ignored, Claim::NonZero(output)],
        )?);
    }
    Ok(drafts)
}
