//! PEQA (arXiv:2305.14152): codes and zero points are frozen, and only the scales are trained. The
//! trained layer is a quantized layer already; there is nothing to merge.

use ndarray::{Array2, ArrayView2};

use crate::affine::{affine_dequantize, affine_layer};
use crate::linear::{linear, linear_backward};
use crate::spec::{QuantSpec, SCALE_FLOOR};
use crate::{Error, Real, check};

/// One linear layer under PEQA.
#[derive(Debug, Clone, Copy)]
pub struct Peqa<'a, T> {
    /// `[out, in]`, frozen, each from 0 to `2^bits - 1`.
    pub codes: ArrayView2<'a, u8>,
    /// `[out, groups]`
    pub scale: ArrayView2<'a, T>,
    /// `[out, groups]`, frozen.
    pub zero_point: ArrayView2<'a, T>,
    /// The grid; codes are unsigned.
    pub spec: QuantSpec,
}

/// Result of [`Peqa::backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct PeqaGradients<T> {
    /// `[tokens, in]`
    pub d_x: Array2<T>,
    /// `[out, groups]`
    pub d_scale: Array2<T>,
}

impl<T: Real> Peqa<'_, T> {
    /// The layer's output. Eq. (M15).
    ///
    /// ```text
    /// weight = affine_dequantize(codes, scale, zero_point)
    /// y = linear(x, weight)
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]` -> `[tokens, out]`
    ///
    /// # Errors
    /// `Shape`, `NonFinite`, `CodeOutOfRange`.
    pub fn forward(&self, x: ArrayView2<T>) -> Result<Array2<T>, Error> {
        let weight = self.weight("peqa.forward", &x)?;
        linear(x, weight.view())
    }

    /// Gradients of input and scale. Eq. (M16).
    ///
    /// ```text
    /// d_x, d_weight = linear_backward(x, weight, d_y)
    /// d_scale[o,g] = sum_(i in g) d_weight[o,i] * (codes[o,i] - zero_point[o,g])
    /// d_scale[o,g] = 0 where scale[o,g] < SCALE_FLOOR
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]`, `d_y [tokens, out]` -> like `x` and `scale`
    ///
    /// # Errors
    /// As [`Peqa::forward`].
    pub fn backward(
        &self,
        x: ArrayView2<T>,
        d_y: ArrayView2<T>,
    ) -> Result<PeqaGradients<T>, Error> {
        const OPERATION: &str = "peqa.backward";
        let weight = self.weight(OPERATION, &x)?;
        check::input(OPERATION, "d_y", &d_y, &[x.nrows(), self.codes.nrows()])?;
        let through_linear = linear_backward(x, weight.view(), d_y)?;
        let mut d_scale = Array2::zeros(self.scale.dim());
        for ((o, i), &d_weight) in through_linear.d_weight.indexed_iter() {
            let g = i / self.spec.group_size();
            let steps = T::of(f64::from(self.codes[[o, i]])) - self.zero_point[[o, g]];
            d_scale[[o, g]] += d_weight * steps;
        }
        d_scale.zip_mut_with(&self.scale, |d_scale, &scale| {
            // The raised scale no longer moves with the parameter.
            if scale < T::of(SCALE_FLOOR) {
                *d_scale = T::zero();
            }
        });
        let d_scale = check::result(OPERATION, "d_scale", d_scale)?;
        Ok(PeqaGradients { d_x: through_linear.d_x, d_scale })
    }

    /// The weight that the codes stand for, after every tensor and the input were checked.
    fn weight(&self, operation: &'static str, x: &ArrayView2<T>) -> Result<Array2<T>, Error> {
        affine_layer(operation, &self.codes, &self.scale, &self.zero_point, &self.spec)?;
        check::input(operation, "x", x, &[x.nrows(), self.spec.in_features()])?;
        affine_dequantize(self.codes, self.scale, self.zero_point, &self.spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Bits;
    use ndarray::array;

    fn with_example<R>(scale: f64, run: impl Fn(Peqa<f64>) -> R) -> R {
        let (codes, scale, zero_point) = (array![[9_u8, 0]], array![[scale]], array![[7.0]]);
        run(Peqa {
            codes: codes.view(),
            scale: scale.view(),
            zero_point: zero_point.view(),
            spec: QuantSpec::new(Bits::new(4).unwrap(), None, 2).unwrap(),
        })
    }

    #[test]
    fn examples_of_m15_and_m16() {
        let (x, d_y) = (array![[2.0, 1.0]], array![[3.0]]);
        with_example(0.5, |layer| {
            assert_eq!(layer.forward(x.view()).unwrap(), array![[-1.5]]);
            let gradients = layer.backward(x.view(), d_y.view()).unwrap();
            assert_eq!(gradients.d_x, array![[3.0, -10.5]]);
            assert_eq!(gradients.d_scale, array![[6.0 * 2.0 - 3.0 * 7.0]]);
        });
    }

    #[test]
    fn a_raised_scale_gets_no_gradient_and_one_at_the_floor_does() {
        let (x, d_y) = (array![[2.0, 1.0]], array![[3.0]]);
        let d_scale =
            |scale| with_example(scale, |layer| layer.backward(x.view(), d_y.view()).unwrap());
        assert_eq!(d_scale(SCALE_FLOOR.next_down()).d_scale, array![[0.0]]);
        assert_eq!(d_scale(-1.0).d_scale, array![[0.0]]);
        assert_eq!(d_scale(SCALE_FLOOR).d_scale, array![[-9.0]]);
    }

    #[test]
    fn a_gradient_that_overflows_is_refused() {
        let (x, d_y) = (array![[1e154, 0.0]], array![[1e154]]);
        let refused = with_example(1e-2, |layer| layer.backward(x.view(), d_y.view()).unwrap_err());
        assert_eq!(refused.to_string(), "peqa.backward: d_scale[0, 0] is inf");
    }
}
