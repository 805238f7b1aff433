//! `swiglu.forward` and `.backward`.

use ndarray::ArrayD;
use plumbline_reference::swiglu::{swiglu, swiglu_backward};

use super::Operation;
use super::row::{POINTWISE, any, bounded_like, like, runs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, TRANSCENDENTAL, named};
use crate::params::Params;
use crate::precision::Scalar;
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "swiglu.forward",
        params: &[],
        inputs: &[any("gate"), like("up", "gate")],
        outputs: &[bounded_like("output", "gate", POINTWISE)],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: None,
        bounds: forward_bounds,
        sample: sample_forward,
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
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: backward_bounds,
        sample: sample_backward,
    },
];

pub(super) fn sizes(_: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    Ok(Vec::new())
}

pub(super) fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (gate, up): (ArrayD<T>, ArrayD<T>) = (request.array("gate")?, request.array("up")?);
    let output = swiglu(gate.view(), up.view()).map_err(|e| e.to_string())?;
    Ok(super::tensors([("output", Tensor::floats(&output))]))
}

pub(super) fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (gate, up): (ArrayD<T>, ArrayD<T>) = (request.array("gate")?, request.array("up")?);
    let d_output = request.array("d_output")?;
    let gradients =
        swiglu_backward(gate.view(), up.view(), d_output.view()).map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("d_gate", Tensor::floats(&gradients.d_gate)),
        ("d_up", Tensor::floats(&gradients.d_up)),
    ]))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Roundings of `sigmoid`: the exponential, the sum, the division. Where `exp(-gate)` overflows,
/// it is 0 in place of a number about as small as a flushed exponential.
const SIGMOID: f64 = TRANSCENDENTAL + 2.0;

pub(super) fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let (gate, up): (ArrayD<f64>, ArrayD<f64>) = (request.array("gate")?, request.array("up")?);
    let product = &gate * &up;
    let condition = gate.mapv(sigmoid) * product.mapv(f64::abs);
    let lost = product.mapv(|product| product.abs() * unit.flush);
    Ok(named([("output", Allowance::of(&condition, SIGMOID + 2.0, unit).plus(&lost))]))
}

/// `d_gate = d_output * up * sigmoid * (1 + gate * (1 - sigmoid))`: `1 - sigmoid` cancels, so its
/// error is absolute and the condition keeps `1 + |gate|` whole.
pub(super) fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let (gate, up): (ArrayD<f64>, ArrayD<f64>) = (request.array("gate")?, request.array("up")?);
    let d_output: ArrayD<f64> = request.array("d_output")?;
    let reach = gate.mapv(|gate| 1.0 + gate.abs());
    let d_gate_terms = (&d_output * &up).mapv(f64::abs) * &reach;
    let d_gate = gate.mapv(sigmoid) * &d_gate_terms;
    let d_up_terms = (&d_output * &gate).mapv(f64::abs);
    let d_up = gate.mapv(sigmoid) * &d_up_terms;
    let lost = |terms: ArrayD<f64>| terms.mapv(|term| term * unit.flush);
    Ok(named([
        ("d_gate", Allowance::of(&d_gate, 2.0 * SIGMOID + 5.0, unit).plus(&lost(d_gate_terms))),
        ("d_up", Allowance::of(&d_up, SIGMOID + 2.0, unit).plus(&lost(d_up_terms))),
    ]))
}

pub(super) fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let rank = sampler.size(1, 3);
    let shape: Vec<usize> = (0..rank).map(|_| sampler.size(1, 6)).collect();
    let spread = sampler.pick(&[1.0, 10.0, 60.0]);
    let inputs = [
        ("gate".to_owned(), sampler.normal(&shape, spread)),
        ("up".to_owned(), sampler.normal(&shape, 1.0)),
    ];
    Ok((Params::default(), inputs.into()))
}

pub(super) fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = sample_forward(sampler)?;
    let shape = inputs["gate"].shape().to_vec();
    inputs.insert("d_output".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}
