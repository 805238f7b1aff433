//! `widen`: a frozen weight in 16 bits as the floats that it stands for.

mod cpu;
mod cuda;
mod frozen;

use crate::backend::Storage;
use crate::error::Result;

pub(crate) use cuda::Entries;
pub(crate) use frozen::Weights;
pub use frozen::{FrozenWeight, WeightType, WeightView};

/// Reads a stored weight.
pub trait Widen: Storage {
    /// `output[i] = weight[i]`, without loss; where the output is the operand of a rounded product,
    /// rounded once to its type.
    ///
    /// # Shapes
    /// `weight [len]` -> `output [len]`
    ///
    /// # Errors
    /// `Length`.
    fn widen(
        &self,
        len: usize,
        weight: WeightView<'_, Self>,
        output: &mut Self::Floats,
    ) -> Result<()>;
}
