//! `pack` and `unpack`.

use ndarray::Array2;
use plumbline_reference::pack::{pack, unpack};
use serde_json::json;

use super::Runs;
use super::cast::nothing_to_allow;
use super::row::{WEIGHT, Words, tensor};
use super::{Class, Operation, Shape, TensorSpec};
use crate::case::Request;
use crate::params::{self, Params};
use crate::sampler::Sampler;
use crate::tensor::{Kind, Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "pack",
        params: &["bits"],
        inputs: &[bytes("codes", WEIGHT, Class::Given)],
        outputs: &[bytes("packed", PACKED, Class::Exact)],
        weights: None,
        sizes: pack_sizes,
        run: Runs::of_any_precision(run_pack),
        grid: None,
        bounds: nothing_to_allow,
        sample: sample_pack,
    },
    Operation {
        name: "unpack",
        params: &["bits", "in_features"],
        inputs: &[bytes("packed", PACKED, Class::Given)],
        outputs: &[bytes("codes", WEIGHT, Class::Exact)],
        weights: None,
        sizes: unpack_sizes,
        run: Runs::of_any_precision(run_unpack),
        grid: None,
        bounds: nothing_to_allow,
        sample: sample_unpack,
    },
];

const PACKED: Words = &["out", "bytes"];

const fn bytes(name: &'static str, words: Words, class: Class) -> TensorSpec {
    tensor(name, Kind::UnsignedCodes, Shape::Words(words), class)
}

fn pack_sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let [rows, in_features] = request.sizes("codes")?;
    let bytes = params::packed_bits(&request.params)?.row_bytes(in_features);
    Ok(vec![("out", rows), ("in", in_features), ("bytes", bytes)])
}

fn unpack_sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let [rows, _] = request.sizes("packed")?;
    let in_features = request.params.required("in_features")?;
    let bytes = params::packed_bits(&request.params)?.row_bytes(in_features);
    Ok(vec![("out", rows), ("in", in_features), ("bytes", bytes)])
}

fn run_pack(request: &Request) -> Result<Tensors, String> {
    let codes: Array2<u8> = request.unsigned("codes")?;
    let packed = pack(codes.view(), params::packed_bits(&request.params)?);
    let packed = packed.map_err(|e| e.to_string())?;
    Ok(super::tensors([("packed", Tensor::unsigned(&packed))]))
}

fn run_unpack(request: &Request) -> Result<Tensors, String> {
    let packed: Array2<u8> = request.unsigned("packed")?;
    let in_features = request.params.required("in_features")?;
    let codes = unpack(packed.view(), params::packed_bits(&request.params)?, in_features);
    let codes = codes.map_err(|e| e.to_string())?;
    Ok(super::tensors([("codes", Tensor::unsigned(&codes))]))
}

/// Any width, rows that end inside a byte among them.
fn sample_pack(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let bits = sampler.pick(&[2, 3, 4, 8]);
    let shape = (sampler.size(1, 4), sampler.size(1, 21));
    let codes = Array2::from_shape_simple_fn(shape, || sampler.size(0, (1 << bits) - 1) as u8);
    let params = Params::from_iter([("bits", json!(bits))]);
    Ok((params, super::tensors([("codes", Tensor::unsigned(&codes))])))
}

fn sample_unpack(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (mut params, inputs) = sample_pack(sampler)?;
    let in_features = inputs["codes"].shape()[1];
    let op = super::find("pack")?;
    let request = Request { op, params: params.clone(), inputs };
    params.0.insert("in_features".to_owned(), json!(in_features));
    Ok((params, run_pack(&request)?))
}
