//! `rms_norm`: root-mean-square normalisation. Eq. (N2).

mod cpu;
mod cuda;

use super::Write;
use crate::backend::Storage;
use crate::error::Result;

/// Sizes and constant of a normalisation.
#[derive(Debug, Clone, Copy)]
pub struct RmsNormArgs {
    /// Rows.
    pub tokens: usize,
    /// Columns.
    pub hidden: usize,
    /// Added to the mean square.
    pub eps: f32,
}

/// Gradient buffers of a normalisation.
pub struct RmsNormGradients<'a, F> {
    /// `[tokens, hidden]`, replaced or added to as `write_d_x` says.
    pub d_x: &'a mut F,
    /// What happens to `d_x`.
    pub write_d_x: Write,
    /// `[hidden]`, added to; `None` for a frozen weight.
    pub d_weight: Option<&'a mut F>,
}

/// Normalises rows.
pub trait RmsNorm: Storage {
    /// `output[t,h] = x[t,h] * inverse_rms[t] * weight[h]`,
    /// `inverse_rms[t] = 1 / sqrt(mean_h(x[t,h]^2) + eps)`. Eq. (N2).
    ///
    /// # Shapes
    /// `x [tokens, hidden]`, `weight [hidden]` -> `output [tokens, hidden]`,
    /// `inverse_rms [tokens]` (saved for the backward)
    ///
    /// # Errors
    /// `Length` when a buffer is too short.
    fn rms_norm(
        &self,
        args: RmsNormArgs,
        x: &Self::Floats,
        weight: &Self::Floats,
        output: &mut Self::Floats,
        inverse_rms: &mut Self::Floats,
    ) -> Result<()>;

    /// With `n = x * inverse_rms` and `d_n = d_output * weight`:
    /// `d_x = inverse_rms * (d_n - n * mean_h(d_n * n))`, `d_weight[h] = sum_t d_output * n`.
    /// Eq. (N2b).
    ///
    /// # Shapes
    /// as [`RmsNorm::rms_norm`], `d_output [tokens, hidden]`
    ///
    /// # Errors
    /// `Length` when a buffer is too short.
    fn rms_norm_backward(
        &self,
        args: RmsNormArgs,
        x: &Self::Floats,
        weight: &Self::Floats,
        inverse_rms: &Self::Floats,
        d_output: &Self::Floats,
        gradients: RmsNormGradients<'_, Self::Floats>,
    ) -> Result<()>;
}
