//! `qa_lora.forward`, `.backward` and `.merge`.

use ndarray::Array2;
use plumbline_reference::Real;
use plumbline_reference::methods::qa_lora::QaLora;
use serde_json::json;

use super::Operation;
use super::affine::{sample_layer, sizes_of_codes};
use super::row::{GROUPS, LORA_B, POOLED_A, TRACKED, X, Y, bounded, given, given_codes, runs};
use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::judge::tracked::{self, Outputs};
use crate::params::{self, Params, Quantizer};
use crate::precision::Scalar;
use crate::sampler::Sampler;
use crate::tensor::Tensors;

const PARAMS: &[&str] = &["bits", "group_size", "lora_scaling", "pool", "dialect"];

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "qa_lora.forward",
        params: PARAMS,
        inputs: &[
            given("x", X),
            given_codes(),
            given("scale", GROUPS),
            given("zero_point", GROUPS),
            given("lora_a", POOLED_A),
            given("lora_b", LORA_B),
        ],
        outputs: &[bounded("y", Y, TRACKED)],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: None,
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "qa_lora.backward",
        params: PARAMS,
        inputs: &[
            given("x", X),
            given_codes(),
            given("scale", GROUPS),
            given("zero_point", GROUPS),
            given("lora_a", POOLED_A),
            given("lora_b", LORA_B),
            given("d_y", Y),
        ],
        outputs: &[
            bounded("d_x", X, TRACKED),
            bounded("d_lora_a", POOLED_A, TRACKED),
            bounded("d_lora_b", LORA_B, TRACKED),
        ],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: backward_bounds,
        sample: sample_backward,
    },
    Operation {
        name: "qa_lora.merge",
        params: PARAMS,
        inputs: &[
            given_codes(),
            given("scale", GROUPS),
            given("zero_point", GROUPS),
            given("lora_a", POOLED_A),
            given("lora_b", LORA_B),
        ],
        outputs: &[bounded("zero_point", GROUPS, TRACKED)],
        weights: None,
        sizes,
        run: runs!(merge),
        grid: None,
        bounds: merge_bounds,
        sample: sample_merge,
    },
];

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    params::lora_scaling(&request.params)?;
    params::group_pool(&request.params)?;
    sizes_of_codes(request)
}

/// Runs a part of the layer of the request.
fn with_layer<T: Real, R>(
    request: &Request,
    run: impl FnOnce(QaLora<T>) -> Result<R, plumbline_reference::Error>,
) -> Result<R, String> {
    let codes: Array2<u8> = request.unsigned("codes")?;
    let (scale, zero_point) = (request.array("scale")?, request.array("zero_point")?);
    let (lora_a, lora_b) = (request.array("lora_a")?, request.array("lora_b")?);
    let layer = QaLora {
        codes: codes.view(),
        scale: scale.view(),
        zero_point: zero_point.view(),
        lora_a: lora_a.view(),
        lora_b: lora_b.view(),
        lora_scaling: params::lora_scaling(&request.params)?,
        pool: params::group_pool(&request.params)?,
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
    Ok(vec![
        ("d_x", gradients.d_x.into_dyn()),
        ("d_lora_a", gradients.d_lora_a.into_dyn()),
        ("d_lora_b", gradients.d_lora_b.into_dyn()),
    ])
}

fn merged<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let zero_point = with_layer(request, |layer: QaLora<T>| layer.merge())?;
    Ok(vec![("zero_point", zero_point.into_dyn())])
}

fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    output::<T>(request).map(super::stored)
}

fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    gradients::<T>(request).map(super::stored)
}

fn merge<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    merged::<T>(request).map(super::stored)
}

/// The order of sums is free, and so is the place of the pool's factor.
fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    tracked::bounds(evidence, output, output)
}

fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    tracked::bounds(evidence, gradients, gradients)
}

fn merge_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    tracked::bounds(evidence, merged, merged)
}

fn sample(
    sampler: &mut Sampler,
    dialects: &[(&'static str, Option<&'static str>)],
) -> (Params, Tensors) {
    let shape = sampler.quantizer();
    let mut params = shape.params();
    let mut inputs = sample_layer(sampler, &shape);
    let adapter = [shape.out_features, shape.in_features / shape.group_size];
    sampler.add_low_rank(&adapter, &mut params, &mut inputs);
    let (pool, dialect) = sampler.pick(dialects);
    params.0.insert("pool".to_owned(), json!(pool));
    if let Some(dialect) = dialect {
        params.0.insert("dialect".to_owned(), json!(dialect));
    }
    (params, inputs)
}

const MERGING: [(&str, Option<&str>); 4] =
    [("sum", None), ("mean", None), ("sum", Some("paper")), ("mean", Some("qa_lora_code"))];
const ALL: [(&str, Option<&str>); 4] = [
    ("sum", None),
    ("mean", None),
    ("mean", Some("qa_lora_code")),
    ("mean", Some("hf_peft_qalora")),
];

fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = sample(sampler, &ALL);
    let x_shape = [sampler.size(1, 6), inputs["codes"].shape()[1]];
    inputs.insert("x".to_owned(), sampler.normal(&x_shape, 1.0));
    Ok((params, inputs))
}

fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = sample_forward(sampler)?;
    let shape = [inputs["x"].shape()[0], inputs["codes"].shape()[0]];
    inputs.insert("d_y".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}

fn sample_merge(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    Ok(sample(sampler, &MERGING))
}
