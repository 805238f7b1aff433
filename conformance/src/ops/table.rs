//! The rows of the registry.

use super::{
    Class, Operation, Shape, TensorSpec, adamw, attention, cross_entropy, fake_quantize,
    init_scale, l4q, llama, lora, rms_norm, rope, swiglu,
};
use crate::tensor::Kind;
use std::borrow::Cow;

type Words = &'static [&'static str];

const WEIGHT: Words = &["out", "in"];
const GROUPS: Words = &["out", "groups"];
const X: Words = &["tokens", "in"];
const Y: Words = &["tokens", "out"];
const LORA_A: Words = &["rank", "in"];
const LORA_B: Words = &["out", "rank"];
const ROWS: Words = &["tokens", "hidden"];
const HEADS: Words = &["tokens", "heads", "head_dim"];
const Q: Words = &["batch", "tokens", "heads", "head_dim"];
const KV: Words = &["batch", "tokens", "kv_heads", "head_dim"];
const LOGITS: Words = &["tokens", "vocab"];

const DEQUANTIZED: &str = "gamma(2) * (|code * scale| + |offset|)";
const PRODUCT: &str = "gamma(terms + 2) * sum |x| * (|code * scale| + |offset|)";
const GROUP_SUM: &str = "gamma(terms + 5) * sum |d * h| + sum |d| * error of the argument";
const LOW_RANK: &str = "gamma(all roundings) * the same sums over absolute values";
const INIT: &str = "gamma(roundings of the rule) * sum of absolute terms";
const SOFTMAX: &str = "first-order error of scores, exp and sums, over absolute values";
const POINTWISE: &str = "gamma(operations) * |terms|, 2 ulp per exponential";

const fn tensor(name: &'static str, kind: Kind, shape: Shape, class: Class) -> TensorSpec {
    TensorSpec { name: Cow::Borrowed(name), kind, shape, optional: false, class }
}

const fn given(name: &'static str, words: Words) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Words(words), Class::Given)
}

const fn ids(name: &'static str, words: Words) -> TensorSpec {
    tensor(name, Kind::TokenIds, Shape::Words(words), Class::Given)
}

const fn codes() -> TensorSpec {
    tensor("codes", Kind::SignedCodes, Shape::Words(WEIGHT), Class::Codes)
}

const fn bounded(name: &'static str, words: Words, why: &'static str) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Words(words), Class::Bounded(why))
}

const fn like(name: &'static str, other: &'static str) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Like(other), Class::Given)
}

const fn bounded_like(name: &'static str, other: &'static str, why: &'static str) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Like(other), Class::Bounded(why))
}

const fn any(name: &'static str) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Any, Class::Given)
}

/// Every operation, in the protocol's order.
pub static OPERATIONS: &[Operation] = &[
    Operation {
        name: "fake_quantize.forward",
        params: &["bits", "group_size"],
        inputs: &[given("weight", WEIGHT), given("scale", GROUPS), given("offset", GROUPS)],
        outputs: &[codes(), bounded("output", WEIGHT, DEQUANTIZED)],
        weights: None,
        sizes: fake_quantize::sizes,
        f64: fake_quantize::forward::<f64>,
        f32: fake_quantize::forward::<f32>,
        grid: Some(fake_quantize::grid),
        bounds: fake_quantize::forward_bounds,
        sample: fake_quantize::sample_forward,
    },
    Operation {
        name: "fake_quantize.backward",
        params: &["bits", "group_size", "grad_scale"],
        inputs: &[
            given("weight", WEIGHT),
            given("scale", GROUPS),
            given("offset", GROUPS),
            given("d_output", WEIGHT),
        ],
        outputs: &[
            bounded("d_weight", WEIGHT, "0: a copy of d_output, or zero"),
            bounded("d_scale", GROUPS, GROUP_SUM),
            bounded("d_offset", GROUPS, GROUP_SUM),
        ],
        weights: None,
        sizes: fake_quantize::sizes,
        f64: fake_quantize::backward::<f64>,
        f32: fake_quantize::backward::<f32>,
        grid: None,
        bounds: fake_quantize::backward_bounds,
        sample: fake_quantize::sample_backward,
    },
    Operation {
        name: "init_scale",
        params: &["bits", "group_size", "rule", "p", "steps"],
        inputs: &[given("weight", WEIGHT)],
        outputs: &[bounded("scale", GROUPS, INIT), bounded("offset", GROUPS, INIT)],
        weights: None,
        sizes: init_scale::sizes,
        f64: init_scale::run::<f64>,
        f32: init_scale::run::<f32>,
        grid: None,
        bounds: init_scale::bounds,
        sample: init_scale::sample,
    },
    Operation {
        name: "l4q.forward",
        params: &["bits", "group_size", "lora_scaling"],
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("scale", GROUPS),
            given("offset", GROUPS),
        ],
        outputs: &[
            bounded("y", Y, PRODUCT),
            codes(),
            bounded("fake_quantized", WEIGHT, DEQUANTIZED),
        ],
        weights: None,
        sizes: l4q::sizes,
        f64: l4q::forward::<f64>,
        f32: l4q::forward::<f32>,
        grid: Some(l4q::grid),
        bounds: l4q::forward_bounds,
        sample: l4q::sample_forward,
    },
    Operation {
        name: "l4q.backward",
        params: &["bits", "group_size", "lora_scaling", "grad_scale"],
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("scale", GROUPS),
            given("offset", GROUPS),
            given("d_y", Y),
        ],
        outputs: &[
            bounded("d_x", X, PRODUCT),
            bounded("d_lora_a", LORA_A, LOW_RANK),
            bounded("d_lora_b", LORA_B, LOW_RANK),
            bounded("d_scale", GROUPS, GROUP_SUM),
            bounded("d_offset", GROUPS, GROUP_SUM),
        ],
        weights: None,
        sizes: l4q::sizes,
        f64: l4q::backward::<f64>,
        f32: l4q::backward::<f32>,
        grid: None,
        bounds: l4q::backward_bounds,
        sample: l4q::sample_backward,
    },
    Operation {
        name: "l4q.merge",
        params: &["bits", "group_size", "lora_scaling"],
        inputs: &[
            given("weight", WEIGHT),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("scale", GROUPS),
            given("offset", GROUPS),
        ],
        outputs: &[
            codes(),
            bounded("scale", GROUPS, "0; one rounding where the scale was raised to its floor"),
            bounded("offset", GROUPS, "0: a copy"),
        ],
        weights: None,
        sizes: l4q::sizes,
        f64: l4q::merge::<f64>,
        f32: l4q::merge::<f32>,
        grid: Some(l4q::grid),
        bounds: l4q::merge_bounds,
        sample: l4q::sample_merge,
    },
    Operation {
        name: "lora.forward",
        params: &["lora_scaling"],
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
        ],
        outputs: &[bounded("y", Y, LOW_RANK)],
        weights: None,
        sizes: lora::sizes,
        f64: lora::forward::<f64>,
        f32: lora::forward::<f32>,
        grid: None,
        bounds: lora::forward_bounds,
        sample: lora::sample_forward,
    },
    Operation {
        name: "lora.backward",
        params: &["lora_scaling"],
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("d_y", Y),
        ],
        outputs: &[
            bounded("d_x", X, LOW_RANK),
            bounded("d_lora_a", LORA_A, LOW_RANK),
            bounded("d_lora_b", LORA_B, LOW_RANK),
        ],
        weights: None,
        sizes: lora::sizes,
        f64: lora::backward::<f64>,
        f32: lora::backward::<f32>,
        grid: None,
        bounds: lora::backward_bounds,
        sample: lora::sample_backward,
    },
    Operation {
        name: "rms_norm.forward",
        params: &["eps"],
        inputs: &[given("x", ROWS), given("weight", &["hidden"])],
        outputs: &[bounded("output", ROWS, "gamma(hidden / 2 + 5) * |output|")],
        weights: None,
        sizes: rms_norm::sizes,
        f64: rms_norm::forward::<f64>,
        f32: rms_norm::forward::<f32>,
        grid: None,
        bounds: rms_norm::forward_bounds,
        sample: rms_norm::sample_forward,
    },
    Operation {
        name: "rms_norm.backward",
        params: &["eps"],
        inputs: &[given("x", ROWS), given("weight", &["hidden"]), given("d_output", ROWS)],
        outputs: &[
            bounded("d_x", ROWS, "gamma(5 * hidden / 2 + 15) * (|first term| + |second term|)"),
            bounded("d_weight", &["hidden"], "gamma(tokens + hidden / 2 + 5) * sum of |terms|"),
        ],
        weights: None,
        sizes: rms_norm::sizes,
        f64: rms_norm::backward::<f64>,
        f32: rms_norm::backward::<f32>,
        grid: None,
        bounds: rms_norm::backward_bounds,
        sample: rms_norm::sample_backward,
    },
    Operation {
        name: "rope.forward",
        params: &["theta", "first_position"],
        inputs: &[given("x", HEADS)],
        outputs: &[bounded("output", HEADS, rope::BOUND)],
        weights: None,
        sizes: rope::sizes,
        f64: rope::forward::<f64>,
        f32: rope::forward::<f32>,
        grid: None,
        bounds: rope::forward_bounds,
        sample: rope::sample_forward,
    },
    Operation {
        name: "rope.backward",
        params: &["theta", "first_position"],
        inputs: &[given("d_output", HEADS)],
        outputs: &[bounded("d_x", HEADS, rope::BOUND)],
        weights: None,
        sizes: rope::sizes,
        f64: rope::backward::<f64>,
        f32: rope::backward::<f32>,
        grid: None,
        bounds: rope::backward_bounds,
        sample: rope::sample_backward,
    },
    Operation {
        name: "attention.forward",
        params: &["heads", "kv_heads"],
        inputs: &[given("q", Q), given("k", KV), given("v", KV)],
        outputs: &[bounded("output", Q, SOFTMAX)],
        weights: None,
        sizes: attention::sizes,
        f64: attention::forward::<f64>,
        f32: attention::forward::<f32>,
        grid: None,
        bounds: attention::forward_bounds,
        sample: attention::sample_forward,
    },
    Operation {
        name: "attention.backward",
        params: &["heads", "kv_heads"],
        inputs: &[given("q", Q), given("k", KV), given("v", KV), given("d_output", Q)],
        outputs: &[
            bounded("d_q", Q, SOFTMAX),
            bounded("d_k", KV, SOFTMAX),
            bounded("d_v", KV, SOFTMAX),
        ],
        weights: None,
        sizes: attention::sizes,
        f64: attention::backward::<f64>,
        f32: attention::backward::<f32>,
        grid: None,
        bounds: attention::backward_bounds,
        sample: attention::sample_backward,
    },
    Operation {
        name: "swiglu.forward",
        params: &[],
        inputs: &[any("gate"), like("up", "gate")],
        outputs: &[bounded_like("output", "gate", POINTWISE)],
        weights: None,
        sizes: swiglu::sizes,
        f64: swiglu::forward::<f64>,
        f32: swiglu::forward::<f32>,
        grid: None,
        bounds: swiglu::forward_bounds,
        sample: swiglu::sample_forward,
    },
    Operation {
        name: "swiglu.backward",
        params: &[],
        inputs: &[any("gate"), like("up", "gate"), like("d_output", "gate")],
        outputs: &[
            bounded_like("d_gate", "gate", POINTWISE),
            bounded_like("d_up", "gate", POINTWISE),
        ],
        weights: None,
        sizes: swiglu::sizes,
        f64: swiglu::backward::<f64>,
        f32: swiglu::backward::<f32>,
        grid: None,
        bounds: swiglu::backward_bounds,
        sample: swiglu::sample_backward,
    },
    Operation {
        name: "cross_entropy.forward",
        params: &["ignore_index"],
        inputs: &[given("logits", LOGITS), ids("targets", &["tokens"])],
        outputs: &[bounded("loss", &[], SOFTMAX)],
        weights: None,
        sizes: cross_entropy::sizes,
        f64: cross_entropy::forward::<f64>,
        f32: cross_entropy::forward::<f32>,
        grid: None,
        bounds: cross_entropy::forward_bounds,
        sample: cross_entropy::sample,
    },
    Operation {
        name: "cross_entropy.backward",
        params: &["ignore_index"],
        inputs: &[given("logits", LOGITS), ids("targets", &["tokens"])],
        outputs: &[bounded("d_logits", LOGITS, SOFTMAX)],
        weights: None,
        sizes: cross_entropy::sizes,
        f64: cross_entropy::backward::<f64>,
        f32: cross_entropy::backward::<f32>,
        grid: None,
        bounds: cross_entropy::backward_bounds,
        sample: cross_entropy::sample,
    },
    Operation {
        name: "adamw.step",
        params: &["lr", "beta1", "beta2", "eps", "weight_decay", "step"],
        inputs: &[
            any("parameter"),
            like("gradient", "parameter"),
            like("first_moment", "parameter"),
            like("second_moment", "parameter"),
        ],
        outputs: &[
            bounded_like("parameter", "parameter", "gamma(20) * (|parameter| + |update|)"),
            bounded_like("first_moment", "parameter", "gamma(3) * sum of |terms|"),
            bounded_like("second_moment", "parameter", "gamma(4) * second_moment"),
        ],
        weights: None,
        sizes: adamw::sizes,
        f64: adamw::run::<f64>,
        f32: adamw::run::<f32>,
        grid: None,
        bounds: adamw::bounds,
        sample: adamw::sample,
    },
    Operation {
        name: "llama.loss_and_gradients",
        params: &["config"],
        inputs: &[ids("tokens", &["batch", "length"])],
        outputs: &[
            bounded("loss", &[], llama::BOUND),
            bounded("logits", &["batch", "length", "vocab"], llama::BOUND),
        ],
        weights: Some(llama::weights),
        sizes: llama::sizes,
        f64: llama::run::<f64>,
        f32: llama::run::<f32>,
        grid: None,
        bounds: llama::bounds,
        sample: llama::sample,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_codes_have_their_arguments() {
        let names: BTreeSet<_> = OPERATIONS.iter().map(|op| op.name).collect();
        assert_eq!(names.len(), OPERATIONS.len());
        for op in OPERATIONS {
            let codes = op.outputs.iter().any(|spec| spec.class == Class::Codes);
            assert_eq!(codes, op.grid.is_some(), "{}", op.name);
            assert!(op.inputs.iter().all(|spec| spec.class == Class::Given), "{}", op.name);
            assert!(op.outputs.iter().all(|spec| spec.class != Class::Given), "{}", op.name);
        }
    }
}
