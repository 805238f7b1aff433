//! `squared_norm`: for clipping by the global norm, and the guard against non-finite gradients.

mod cpu;
mod cuda;

use crate::backend::Storage;
use crate::error::Result;

/// The square of a buffer's Euclidean norm.
pub trait SquaredNorm: Storage {
    /// `sums[slot] = sum(x[i]^2 for i in 0..len)` in f64; infinite or NaN when a value is.
    ///
    /// # Errors
    /// `Length` when the buffer is shorter than `len`, or there is no such slot.
    fn squared_norm(
        &self,
        x: &Self::Floats,
        len: usize,
        sums: &mut Self::Sums,
        slot: usize,
    ) -> Result<()>;
}
