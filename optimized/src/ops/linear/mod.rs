//! `linear`: a product with a weight matrix, and its two adjoints. Eq. (N1).

mod cpu;
pub(crate) mod cuda;

use super::Write;
use crate::backend::Storage;
use crate::error::Result;

/// Sizes of a product and what happens to its result.
#[derive(Debug, Clone, Copy)]
pub struct LinearArgs {
    /// Rows of `x` and `y`.
    pub tokens: usize,
    /// Columns of `x` and of the weight.
    pub in_features: usize,
    /// Columns of `y`, rows of the weight.
    pub out_features: usize,
    /// Factor on the product.
    pub multiplier: f32,
    /// Replace the result's buffer or add to it.
    pub write: Write,
}

impl LinearArgs {
    /// A plain product that replaces.
    pub fn new(tokens: usize, in_features: usize, out_features: usize) -> Self {
        Self { tokens, in_features, out_features, multiplier: 1.0, write: Write::Replace }
    }

    /// The same, added to what the buffer holds.
    pub fn adding(self) -> Self {
        Self { write: Write::Add, ..self }
    }

    /// The same, times a factor.
    pub fn scaled(self, multiplier: f32) -> Self {
        Self { multiplier, ..self }
    }
}

/// Products with a weight `[out_features, in_features]`.
pub trait Linear: Storage {
    /// `y[t,o] = multiplier * sum_i x[t,i] * weight[o,i]`. Eq. (N1a).
    ///
    /// # Shapes
    /// `x [tokens, in]`, `weight [out, in]` -> `y [tokens, out]`
    ///
    /// # Errors
    /// `Length` when a buffer is too short.
    fn linear(
        &self,
        args: LinearArgs,
        x: &Self::Floats,
        weight: &Self::Floats,
        y: &mut Self::Floats,
    ) -> Result<()>;

    /// `d_x[t,i] = multiplier * sum_o d_y[t,o] * weight[o,i]`. Eq. (N1b).
    ///
    /// # Shapes
    /// `d_y [tokens, out]`, `weight [out, in]` -> `d_x [tokens, in]`
    ///
    /// # Errors
    /// `Length` when a buffer is too short.
    fn linear_input_gradient(
        &self,
        args: LinearArgs,
        d_y: &Self::Floats,
        weight: &Self::Floats,
        d_x: &mut Self::Floats,
    ) -> Result<()>;

    /// `d_weight[o,i] = multiplier * sum_t d_y[t,o] * x[t,i]`. Eq. (N1b).
    ///
    /// # Shapes
    /// `d_y [tokens, out]`, `x [tokens, in]` -> `d_weight [out, in]`
    ///
    /// # Errors
    /// `Length` when a buffer is too short.
    fn linear_weight_gradient(
        &self,
        args: LinearArgs,
        d_y: &Self::Floats,
        x: &Self::Floats,
        d_weight: &mut Self::Floats,
    ) -> Result<()>;
}
