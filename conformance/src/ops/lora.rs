//! `lora.forward` and `.backward`.

use ndarray::Array2;
use plumbline_reference::lora::{lora_backward, lora_forward};

use super::l4q::absolute;
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::params::{self, Params};
use crate::precision::Scalar;
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    params::lora_scaling(&request.params)?;
    let [out_features, in_features] = request.sizes("weight")?;
    Ok(vec![("out", out_features), ("in", in_features)])
}

pub(super) fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (x, weight): (Array2<T>, Array2<T>) = (request.array("x")?, request.array("weight")?);
    let (lora_a, lora_b) = (request.array("lora_a")?, request.array("lora_b")?);
    let lora_scaling = params::lora_scaling(&request.params)?;
    let y = lora_forward(x.view(), weight.view(), lora_a.view(), lora_b.view(), lora_scaling)
        .map_err(|e| e.to_string())?;
    Ok(super::tensors([("y", Tensor::floats(&y))]))
}

pub(super) fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (x, weight): (Array2<T>, Array2<T>) = (request.array("x")?, request.array("weight")?);
    let (lora_a, lora_b) = (request.array("lora_a")?, request.array("lora_b")?);
    let d_y = request.array("d_y")?;
    let gradients = lora_backward(
        x.view(),
        weight.view(),
        lora_a.view(),
        lora_b.view(),
        params::lora_scaling(&request.params)?,
        d_y.view(),
    )
    .map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("d_x", Tensor::floats(&gradients.d_x)),
        ("d_lora_a", Tensor::floats(&gradients.d_lora_a)),
        ("d_lora_b", Tensor::floats(&gradients.d_lora_b)),
    ]))
}

/// `y = x @ weight^T + lora_scaling * (x @ lora_a^T) @ lora_b^T`, in this order or through
/// `weight + lora_scaling * lora_b @ lora_a`: `in` and `rank` products and sums, then the scaling
/// (its constant and the product) and the last sum.
pub(super) fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let [x, weight, lora_a, lora_b] = absolute(request, ["x", "weight", "lora_a", "lora_b"])?;
    let lora_scaling = params::lora_scaling(&request.params)?.abs();
    let condition = x.dot(&weight.t()) + x.dot(&lora_a.t()).dot(&lora_b.t()) * lora_scaling;
    let roundings = (x.ncols() + lora_a.nrows()) as f64 + 3.0;
    Ok(named([("y", Allowance::of(&condition, roundings, unit))]))
}

/// The same count with `out` for `d_x`; the factors' gradients contract over tokens and once over
/// `out` or `in`, in either order.
pub(super) fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let names = ["x", "weight", "lora_a", "lora_b", "d_y"];
    let [x, weight, lora_a, lora_b, d_y] = absolute(request, names)?;
    let lora_scaling = params::lora_scaling(&request.params)?.abs();
    let (tokens, in_features) = (x.nrows() as f64, x.ncols() as f64);
    let (out_features, rank) = (d_y.ncols() as f64, lora_a.nrows() as f64);
    let d_low = d_y.dot(&lora_b) * lora_scaling;
    let d_x = d_y.dot(&weight) + d_low.dot(&lora_a);
    let d_lora_a = d_low.t().dot(&x);
    let d_lora_b = d_y.t().dot(&x.dot(&lora_a.t())) * lora_scaling;
    Ok(named([
        ("d_x", Allowance::of(&d_x, out_features + rank + 3.0, unit)),
        ("d_lora_a", Allowance::of(&d_lora_a, tokens + out_features + 2.0, unit)),
        ("d_lora_b", Allowance::of(&d_lora_b, tokens + in_features + 2.0, unit)),
    ]))
}

pub(super) fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let shape = [sampler.size(1, 12), sampler.size(1, 24)];
    let (mut params, mut inputs) = (Params::default(), Tensors::new());
    inputs.insert("weight".to_owned(), sampler.normal(&shape, 0.1));
    sampler.add_low_rank(&shape, &mut params, &mut inputs);
    let x_shape = [sampler.size(1, 6), shape[1]];
    inputs.insert("x".to_owned(), sampler.normal(&x_shape, 1.0));
    Ok((params, inputs))
}

pub(super) fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = sample_forward(sampler)?;
    let shape = [inputs["x"].shape()[0], inputs["weight"].shape()[0]];
    inputs.insert("d_y".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}
