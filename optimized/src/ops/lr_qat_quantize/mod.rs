//! `lr_qat_quantize`: a frozen weight in a cheap type and its low-rank update, rounded together,
//! and the straight-through gradients. Eqs. (M4) to (M7).

mod cpu;
mod cuda;
mod stored;

use plumbline_reference::spec::LrQatSpec;

use super::fake_quantize::LowRank;
use crate::backend::Storage;
use crate::error::Result;

pub use stored::{StoredWeight, stored_row_bytes};

/// A weight on its way to the grid.
pub struct LrQatArgs<'a, B: Storage + ?Sized> {
    /// Grid, groups, and the method's choices.
    pub spec: LrQatSpec,
    /// Rows of the weight.
    pub out_features: usize,
    /// `[out, in]`, in units of its first grid; with a live inner scale the weight itself, as F32.
    pub weight: &'a StoredWeight<B>,
    /// `[out, groups]`, frozen codes of the unsigned grid; `None` for the signed one.
    pub zero_point: Option<&'a B::Floats>,
    /// The update, in units of the grid.
    pub low_rank: LowRank<'a, B::Floats>,
    /// `[out, groups]`.
    pub scale: &'a B::Floats,
}

/// Where the gradients go; each is added to what its buffer holds, `None` for a frozen tensor.
pub struct LrQatGradients<'a, F> {
    /// `[out, groups]`.
    pub d_scale: Option<&'a mut F>,
    /// `d_lora_a [rank, in]` and `d_lora_b [out, rank]`.
    pub d_low_rank: Option<(&'a mut F, &'a mut F)>,
}

/// Rounds the sum of a stored weight and its update.
pub trait LrQatQuantize: Storage {
    /// `argument = inner + lora_scaling * (lora_b @ lora_a)`, where `inner` is what is stored, or
    /// with a live inner scale `weight / max(scale, 1e-8)`;
    /// `code = clamp(round_half_even(argument), low, high)`, `output = code * max(scale, 1e-8)`.
    /// Eq. (M5). Under the dialect `lr_qat_code` it is the update alone that is rounded.
    ///
    /// `low` is `qmin`, or `-zero_point` where there is one; `high = low + 2^bits - 1`.
    ///
    /// All in f32: the product of length rank from zero in ascending order, then times
    /// lora_scaling, plus inner, true division; no product and sum share a rounding. That order
    /// makes the codes equal on every backend bit for bit.
    ///
    /// # Shapes
    /// -> `output [out, in]`, `codes [out, in]`
    ///
    /// # Errors
    /// `NonFinite` naming the tensor, also for an argument that overflows; `Length`.
    fn lr_qat_quantize(
        &self,
        args: &LrQatArgs<'_, Self>,
        output: &mut Self::Floats,
        codes: Option<&mut Self::Codes>,
    ) -> Result<()>;

    /// With `D` the gradient of the output and everything else recomputed, `M = 1` where the
    /// rounded argument, or under the mask `pre_round` the argument, lies from `low` to `high`:
    ///
    /// `D` becomes `d_argument = M * max(scale, 1e-8) * D`, in place;
    /// `d_lora_a += lora_scaling * lora_b^T @ d_argument`,
    /// `d_lora_b += lora_scaling * d_argument @ lora_a^T`;
    /// `d_scale += sum_group D * code`, with a live inner scale `sum_group D * (code - M * inner)`,
    /// nothing where `scale < 1e-8`. Eq. (M6).
    ///
    /// # Shapes
    /// `d_output [out, in]`, the rest as in [`LrQatArgs`]
    ///
    /// # Errors
    /// As [`LrQatQuantize::lr_qat_quantize`].
    fn lr_qat_quantize_backward(
        &self,
        args: &LrQatArgs<'_, Self>,
        d_output: &mut Self::Floats,
        gradients: LrQatGradients<'_, Self::Floats>,
    ) -> Result<()>;
}
