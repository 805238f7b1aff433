//! What every operation refuses before it computes, and after.

use ndarray::{Array, ArrayBase, ArrayView1, ArrayView2, Data, Dimension};

use crate::spec::{QuantSpec, SpecError};
use crate::{Error, Real};

/// An argument must have the shape that the others ask for, and finite values.
pub(crate) fn input<T: Real, S: Data<Elem = T>, D: Dimension>(
    operation: &'static str,
    tensor: &str,
    array: &ArrayBase<S, D>,
    expected: &[usize],
) -> Result<(), Error> {
    shape(operation, tensor, array.shape(), expected)?;
    finite(operation, tensor, array)
}

/// A result that overflowed is refused by its name instead of being handed on.
pub(crate) fn result<T: Real, D: Dimension>(
    operation: &'static str,
    tensor: &str,
    array: Array<T, D>,
) -> Result<Array<T, D>, Error> {
    finite(operation, tensor, &array)?;
    Ok(array)
}

pub(crate) fn shape(
    operation: &'static str,
    tensor: &str,
    actual: &[usize],
    expected: &[usize],
) -> Result<(), Error> {
    if actual == expected {
        return Ok(());
    }
    let (expected, actual) = (expected.to_vec(), actual.to_vec());
    Err(Error::Shape { operation, tensor: tensor.to_owned(), expected, actual })
}

pub(crate) fn finite<T: Real, S: Data<Elem = T>, D: Dimension>(
    operation: &'static str,
    tensor: &str,
    array: &ArrayBase<S, D>,
) -> Result<(), Error> {
    match array.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        None => Ok(()),
        Some((position, value)) => Err(Error::NonFinite {
            operation,
            tensor: tensor.to_owned(),
            index: index_of(position, array.shape()),
            value: value.value(),
        }),
    }
}

/// The index of the element that a row-major walk meets at `position`.
pub(crate) fn index_of(position: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = position;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&length| {
            let here = rest % length;
            rest /= length;
            here
        })
        .collect();
    index.reverse();
    index
}

/// A scalar constant that must be finite, rounded once to the type of the computation.
pub(crate) fn number<T: Real>(field: &'static str, value: f64) -> Result<T, Error> {
    let rounded = T::of(value);
    if rounded.is_finite() {
        return Ok(rounded);
    }
    Err(out_of_range(field, value, "a finite number"))
}

/// The same for a constant that must stay above zero in the type of the computation.
pub(crate) fn positive<T: Real>(field: &'static str, value: f64) -> Result<T, Error> {
    let rounded = T::of(value);
    if rounded.is_finite() && rounded > T::zero() {
        return Ok(rounded);
    }
    Err(out_of_range(field, value, "a positive number"))
}

pub(crate) fn out_of_range(
    field: &'static str,
    value: impl ToString,
    expected: &'static str,
) -> Error {
    Error::Spec(SpecError::OutOfRange { field, value: value.to_string(), expected })
}

/// `weight [out, in]` and its `scale, offset [out, groups]`.
pub(crate) fn quantizer<T: Real>(
    operation: &'static str,
    weight: &ArrayView2<T>,
    scale: &ArrayView2<T>,
    offset: &ArrayView2<T>,
    spec: &QuantSpec,
) -> Result<(), Error> {
    let rows = weight.nrows();
    input(operation, "weight", weight, &[rows, spec.in_features()])?;
    input(operation, "scale", scale, &[rows, spec.groups()])?;
    input(operation, "offset", offset, &[rows, spec.groups()])
}

/// `sum_i a[i] * b[i]` from zero, in ascending order, each product and each sum rounded.
pub(crate) fn dot<T: Real>(a: ArrayView1<T>, b: ArrayView1<T>) -> T {
    let mut sum = T::zero();
    for (&a, &b) in a.iter().zip(b.iter()) {
        sum += a * b;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, array};

    #[test]
    fn the_offending_element_is_named_by_its_index() {
        let mut x = Array3::<f32>::zeros((2, 3, 4));
        x[[1, 2, 3]] = f32::NAN;
        let refused = finite("rope", "x", &x).unwrap_err();
        assert_eq!(refused.to_string(), "rope: x[1, 2, 3] is NaN");
        // The order of the walk is logical, whatever the strides.
        let refused = finite("rope", "x", &x.t()).unwrap_err();
        assert_eq!(refused.to_string(), "rope: x[3, 2, 1] is NaN");
    }

    #[test]
    fn a_wrong_shape_names_both() {
        let refused = input("linear", "x", &array![[1.0_f64, 2.0]], &[1, 3]).unwrap_err();
        assert_eq!(refused.to_string(), "linear: x has shape [1, 2], expected [1, 3]");
    }

    #[test]
    fn a_constant_that_underflows_is_not_positive() {
        assert!(positive::<f64>("eps", 1e-60).is_ok());
        assert!(positive::<f32>("eps", 1e-60).is_err());
        assert!(number::<f32>("lora_scaling", 1e60).is_err());
    }
}
