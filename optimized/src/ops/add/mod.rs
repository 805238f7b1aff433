//! `add`: the residual connection. Eq. (N8).

mod cpu;
mod cuda;

use crate::backend::Storage;
use crate::error::Result;

/// `y += x`.
pub trait Add: Storage {
    /// `y[i] += x[i]` for `i` in `0..len`.
    ///
    /// # Errors
    /// `Length` when a buffer is shorter than `len`.
    fn add(&self, x: &Self::Floats, y: &mut Self::Floats, len: usize) -> Result<()>;
}
