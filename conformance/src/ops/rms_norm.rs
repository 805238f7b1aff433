//! `rms_norm.forward` and `.backward`.

use ndarray::{Array1, Array2};
use plumbline_reference::rms_norm::{rms_norm, rms_norm_backward};
use serde_json::json;

use super::Operation;
use super::row::{HIDDEN, bounded, given, runs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::params::Params;
use crate::precision::Scalar;
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "rms_norm.forward",
        params: &["eps"],
        inputs: &[given("x", HIDDEN), given("weight", &["hidden"])],
        outputs: &[bounded("output", HIDDEN, "gamma(hidden / 2 + 5) * |output|")],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: None,
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "rms_norm.backward",
        params: &["eps"],
        inputs: &[given("x", HIDDEN), given("weight", &["hidden"]), given("d_output", HIDDEN)],
        outputs: &[
            bounded("d_x", HIDDEN, "gamma(5 * hidden / 2 + 15) * (|first term| + |second term|)"),
            bounded("d_weight", &["hidden"], "gamma(tokens + hidden / 2 + 5) * sum of |terms|"),
        ],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: backward_bounds,
        sample: sample_backward,
    },
];

pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let eps = request.params.number("eps")?;
    if !(eps > 0.0 && eps.is_finite()) {
        return Err(format!("params.eps is {eps}, expected a positive number"));
    }
    Ok(Vec::new())
}

pub(super) fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (x, weight): (Array2<T>, Array1<T>) = (request.array("x")?, request.array("weight")?);
    let output = rms_norm(x.view(), weight.view(), request.params.number("eps")?)
        .map_err(|e| e.to_string())?;
    Ok(super::tensors([("output", Tensor::floats(&output))]))
}

pub(super) fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (x, weight): (Array2<T>, Array1<T>) = (request.array("x")?, request.array("weight")?);
    let d_output = request.array("d_output")?;
    let eps = request.params.number("eps")?;
    let gradients = rms_norm_backward(x.view(), weight.view(), d_output.view(), eps)
        .map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("d_x", Tensor::floats(&gradients.d_x)),
        ("d_weight", Tensor::floats(&gradients.d_weight)),
    ]))
}

/// `1 / sqrt(mean(x^2) + eps)` per row.
fn inverse_rms(x: &Array2<f64>, eps: f64) -> Array1<f64> {
    x.rows().into_iter().map(|row| 1.0 / (row.dot(&row) / row.len() as f64 + eps).sqrt()).collect()
}

/// The mean of squares carries `hidden + 1` roundings and `eps` with its sum 2 more; the root
/// halves them. Root, reciprocal or division, and the two products add at most 4.
pub(super) fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let x: Array2<f64> = evidence.request.array("x")?;
    let weight: Array1<f64> = evidence.request.array("weight")?;
    let inverse = inverse_rms(&x, evidence.request.params.number("eps")?);
    let condition =
        Array2::from_shape_fn(x.dim(), |(t, i)| (x[[t, i]] * inverse[t] * weight[i]).abs());
    let roundings = x.ncols() as f64 / 2.0 + 5.0;
    Ok(named([("output", Allowance::of(&condition, roundings, evidence.unit))]))
}

/// `d_x = inverse * d_output * weight - x * inverse^3 / hidden * sum d_output * weight * x`: three
/// times the error of `inverse`, `hidden + 2` roundings of the sum, and 6 for what joins them.
pub(super) fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let x: Array2<f64> = request.array("x")?;
    let weight: Array1<f64> = request.array("weight")?;
    let d_output: Array2<f64> = request.array("d_output")?;
    let inverse = inverse_rms(&x, request.params.number("eps")?);
    let (tokens, hidden) = x.dim();
    let mut d_x = Array2::zeros(x.dim());
    let mut d_weight = Array1::zeros(hidden);
    for t in 0..tokens {
        let slope: f64 =
            (0..hidden).map(|i| (d_output[[t, i]] * weight[i] * x[[t, i]]).abs()).sum();
        for i in 0..hidden {
            let direct = (d_output[[t, i]] * weight[i]).abs() * inverse[t];
            let through_rms = x[[t, i]].abs() * inverse[t].powi(3) / hidden as f64 * slope;
            d_x[[t, i]] = direct + through_rms;
            d_weight[i] += (d_output[[t, i]] * x[[t, i]]).abs() * inverse[t];
        }
    }
    let hidden = hidden as f64;
    Ok(named([
        ("d_x", Allowance::of(&d_x, 2.5 * hidden + 15.0, unit)),
        ("d_weight", Allowance::of(&d_weight, tokens as f64 + hidden / 2.0 + 5.0, unit)),
    ]))
}

pub(super) fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (tokens, hidden) = (sampler.size(1, 6), sampler.size(1, 48));
    let eps = sampler.pick(&[1e-5, 1e-6, 0.125]);
    let deviation = sampler.pick(&[1.0, 1e-3, 30.0]);
    let inputs = [
        ("x".to_owned(), sampler.normal(&[tokens, hidden], deviation)),
        ("weight".to_owned(), sampler.normal(&[hidden], 1.0)),
    ];
    Ok((Params::from_iter([("eps", json!(eps))]), inputs.into()))
}

pub(super) fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = sample_forward(sampler)?;
    let shape = inputs["x"].shape().to_vec();
    inputs.insert("d_output".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}
