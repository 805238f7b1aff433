//! `rope.forward` and `.backward`.

use ndarray::Array3;
use plumbline_reference::rope::{rope, rope_backward};
use serde_json::json;

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
        params: &["theta", "first_position"],
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
        params: &["theta", "first_position"],
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
    let Rope { theta, .. } = Rope::read(&request.params)?;
    if !(theta > 0.0 && theta.is_finite()) {
        return Err(format!("params.theta is {theta}, expected a positive number"));
    }
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
    let Rope { theta, first_position } = Rope::read(&request.params)?;
    let output = rope(x.view(), theta, first_position).map_err(|e| e.to_string())?;
    Ok(super::tensors([("output", Tensor::floats(&output))]))
}

pub(super) fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let d_output: Array3<T> = request.array("d_output")?;
    let Rope { theta, first_position } = Rope::read(&request.params)?;
    let d_x = rope_backward(d_output.view(), theta, first_position).map_err(|e| e.to_string())?;
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
    let Rope { theta, first_position } = Rope::read(&evidence.request.params)?;
    let (_, _, head_dim) = x.dim();
    let half = head_dim / 2;
    let angle_unit = Unit::of(Precision::F64);
    let mut turned = Array3::zeros(x.dim());
    let condition = Array3::from_shape_fn(x.dim(), |(t, h, j)| {
        let pair = j % half;
        let exponent = -2.0 * pair as f64 / head_dim as f64;
        let angle = (first_position as f64 + t as f64) * theta.powf(exponent);
        let (first, second) = (x[[t, h, pair]].abs(), x[[t, h, pair + half]].abs());
        let relative = angle_unit.gamma((exponent * theta.ln()).abs() + TRANSCENDENTAL + 2.0);
        let angle_error = angle.abs() * relative + angle_unit.gamma(TRANSCENDENTAL);
        turned[[t, h, j]] = (first + second) * angle_error;
        let (own, other) = if j < half { (first, second) } else { (second, first) };
        own * angle.cos().abs() + other * angle.sin().abs()
    });
    Ok(Allowance::of(&condition, 3.0, evidence.unit).plus(&turned))
}

fn sample(sampler: &mut Sampler, input: &str) -> Result<(Params, Tensors), String> {
    let shape = [sampler.size(1, 5), sampler.size(1, 3), 2 * sampler.size(1, 8)];
    let params = Params::from_iter([
        ("theta", json!(sampler.pick(&[10_000.0, 500_000.0, 10.0]))),
        ("first_position", json!(sampler.pick(&[0, 1, 7, 1000, 131_071]))),
    ]);
    Ok((params, [(input.to_owned(), sampler.normal(&shape, 1.0))].into()))
}

pub(super) fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    sample(sampler, "x")
}

pub(super) fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    sample(sampler, "d_output")
}
