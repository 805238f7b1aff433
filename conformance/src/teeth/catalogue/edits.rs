//! What the faults are written with: edits of requests and of answers, in binary32.

use ndarray::{Array2, ArrayD, Axis, Ix2};
use serde_json::{Value, json};

use crate::case::Request;
use crate::params::Quantizer;
use crate::tensor::{Data, Tensor, Tensors};
use plumbline_reference::spec::QuantSpec;

/// What an edit returns; an error stops the campaign's case as a refusal would.
pub(super) type Edited = Result<(), String>;

/// A matrix of the request.
pub(super) fn input(request: &Request, name: &str) -> Result<Array2<f32>, String> {
    request.array::<f32, Ix2>(name)
}

/// A matrix of the answer.
pub(super) fn output(outputs: &Tensors, name: &str) -> Result<Array2<f32>, String> {
    answered(outputs, name)?.array::<f32>().into_dimensionality().map_err(|e| e.to_string())
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

/// Replaces unsigned codes of the answer; one that a byte does not hold keeps its low bits.
pub(super) fn set_unsigned(outputs: &mut Tensors, name: &str, codes: &Array2<f32>) -> Edited {
    outputs.insert(name.to_owned(), Tensor::unsigned(&codes.mapv(|code| code as i32 as u8)));
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
    let changed: ArrayD<f32> = answered(outputs, name)?.array::<f32>().mapv(f);
    outputs.insert(name.to_owned(), Tensor::floats(&changed));
    Ok(())
}

/// Changes every byte of an output.
pub(super) fn map_bytes(outputs: &mut Tensors, name: &str, f: impl Fn(u8) -> u8) -> Edited {
    answered(outputs, name)?;
    if let Some(Data::U8(bytes)) = outputs.get_mut(name).map(Tensor::data_mut) {
        bytes.iter_mut().for_each(|byte| *byte = f(*byte));
    }
    Ok(())
}

fn answered<'a>(outputs: &'a Tensors, name: &str) -> Result<&'a Tensor, String> {
    outputs.get(name).ok_or_else(|| format!("there is no {name}"))
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

/// Replaces a parameter where it is `from`; null stands for one that is absent.
pub(super) fn swap_param(
    request: &mut Request,
    name: &str,
    from: impl Into<Value>,
    to: impl Into<Value>,
) -> Edited {
    let given = request.params.0.get(name).unwrap_or(&Value::Null);
    if *given == from.into() { set_param(request, name, to) } else { Ok(()) }
}

/// The reference's answer to an edited request.
pub(super) fn rerun(
    request: &Request,
    edit: impl FnOnce(&mut Request) -> Edited,
) -> Result<Tensors, String> {
    let mut edited = request.clone();
    edit(&mut edited)?;
    (request.op.run.f32)(&edited)
}

/// Answers some outputs as if the request had been the edited one.
pub(super) fn as_if(
    request: &Request,
    outputs: &mut Tensors,
    names: &[&str],
    edit: impl FnOnce(&mut Request) -> Edited,
) -> Edited {
    let faulty = rerun(request, edit)?;
    for name in names {
        outputs.insert((*name).to_owned(), answered(&faulty, name)?.clone());
    }
    Ok(())
}

/// Leaves the gradient of the first row alone: one token, or one sequence, of a batch.
pub(super) fn first_row_alone(request: &mut Request, name: &str) -> Edited {
    let mut matrix = input(request, name)?;
    for mut row in matrix.axis_iter_mut(Axis(0)).skip(1) {
        row.fill(0.0);
    }
    set_input(request, name, &matrix)
}

/// The grid of the request's weight.
pub(super) fn spec(request: &Request) -> Result<QuantSpec, String> {
    Quantizer::read(&request.params)?.spec(input(request, "weight")?.ncols())
}

/// The same numbers, as if the matrix had been laid out by columns.
pub(super) fn by_columns(matrix: &Array2<f32>) -> Array2<f32> {
    let flat: Vec<f32> = matrix.t().iter().copied().collect();
    Array2::from_shape_vec(matrix.dim(), flat).expect("as many elements")
}

/// Rows of the last tile of eight, where it is not full, are left at zero.
pub(super) fn without_ragged_columns(matrix: &mut Array2<f32>) {
    let columns = matrix.ncols();
    for column in columns / 8 * 8..columns {
        matrix.column_mut(column).fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use crate::params::Params;
    use ndarray::array;

    fn request(params: &str) -> Request {
        let inputs = [("codes", Tensor::unsigned(&array![[1_u8, 2, 15]]))];
        Request {
            op: ops::find("pack").unwrap(),
            params: Params::from_json(params).unwrap(),
            inputs: inputs.map(|(name, tensor)| (name.to_owned(), tensor)).into(),
        }
    }

    #[test]
    fn a_parameter_is_swapped_only_where_it_is_the_one_meant() {
        for (given, from, expected) in [
            (r#"{"pool": "sum"}"#, json!("sum"), json!("mean")),
            (r#"{"pool": "mean"}"#, json!("sum"), json!("mean")),
            (r#"{"pool": "other"}"#, json!("sum"), json!("other")),
            (r#"{}"#, Value::Null, json!("mean")),
            (r#"{"pool": "sum"}"#, Value::Null, json!("sum")),
        ] {
            let mut request = request(given);
            swap_param(&mut request, "pool", from.clone(), "mean").unwrap();
            assert_eq!(request.params.0["pool"], expected, "{given} {from}");
        }
    }

    #[test]
    fn an_answer_as_if_leaves_the_request_and_the_other_outputs() {
        let request = request(r#"{"bits": 4}"#);
        let mut outputs = (request.op.run.f32)(&request).unwrap();
        let right = outputs.clone();
        as_if(&request, &mut outputs, &[], |r| set_param(r, "bits", 8)).unwrap();
        assert_eq!(outputs, right);
        as_if(&request, &mut outputs, &["packed"], |r| set_param(r, "bits", 8)).unwrap();
        assert_eq!(outputs["packed"], Tensor::unsigned(&array![[1_u8, 2, 15]]));
        assert_eq!(request.params.0["bits"], json!(4));
        let unknown = as_if(&request, &mut outputs, &["codes"], |_| Ok(()));
        assert_eq!(unknown, Err("there is no codes".to_owned()));
    }

    #[test]
    fn columns_are_read_as_rows() {
        let matrix = array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
        assert_eq!(by_columns(&matrix), array![[1.0, 4.0, 2.0], [5.0, 3.0, 6.0]]);
    }

    #[test]
    fn codes_beyond_a_byte_keep_their_low_bits() {
        let mut outputs = Tensors::new();
        set_unsigned(&mut outputs, "codes", &array![[-1.0, 256.0, 7.0]]).unwrap();
        assert_eq!(outputs["codes"], Tensor::unsigned(&array![[255_u8, 0, 7]]));
        map_bytes(&mut outputs, "codes", |byte| byte & 15).unwrap();
        assert_eq!(outputs["codes"], Tensor::unsigned(&array![[15_u8, 0, 7]]));
    }

    #[test]
    fn the_last_tile_is_the_one_that_is_not_full() {
        let mut matrix = Array2::ones((1, 10));
        without_ragged_columns(&mut matrix);
        assert_eq!(matrix.sum(), 8.0);
        let mut whole = Array2::ones((1, 16));
        without_ragged_columns(&mut whole);
        assert_eq!(whole.sum(), 16.0);
    }
}
