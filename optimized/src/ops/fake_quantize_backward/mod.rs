//! `fake_quantize_backward`: straight-through gradients of the grid. Eqs. (Q5) to (Q7), (M2).

mod cpu;
pub(crate) mod cuda;

pub(crate) use cpu::low_rank_gradients;

use plumbline_reference::spec::{GradScale, QuantSpec};

use super::fake_quantize::FakeQuantizeArgs;
use crate::backend::Storage;
use crate::error::Result;

/// Where the gradients go; each is added to what its buffer holds.
pub struct FakeQuantizeGradients<'a, F> {
    /// `[out, groups]`, `None` for a frozen scale.
    pub d_scale: Option<&'a mut F>,
    /// `[out, groups]`, `None` for a frozen offset.
    pub d_offset: Option<&'a mut F>,
    /// `d_lora_a [rank, in]` and `d_lora_b [out, rank]`, where there is a low-rank update.
    pub d_low_rank: Option<(&'a mut F, &'a mut F)>,
}

/// Sends a gradient through the rounding.
pub trait FakeQuantizeBackward: Storage {
    /// With `D` the gradient of the fake-quantized weight, `v` the quantizer argument, recomputed,
    /// and `M = 1` where `qmin <= v <= qmax`, else 0 (closed, before rounding):
    ///
    /// `D` becomes `d_weight = M * D` (Q5), in place;
    /// `d_scale += f * sum_group D * (code - M * v)`, zero where `scale < 1e-8` (Q6);
    /// `d_offset += f * sum_group D * (1 - M)` (Q7);
    /// `d_lora_a += lora_scaling * lora_b^T @ d_weight`, `d_lora_b += lora_scaling * d_weight @ lora_a^T` (M2);
    /// `f` is the factor of `grad_scale`.
    ///
    /// # Shapes
    /// `d_output [out, in]`, the rest as in [`FakeQuantizeArgs`]
    ///
    /// # Errors
    /// `NonFinite` naming the tensor; `Length`.
    fn fake_quantize_backward(
        &self,
        args: &FakeQuantizeArgs<'_, Self>,
        grad_scale: GradScale,
        d_output: &mut Self::Floats,
        gradients: FakeQuantizeGradients<'_, Self::Floats>,
    ) -> Result<()>;
}

/// The constant factor on the gradients of scale and offset. Eq. (Q7).
pub(crate) fn factor(spec: QuantSpec, grad_scale: GradScale) -> f32 {
    let qmax = f64::from(spec.qmax());
    let (group_size, groups) = (spec.group_size() as f64, spec.groups() as f64);
    let factor = match grad_scale {
        GradScale::None => 1.0,
        GradScale::Lsq => 1.0 / (group_size * qmax).sqrt(),
        GradScale::LitGpt => 1.0 / (groups * qmax).sqrt(),
        GradScale::Peft => 1.0 / (group_size.sqrt() * qmax),
    };
    factor as f32
}
