//! What the faults are written with: edits of requests and of answers, in binary32.

use ndarray::{Array2, ArrayD, Ix2};
use serde_json::{Value, json};

use crate::case::Request;
use crate::params::Quantizer;
use crate::tensor::{Tensor, Tensors};
use plumbline_reference::spec::QuantSpec;

/// What an edit returns; an error stops the campaign's case as a refusal would.
pub(super) type Edited = Result<(), String>;

/// A matrix of the request.
pub(super) fn input(request: &Request, name: &str) -> Result<Array2<f32>, String> {
    request.array::<f32, Ix2>(name)
}

/// A matrix of the answer.
pub(super) fn output(outputs: &Tensors, name: &str) -> Result<Array2<f32>, String> {
    let tensor = outputs.get(name).ok_or_else(|| format!("there is no {name}"))?;
    tensor.array::<f32>().into_dimensionality().map_err(|e| e.to_string())
}

/// Replaces a matrix of the request.
pub(super) fn set_input(request: &mut Request, name: &str, matrix: &Array2<f32>) -> Edited {
    request.inputs.insert(name.to_owned(), Tensor::floats(matrix));
    Ok(())
}

/// Replaces a matrix of the answer.
pub(super) fn set_output(outputs: &mut Tensors, name: &str, matrix: &Array2<f32>) -> Edited {
    outputs.insert(name.to_owned(), Tensor::floats(matrix));
    Ok(())
}

/// Changes every element of an input, whatever its rank; nothing where it is absent.
pub(super) fn map_input(request: &mut Request, name: &str, f: impl Fn(f32) -> f32) -> Edited {
    if let Some(tensor) = request.inputs.get(name) {
        let changed: ArrayD<f32> = tensor.array::<f32>().mapv(f);
        request.inputs.insert(name.to_owned(), Tensor::floats(&changed));
    }
    Ok(())
}

/// Changes every element of an output, whatever its rank.
pub(super) fn map_output(outputs: &mut Tensors, name: &str, f: impl Fn(f32) -> f32) -> Edited {
    let tensor = outputs.get(name).ok_or_else(|| format!("there is no {name}"))?;
    let changed: ArrayD<f32> = tensor.array::<f32>().mapv(f);
    outputs.insert(name.to_owned(), Tensor::floats(&changed));
    Ok(())
}

/// Replaces a parameter.
pub(super) fn set_param(request: &mut Request, name: &str, value: impl Into<Value>) -> Edited {
    request.params.0.insert(name.to_owned(), value.into());
    Ok(())
}

/// Changes a parameter that is a number.
pub(super) fn map_param(request: &mut Request, name: &str, f: impl Fn(f64) -> f64) -> Edited {
    let value = request.params.number(name)?;
    set_param(request, name, json!(f(value)))
}

/// The grid of the request's weight.
pub(super) fn spec(request: &Request) -> Result<QuantSpec, String> {
    Quantizer::read(&request.params)?.spec(input(request, "weight")?.ncols())
}

/// Rows of the last tile of eight, where it is not full, are left at zero.
pub(super) fn without_ragged_columns(matrix: &mut Array2<f32>) {
    let columns = matrix.ncols();
    for column in columns / 8 * 8..columns {
        matrix.column_mut(column).fill(0.0);
    }
}
