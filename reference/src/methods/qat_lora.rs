//! QAT-LoRA (L4Q, arXiv:2402.04902, section 3.1): the frozen weight is quantized on a trained grid,
//! and the low-rank update is a path beside it in full precision. Its codes are therefore only half
//! of the layer: the update cannot be merged into them without rounding.

use ndarray::{Array2, ArrayView2};

use super::qat::QatForward;
use crate::linear::linear_backward;
use crate::lora::{lora_backward, lora_forward};
use crate::quantize::{FakeQuantized, fake_quantize};
use crate::spec::{QuantSpec, StraightThrough};
use crate::straight_through::fake_quantize_backward;
use crate::{Error, Real, check};

/// One linear layer under QAT-LoRA.
#[derive(Debug, Clone, Copy)]
pub struct QatLora<'a, T> {
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
    /// Multiplier on the update.
    pub lora_scaling: f64,
    /// The grid.
    pub spec: QuantSpec,
}

/// Result of [`QatLora::backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct QatLoraGradients<T> {
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

impl<T: Real> QatLora<'_, T> {
    /// The layer's output. Eq. (M13).
    ///
    /// ```text
    /// fake_quantized = fake_quantize(weight, scale, offset)
    /// y = lora_forward(x, fake_quantized, lora_a, lora_b, lora_scaling)
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]` -> `y [tokens, out]`, `codes, fake_quantized [out, in]`
    ///
    /// # Errors
    /// `Shape`, `NonFinite`, `Spec` for a `lora_scaling` that is not finite.
    pub fn forward(&self, x: ArrayView2<T>) -> Result<QatForward<T>, Error> {
        let FakeQuantized { codes, output: fake_quantized } =
            self.quantized("qat_lora.forward", &x)?;
        let weight = fake_quantized.view();
        let y = lora_forward(x, weight, self.lora_a, self.lora_b, self.lora_scaling)?;
        Ok(QatForward { y, codes, fake_quantized })
    }

    /// Gradients of input and trained tensors. Eq. (M14).
    ///
    /// ```text
    /// d_x, d_lora_a, d_lora_b =
    ///     lora_backward(x, fake_quantized, lora_a, lora_b, lora_scaling, d_y)
    /// d_fake_quantized[o,i] = sum_t d_y[t,o] * x[t,i]
    /// d_scale, d_offset = fake_quantize_backward(weight, scale, offset, d_fake_quantized)
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]`, `d_y [tokens, out]` -> like `x` and the trained tensors
    ///
    /// # Errors
    /// As [`QatLora::forward`].
    pub fn backward(
        &self,
        x: ArrayView2<T>,
        d_y: ArrayView2<T>,
        rules: impl Into<StraightThrough>,
    ) -> Result<QatLoraGradients<T>, Error> {
        const OPERATION: &str = "qat_lora.backward";
        check::input(OPERATION, "d_y", &d_y, &[x.nrows(), self.weight.nrows()])?;
        let fake_quantized = self.quantized(OPERATION, &x)?.output;
        let weight = fake_quantized.view();
        let path = lora_backward(x, weight, self.lora_a, self.lora_b, self.lora_scaling, d_y)?;
        let d_fake_quantized = linear_backward(x, weight, d_y)?.d_weight;
        let quantizer = fake_quantize_backward(
            self.weight,
            self.scale,
            self.offset,
            d_fake_quantized.view(),
            &self.spec,
            rules,
        )?;
        Ok(QatLoraGradients {
            d_x: path.d_x,
            d_lora_a: path.d_lora_a,
            d_lora_b: path.d_lora_b,
            d_scale: quantizer.d_scale,
            d_offset: quantizer.d_offset,
        })
    }

    /// The quantized weight, after every tensor of the layer and its input were checked.
    fn quantized(
        &self,
        operation: &'static str,
        x: &ArrayView2<T>,
    ) -> Result<FakeQuantized<T>, Error> {
        check::input(operation, "x", x, &[x.nrows(), self.spec.in_features()])?;
        check::quantizer(operation, &self.weight, &self.scale, &self.offset, &self.spec)?;
        let (out_features, in_features) = self.weight.dim();
        let rank = self.lora_a.nrows();
        check::input(operation, "lora_a", &self.lora_a, &[rank, in_features])?;
        check::input(operation, "lora_b", &self.lora_b, &[out_features, rank])?;
        fake_quantize(self.weight, self.scale, self.offset, &self.spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Bits, GradScale};
    use ndarray::array;

    #[test]
    fn examples_of_m13_and_m14() {
        let (weight, lora_a, lora_b) = (array![[1.5, 9.0]], array![[1.0, 2.0]], array![[0.25]]);
        let (scale, offset) = (array![[0.5]], array![[0.25]]);
        let layer = QatLora {
            weight: weight.view(),
            lora_a: lora_a.view(),
            lora_b: lora_b.view(),
            scale: scale.view(),
            offset: offset.view(),
            lora_scaling: 2.0,
            spec: QuantSpec::new(Bits::new(4).unwrap(), None, 2).unwrap(),
        };
        let x = array![[2.0, 1.0]];
        let forward = layer.forward(x.view()).unwrap();
        assert_eq!(forward.codes, array![[2, 7]]);
        assert_eq!(forward.y, array![[8.25]]);

        let backward = layer.backward(x.view(), array![[4.0]].view(), GradScale::None).unwrap();
        assert_eq!(backward.d_x, array![[7.0, 19.0]]);
        assert_eq!(backward.d_lora_a, array![[4.0, 2.0]]);
        assert_eq!(backward.d_lora_b, array![[32.0]]);
        assert_eq!(backward.d_scale, array![[24.0]]);
        assert_eq!(backward.d_offset, array![[4.0]]);
    }
}
