//! The linear layer.

use ndarray::{Array2, ArrayView2};

use crate::{Error, Real, check};

/// Gradients of a loss through [`linear`].
#[derive(Debug, Clone, PartialEq)]
pub struct LinearGradients<T> {
    /// `[tokens, in]`
    pub d_x: Array2<T>,
    /// `[out, in]`
    pub d_weight: Array2<T>,
}

/// A linear layer without bias. Eq. (N1a).
///
/// ```text
/// y[t,o] = sum_i x[t,i] * weight[o,i]
/// ```
///
/// # Shapes
/// `x [tokens, in]`, `weight [out, in]` -> `[tokens, out]`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn linear<T: Real>(x: ArrayView2<T>, weight: ArrayView2<T>) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "linear";
    let (out_features, in_features) = weight.dim();
    check::input(OPERATION, "x", &x, &[x.nrows(), in_features])?;
    check::input(OPERATION, "weight", &weight, &[out_features, in_features])?;
    let (x, weight) = (x.mapv(T::operand), weight.mapv(T::operand));
    let y = Array2::from_shape_fn((x.nrows(), out_features), |(t, o)| {
        check::dot(x.row(t), weight.row(o))
    });
    check::result(OPERATION, "y", y)
}

/// Gradients of a linear layer. Eq. (N1b).
///
/// ```text
/// d_x[t,i] = sum_o d_y[t,o] * weight[o,i]
/// d_weight[o,i] = sum_t d_y[t,o] * x[t,i]
/// ```
///
/// # Shapes
/// `x [tokens, in]`, `weight [out, in]`, `d_y [tokens, out]` -> like `x` and `weight`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn linear_backward<T: Real>(
    x: ArrayView2<T>,
    weight: ArrayView2<T>,
    d_y: ArrayView2<T>,
) -> Result<LinearGradients<T>, Error> {
    const OPERATION: &str = "linear_backward";
    let (out_features, in_features) = weight.dim();
    check::input(OPERATION, "x", &x, &[x.nrows(), in_features])?;
    check::input(OPERATION, "weight", &weight, &[out_features, in_features])?;
    check::input(OPERATION, "d_y", &d_y, &[x.nrows(), out_features])?;
    let (x, weight, d_y) = (x.mapv(T::operand), weight.mapv(T::operand), d_y.mapv(T::operand));
    let mut d_x = Array2::zeros(x.dim());
    let mut d_weight = Array2::zeros(weight.dim());
    for ((t, o), &d_y) in d_y.indexed_iter() {
        d_x.row_mut(t).zip_mut_with(&weight.row(o), |d_x, &weight| *d_x += d_y * weight);
        d_weight.row_mut(o).zip_mut_with(&x.row(t), |d_weight, &x| *d_weight += d_y * x);
    }
    Ok(LinearGradients {
        d_x: check::result(OPERATION, "d_x", d_x)?,
        d_weight: check::result(OPERATION, "d_weight", d_weight)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn example_of_n1() {
        let (x, weight) = (array![[1.0, 2.0]], array![[3.0, 4.0], [5.0, 6.0]]);
        assert_eq!(linear(x.view(), weight.view()).unwrap(), array![[11.0, 17.0]]);
        let d_y = array![[1.0, -1.0]];
        let gradients = linear_backward(x.view(), weight.view(), d_y.view()).unwrap();
        assert_eq!(gradients.d_x, array![[-2.0, -2.0]]);
        assert_eq!(gradients.d_weight, array![[1.0, 2.0], [-1.0, -2.0]]);
    }

    #[test]
    fn a_sum_that_overflows_is_refused() {
        let (x, weight) = (array![[1e30_f32, 1e30]], array![[0.0, 0.0], [1e30, 1.0]]);
        let refused = linear(x.view(), weight.view()).unwrap_err();
        assert_eq!(refused.to_string(), "linear: y[0, 1] is inf");
    }
}
