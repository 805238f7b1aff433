//! Full-model quantization-aware training: the weight itself is trained, through its quantizer.
//! With an offset the quantizer is that of LSQ+ (arXiv:2004.09576), without one that of LSQ
//! (arXiv:1902.08153).

use ndarray::{Array2, ArrayView2};

use crate::linear::{linear, linear_backward};
use crate::quantize::{FakeQuantized, fake_quantize};
use crate::spec::{QuantSpec, StraightThrough};
use crate::straight_through::fake_quantize_backward;
use crate::{Error, Real, check};

/// One linear layer whose weight, scale and offset are trained.
#[derive(Debug, Clone, Copy)]
pub struct Qat<'a, T> {
    /// `[out, in]`
    pub weight: ArrayView2<'a, T>,
    /// `[out, groups]`
    pub scale: ArrayView2<'a, T>,
    /// `[out, groups]`; absent under LSQ.
    pub offset: Option<ArrayView2<'a, T>>,
    /// The grid.
    pub spec: QuantSpec,
}

/// Result of [`Qat::forward`] and of [`QatLora::forward`](super::qat_lora::QatLora::forward).
#[derive(Debug, Clone, PartialEq)]
pub struct QatForward<T> {
    /// `[tokens, out]`
    pub y: Array2<T>,
    /// `[out, in]`
    pub codes: Array2<i8>,
    /// `[out, in]`, the quantized weight that multiplied `x`.
    pub fake_quantized: Array2<T>,
}

/// Result of [`Qat::backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct QatGradients<T> {
    /// `[tokens, in]`
    pub d_x: Array2<T>,
    /// `[out, in]`
    pub d_weight: Array2<T>,
    /// `[out, groups]`
    pub d_scale: Array2<T>,
    /// `[out, groups]`; absent under LSQ.
    pub d_offset: Option<Array2<T>>,
}

impl<T: Real> Qat<'_, T> {
    /// The layer's output. Eq. (M11).
    ///
    /// ```text
    /// fake_quantized = fake_quantize(weight, scale, offset)
    /// y = linear(x, fake_quantized)
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]` -> `y [tokens, out]`, `codes, fake_quantized [out, in]`
    ///
    /// # Errors
    /// `Shape`, `NonFinite`.
    pub fn forward(&self, x: ArrayView2<T>) -> Result<QatForward<T>, Error> {
        const OPERATION: &str = "qat.forward";
        check::input(OPERATION, "x", &x, &[x.nrows(), self.spec.in_features()])?;
        let FakeQuantized { codes, output: fake_quantized } =
            self.quantized(OPERATION, self.offset_or_zero().view())?;
        let y = linear(x, fake_quantized.view())?;
        Ok(QatForward { y, codes, fake_quantized })
    }

    /// Gradients of input, weight, scale and offset. Eq. (M12).
    ///
    /// ```text
    /// d_x, d_fake_quantized = linear_backward(x, fake_quantized, d_y)
    /// d_weight, d_scale, d_offset =
    ///     fake_quantize_backward(weight, scale, offset, d_fake_quantized)
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]`, `d_y [tokens, out]` -> like `x` and the trained tensors
    ///
    /// # Errors
    /// As [`Qat::forward`].
    pub fn backward(
        &self,
        x: ArrayView2<T>,
        d_y: ArrayView2<T>,
        rules: impl Into<StraightThrough>,
    ) -> Result<QatGradients<T>, Error> {
        const OPERATION: &str = "qat.backward";
        check::input(OPERATION, "x", &x, &[x.nrows(), self.spec.in_features()])?;
        check::input(OPERATION, "d_y", &d_y, &[x.nrows(), self.weight.nrows()])?;
        let offset = self.offset_or_zero();
        let quantized = self.quantized(OPERATION, offset.view())?;
        let through_linear = linear_backward(x, quantized.output.view(), d_y)?;
        let quantizer = fake_quantize_backward(
            self.weight,
            self.scale,
            offset.view(),
            through_linear.d_weight.view(),
            &self.spec,
            rules,
        )?;
        Ok(QatGradients {
            d_x: through_linear.d_x,
            d_weight: quantizer.d_weight,
            d_scale: quantizer.d_scale,
            d_offset: self.offset.map(|_| quantizer.d_offset),
        })
    }

    fn offset_or_zero(&self) -> Array2<T> {
        match self.offset {
            Some(offset) => offset.to_owned(),
            None => Array2::zeros(self.scale.dim()),
        }
    }

    fn quantized(
        &self,
        operation: &'static str,
        offset: ArrayView2<T>,
    ) -> Result<FakeQuantized<T>, Error> {
        check::quantizer(operation, &self.weight, &self.scale, &offset, &self.spec)?;
        fake_quantize(self.weight, self.scale, offset, &self.spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Bits, GradScale};
    use ndarray::array;

    #[test]
    fn examples_of_m11_and_m12() {
        let (weight, scale, offset) = (array![[1.5, 9.0]], array![[0.5]], array![[0.25]]);
        let layer = Qat {
            weight: weight.view(),
            scale: scale.view(),
            offset: Some(offset.view()),
            spec: QuantSpec::new(Bits::new(4).unwrap(), None, 2).unwrap(),
        };
        let x = array![[2.0, 1.0]];
        let forward = layer.forward(x.view()).unwrap();
        assert_eq!(forward.codes, array![[2, 7]]);
        assert_eq!(forward.fake_quantized, array![[1.25, 3.75]]);
        assert_eq!(forward.y, array![[6.25]]);

        let backward = layer.backward(x.view(), array![[4.0]].view(), GradScale::None).unwrap();
        assert_eq!(backward.d_x, array![[5.0, 15.0]]);
        assert_eq!(backward.d_weight, array![[8.0, 0.0]]);
        assert_eq!(backward.d_scale, array![[24.0]]);
        assert_eq!(backward.d_offset, Some(array![[4.0]]));

        // Without an offset 1.5 is code 3 exactly, and 9 is clipped to 3.5.
        let lsq = Qat { offset: None, ..layer };
        assert_eq!(lsq.forward(x.view()).unwrap().y, array![[6.5]]);
        let backward = lsq.backward(x.view(), array![[4.0]].view(), GradScale::None).unwrap();
        assert_eq!(backward.d_scale, array![[28.0]]);
        assert_eq!(backward.d_offset, None);
    }
}
