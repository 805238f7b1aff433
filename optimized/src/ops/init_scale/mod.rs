//! `init_scale`: scale and offset of every group before training. Eq. (Q8).

mod cpu;
mod cuda;

use plumbline_reference::spec::{InitScaleRule, QuantSpec};

use crate::backend::Storage;
use crate::error::Result;

/// Chooses a grid for a weight.
pub trait InitScale: Storage {
    /// Applies a rule to every group of every row. Eq. (Q8). A group for which the rule gives a
    /// scale of zero gets scale 1 and an offset that code 0 stands for.
    ///
    /// # Shapes
    /// `weight [out, in]` -> `scale, offset [out, groups]`
    ///
    /// # Errors
    /// `Length`; `NonFinite` when the weight has a NaN or an infinity.
    fn init_scale(
        &self,
        spec: QuantSpec,
        rule: InitScaleRule,
        out_features: usize,
        weight: &Self::Floats,
        scale: &mut Self::Floats,
        offset: &mut Self::Floats,
    ) -> Result<()>;
}
