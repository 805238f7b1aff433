//! `swiglu`: the gated activation of the feed-forward layer. Eq. (N5).

mod cpu;
mod cuda;

use crate::backend::Storage;
use crate::error::Result;

/// Gates values.
pub trait Swiglu: Storage {
    /// `output[i] = silu(gate[i]) * up[i]`, `silu(g) = g / (1 + exp(-g))`. Eq. (N5).
    ///
    /// # Errors
    /// `Length` when a buffer is shorter than `len`.
    fn swiglu(
        &self,
        len: usize,
        gate: &Self::Floats,
        up: &Self::Floats,
        output: &mut Self::Floats,
    ) -> Result<()>;

    /// With `p = 1 / (1 + exp(-gate))`: `d_gate = d_output * up * p * (1 + gate * (1 - p))`,
    /// `d_up = d_output * gate * p`. Eq. (N5b).
    ///
    /// # Errors
    /// `Length` when a buffer is shorter than `len`.
    fn swiglu_backward(
        &self,
        len: usize,
        gate: &Self::Floats,
        up: &Self::Floats,
        d_output: &Self::Floats,
        d_gate: &mut Self::Floats,
        d_up: &mut Self::Floats,
    ) -> Result<()>;
}
