//! The words that the rows of the registry are written in.

use super::{ChoicesOf, Class, Shape, TensorSpec};
use crate::tensor::Kind;
use std::borrow::Cow;

pub(super) type Words = &'static [&'static str];

pub(super) const WEIGHT: Words = &["out", "in"];
pub(super) const GROUPS: Words = &["out", "groups"];
pub(super) const X: Words = &["tokens", "in"];
pub(super) const Y: Words = &["tokens", "out"];
pub(super) const TOKEN_GROUPS: Words = &["tokens", "groups"];
pub(super) const LORA_A: Words = &["rank", "in"];
pub(super) const LORA_B: Words = &["out", "rank"];
pub(super) const POOLED_A: Words = &["rank", "groups"];
pub(super) const BLOCKS: Words = &["blocks"];
pub(super) const HIDDEN: Words = &["tokens", "hidden"];
pub(super) const HEADS: Words = &["tokens", "heads", "head_dim"];
pub(super) const Q: Words = &["batch", "tokens", "heads", "head_dim"];
pub(super) const KV: Words = &["batch", "tokens", "kv_heads", "head_dim"];
pub(super) const LOGITS: Words = &["tokens", "vocab"];

pub(super) const DEQUANTIZED: &str = "gamma(2) * (|code * scale| + |offset|)";
pub(super) const PRODUCT: &str = "gamma(terms + 2) * sum |x| * (|code * scale| + |offset|)";
pub(super) const GROUP_SUM: &str =
    "gamma(terms + 5) * sum |d * h| + sum |d| * error of the argument";
pub(super) const LOW_RANK: &str = "gamma(all roundings) * the same sums over absolute values";
pub(super) const TRACKED: &str = "gamma(roundings) * sum of absolute terms, along the formula";
pub(super) const ZERO_POINT: &str =
    "0: an integer; the other one where the quotient lies within its error of the tie";
pub(super) const STEPS: &str = "error of the scale * |code - zero_point|, and one rounding";
pub(super) const INIT: &str = "gamma(roundings of the rule) * sum of absolute terms";
pub(super) const SOFTMAX: &str = "first-order error of scores, exp and sums, over absolute values";
pub(super) const POINTWISE: &str = "gamma(operations) * |terms|, 2 ulp per exponential";

/// A generic run of the reference, on each of the registry's numbers.
macro_rules! runs {
    ($run:ident) => {
        $crate::ops::Runs {
            f64: $run::<f64>,
            f32: $run::<f32>,
            faulty: $run::<$crate::teeth::arithmetic::Faulty>,
        }
    };
    // LAPACK knows no numbers but its own.
    ($run:ident, linear algebra) => {
        $crate::ops::Runs { f64: $run::<f64>, f32: $run::<f32>, faulty: $run::<f32> }
    };
}
pub(super) use runs;

pub(super) const fn tensor(
    name: &'static str,
    kind: Kind,
    shape: Shape,
    class: Class,
) -> TensorSpec {
    TensorSpec { name: Cow::Borrowed(name), kind, shape, optional: false, factor: false, class }
}

pub(super) const fn given(name: &'static str, words: Words) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Words(words), Class::Given)
}

pub(super) const fn ids(name: &'static str, words: Words) -> TensorSpec {
    tensor(name, Kind::TokenIds, Shape::Words(words), Class::Given)
}

pub(super) const fn codes() -> TensorSpec {
    tensor("codes", Kind::SignedCodes, Shape::Words(WEIGHT), Class::Codes)
}

pub(super) const fn given_codes() -> TensorSpec {
    tensor("codes", Kind::UnsignedCodes, Shape::Words(WEIGHT), Class::Given)
}

pub(super) const fn unsigned_codes(words: Words) -> TensorSpec {
    tensor("codes", Kind::UnsignedCodes, Shape::Words(words), Class::Codes)
}

pub(super) const fn grid(name: &'static str, why: &'static str) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Words(GROUPS), Class::Grid(why))
}

/// An input that may be left out, or an output that some parameters leave out.
pub(super) const fn optional(mut spec: TensorSpec) -> TensorSpec {
    spec.optional = true;
    spec
}

/// Integers whose argument and tie `choices` finds.
pub(super) const fn chosen(
    name: &'static str,
    kind: Kind,
    words: Words,
    choices: ChoicesOf,
) -> TensorSpec {
    tensor(name, kind, Shape::Words(words), Class::Choices(choices))
}

pub(super) const fn bounded(name: &'static str, words: Words, why: &'static str) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Words(words), Class::Bounded(why))
}

/// The weight that an operation multiplies with.
pub(super) const fn bounded_factor(why: &'static str) -> TensorSpec {
    let mut spec = bounded("fake_quantized", WEIGHT, why);
    spec.factor = true;
    spec
}

pub(super) const fn like(name: &'static str, other: &'static str) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Like(other), Class::Given)
}

pub(super) const fn bounded_like(
    name: &'static str,
    other: &'static str,
    why: &'static str,
) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Like(other), Class::Bounded(why))
}

pub(super) const fn any(name: &'static str) -> TensorSpec {
    tensor(name, Kind::Float, Shape::Any, Class::Given)
}
