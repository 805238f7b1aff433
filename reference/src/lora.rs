//! The low-rank update: as a weight, and as a path beside a frozen weight.

use ndarray::{Array2, ArrayView2};

use crate::linear::{linear, linear_backward};
use crate::{Error, Real, check};

/// Gradients of a loss through [`lora_forward`]; the base weight is frozen and has none.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraGradients<T> {
    /// `[tokens, in]`
    pub d_x: Array2<T>,
    /// `[rank, in]`
    pub d_lora_a: Array2<T>,
    /// `[out, rank]`
    pub d_lora_b: Array2<T>,
}

/// Gradients of a loss through [`delta_weight`].
pub(crate) struct FactorGradients<T> {
    /// `[rank, in]`
    pub d_lora_a: Array2<T>,
    /// `[out, rank]`
    pub d_lora_b: Array2<T>,
}

/// The update as a weight. Eq. (A1a).
///
/// ```text
/// delta_weight[o,i] = lora_scaling * sum_r lora_b[o,r] * lora_a[r,i]
/// ```
///
/// The sum runs from zero in ascending `r`: this order decides codes.
///
/// # Shapes
/// `lora_a [rank, in]`, `lora_b [out, rank]` -> `[out, in]`
///
/// # Errors
/// `Shape`, `NonFinite`, `Spec` for a `lora_scaling` that is not finite.
pub fn delta_weight<T: Real>(
    lora_a: ArrayView2<T>,
    lora_b: ArrayView2<T>,
    lora_scaling: f64,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "delta_weight";
    let (rank, in_features) = lora_a.dim();
    check::input(OPERATION, "lora_a", &lora_a, &[rank, in_features])?;
    check::input(OPERATION, "lora_b", &lora_b, &[lora_b.nrows(), rank])?;
    let lora_scaling: T = check::number("lora_scaling", lora_scaling)?;
    let delta = Array2::from_shape_fn((lora_b.nrows(), in_features), |(o, i)| {
        lora_scaling * check::dot(lora_b.row(o), lora_a.column(i))
    });
    check::result(OPERATION, "delta_weight", delta)
}

/// Gradients of the factors from the gradient of the update. Eq. (A1b).
///
/// ```text
/// d_lora_a[r,i] = lora_scaling * sum_o lora_b[o,r] * d_delta_weight[o,i]
/// d_lora_b[o,r] = lora_scaling * sum_i d_delta_weight[o,i] * lora_a[r,i]
/// ```
pub(crate) fn delta_weight_backward<T: Real>(
    lora_a: ArrayView2<T>,
    lora_b: ArrayView2<T>,
    lora_scaling: f64,
    d_delta_weight: ArrayView2<T>,
) -> Result<FactorGradients<T>, Error> {
    const OPERATION: &str = "delta_weight_backward";
    let lora_scaling: T = check::number("lora_scaling", lora_scaling)?;
    let (lora_a, lora_b) = (lora_a.mapv(T::operand), lora_b.mapv(T::operand));
    let d_delta_weight = d_delta_weight.mapv(T::operand);
    let mut d_lora_a = Array2::zeros(lora_a.dim());
    for ((o, r), &b) in lora_b.indexed_iter() {
        d_lora_a.row_mut(r).zip_mut_with(&d_delta_weight.row(o), |d_a, &d| *d_a += b * d);
    }
    d_lora_a.mapv_inplace(|sum| lora_scaling * sum);
    let d_lora_b = Array2::from_shape_fn(lora_b.dim(), |(o, r)| {
        lora_scaling * check::dot(d_delta_weight.row(o), lora_a.row(r))
    });
    Ok(FactorGradients {
        d_lora_a: check::result(OPERATION, "d_lora_a", d_lora_a)?,
        d_lora_b: check::result(OPERATION, "d_lora_b", d_lora_b)?,
    })
}

fn check_lora<T: Real>(
    operation: &'static str,
    x: &ArrayView2<T>,
    weight: &ArrayView2<T>,
    lora_a: &ArrayView2<T>,
    lora_b: &ArrayView2<T>,
) -> Result<(), Error> {
    let (out_features, in_features) = weight.dim();
    let rank = lora_a.nrows();
    check::input(operation, "x", x, &[x.nrows(), in_features])?;
    check::input(operation, "weight", weight, &[out_features, in_features])?;
    check::input(operation, "lora_a", lora_a, &[rank, in_features])?;
    check::input(operation, "lora_b", lora_b, &[out_features, rank])
}

/// A frozen linear layer with a low-rank path beside it. Eq. (A2).
///
/// ```text
/// low[t,r] = sum_i x[t,i] * lora_a[r,i]
/// y[t,o] = sum_i x[t,i] * weight[o,i] + lora_scaling * sum_r low[t,r] * lora_b[o,r]
/// ```
///
/// # Shapes
/// `x [tokens, in]`, `weight [out, in]`, `lora_a [rank, in]`, `lora_b [out, rank]` ->
/// `[tokens, out]`
///
/// # Errors
/// `Shape`, `NonFinite`, `Spec` for a `lora_scaling` that is not finite.
pub fn lora_forward<T: Real>(
    x: ArrayView2<T>,
    weight: ArrayView2<T>,
    lora_a: ArrayView2<T>,
    lora_b: ArrayView2<T>,
    lora_scaling: f64,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "lora_forward";
    check_lora(OPERATION, &x, &weight, &lora_a, &lora_b)?;
    let lora_scaling: T = check::number("lora_scaling", lora_scaling)?;
    let low = linear(x, lora_a)?;
    let update = linear(low.view(), lora_b)? * lora_scaling;
    check::result(OPERATION, "y", linear(x, weight)? + update)
}

/// Gradients of input and factors. Eq. (A3).
///
/// ```text
/// d_low[t,r] = lora_scaling * sum_o d_y[t,o] * lora_b[o,r]
/// d_x[t,i] = sum_o d_y[t,o] * weight[o,i] + sum_r d_low[t,r] * lora_a[r,i]
/// d_lora_a[r,i] = sum_t d_low[t,r] * x[t,i]
/// d_lora_b[o,r] = lora_scaling * sum_t d_y[t,o] * low[t,r]
/// ```
///
/// # Shapes
/// as [`lora_forward`], `d_y [tokens, out]` -> like `x`, `lora_a`, `lora_b`
///
/// # Errors
/// `Shape`, `NonFinite`, `Spec` for a `lora_scaling` that is not finite.
pub fn lora_backward<T: Real>(
    x: ArrayView2<T>,
    weight: ArrayView2<T>,
    lora_a: ArrayView2<T>,
    lora_b: ArrayView2<T>,
    lora_scaling: f64,
    d_y: ArrayView2<T>,
) -> Result<LoraGradients<T>, Error> {
    const OPERATION: &str = "lora_backward";
    check_lora(OPERATION, &x, &weight, &lora_a, &lora_b)?;
    check::input(OPERATION, "d_y", &d_y, &[x.nrows(), weight.nrows()])?;
    let lora_scaling: T = check::number("lora_scaling", lora_scaling)?;
    let low = linear(x, lora_a)?;
    let through_b = linear_backward(low.view(), lora_b, d_y)?;
    let d_low = through_b.d_x * lora_scaling;
    let through_a = linear_backward(x, lora_a, d_low.view())?;
    let through_weight = linear_backward(x, weight, d_y)?;
    Ok(LoraGradients {
        d_x: check::result(OPERATION, "d_x", through_weight.d_x + through_a.d_x)?,
        d_lora_a: through_a.d_weight,
        d_lora_b: check::result(OPERATION, "d_lora_b", through_b.d_weight * lora_scaling)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn example_of_a1() {
        let (lora_a, lora_b) = (array![[1.0, 2.0]], array![[3.0], [-1.0]]);
        let delta = delta_weight(lora_a.view(), lora_b.view(), 0.5).unwrap();
        assert_eq!(delta, array![[1.5, 3.0], [-0.5, -1.0]]);
        let d_delta = array![[1.0, 0.0], [0.0, 2.0]];
        let gradients =
            delta_weight_backward(lora_a.view(), lora_b.view(), 0.5, d_delta.view()).unwrap();
        assert_eq!(gradients.d_lora_a, array![[1.5, -1.0]]);
        assert_eq!(gradients.d_lora_b, array![[0.5], [2.0]]);
    }

    #[test]
    fn examples_of_a2_and_a3() {
        let (lora_a, lora_b) = (array![[1.0, 2.0]], array![[3.0], [-1.0]]);
        let (x, weight) = (array![[1.0, 1.0]], array![[1.0, 0.0], [0.0, 1.0]]);
        let y = lora_forward(x.view(), weight.view(), lora_a.view(), lora_b.view(), 0.5).unwrap();
        assert_eq!(y, array![[5.5, -0.5]]);
        let d_y = array![[1.0, 2.0]];
        let gradients =
            lora_backward(x.view(), weight.view(), lora_a.view(), lora_b.view(), 0.5, d_y.view())
                .unwrap();
        assert_eq!(gradients.d_x, array![[1.5, 3.0]]);
        assert_eq!(gradients.d_lora_a, array![[0.5, 0.5]]);
        assert_eq!(gradients.d_lora_b, array![[1.5], [3.0]]);
    }

    #[test]
    fn the_rank_is_summed_in_ascending_order_before_the_scaling() {
        // In f32, 1e8 + 1 is 1e8: any other order of the three terms gives another sum.
        let lora_a = array![[1e8_f32], [1.0], [-1e8]];
        let lora_b = array![[1.0_f32, 1.0, 1.0]];
        assert_eq!(delta_weight(lora_a.view(), lora_b.view(), 1.0).unwrap(), array![[0.0]]);
        let lora_a = array![[1e8_f32], [-1e8], [1.0]];
        assert_eq!(delta_weight(lora_a.view(), lora_b.view(), 1.0).unwrap(), array![[1.0]]);
        // 3 * (1/3 rounded): the product of the factors is rounded before the scaling is.
        let third = 1.0_f32 / 3.0;
        let delta = delta_weight(array![[third]].view(), array![[third]].view(), 3.0).unwrap();
        assert_eq!(delta, array![[3.0 * (third * third)]]);
    }
}
