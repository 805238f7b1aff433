//! `dynamic_quantize`: activations on a grid that is taken from each token as it comes.
//! Eqs. (Q14), (Q15).

mod cpu;
mod cuda;

use plumbline_reference::spec::{QuantSpec, ZeroPointRule};

use crate::backend::Storage;
use crate::error::Result;

/// Activations and what their grids are like.
#[derive(Debug, Clone, Copy)]
pub struct DynamicQuantizeArgs {
    /// Rows.
    pub tokens: usize,
    /// Bits, columns, and neighbouring columns that share a grid; codes run from 0 to
    /// `2^bits - 1`.
    pub spec: QuantSpec,
    /// Whether zero points are integers.
    pub zero_point: ZeroPointRule,
}

impl DynamicQuantizeArgs {
    /// Groups of all tokens. One lies after the other, so that to the operations each is a row.
    fn rows(&self) -> usize {
        self.tokens * self.spec.groups()
    }

    /// Activations.
    fn len(&self) -> usize {
        self.tokens * self.spec.in_features()
    }
}

/// What the output stands for, for those who store that instead.
pub struct DynamicCodes<'a, B: Storage + ?Sized> {
    /// `[tokens, in]`, unsigned bytes; without fractions only where zero points are integers.
    pub codes: &'a mut B::Codes,
    /// `[tokens, groups]`.
    pub scale: &'a mut B::Floats,
    /// `[tokens, groups]`.
    pub zero_point: &'a mut B::Floats,
}

/// Rounds activations to grids of their own.
pub trait DynamicQuantize: Storage {
    /// With `low`, `high` the extremes of a group,
    /// `scale = max((high - low) / (2^bits - 1), 1e-8)`, `zero_point = round_half_even(-low / scale)`
    /// or not rounded, `level = clamp(round_half_even(x / scale) + zero_point, 0, 2^bits - 1)`,
    /// `output = scale * (level - zero_point)`. A constant group is one step from zero. Eq. (Q14).
    ///
    /// No sum is longer than two terms: every backend has the same bits.
    ///
    /// # Shapes
    /// `x [tokens, in]` -> `output [tokens, in]`
    ///
    /// # Errors
    /// `NonFinite` naming the tensor; `Length`.
    fn dynamic_quantize(
        &self,
        args: DynamicQuantizeArgs,
        x: &Self::Floats,
        output: &mut Self::Floats,
        codes: Option<DynamicCodes<'_, Self>>,
    ) -> Result<()>;

    /// `d = 0` where `round_half_even(x / scale) + zero_point` lies outside `0..=2^bits - 1`, and
    /// stays as it is elsewhere: the gradient of the output becomes that of `x`. Eq. (Q15).
    ///
    /// # Shapes
    /// `x, d [tokens, in]`
    ///
    /// # Errors
    /// `NonFinite` naming the tensor, which is not `d`; `Length`.
    fn dynamic_quantize_backward(
        &self,
        args: DynamicQuantizeArgs,
        x: &Self::Floats,
        d: &mut Self::Floats,
    ) -> Result<()>;
}
