//! `fake_quantize`: a weight, with or without its low-rank update, to the grid and back.
//! Eqs. (Q2) to (Q4), (M1).

mod cpu;
pub(crate) mod cuda;

use plumbline_reference::spec::QuantSpec;

use crate::backend::Storage;
use crate::error::Result;
use crate::ops::widen::WeightView;

pub(crate) use cpu::{INFINITE, LowRankRows, RowQuantizer, floored, magnitude, nearest_code};

/// A low-rank update `lora_scaling * (lora_b @ lora_a)` of a weight.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a, F> {
    /// `[rank, in]`.
    pub lora_a: &'a F,
    /// `[out, rank]`.
    pub lora_b: &'a F,
    /// Inner dimension.
    pub rank: usize,
    /// Final multiplier, `alpha / rank`.
    pub lora_scaling: f32,
}

/// A weight on its way to the grid.
pub struct FakeQuantizeArgs<'a, B: Storage + ?Sized> {
    /// Grid and groups.
    pub spec: QuantSpec,
    /// Rows of the weight.
    pub out_features: usize,
    /// `[out, in]`; of whatever type, it is read as f32.
    pub weight: WeightView<'a, B>,
    /// The update inside the quantizer, where there is one.
    pub low_rank: Option<LowRank<'a, B::Floats>>,
    /// `[out, groups]`.
    pub scale: &'a B::Floats,
    /// `[out, groups]`, in weight units.
    pub offset: &'a B::Floats,
}

/// Rounds weights to their grid.
pub trait FakeQuantize: Storage {
    /// `v = (weight + lora_scaling * (lora_b @ lora_a) - offset) / max(scale, 1e-8)`,
    /// `code = round_half_even(clamp(v, qmin, qmax))`, `output = code * scale + offset`.
    /// Eqs. (Q2), (Q4), (M1).
    ///
    /// All in f32: the product of length rank from zero in ascending order, then times
    /// lora_scaling, plus weight, minus offset, true division; no product and sum share a rounding.
    /// That order makes the codes equal on every backend bit for bit.
    ///
    /// # Shapes
    /// -> `output [out, in]`, `codes [out, in]`
    ///
    /// # Errors
    /// `NonFinite` naming the tensor; `Length`.
    fn fake_quantize(
        &self,
        args: &FakeQuantizeArgs<'_, Self>,
        output: &mut Self::Floats,
        codes: Option<&mut Self::Codes>,
    ) -> Result<()>;

    /// `output = code * scale + offset`. Eq. (Q3). The bits of [`FakeQuantize::fake_quantize`].
    ///
    /// # Shapes
    /// `codes [out, in]`, `scale, offset [out, groups]` -> `output [out, in]`
    ///
    /// # Errors
    /// `Length`.
    fn dequantize(
        &self,
        spec: QuantSpec,
        out_features: usize,
        codes: &Self::Codes,
        scale: &Self::Floats,
        offset: &Self::Floats,
        output: &mut Self::Floats,
    ) -> Result<()>;
}
