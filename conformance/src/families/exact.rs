//! Sums of small integers: exact in every order, so that equality is due.

use serde_json::json;

use super::{Claim, Draft, Family, Scope, integers};
use crate::ops;
use crate::sampler::Sampler;
use crate::tensor::{Data, Tensor, Tensors};

pub(super) static FAMILIES: &[Family] = &[Family {
    name: "integer_lattice",
    what: "products of small integers, whose sums stay below 2^24",
    catches: "a narrow accumulator or input, a term that is dropped or added twice",
    build: integer_lattice,
}];

const OPS: [(&str, &str); 12] = [
    ("lora.forward", "y"),
    ("lora.backward", "d_lora_a"),
    ("l4q.forward", "y"),
    ("l4q.backward", "d_lora_a"),
    ("qat.forward", "y"),
    ("qat.backward", "d_weight"),
    ("qat_lora.forward", "y"),
    ("qat_lora.backward", "d_lora_b"),
    ("peqa.forward", "y"),
    ("peqa.backward", "d_scale"),
    ("qa_lora.forward", "y"),
    ("qa_lora.backward", "d_lora_b"),
];

struct Sizes {
    tokens: usize,
    out_features: usize,
    group_size: usize,
    groups: usize,
    rank: usize,
}

fn integer_lattice(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    let all = [
        Sizes { tokens: 3, out_features: 4, group_size: 8, groups: 1, rank: 1 },
        Sizes { tokens: 7, out_features: 9, group_size: 16, groups: 3, rank: 2 },
        Sizes { tokens: 9, out_features: 17, group_size: 32, groups: 3, rank: 4 },
    ];
    for sizes in &all {
        for (op, output) in OPS {
            drafts.push(on_lattice(op, sizes, &[Claim::Exact, Claim::NonZero(output)])?);
        }
    }
    Ok(drafts)
}

/// Every input an integer; scales are 1, so that the quantizer's arguments are integers too.
fn on_lattice(op: &str, sizes: &Sizes, claims: &[Claim]) -> Result<Draft, String> {
    let Sizes { tokens, out_features, group_size, groups, rank } = *sizes;
    let in_features = group_size * groups;
    let mut sampler = Sampler::new(0, op, in_features as u64);
    let op = ops::find(op)?;
    let mut inputs = Tensors::new();
    for spec in op.inputs {
        let name = &*spec.name;
        // QA-LoRA's adapter sees one input per group.
        let adapted = if op.name.starts_with("qa_lora.") { groups } else { in_features };
        let tensor = match name {
            "x" => integers(&mut sampler, &[tokens, in_features], 3),
            "d_y" => integers(&mut sampler, &[tokens, out_features], 3),
            "weight" => integers(&mut sampler, &[out_features, in_features], 9),
            "lora_a" => integers(&mut sampler, &[rank, adapted], 1),
            "lora_b" => integers(&mut sampler, &[out_features, rank], 1),
            "offset" | "zero_point" => integers(&mut sampler, &[out_features, groups], 2),
            "scale" => super::filled(&[out_features, groups], 1.0),
            "codes" => {
                let codes = (0..out_features * in_features).map(|_| sampler.size(0, 15) as u8);
                Tensor::new(vec![out_features, in_features], Data::U8(codes.collect()))?
            }
            _ => return Err(format!("{} has an input {name} that no lattice is for", op.name)),
        };
        inputs.insert(name.to_owned(), tensor);
    }
    let params = [
        ("bits", json!(4)),
        ("group_size", json!(group_size)),
        ("lora_scaling", json!(2)),
        ("pool", json!("sum")),
    ];
    Draft::picked(op.name, params, &inputs, claims)
}
