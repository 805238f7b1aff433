//! Exponentials of numbers whose exponential no type holds.

use serde_json::json;

use super::{Claim, Draft, Family, Scope};
use crate::sampler::Sampler;
use crate::tensor::{Data, Tensor};

pub(super) static FAMILIES: &[Family] = &[Family {
    name: "large_exponents",
    what: "logits, scores and gates of hundreds, above and below zero",
    catches: "an exponential without the largest one subtracted, inf / inf, a sigmoid of -200",
    build: large_exponents,
}];

/// `exp(89)` is beyond binary32, `exp(710)` beyond binary64.
const LARGE: f64 = 800.0;

fn large_exponents(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut sampler = Sampler::new(0, "large_exponents", 0);
    let mut drafts = Vec::new();
    let reaches = |name| Claim::Reaches(name, LARGE);
    for (op, output) in [("cross_entropy.forward", "loss"), ("cross_entropy.backward", "d_logits")]
    {
        for shift in [0.0, LARGE, -LARGE] {
            let mut logits = sampler.around(&[4, 7], shift, 3.0);
            if let Data::F32(values) = logits.data_mut() {
                values[3] = LARGE as f32;
                values[9] = -LARGE as f32;
            }
            let targets = Tensor::new(vec![4], Data::I32(vec![3, 2, 0, 6]))?;
            drafts.push(Draft::new(
                op,
                [("ignore_index", json!(-100))],
                [("logits", logits), ("targets", targets)],
                &[reaches("logits"), Claim::NonZero(output)],
            )?);
        }
    }
    let shape = [1, 5, 2, 4];
    let mut draw = |deviation: f64| sampler.normal(&shape, deviation);
    let attention = [("q", draw(60.0)), ("k", draw(60.0)), ("v", draw(1.0))];
    let heads = [("heads", json!(2)), ("kv_heads", json!(2))];
    let claims = [Claim::Reaches("q", 60.0), Claim::Reaches("k", 60.0), Claim::NonZero("output")];
    drafts.push(Draft::new("attention.forward", heads, attention, &claims)?);
    let gate = super::floats(&[1, 6], [LARGE, -LARGE, 200.0, -200.0, 89.0, -89.0]);
    let up = super::filled(&[1, 6], 1.0);
    let claims = [reaches("gate"), Claim::NonZero("output")];
    let pair = [("gate", gate.clone()), ("up", up.clone())];
    drafts.push(Draft::new("swiglu.forward", [], pair, &claims)?);
    let triple = [("gate", gate), ("up", up.clone()), ("d_output", up)];
    let claims = [reaches("gate"), Claim::NonZero("d_gate")];
    drafts.push(Draft::new("swiglu.backward", [], triple, &claims)?);
    Ok(drafts)
}
