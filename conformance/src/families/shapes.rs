//! Sizes that no tile divides.

use serde_json::json;

use super::{Claim, Draft, Family, Scope};
use crate::sampler::Sampler;
use crate::tensor::{Data, Tensor, Tensors};

pub(super) static FAMILIES: &[Family] = &[
    Family {
        name: "odd_out_features",
        what: "output rows one beside the usual tiles: 7, 9, 31, 33, 63, 65, 127, 129",
        catches: "a last tile that is dropped, read beyond the end or written twice",
        build: odd_out_features,
    },
    Family {
        name: "groups_in_a_row",
        what: "rows of one group, and of 3, 5 and 7: in_features no multiple of a power of two",
        catches: "a group index that is transposed, stale or halved; a split over the inputs",
        build: groups_in_a_row,
    },
    Family {
        name: "token_counts",
        what: "one token, and a tile of 8, 32 or 128 with one less and one more",
        catches: "a last row that is dropped, a reduction over tokens that stops at the tile",
        build: token_counts,
    },
    Family {
        name: "square",
        what: "a layer whose every size is the same, so that every tensor is square",
        catches: "factors exchanged, an operand transposed: what shapes refuse anywhere else",
        build: square,
    },
];

struct Sizes {
    tokens: usize,
    out_features: usize,
    group_size: usize,
    groups: usize,
    rank: usize,
}

/// Operations of a quantized layer, with an output that must not be zero.
const LAYERS: [(&str, &str); 4] = [
    ("fake_quantize.forward", "output"),
    ("fake_quantize.backward", "d_scale"),
    ("l4q.forward", "y"),
    ("l4q.backward", "d_lora_a"),
];

const MATMULS: [(&str, &str); 2] = [("lora.forward", "y"), ("lora.backward", "d_lora_a")];

/// Everything that a layer of these sizes may be asked for.
fn layer(op: &str, sizes: &Sizes, claims: &[Claim]) -> Result<Draft, String> {
    let Sizes { tokens, out_features, group_size, groups, rank } = *sizes;
    let in_features = group_size * groups;
    let number = out_features + 1000 * (tokens + 1000 * in_features);
    let mut sampler = Sampler::new(0, op, number as u64);
    let mut draw = |shape: [usize; 2], deviation: f64| sampler.normal(&shape, deviation);
    let mut tensors: Tensors = crate::ops::tensors([
        ("weight", draw([out_features, in_features], 0.05)),
        ("lora_a", draw([rank, in_features], 0.1)),
        ("lora_b", draw([out_features, rank], 0.1)),
        ("offset", draw([out_features, groups], 0.02)),
        ("x", draw([tokens, in_features], 1.0)),
        ("d_y", draw([tokens, out_features], 1.0)),
        ("d_output", draw([out_features, in_features], 1.0)),
    ]);
    // No two groups have the same scale: a wrong group shows.
    let scale = |group: usize| 0.008 * (1.0 + group as f64 / (out_features * groups) as f64);
    let scales = super::floats(&[out_features, groups], (0..out_features * groups).map(scale));
    tensors.insert("scale".to_owned(), scales);
    let params =
        [("bits", json!(4)), ("group_size", json!(group_size)), ("lora_scaling", json!(0.5))];
    Draft::picked(op, params, &tensors, claims)
}

fn odd_out_features(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    for out_features in [7, 9, 31, 33, 63, 65, 127, 129] {
        let sizes = Sizes { tokens: 3, out_features, group_size: 16, groups: 3, rank: 4 };
        for (op, output) in LAYERS.into_iter().chain(MATMULS) {
            let mut claims = vec![Claim::Size("weight", 0, out_features), Claim::NonZero(output)];
            if !op.starts_with("lora.") {
                claims.extend([Claim::Clipped, Claim::Inside]);
            }
            drafts.push(layer(op, &sizes, &claims)?);
        }
    }
    Ok(drafts)
}

fn groups_in_a_row(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    for (group_size, groups) in [(32, 1), (32, 3), (32, 5), (16, 7), (5, 3), (1, 9), (3, 11)] {
        let sizes = Sizes { tokens: 5, out_features: 6, group_size, groups, rank: 4 };
        for (op, output) in LAYERS {
            let claims = [
                Claim::Groups(groups),
                Claim::Size("weight", 1, group_size * groups),
                Claim::NonZero(output),
            ];
            drafts.push(layer(op, &sizes, &claims)?);
        }
    }
    Ok(drafts)
}

fn square(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    let others = [("qat.forward", "y"), ("qat.backward", "d_weight")];
    let beside = [("qat_lora.forward", "y"), ("qat_lora.backward", "d_lora_a")];
    for size in [2, 6] {
        let (tokens, out_features, groups, rank) = (size, size, size, size);
        let sizes = Sizes { tokens, out_features, group_size: 1, groups, rank };
        for (op, output) in LAYERS.into_iter().chain(MATMULS).chain(others).chain(beside) {
            let claims = [
                Claim::Size("weight", 0, size),
                Claim::Size("weight", 1, size),
                Claim::NonZero(output),
            ];
            drafts.push(layer(op, &sizes, &claims)?);
        }
    }
    Ok(drafts)
}

fn token_counts(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    for tokens in [1, 7, 8, 9, 31, 32, 33, 127, 128, 129] {
        let sizes = Sizes { tokens, out_features: 5, group_size: 4, groups: 2, rank: 4 };
        for (op, output) in LAYERS[2..].iter().chain(&MATMULS) {
            drafts.push(layer(op, &sizes, &[Claim::Size("x", 0, tokens), Claim::NonZero(output)])?);
        }
        let mut sampler = Sampler::new(0, "token_counts", tokens as u64);
        let mut draw = |shape: &[usize]| sampler.normal(shape, 1.0);
        let eps = [("eps", json!(1e-5))];
        let (x, weight, d_output) = (draw(&[tokens, 12]), draw(&[12]), draw(&[tokens, 12]));
        let inputs = [("x", x), ("weight", weight), ("d_output", d_output)];
        let size = Claim::Size("x", 0, tokens);
        let claims = [size, Claim::NonZero("d_weight")];
        drafts.push(Draft::new("rms_norm.backward", eps, inputs, &claims)?);
        let rope = [("theta", json!(10_000.0)), ("first_position", json!(3))];
        let x = draw(&[tokens, 2, 6]);
        drafts.push(Draft::new(
            "rope.forward",
            rope,
            [("x", x)],
            &[size, Claim::NonZero("output")],
        )?);
        let heads = [("heads", json!(2)), ("kv_heads", json!(1))];
        let (query, key) = ([1, tokens, 2, 4], [1, tokens, 1, 4]);
        let inputs =
            [("q", draw(&query)), ("k", draw(&key)), ("v", draw(&key)), ("d_output", draw(&query))];
        // One token attends to itself alone: its scores move nothing.
        let moved = if tokens > 1 { Claim::NonZero("d_k") } else { Claim::Zero("d_k") };
        let claims = [Claim::Size("q", 1, tokens), moved, Claim::NonZero("d_v")];
        drafts.push(Draft::new("attention.backward", heads, inputs, &claims)?);
        let logits = draw(&[tokens, 9]);
        let targets = (0..tokens).map(|token| (token * 5 % 9) as i32).collect();
        let targets = Tensor::new(vec![tokens], Data::I32(targets))?;
        let inputs = [("logits", logits), ("targets", targets)];
        let claims = [Claim::Size("logits", 0, tokens), Claim::NonZero("d_logits")];
        let params = [("ignore_index", json!(-100))];
        drafts.push(Draft::new("cross_entropy.backward", params, inputs, &claims)?);
    }
    Ok(drafts)
}
