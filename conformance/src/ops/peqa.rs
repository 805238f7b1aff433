//! `peqa.forward` and `.backward`.

use ndarray::Array2;
use plumbline_reference::Real;
use plumbline_reference::methods::peqa::Peqa;

use super::Operation;
use super::affine::{sample_layer, sizes_of_codes};
use super::floor;
use super::row::{GROUPS, TRACKED, X, Y, bounded, given, given_codes, runs};
use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::judge::tracked::{self, Outputs};
use crate::params::{Params, Quantizer};
use crate::precision::Scalar;
use crate::sampler::Sampler;
use crate::tensor::Tensors;

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "peqa.forward",
        params: &["bits", "group_size"],
        inputs: &[
            given("x", X),
            given_codes(),
            given("scale", GROUPS),
            given("zero_point", GROUPS),
        ],
        outputs: &[bounded("y", Y, TRACKED)],
        weights: None,
        sizes: sizes_of_codes,
        run: runs!(forward),
        grid: None,
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "peqa.backward",
        params: &["bits", "group_size"],
        inputs: &[
            given("x", X),
            given_codes(),
            given("scale", GROUPS),
            given("zero_point", GROUPS),
            given("d_y", Y),
        ],
        outputs: &[bounded("d_x", X, TRACKED), bounded("d_scale", GROUPS, TRACKED)],
        weights: None,
        sizes: sizes_of_codes,
        run: runs!(backward),
        grid: None,
        bounds: |evidence| floor::either_side(evidence, backward_bounds),
        sample: sample_backward,
    },
];

/// Runs a part of the layer of the request.
fn with_layer<T: Real, R>(
    request: &Request,
    run: impl FnOnce(Peqa<T>) -> Result<R, plumbline_reference::Error>,
) -> Result<R, String> {
    let codes: Array2<u8> = request.unsigned("codes")?;
    let (scale, zero_point) = (request.array("scale")?, request.array("zero_point")?);
    let layer = Peqa {
        codes: codes.view(),
        scale: scale.view(),
        zero_point: zero_point.view(),
        spec: Quantizer::read(&request.params)?.spec(codes.ncols())?,
    };
    run(layer).map_err(|e| e.to_string())
}

fn output<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let x: Array2<T> = request.array("x")?;
    let y = with_layer(request, |layer| layer.forward(x.view()))?;
    Ok(vec![("y", y.into_dyn())])
}

fn gradients<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let (x, d_y): (Array2<T>, Array2<T>) = (request.array("x")?, request.array("d_y")?);
    let gradients = with_layer(request, |layer| layer.backward(x.view(), d_y.view()))?;
    Ok(vec![("d_x", gradients.d_x.into_dyn()), ("d_scale", gradients.d_scale.into_dyn())])
}

fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    output::<T>(request).map(super::stored)
}

fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    gradients::<T>(request).map(super::stored)
}

fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    tracked::bounds(evidence, output, output)
}

/// The order of sums is free: `d_scale` may be summed over inputs before tokens.
fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    tracked::bounds(evidence, gradients, gradients)
}

fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let shape = sampler.quantizer();
    let mut inputs = sample_layer(sampler, &shape);
    let x_shape = [sampler.size(1, 6), shape.in_features];
    inputs.insert("x".to_owned(), sampler.normal(&x_shape, 1.0));
    Ok((shape.params(), inputs))
}

fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = sample_forward(sampler)?;
    let shape = [inputs["x"].shape()[0], inputs["codes"].shape()[0]];
    inputs.insert("d_y".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}
