//! Updates that take the weight away, and updates that drown it.

use serde_json::json;

use super::{Claim, Draft, Family, Scope, filled, floats, integers};
use crate::sampler::Sampler;
use crate::tensor::Tensor;

pub(super) static FAMILIES: &[Family] = &[
    Family {
        name: "cancellation",
        what: "a low-rank update that takes the weight away, up to a rest that decides the code",
        catches: "a sum in a narrow type, an adapter beside the quantizer instead of inside",
        build: cancellation,
    },
    Family {
        name: "huge_lora_scaling",
        what: "lora_scaling from a million to 1e30, with an adapter and with none",
        catches: "lora_scaling applied twice or to a factor, an argument that overflows",
        build: huge_lora_scaling,
    },
];

const SHAPE: [usize; 2] = [5, 12];
const RANK: usize = 3;
const TOKENS: usize = 4;

/// `-lora_scaling * (lora_b @ lora_a)`, plus `rest`.
fn cancelled(
    lora_a: &Tensor,
    lora_b: &Tensor,
    scaling: f64,
    rest: impl Fn(usize) -> f64,
) -> Tensor {
    let [out_features, in_features] = SHAPE;
    let weight = (0..out_features * in_features).map(|index| {
        let (o, i) = (index / in_features, index % in_features);
        let terms =
            (0..RANK).map(|r| lora_b.value(o * RANK + r) * lora_a.value(r * in_features + i));
        rest(index) - scaling * terms.sum::<f64>()
    });
    floats(&SHAPE, weight)
}

fn cancellation(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    for (turn, scaling) in [1.0, 2.0, 0.3].into_iter().enumerate() {
        let mut sampler = Sampler::new(0, "cancellation", turn as u64);
        let dyadic = scaling != 0.3;
        let [out_features, in_features] = SHAPE;
        let (shape_a, shape_b) = ([RANK, in_features], [out_features, RANK]);
        let (lora_a, lora_b) = if dyadic {
            (integers(&mut sampler, &shape_a, 7), integers(&mut sampler, &shape_b, 7))
        } else {
            (sampler.normal(&shape_a, 1.0), sampler.normal(&shape_b, 1.0))
        };
        // Quarters of a step from -5 to 5: ties among them, and nothing near the ends.
        let rest = |index: usize| ((index * 7) % 41) as f64 / 4.0 - 5.0;
        let step = 2_f64.powi(-10);
        let weight =
            cancelled(
                &lora_a,
                &lora_b,
                scaling,
                |index| {
                    if dyadic { step * rest(index) } else { 0.0 }
                },
            );
        let tensors = crate::ops::tensors([
            ("weight", weight),
            ("lora_a", lora_a),
            ("lora_b", lora_b),
            ("scale", filled(&[out_features, 3], if dyadic { step } else { 0.01 })),
            ("offset", filled(&[out_features, 3], 0.0)),
            ("x", sampler.normal(&[TOKENS, in_features], 1.0)),
            ("d_y", sampler.normal(&[TOKENS, out_features], 1.0)),
        ]);
        let params =
            [("bits", json!(4)), ("group_size", json!(4)), ("lora_scaling", json!(scaling))];
        let mut claims = vec![Claim::Cancels, Claim::Inside];
        if dyadic {
            claims.push(Claim::Tie { odd: true, negative: false });
            claims.push(Claim::Tie { odd: false, negative: true });
        }
        for op in ["l4q.forward", "l4q.backward", "l4q.merge"] {
            drafts.push(Draft::picked(op, params.clone(), &tensors, &claims)?);
        }
        // Nothing is quantized here: what is left of the sum is the whole answer.
        drafts.push(Draft::picked("lora.forward", params, &tensors, &claims[..1])?);
    }
    Ok(drafts)
}

fn huge_lora_scaling(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    let ops = [
        ("l4q.forward", "y"),
        ("l4q.backward", "d_lora_b"),
        ("l4q.merge", "codes"),
        ("lora.forward", "y"),
        ("lora.backward", "d_lora_b"),
        ("qat_lora.forward", "y"),
        ("qat_lora.backward", "d_lora_b"),
    ];
    for (turn, scaling) in [1e6, 1_048_576.0, 1e30].into_iter().enumerate() {
        let mut sampler = Sampler::new(0, "huge_lora_scaling", turn as u64);
        let [out_features, in_features] = SHAPE;
        for adapter in [0.1, 0.0] {
            let mut lora_b = sampler.normal(&[out_features, RANK], adapter);
            // One row without an adapter, which the factor must leave alone.
            if let crate::tensor::Data::F32(values) = lora_b.data_mut() {
                values[..RANK].fill(0.0);
            }
            let tensors = crate::ops::tensors([
                ("weight", sampler.normal(&SHAPE, 0.05)),
                ("lora_a", sampler.normal(&[RANK, in_features], 0.1)),
                ("lora_b", lora_b),
                ("scale", filled(&[out_features, 3], 0.01)),
                ("offset", filled(&[out_features, 3], 0.002)),
                ("x", sampler.normal(&[TOKENS, in_features], 1.0)),
                ("d_y", sampler.normal(&[TOKENS, out_features], 1.0)),
            ]);
            let params =
                [("bits", json!(4)), ("group_size", json!(4)), ("lora_scaling", json!(scaling))];
            for (op, output) in ops {
                let mut claims = vec![Claim::NonZero(output)];
                // Without an adapter the gradient of lora_a is a product with zero.
                if adapter == 0.0 && op.ends_with(".backward") {
                    claims.push(Claim::Zero("d_lora_a"));
                }
                if op.starts_with("l4q.") && adapter > 0.0 {
                    claims.push(Claim::Clipped);
                    claims.push(Claim::Inside);
                }
                drafts.push(Draft::picked(op, params.clone(), &tensors, &claims)?);
            }
        }
    }
    Ok(drafts)
}
