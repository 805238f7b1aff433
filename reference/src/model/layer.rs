//! A linear layer inside a model: dense, or as one of the methods trains it.

use ndarray::{Array2, ArrayView2};

use crate::linear::{linear, linear_backward};
use crate::lora::{lora_backward, lora_forward};
use crate::methods::l4q::L4q;
use crate::methods::lr_qat::LrQat;
use crate::methods::peqa::Peqa;
use crate::methods::qa_lora::QaLora;
use crate::methods::qat::Qat;
use crate::methods::qat_lora::QatLora;
use crate::spec::StraightThrough;
use crate::{Error, Real};

/// The layer; its operations run as they are elsewhere, on the tokens of the whole batch.
pub(super) enum Layer<'a, T> {
    Dense(ArrayView2<'a, T>),
    Lora(Lora<'a, T>),
    L4q(L4q<'a, T>, StraightThrough),
    LrQat(LrQat<'a, T>),
    QaLora(QaLora<'a, T>),
    Qat(Qat<'a, T>, StraightThrough),
    QatLora(QatLora<'a, T>, StraightThrough),
    Peqa(Peqa<'a, T>),
}

/// A frozen weight and the update beside it.
pub(super) struct Lora<'a, T> {
    pub weight: ArrayView2<'a, T>,
    pub lora_a: ArrayView2<'a, T>,
    pub lora_b: ArrayView2<'a, T>,
    pub lora_scaling: f64,
}

/// Gradients through one layer.
pub(super) struct LayerBackward<T> {
    /// `[tokens, in]`
    pub d_x: Array2<T>,
    /// Of each trained tensor, under its name in the layer.
    pub gradients: Vec<(&'static str, Array2<T>)>,
}

impl<T: Real> Layer<'_, T> {
    /// `x [tokens, in]` -> `[tokens, out]`
    pub fn forward(&self, x: ArrayView2<T>) -> Result<Array2<T>, Error> {
        match self {
            Self::Dense(weight) => linear(x, *weight),
            Self::Lora(Lora { weight, lora_a, lora_b, lora_scaling }) => {
                lora_forward(x, *weight, *lora_a, *lora_b, *lora_scaling)
            }
            Self::L4q(layer, _) => Ok(layer.forward(x)?.y),
            Self::LrQat(layer) => Ok(layer.forward(x)?.y),
            Self::QaLora(layer) => layer.forward(x),
            Self::Qat(layer, _) => Ok(layer.forward(x)?.y),
            Self::QatLora(layer, _) => Ok(layer.forward(x)?.y),
            Self::Peqa(layer) => layer.forward(x),
        }
    }

    /// `x [tokens, in]`, `d_y [tokens, out]` -> like `x` and the trained tensors
    pub fn backward(
        &self,
        x: ArrayView2<T>,
        d_y: ArrayView2<T>,
    ) -> Result<LayerBackward<T>, Error> {
        let (d_x, gradients) = match self {
            Self::Dense(weight) => {
                let d = linear_backward(x, *weight, d_y)?;
                (d.d_x, vec![("weight", d.d_weight)])
            }
            Self::Lora(Lora { weight, lora_a, lora_b, lora_scaling }) => {
                let d = lora_backward(x, *weight, *lora_a, *lora_b, *lora_scaling, d_y)?;
                (d.d_x, vec![("lora_a", d.d_lora_a), ("lora_b", d.d_lora_b)])
            }
            Self::L4q(layer, rules) => {
                let d = layer.backward(x, d_y, *rules)?;
                let factors = [("lora_a", d.d_lora_a), ("lora_b", d.d_lora_b)];
                let grid = [("scale", d.d_scale), ("offset", d.d_offset)];
                (d.d_x, factors.into_iter().chain(grid).collect())
            }
            Self::LrQat(layer) => {
                let d = layer.backward(x, d_y)?;
                let factors = vec![("lora_a", d.d_lora_a), ("lora_b", d.d_lora_b)];
                (d.d_x, factors.into_iter().chain([("scale", d.d_scale)]).collect())
            }
            Self::QaLora(layer) => {
                let d = layer.backward(x, d_y)?;
                (d.d_x, vec![("lora_a", d.d_lora_a), ("lora_b", d.d_lora_b)])
            }
            Self::Qat(layer, rules) => {
                let d = layer.backward(x, d_y, *rules)?;
                let grid = vec![("weight", d.d_weight), ("scale", d.d_scale)];
                let offset = d.d_offset.map(|d_offset| ("offset", d_offset));
                (d.d_x, grid.into_iter().chain(offset).collect())
            }
            Self::QatLora(layer, rules) => {
                let d = layer.backward(x, d_y, *rules)?;
                let factors = [("lora_a", d.d_lora_a), ("lora_b", d.d_lora_b)];
                let grid = [("scale", d.d_scale), ("offset", d.d_offset)];
                (d.d_x, factors.into_iter().chain(grid).collect())
            }
            Self::Peqa(layer) => {
                let d = layer.backward(x, d_y)?;
                (d.d_x, vec![("scale", d.d_scale)])
            }
        };
        Ok(LayerBackward { d_x, gradients })
    }
}
