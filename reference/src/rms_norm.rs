//! Root-mean-square normalisation.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use crate::{Error, Real, check};

/// Gradients of a loss through [`rms_norm`].
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNormGradients<T> {
    /// `[tokens, hidden]`
    pub d_x: Array2<T>,
    /// `[hidden]`
    pub d_weight: Array1<T>,
}

/// `sqrt(mean_i x[i]^2 + eps)` of one row.
fn root_mean_square<T: Real>(row: ArrayView1<T>, eps: T) -> T {
    (check::dot(row, row) / T::of(row.len() as f64) + eps).sqrt()
}

/// Divides each row by its root mean square. Eq. (N2a).
///
/// ```text
/// rms[t] = sqrt((sum_i x[t,i]^2) / hidden + eps)
/// output[t,i] = x[t,i] / rms[t] * weight[i]
/// ```
///
/// # Shapes
/// `x [tokens, hidden]`, `weight [hidden]` -> `[tokens, hidden]`
///
/// # Errors
/// `Shape`, `NonFinite`, `Spec` for an `eps` that is not positive.
pub fn rms_norm<T: Real>(
    x: ArrayView2<T>,
    weight: ArrayView1<T>,
    eps: f64,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "rms_norm";
    let hidden = weight.len();
    check::input(OPERATION, "x", &x, &[x.nrows(), hidden])?;
    check::input(OPERATION, "weight", &weight, &[hidden])?;
    let eps: T = check::positive("eps", eps)?;
    let mut output = x.to_owned();
    for mut row in output.rows_mut() {
        let rms = root_mean_square(row.view(), eps);
        row.zip_mut_with(&weight, |x, &weight| *x = *x / rms * weight);
    }
    check::result(OPERATION, "output", output)
}

/// Gradients of input and weight. Eq. (N2b).
///
/// ```text
/// slope[t] = (sum_i d_output[t,i] * weight[i] * x[t,i]) / (hidden * rms[t]^2)
/// d_x[t,i] = (d_output[t,i] * weight[i] - x[t,i] * slope[t]) / rms[t]
/// d_weight[i] = sum_t d_output[t,i] * x[t,i] / rms[t]
/// ```
///
/// # Shapes
/// `x, d_output [tokens, hidden]`, `weight [hidden]` -> like `x` and `weight`
///
/// # Errors
/// `Shape`, `NonFinite`, `Spec` for an `eps` that is not positive.
pub fn rms_norm_backward<T: Real>(
    x: ArrayView2<T>,
    weight: ArrayView1<T>,
    d_output: ArrayView2<T>,
    eps: f64,
) -> Result<RmsNormGradients<T>, Error> {
    const OPERATION: &str = "rms_norm_backward";
    let hidden = weight.len();
    check::input(OPERATION, "x", &x, &[x.nrows(), hidden])?;
    check::input(OPERATION, "weight", &weight, &[hidden])?;
    check::input(OPERATION, "d_output", &d_output, x.shape())?;
    let eps: T = check::positive("eps", eps)?;
    let mut d_x = Array2::zeros(x.dim());
    let mut d_weight = Array1::zeros(hidden);
    for t in 0..x.nrows() {
        let rms = root_mean_square(x.row(t), eps);
        let mut slope = T::zero();
        for i in 0..hidden {
            slope += d_output[[t, i]] * weight[i] * x[[t, i]];
        }
        slope /= T::of(hidden as f64) * rms * rms;
        for i in 0..hidden {
            d_x[[t, i]] = (d_output[[t, i]] * weight[i] - x[[t, i]] * slope) / rms;
            d_weight[i] += d_output[[t, i]] * x[[t, i]] / rms;
        }
    }
    Ok(RmsNormGradients {
        d_x: check::result(OPERATION, "d_x", d_x)?,
        d_weight: check::result(OPERATION, "d_weight", d_weight)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use ndarray::array;

    #[test]
    fn example_of_n2() {
        let (x, weight) = (array![[3.0, 4.0]], array![1.0, 2.0]);
        let output = rms_norm(x.view(), weight.view(), 12.5).unwrap();
        assert_eq!(output, array![[0.6, 1.6]]);
        let d_output = array![[1.0, 1.0]];
        let gradients = rms_norm_backward(x.view(), weight.view(), d_output.view(), 12.5).unwrap();
        assert_relative_eq!(gradients.d_x, array![[0.068, 0.224]], epsilon = 1e-15);
        assert_relative_eq!(gradients.d_weight, array![0.6, 0.8], epsilon = 1e-15);
    }

    #[test]
    fn eps_keeps_a_zero_row_at_zero() {
        let (x, weight) = (array![[0.0, 0.0]], array![1.0, 2.0]);
        assert_eq!(rms_norm(x.view(), weight.view(), 1e-5).unwrap(), x);
        assert!(rms_norm(x.view(), weight.view(), 0.0).is_err());
    }
}
