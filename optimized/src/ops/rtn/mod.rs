//! `rtn`: round to nearest, the grid of every group from its weights alone. Eq. (Q13).

mod cpu;
mod cuda;

use plumbline_reference::spec::{QuantSpec, RtnSpec};

use crate::backend::Storage;
use crate::error::Result;

/// Chooses an unsigned grid for a weight; [`Affine`](super::affine::Affine) puts the weight on it.
pub trait Rtn: Storage {
    /// Scale and zero point of every group. Eq. (Q13). A group whose scale would be zero gets
    /// scale 1, and all its codes are then its zero point.
    ///
    /// # Shapes
    /// `weight [out, in]` -> `scale, zero_point [out, groups]`
    ///
    /// # Errors
    /// `NonFinite` for a bad weight, and for a scale that overflows; `Length`.
    fn rtn(
        &self,
        spec: QuantSpec,
        rtn: RtnSpec,
        out_features: usize,
        weight: &Self::Floats,
        scale: &mut Self::Floats,
        zero_point: &mut Self::Floats,
    ) -> Result<()>;
}
