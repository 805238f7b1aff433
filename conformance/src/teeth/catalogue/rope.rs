//! Faults of the rotary embedding: pairs, angles, and the scaling of frequencies.

use std::f64::consts::TAU;

use ndarray::{Array3, Ix3};
use plumbline_reference::spec::{RopeScaling, RopeSpec};
use serde_json::Value;

use super::super::Fault::{Answer, Request as Asked};
use super::super::Mutant;
use super::edits::{Edited, set_param};
use super::fault;
use crate::case::Request;
use crate::params::Rope;
use crate::tensor::{Tensor, Tensors};

const ROPE: &[&str] = &["rope.forward"];
const ROPE_BACKWARD: &[&str] = &["rope.backward"];

/// Faults of `rope.forward` and `rope.backward`.
#[rustfmt::skip]
pub(super) static MUTANTS: &[Mutant] = &[
    fault("interleaved_pairs", "pairs are neighbours, as in the original layout",
        ROPE, &["pairing"], Answer(interleaved)),
    fault("turns_back", "the angle has the other sign",
        ROPE, &["direction"], Answer(|r, o| rotated(r, o, ["x", "output"], -1.0, regular))),
    fault("turns_on", "the backward turns forwards",
        ROPE_BACKWARD, &["direction"],
        Answer(|r, o| rotated(r, o, ["d_output", "d_x"], 1.0, regular))),
    fault("backward_from_zero", "first_position is ignored on the way back",
        ROPE_BACKWARD, &["first_position"], Asked(|r| set_param(r, "first_position", 0))),
    fault("half_the_frequencies", "theta^(-j / head_dim)",
        ROPE, &["frequency"],
        Answer(|r, o| rotated(r, o, ["x", "output"], 1.0, |spec, pair, head_dim| {
            regular(spec, pair, 2 * head_dim)
        }))),
    fault("position_from_zero", "first_position is ignored",
        ROPE, &["first_position"], Asked(|r| set_param(r, "first_position", 0))),
    fault("theta_of_llama_1", "theta is always 10000",
        ROPE, &["theta"], Asked(|r| set_param(r, "theta", 10_000.0))),
    fault("rope_scaling_ignored", "frequencies are never scaled",
        ROPE, &["frequency_scaling"], Asked(|r| set_param(r, "rope_scaling", Value::Null))),
    fault("rope_scaling_ignored_backward", "frequencies are not scaled on the way back",
        ROPE_BACKWARD, &["frequency_scaling"],
        Asked(|r| set_param(r, "rope_scaling", Value::Null))),
    fault("rope_factor_inverted", "slow pairs turn faster by the factor",
        ROPE, &["frequency_scaling"],
        Answer(|r, o| rotated(r, o, ["x", "output"], 1.0, |spec, pair, head_dim| {
            scaled(spec, pair, head_dim, |base, factor| base * factor, |kept| kept)
        }))),
    fault("step_between_slow_and_fast", "pairs in the middle are slow",
        ROPE, &["mixed_pairs"], Answer(|r, o| mixed(r, o, |kept| kept.floor()))),
    fault("mixture_exchanged", "the faster a pair in the middle, the more it is slowed down",
        ROPE, &["mixed_pairs"],
        Answer(|r, o| mixed(r, o, |kept| if kept > 0.0 && kept < 1.0 { 1.0 - kept } else { kept }))),
    fault("turns_in_the_lengthened_context", "turns are counted in the context times the factor",
        ROPE, &["original_context"], Asked(lengthened_twice)),
];

/// Sine and cosine of the angle at a position.
fn angle(rope: Rope, token: usize, frequency: f64) -> (f32, f32) {
    let (sin, cos) = ((rope.first_position + token) as f64 * frequency).sin_cos();
    (sin as f32, cos as f32)
}

fn regular(spec: RopeSpec, pair: usize, head_dim: usize) -> f64 {
    scaled(spec, pair, head_dim, |base, factor| base / factor, |kept| kept)
}

/// The frequency of a pair, with other slow frequencies and other parts that are kept.
fn scaled(
    spec: RopeSpec,
    pair: usize,
    head_dim: usize,
    slow: fn(f64, f64) -> f64,
    kept: fn(f64) -> f64,
) -> f64 {
    let base = spec.theta().powf(-2.0 * pair as f64 / head_dim as f64);
    match spec.scaling() {
        RopeScaling::Default => base,
        RopeScaling::Linear { factor } => slow(base, factor),
        RopeScaling::Llama3(llama3) => {
            let (low, high) = (llama3.low_freq_factor, llama3.high_freq_factor);
            let turns = llama3.original_max_position_embeddings as f64 * base / TAU;
            let kept = kept(((turns - low) / (high - low)).clamp(0.0, 1.0));
            (1.0 - kept) * slow(base, llama3.factor) + kept * base
        }
    }
}

/// Another part of the frequency is kept between slow and fast pairs.
fn mixed(request: &Request, outputs: &mut Tensors, kept: fn(f64) -> f64) -> Edited {
    rotated(request, outputs, ["x", "output"], 1.0, |spec, pair, head_dim| {
        scaled(spec, pair, head_dim, |base, factor| base / factor, kept)
    })
}

fn lengthened_twice(request: &mut Request) -> Edited {
    let RopeScaling::Llama3(llama3) = Rope::read(&request.params)?.spec.scaling() else {
        return Ok(());
    };
    let longer = llama3.original_max_position_embeddings * llama3.factor as usize;
    let scaling = request.params.0.get_mut("rope_scaling").and_then(Value::as_object_mut);
    let scaling = scaling.ok_or("rope_scaling is no object")?;
    scaling.insert("original_max_position_embeddings".to_owned(), longer.into());
    Ok(())
}

fn rotated(
    request: &Request,
    outputs: &mut Tensors,
    [from, to]: [&str; 2],
    direction: f32,
    frequency: impl Fn(RopeSpec, usize, usize) -> f64,
) -> Edited {
    let (rope, x) = (Rope::read(&request.params)?, request.array::<f32, Ix3>(from)?);
    let (head_dim, half) = (x.dim().2, x.dim().2 / 2);
    let values = Array3::from_shape_fn(x.dim(), |(t, h, d)| {
        let (sin, cos) = angle(rope, t, frequency(rope.spec, d % half, head_dim));
        let other = if d < half { -x[[t, h, d + half]] } else { x[[t, h, d - half]] };
        x[[t, h, d]] * cos + direction * other * sin
    });
    outputs.insert(to.to_owned(), Tensor::floats(&values));
    Ok(())
}

fn interleaved(request: &Request, outputs: &mut Tensors) -> Edited {
    let (rope, x) = (Rope::read(&request.params)?, request.array::<f32, Ix3>("x")?);
    let head_dim = x.dim().2;
    let values = Array3::from_shape_fn(x.dim(), |(t, h, d)| {
        let (sin, cos) = angle(rope, t, regular(rope.spec, d / 2, head_dim));
        let other = if d % 2 == 0 { -x[[t, h, d + 1]] } else { x[[t, h, d - 1]] };
        x[[t, h, d]] * cos + other * sin
    });
    outputs.insert("output".to_owned(), Tensor::floats(&values));
    Ok(())
}
