//! QA-LoRA (arXiv:2309.14717): a frozen weight on an unsigned grid, and an adapter that sees one
//! number of each group of inputs. What the adapter adds is then constant over a group, which is
//! what moving the group's zero point does: [`QaLora::merge`] changes the zero points and no code.

use ndarray::{Array2, ArrayView2};

use crate::affine::{affine_dequantize, affine_layer};
use crate::linear::{linear, linear_backward};
use crate::lora::delta_weight;
use crate::quantize::raised_scale;
use crate::spec::{GroupPool, Pool, QaLoraDialect, QuantSpec};
use crate::{Error, Real, check};

/// One linear layer under QA-LoRA.
#[derive(Debug, Clone, Copy)]
pub struct QaLora<'a, T> {
    /// `[out, in]`, frozen, each from 0 to `2^bits - 1`.
    pub codes: ArrayView2<'a, u8>,
    /// `[out, groups]`, frozen.
    pub scale: ArrayView2<'a, T>,
    /// `[out, groups]`, frozen, real.
    pub zero_point: ArrayView2<'a, T>,
    /// `[rank, groups]`
    pub lora_a: ArrayView2<'a, T>,
    /// `[out, rank]`
    pub lora_b: ArrayView2<'a, T>,
    /// Multiplier on `lora_b @ lora_a`.
    pub lora_scaling: f64,
    /// What the adapter sees of a group.
    pub pool: GroupPool,
    /// The grid; codes are unsigned.
    pub spec: QuantSpec,
}

/// Result of [`QaLora::backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct QaLoraGradients<T> {
    /// `[tokens, in]`
    pub d_x: Array2<T>,
    /// `[rank, groups]`
    pub d_lora_a: Array2<T>,
    /// `[out, rank]`
    pub d_lora_b: Array2<T>,
}

impl<T: Real> QaLora<'_, T> {
    /// The layer's output. Eq. (M8).
    ///
    /// ```text
    /// weight = affine_dequantize(codes, scale, zero_point)
    /// sum:             pooled[t,g] = sum_(i in g) x[t,i]
    /// mean:            pooled[t,g] = (sum_(i in g) x[t,i]) / group_size
    /// hf_peft_qalora:  pooled[t,g] = (sum_(i in g) x[t,i]) / group_size * groups
    /// low[t,r] = sum_g pooled[t,g] * lora_a[r,g]
    /// y[t,o] = sum_i x[t,i] * weight[o,i] + lora_scaling * sum_r low[t,r] * lora_b[o,r]
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]` -> `[tokens, out]`
    ///
    /// # Errors
    /// `Shape`, `NonFinite`, `CodeOutOfRange`, `Spec` for a `lora_scaling` that is not finite.
    pub fn forward(&self, x: ArrayView2<T>) -> Result<Array2<T>, Error> {
        const OPERATION: &str = "qa_lora.forward";
        let lora_scaling = self.check(OPERATION)?;
        check::input(OPERATION, "x", &x, &[x.nrows(), self.spec.in_features()])?;
        let weight = affine_dequantize(self.codes, self.scale, self.zero_point, &self.spec)?;
        let pooled = check::result(OPERATION, "pooled", self.pooled(x))?;
        let low = linear(pooled.view(), self.lora_a)?;
        let update = linear(low.view(), self.lora_b)? * lora_scaling;
        check::result(OPERATION, "y", linear(x, weight.view())? + update)
    }

    /// Gradients of input and factors; codes, scale and zero point are frozen. Eq. (M9).
    ///
    /// ```text
    /// d_low[t,r] = lora_scaling * sum_o d_y[t,o] * lora_b[o,r]
    /// d_pooled[t,g] = sum_r d_low[t,r] * lora_a[r,g]
    /// sum:             d_input[t,g] = d_pooled[t,g]
    /// mean:            d_input[t,g] = d_pooled[t,g] / group_size
    /// hf_peft_qalora:  d_input[t,g] = d_pooled[t,g] * groups / group_size
    /// d_x[t,i] = sum_o d_y[t,o] * weight[o,i] + d_input[t,g]
    /// d_lora_a[r,g] = sum_t d_low[t,r] * pooled[t,g]
    /// d_lora_b[o,r] = lora_scaling * sum_t d_y[t,o] * low[t,r]
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]`, `d_y [tokens, out]` -> like `x`, `lora_a`, `lora_b`
    ///
    /// # Errors
    /// As [`QaLora::forward`].
    pub fn backward(
        &self,
        x: ArrayView2<T>,
        d_y: ArrayView2<T>,
    ) -> Result<QaLoraGradients<T>, Error> {
        const OPERATION: &str = "qa_lora.backward";
        let lora_scaling = self.check(OPERATION)?;
        check::input(OPERATION, "x", &x, &[x.nrows(), self.spec.in_features()])?;
        check::input(OPERATION, "d_y", &d_y, &[x.nrows(), self.codes.nrows()])?;
        let weight = affine_dequantize(self.codes, self.scale, self.zero_point, &self.spec)?;
        let pooled = check::result(OPERATION, "pooled", self.pooled(x))?;
        let low = linear(pooled.view(), self.lora_a)?;
        let through_b = linear_backward(low.view(), self.lora_b, d_y)?;
        let d_low = through_b.d_x * lora_scaling;
        let through_a = linear_backward(pooled.view(), self.lora_a, d_low.view())?;
        let mut d_x = linear_backward(x, weight.view(), d_y)?.d_x;
        for ((t, i), d_x) in d_x.indexed_iter_mut() {
            *d_x += self.spread(through_a.d_x[[t, i / self.spec.group_size()]]);
        }
        Ok(QaLoraGradients {
            d_x: check::result(OPERATION, "d_x", d_x)?,
            d_lora_a: through_a.d_weight,
            d_lora_b: check::result(OPERATION, "d_lora_b", through_b.d_weight * lora_scaling)?,
        })
    }

    /// The zero points of the layer without its adapter; codes and scale stay. Eq. (M10).
    ///
    /// ```text
    /// delta[o,g] = lora_scaling * sum_r lora_b[o,r] * lora_a[r,g]
    /// sum:  merged_zero_point[o,g] = zero_point[o,g] - delta[o,g] / raised_scale[o,g]
    /// mean: merged_zero_point[o,g] = zero_point[o,g] - delta[o,g] / group_size / raised_scale[o,g]
    /// ```
    ///
    /// In real arithmetic the layer's output does not change. The merged zero points are real:
    /// rounding them to codes would undo that.
    ///
    /// # Shapes
    /// -> `[out, groups]`
    ///
    /// # Errors
    /// As [`QaLora::forward`], and `Spec` for the dialect `hf_peft_qalora`, whose code refuses to
    /// merge.
    pub fn merge(&self) -> Result<Array2<T>, Error> {
        const OPERATION: &str = "qa_lora.merge";
        self.check(OPERATION)?;
        if self.pool.dialect() == QaLoraDialect::HfPeftQalora {
            let expected = "paper or qa_lora_code to merge: the code of this dialect refuses to";
            return Err(check::out_of_range("dialect", "hf_peft_qalora", expected));
        }
        let delta = delta_weight(self.lora_a, self.lora_b, self.lora_scaling)?;
        let delta = match self.pool.pool() {
            Pool::Sum => delta,
            Pool::Mean => delta / self.group_size(),
        };
        let merged = Array2::from_shape_fn(delta.dim(), |at| {
            self.zero_point[at] - delta[at] / raised_scale(self.scale[at])
        });
        check::result(OPERATION, "zero_point", merged)
    }

    fn group_size(&self) -> T {
        T::of(self.spec.group_size() as f64)
    }

    fn groups(&self) -> T {
        T::of(self.spec.groups() as f64)
    }

    /// One number of each group of inputs, `[tokens, groups]`.
    fn pooled(&self, x: ArrayView2<T>) -> Array2<T> {
        let group_size = self.spec.group_size();
        Array2::from_shape_fn((x.nrows(), self.spec.groups()), |(t, g)| {
            let inputs = g * group_size..(g + 1) * group_size;
            let sum = inputs.fold(T::zero(), |sum, i| sum + x[[t, i]]);
            match (self.pool.dialect(), self.pool.pool()) {
                (QaLoraDialect::HfPeftQalora, _) => sum / self.group_size() * self.groups(),
                (_, Pool::Mean) => sum / self.group_size(),
                (_, Pool::Sum) => sum,
            }
        })
    }

    /// What one input gets of the gradient of its group.
    fn spread(&self, d_pooled: T) -> T {
        match (self.pool.dialect(), self.pool.pool()) {
            (QaLoraDialect::HfPeftQalora, _) => d_pooled * self.groups() / self.group_size(),
            (_, Pool::Mean) => d_pooled / self.group_size(),
            (_, Pool::Sum) => d_pooled,
        }
    }

    /// Checks every tensor of the layer; `lora_scaling` in the type of the computation.
    fn check(&self, operation: &'static str) -> Result<T, Error> {
        affine_layer(operation, &self.codes, &self.scale, &self.zero_point, &self.spec)?;
        let rank = self.lora_a.nrows();
        check::input(operation, "lora_a", &self.lora_a, &[rank, self.spec.groups()])?;
        check::input(operation, "lora_b", &self.lora_b, &[self.codes.nrows(), rank])?;
        check::number("lora_scaling", self.lora_scaling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Bits;
    use ndarray::array;

    fn with_example<R>(pool: Pool, dialect: QaLoraDialect, run: impl Fn(QaLora<f64>) -> R) -> R {
        let codes = array![[3_u8, 1, 0, 2]];
        let (scale, zero_point) = (array![[0.5, 1.0]], array![[1.0, 2.0]]);
        let (lora_a, lora_b) = (array![[1.0, -2.0]], array![[0.5]]);
        run(QaLora {
            codes: codes.view(),
            scale: scale.view(),
            zero_point: zero_point.view(),
            lora_a: lora_a.view(),
            lora_b: lora_b.view(),
            lora_scaling: 2.0,
            pool: GroupPool::new(pool, dialect).unwrap(),
            spec: QuantSpec::new(Bits::new(2).unwrap(), Some(2), 4).unwrap(),
        })
    }

    #[test]
    fn examples_of_m8_and_m9() {
        let (x, d_y) = (array![[1.0, 2.0, 3.0, 4.0]], array![[1.0]]);
        for (pool, dialect, y, d_x, d_lora_a, d_lora_b) in [
            (
                Pool::Sum,
                QaLoraDialect::Paper,
                -16.0,
                array![[2.0, 1.0, -4.0, -2.0]],
                array![[3.0, 7.0]],
                -22.0,
            ),
            (
                Pool::Mean,
                QaLoraDialect::QaLoraCode,
                -10.5,
                array![[1.5, 0.5, -3.0, -1.0]],
                array![[1.5, 3.5]],
                -11.0,
            ),
            (
                Pool::Mean,
                QaLoraDialect::HfPeftQalora,
                -16.0,
                array![[2.0, 1.0, -4.0, -2.0]],
                array![[3.0, 7.0]],
                -22.0,
            ),
        ] {
            with_example(pool, dialect, |layer| {
                assert_eq!(layer.forward(x.view()).unwrap(), array![[y]]);
                let gradients = layer.backward(x.view(), d_y.view()).unwrap();
                assert_eq!(gradients.d_x, d_x);
                assert_eq!(gradients.d_lora_a, d_lora_a);
                assert_eq!(gradients.d_lora_b, array![[d_lora_b]]);
            });
        }
    }

    #[test]
    fn example_of_m10() {
        let merged =
            |pool| with_example(pool, QaLoraDialect::Paper, |layer| layer.merge().unwrap());
        assert_eq!(merged(Pool::Sum), array![[-1.0, 4.0]]);
        assert_eq!(merged(Pool::Mean), array![[0.0, 3.0]]);
    }

    #[test]
    fn the_dialect_that_does_not_merge_is_refused() {
        let refused = with_example(Pool::Mean, QaLoraDialect::HfPeftQalora, |layer| {
            layer.merge().unwrap_err()
        });
        assert_eq!(
            refused.to_string(),
            "dialect is hf_peft_qalora, expected paper or qa_lora_code to merge: \
             the code of this dialect refuses to"
        );
    }

    #[test]
    fn a_scale_below_the_floor_divides_as_the_floor() {
        with_example(Pool::Sum, QaLoraDialect::Paper, |layer| {
            let scale = array![[0.0, 1.0]];
            let merged = QaLora { scale: scale.view(), ..layer }.merge().unwrap();
            assert_eq!(merged, array![[1.0 - 1.0 / 1e-8, 4.0]]);
        });
    }

    #[test]
    fn an_adapter_of_another_number_of_groups_or_rank_is_refused() {
        let x = array![[1.0, 2.0, 3.0, 4.0]];
        with_example(Pool::Sum, QaLoraDialect::Paper, |layer| {
            let wide = array![[1.0, 2.0, 3.0, 4.0]];
            let refused = QaLora { lora_a: wide.view(), ..layer }.forward(x.view()).unwrap_err();
            let expected = "qa_lora.forward: lora_a has shape [1, 4], expected [1, 2]";
            assert_eq!(refused.to_string(), expected);
            let deep = array![[1.0, 1.0]];
            let refused = QaLora { lora_b: deep.view(), ..layer }.merge().unwrap_err();
            let expected = "qa_lora.merge: lora_b has shape [1, 2], expected [1, 1]";
            assert_eq!(refused.to_string(), expected);
        });
    }

    #[test]
    fn a_zero_point_that_overflows_is_refused() {
        with_example(Pool::Sum, QaLoraDialect::Paper, |layer| {
            let (scale, lora_b) = (array![[0.0, 1.0]], array![[1e301]]);
            let layer = QaLora { scale: scale.view(), lora_b: lora_b.view(), ..layer };
            let refused = layer.merge().unwrap_err();
            assert_eq!(refused.to_string(), "qa_lora.merge: zero_point[0, 0] is -inf");
        });
    }
}
