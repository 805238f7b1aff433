//! L4Q (arXiv:2402.04902): the low-rank update is inside the quantizer, and scale and offset are
//! trained with it. There is no path beside the quantized weight, in training or after, so
//! [`L4q::merge`] gives codes that stand for exactly the weight of the forward pass.

use ndarray::{Array2, ArrayView2};

use crate::linear::{linear, linear_backward};
use crate::lora::{delta_weight, delta_weight_backward};
use crate::quantize::{FakeQuantized, fake_quantize, raised_scale};
use crate::spec::{QuantSpec, StraightThrough};
use crate::straight_through::fake_quantize_backward;
use crate::{Error, Real, check};

/// One linear layer under L4Q.
#[derive(Debug, Clone, Copy)]
pub struct L4q<'a, T> {
    /// `[out, in]`, frozen.
    pub weight: ArrayView2<'a, T>,
    /// `[rank, in]`
    pub lora_a: ArrayView2<'a, T>,
    /// `[out, rank]`
    pub lora_b: ArrayView2<'a, T>,
    /// `[out, groups]`
    pub scale: ArrayView2<'a, T>,
    /// `[out, groups]`
    pub offset: ArrayView2<'a, T>,
    /// Multiplier on `lora_b @ lora_a`.
    pub lora_scaling: f64,
    /// The grid.
    pub spec: QuantSpec,
}

/// Result of [`L4q::forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct L4qForward<T> {
    /// `[tokens, out]`
    pub y: Array2<T>,
    /// `[out, in]`
    pub codes: Array2<i8>,
    /// `[out, in]`, the weight that multiplied `x`.
    pub fake_quantized: Array2<T>,
}

/// Result of [`L4q::backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct L4qGradients<T> {
    /// `[tokens, in]`
    pub d_x: Array2<T>,
    /// `[rank, in]`
    pub d_lora_a: Array2<T>,
    /// `[out, rank]`
    pub d_lora_b: Array2<T>,
    /// `[out, groups]`
    pub d_scale: Array2<T>,
    /// `[out, groups]`
    pub d_offset: Array2<T>,
}

/// Result of [`L4q::parameter_gradients`].
#[derive(Debug, Clone, PartialEq)]
pub struct L4qParameterGradients<T> {
    /// `[rank, in]`
    pub d_lora_a: Array2<T>,
    /// `[out, rank]`
    pub d_lora_b: Array2<T>,
    /// `[out, groups]`
    pub d_scale: Array2<T>,
    /// `[out, groups]`
    pub d_offset: Array2<T>,
}

/// Result of [`L4q::merge`]: all that is needed to run the layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged<T> {
    /// `[out, in]`
    pub codes: Array2<i8>,
    /// `[out, groups]`, at least `SCALE_FLOOR`.
    pub scale: Array2<T>,
    /// `[out, groups]`
    pub offset: Array2<T>,
}

impl<T: Real> L4q<'_, T> {
    /// The layer's output. Eq. (M1).
    ///
    /// ```text
    /// effective_weight = weight + delta_weight(lora_a, lora_b, lora_scaling)
    /// fake_quantized = fake_quantize(effective_weight, scale, offset)
    /// y = linear(x, fake_quantized)
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]` -> `y [tokens, out]`, `codes, fake_quantized [out, in]`
    ///
    /// # Errors
    /// `Shape`, `NonFinite`, `Spec` for a `lora_scaling` that is not finite.
    pub fn forward(&self, x: ArrayView2<T>) -> Result<L4qForward<T>, Error> {
        check::input("l4q.forward", "x", &x, &[x.nrows(), self.spec.in_features()])?;
        let FakeQuantized { codes, output: fake_quantized } = self.quantized("l4q.forward")?;
        let y = linear(x, fake_quantized.view())?;
        Ok(L4qForward { y, codes, fake_quantized })
    }

    /// Gradients of input and trained tensors; everything but `x` is recomputed. Eq. (M2).
    ///
    /// ```text
    /// d_x, d_fake_quantized = linear_backward(x, fake_quantized, d_y)
    /// d_effective_weight, d_scale, d_offset =
    ///     fake_quantize_backward(effective_weight, scale, offset, d_fake_quantized)
    /// d_lora_a[r,i] = lora_scaling * sum_o lora_b[o,r] * d_effective_weight[o,i]
    /// d_lora_b[o,r] = lora_scaling * sum_i d_effective_weight[o,i] * lora_a[r,i]
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]`, `d_y [tokens, out]` -> like `x` and the trained tensors
    ///
    /// # Errors
    /// As [`L4q::forward`].
    pub fn backward(
        &self,
        x: ArrayView2<T>,
        d_y: ArrayView2<T>,
        rules: impl Into<StraightThrough>,
    ) -> Result<L4qGradients<T>, Error> {
        const OPERATION: &str = "l4q.backward";
        check::input(OPERATION, "x", &x, &[x.nrows(), self.spec.in_features()])?;
        check::input(OPERATION, "d_y", &d_y, &[x.nrows(), self.weight.nrows()])?;
        let quantized = self.quantized(OPERATION)?;
        let through_linear = linear_backward(x, quantized.output.view(), d_y)?;
        let parameters = self.parameter_gradients(through_linear.d_weight.view(), rules)?;
        Ok(L4qGradients {
            d_x: through_linear.d_x,
            d_lora_a: parameters.d_lora_a,
            d_lora_b: parameters.d_lora_b,
            d_scale: parameters.d_scale,
            d_offset: parameters.d_offset,
        })
    }

    /// The part of Eq. (M2) that follows the gradient of the quantized weight.
    ///
    /// # Shapes
    /// `d_fake_quantized [out, in]` -> like the trained tensors
    ///
    /// # Errors
    /// As [`L4q::forward`].
    pub fn parameter_gradients(
        &self,
        d_fake_quantized: ArrayView2<T>,
        rules: impl Into<StraightThrough>,
    ) -> Result<L4qParameterGradients<T>, Error> {
        const OPERATION: &str = "l4q.parameter_gradients";
        check::input(OPERATION, "d_fake_quantized", &d_fake_quantized, self.weight.shape())?;
        let effective_weight = self.effective_weight(OPERATION)?;
        let quantizer = fake_quantize_backward(
            effective_weight.view(),
            self.scale,
            self.offset,
            d_fake_quantized,
            &self.spec,
            rules,
        )?;
        let factors = delta_weight_backward(
            self.lora_a,
            self.lora_b,
            self.lora_scaling,
            quantizer.d_weight.view(),
        )?;
        Ok(L4qParameterGradients {
            d_lora_a: factors.d_lora_a,
            d_lora_b: factors.d_lora_b,
            d_scale: quantizer.d_scale,
            d_offset: quantizer.d_offset,
        })
    }

    /// The layer without its adapter. Eq. (M3).
    ///
    /// ```text
    /// codes = quantize(effective_weight, scale, offset)
    /// scale = raised_scale
    /// offset = offset
    /// ```
    ///
    /// `dequantize(codes, scale, offset)` is `fake_quantized` of the forward pass, bit for bit.
    ///
    /// # Errors
    /// As [`L4q::forward`].
    pub fn merge(&self) -> Result<Merged<T>, Error> {
        let FakeQuantized { codes, .. } = self.quantized("l4q.merge")?;
        Ok(Merged { codes, scale: self.scale.mapv(raised_scale), offset: self.offset.to_owned() })
    }

    fn quantized(&self, operation: &'static str) -> Result<FakeQuantized<T>, Error> {
        let effective_weight = self.effective_weight(operation)?;
        fake_quantize(effective_weight.view(), self.scale, self.offset, &self.spec)
    }

    /// `weight + lora_scaling * (lora_b @ lora_a)`, after every tensor of the layer was checked.
    fn effective_weight(&self, operation: &'static str) -> Result<Array2<T>, Error> {
        check::quantizer(operation, &self.weight, &self.scale, &self.offset, &self.spec)?;
        let (out_features, in_features) = self.weight.dim();
        let rank = self.lora_a.nrows();
        check::input(operation, "lora_a", &self.lora_a, &[rank, in_features])?;
        check::input(operation, "lora_b", &self.lora_b, &[out_features, rank])?;
        let delta = delta_weight(self.lora_a, self.lora_b, self.lora_scaling)?;
        check::result(operation, "effective_weight", &self.weight + &delta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Bits, GradScale};
    use ndarray::array;

    #[test]
    fn examples_of_m1_m2_and_m3() {
        let (weight, lora_a) = (array![[1.0, -0.5]], array![[1.0, 2.0]]);
        let (lora_b, scale, offset) = (array![[0.25]], array![[0.5]], array![[0.0]]);
        let layer = L4q {
            weight: weight.view(),
            lora_a: lora_a.view(),
            lora_b: lora_b.view(),
            scale: scale.view(),
            offset: offset.view(),
            lora_scaling: 1.0,
            spec: QuantSpec::new(Bits::new(4).unwrap(), None, 2).unwrap(),
        };
        let x = array![[2.0, 3.0]];
        let forward = layer.forward(x.view()).unwrap();
        assert_eq!(forward.codes, array![[2, 0]]);
        assert_eq!(forward.fake_quantized, array![[1.0, 0.0]]);
        assert_eq!(forward.y, array![[2.0]]);

        let backward = layer.backward(x.view(), array![[1.0]].view(), GradScale::None).unwrap();
        assert_eq!(backward.d_x, array![[1.0, 0.0]]);
        assert_eq!(backward.d_lora_a, array![[0.5, 0.75]]);
        assert_eq!(backward.d_lora_b, array![[8.0]]);
        assert_eq!(backward.d_scale, array![[-1.0]]);
        assert_eq!(backward.d_offset, array![[0.0]]);

        let merged = layer.merge().unwrap();
        assert_eq!(merged, Merged { codes: array![[2, 0]], scale, offset });
    }
}
