//! `lora.forward` and `.backward`.

use ndarray::Array2;
use plumbline_reference::Real;
use plumbline_reference::lora::{lora_backward, lora_forward};

use super::Operation;
use super::row::{LORA_A, LORA_B, LOW_RANK, WEIGHT, X, Y, bounded, given, runs};
use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::judge::tracked::{self, Outputs};
use crate::params::{self, Params};
use crate::precision::Scalar;
use crate::sampler::Sampler;
use crate::tensor::Tensors;

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
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
        sizes,
        run: runs!(forward),
        grid: None,
        bounds: forward_bounds,
        sample: sample_forward,
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
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: backward_bounds,
        sample: sample_backward,
    },
];

pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    params::lora_scaling(&request.params)?;
    let [out_features, in_features] = request.sizes("weight")?;
    Ok(vec![("out", out_features), ("in", in_features)])
}

fn output<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let (x, weight): (Array2<T>, Array2<T>) = (request.array("x")?, request.array("weight")?);
    let (lora_a, lora_b) = (request.array("lora_a")?, request.array("lora_b")?);
    let lora_scaling = params::lora_scaling(&request.params)?;
    let y = lora_forward(x.view(), weight.view(), lora_a.view(), lora_b.view(), lora_scaling)
        .map_err(|e| e.to_string())?;
    Ok(vec![("y", y.into_dyn())])
}

fn gradients<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
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
    Ok(vec![
        ("d_x", gradients.d_x.into_dyn()),
        ("d_lora_a", gradients.d_lora_a.into_dyn()),
        ("d_lora_b", gradients.d_lora_b.into_dyn()),
    ])
}

fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    output::<T>(request).map(super::stored)
}

fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    gradients::<T>(request).map(super::stored)
}

/// The order of sums is free; forming `weight + lora_scaling * lora_b @ lora_a` first rounds no
/// more often.
fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    tracked::bounds(evidence, output, output)
}

fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    tracked::bounds(evidence, gradients, gradients)
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
