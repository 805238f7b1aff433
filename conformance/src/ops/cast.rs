//! `cast`.

use ndarray::ArrayD;
use plumbline_reference::cast::cast;
use serde_json::json;

use super::row::{any, runs, tensor};
use super::{Class, Operation, Shape};
use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::params::{self, Params};
use crate::precision::{Precision, Scalar};
use crate::sampler::Sampler;
use crate::tensor::{Kind, Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[Operation {
    name: "cast",
    params: &["dtype"],
    inputs: &[any("input")],
    outputs: &[tensor("output", Kind::Float, Shape::Like("input"), Class::Exact)],
    weights: None,
    sizes,
    run: runs!(run),
    grid: None,
    bounds: nothing_to_allow,
    sample,
}];

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    params::stored_type(&request.params).map(|_| Vec::new())
}

fn run<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let input: ArrayD<T> = request.array("input")?;
    let output = cast(input.view(), params::stored_type(&request.params)?);
    let output = output.map_err(|e| e.to_string())?;
    Ok(super::tensors([("output", Tensor::floats(&output))]))
}

/// Exact outputs have no allowance.
pub(super) fn nothing_to_allow(_: &Evidence) -> Result<Bounds, String> {
    Ok(Bounds::new())
}

/// Numbers of every size that the type has, ties between its numbers, and their f32 neighbours.
fn sample(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let dtype = sampler.pick(&["bf16", "f16"]);
    // Digits behind the first, smallest and largest exponent.
    let (digits, emin, emax) = if dtype == "bf16" { (7, -126, 126) } else { (10, -14, 14) };
    let shape = vec![sampler.size(1, 4), sampler.size(1, 9)];
    let values: Vec<f64> = (0..shape[0] * shape[1])
        .map(|_| {
            let exponent = emin + sampler.size(0, (emax - emin) as usize) as i32;
            let subnormal = sampler.chance(0.2);
            // One bit more than the type keeps.
            let leading = if subnormal { 0 } else { 2 << digits };
            let exponent = if subnormal { emin } else { exponent };
            let mantissa = leading + sampler.size(0, (2 << digits) - 1);
            let number = mantissa as f64 * 2_f64.powi(exponent - digits - 1);
            let beside = [number as f32, (number as f32).next_up(), (number as f32).next_down()];
            f64::from(sampler.pick(&beside)) * sampler.pick(&[1.0, -1.0])
        })
        .collect();
    let input = Tensor::from_f64s(shape, values.into_iter(), Precision::F32);
    let params = Params::from_iter([("dtype", json!(dtype))]);
    Ok((params, super::tensors([("input", input)])))
}
