//! `rope.forward` and `.backward`.

use std::f64::consts::TAU;

use ndarray::Array3;
use plumbline_reference::rope::{rope, rope_backward};
use plumbline_reference::spec::{RopeScaling, RopeSpec};
use serde_json::{Value, json};

use super::Operation;
use super::row::{HEADS, bounded, given, runs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, TRANSCENDENTAL, named};
use crate::params::{Params, Rope};
use crate::precision::{Precision, Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "rope.forward",
        params: &["theta", "rope_scaling", "first_position"],
        inputs: &[given("x", HEADS)],
        outputs: &[bounded("output", HEADS, BOUND)],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: None,
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "rope.backward",
        params: &["theta", "rope_scaling", "first_position"],
        inputs: &[given("d_output", HEADS)],
        outputs: &[bounded("d_x", HEADS, BOUND)],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: backward_bounds,
        sample: sample_backward,
    },
];

/// How the rotation is judged.
pub const BOUND: &str = "gamma(3) * (|x1 cos| + |x2 sin|), with cos and sin from binary64 angles";

pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    Rope::read(&request.params)?;
    let head_dim = request.inputs.values().find_map(|x| x.shape().last().copied());
    match head_dim {
        Some(head_dim) if head_dim % 2 != 0 => {
            Err(format!("head_dim is {head_dim}, expected an even number"))
        }
        _ => Ok(Vec::new()),
    }
}

pub(super) fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let x: Array3<T> = request.array("x")?;
    let Rope { spec, first_position } = Rope::read(&request.params)?;
    let output = rope(x.view(), spec, first_position).map_err(|e| e.to_string())?;
    Ok(super::tensors([("output", Tensor::floats(&output))]))
}

pub(super) fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let d_output: Array3<T> = request.array("d_output")?;
    let Rope { spec, first_position } = Rope::read(&request.params)?;
    let d_x = rope_backward(d_output.view(), spec, first_position).map_err(|e| e.to_string())?;
    Ok(super::tensors([("d_x", Tensor::floats(&d_x))]))
}

pub(super) fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    Ok(named([("output", allowance(evidence, "x")?)]))
}

pub(super) fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    Ok(named([("d_x", allowance(evidence, "d_output")?)]))
}

/// Cosine and sine are rounded once to the result's type, then a product and a sum. The angle is
/// a binary64 in every precision: at position 1000 an f32 angle is already wrong by 3e-5. Its own
/// error, from the exponent, the power and the product, turns the pair by so much.
fn allowance(evidence: &Evidence, input: &str) -> Result<Allowance, String> {
    let x: Array3<f64> = evidence.request.array(input)?;
    let Rope { spec, first_position } = Rope::read(&evidence.request.params)?;
    let (_, _, head_dim) = x.dim();
    let half = head_dim / 2;
    let angle_unit = Unit::of(Precision::F64);
    let mut turned = Array3::zeros(x.dim());
    let condition = Array3::from_shape_fn(x.dim(), |(t, h, j)| {
        let pair = j % half;
        let (frequency, relative) = frequency(spec, pair, head_dim);
        let angle = (first_position as f64 + t as f64) * frequency;
        let (first, second) = (x[[t, h, pair]].abs(), x[[t, h, pair + half]].abs());
        let angle_error =
            angle.abs() * (relative + angle_unit.gamma(1.0)) + angle_unit.gamma(TRANSCENDENTAL);
        turned[[t, h, j]] = (first + second) * angle_error;
        let (own, other) = if j < half { (first, second) } else { (second, first) };
        own * angle.cos().abs() + other * angle.sin().abs()
    });
    Ok(Allowance::of(&condition, 3.0, evidence.unit).plus(&turned))
}

/// The frequency of a pair in binary64, and its relative error there.
///
/// Between slow and fast pairs the error of the number of turns moves the mixture: its part that is
/// kept is off by the absolute error of the turns over the width of the range, and the mixture, which
/// is at least the slow frequency, by as much of the distance between its ends.
fn frequency(spec: RopeSpec, pair: usize, head_dim: usize) -> (f64, f64) {
    let unit = Unit::of(Precision::F64);
    let exponent = -2.0 * pair as f64 / head_dim as f64;
    let base = spec.theta().powf(exponent);
    let power = (exponent * spec.theta().ln()).abs() + TRANSCENDENTAL + 1.0;
    match spec.scaling() {
        RopeScaling::Default => (base, unit.gamma(power)),
        RopeScaling::Linear { factor } => (base / factor, unit.gamma(power + 1.0)),
        RopeScaling::Llama3(llama3) => {
            let turns = llama3.original_max_position_embeddings as f64 * base / TAU;
            let width = llama3.high_freq_factor - llama3.low_freq_factor;
            let part = (turns - llama3.low_freq_factor) / width;
            // Three roundings lead to the turns, pi among them; then a difference and a quotient.
            let part_error = turns / width * unit.gamma(power + 3.0) + part.abs() * unit.gamma(2.0);
            let is_mixed = part > -part_error && part < 1.0 + part_error;
            let kept = part.clamp(0.0, 1.0);
            let slow = base / llama3.factor;
            let value = (1.0 - kept) * slow + kept * base;
            let moved = if is_mixed { part_error * (base - slow) / value } else { 0.0 };
            // A difference, a product, a quotient and a sum.
            (value, unit.gamma(power + 4.0) + moved)
        }
    }
}

fn sample(sampler: &mut Sampler, input: &str) -> Result<(Params, Tensors), String> {
    let shape = [sampler.size(1, 5), sampler.size(1, 3), 2 * sampler.size(1, 8)];
    let mut params = Params::from_iter([
        ("theta", json!(sampler.pick(&[10_000.0, 500_000.0, 10.0]))),
        ("first_position", json!(sampler.pick(&[0, 1, 7, 1000, 131_071]))),
    ]);
    let x = sampler.normal(&shape, 1.0);
    if let Some(scaling) = sampled_scaling(sampler) {
        params.0.insert("rope_scaling".to_owned(), scaling);
    }
    Ok((params, [(input.to_owned(), x)].into()))
}

/// `rope_scaling` of a configuration; half of the time none.
pub(super) fn sampled_scaling(sampler: &mut Sampler) -> Option<Value> {
    if sampler.chance(0.5) {
        return None;
    }
    let factor = sampler.pick(&[1.0, 3.0, 8.0, 32.0]);
    if sampler.chance(0.25) {
        return Some(json!({"rope_type": "linear", "factor": factor}));
    }
    Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": sampler.pick(&[0.125, 1.0]),
        "high_freq_factor": sampler.pick(&[4.0, 64.0]),
        "original_max_position_embeddings": sampler.pick(&[24, 100, 8192]),
    }))
}

pub(super) fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    sample(sampler, "x")
}

pub(super) fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    sample(sampler, "d_output")
}
