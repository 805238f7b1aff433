//! `group_pool`: one number of each group of inputs, and its adjoint. Eqs. (M8a), (M9).

mod cpu;
mod cuda;

use plumbline_reference::spec::{self, Pool, QaLoraDialect, QuantSpec};

use super::Write;
use crate::backend::Storage;
use crate::error::Result;

/// Rows, groups and what is seen of a group.
#[derive(Debug, Clone, Copy)]
pub struct GroupPoolArgs {
    /// Rows of `x` and of what is pooled.
    pub tokens: usize,
    /// Inputs and groups; the width of a code does not matter here.
    pub spec: QuantSpec,
    /// Sum, mean, or a dialect's multiple of it.
    pub pool: spec::GroupPool,
}

impl GroupPoolArgs {
    /// The sum of a group is divided by the first and multiplied by the second; its gradient the
    /// other way round. A factor of 1 changes no bit.
    pub(crate) fn divisor_and_factor(&self) -> (f32, f32) {
        let (group_size, groups) = (self.spec.group_size() as f32, self.spec.groups() as f32);
        match (self.pool.pool(), self.pool.dialect()) {
            (Pool::Sum, _) => (1.0, 1.0),
            (Pool::Mean, QaLoraDialect::HfPeftQalora) => (group_size, groups),
            (Pool::Mean, _) => (group_size, 1.0),
        }
    }
}

/// Pools the inputs of groups.
pub trait GroupPool: Storage {
    /// `pooled[t,g] = (sum_(i in g) x[t,i]) / divisor * factor`. Eq. (M8a).
    ///
    /// # Shapes
    /// `x [tokens, in]` -> `pooled [tokens, groups]`
    ///
    /// # Errors
    /// `Length`.
    fn group_pool(
        &self,
        args: GroupPoolArgs,
        x: &Self::Floats,
        pooled: &mut Self::Floats,
    ) -> Result<()>;

    /// `d_x[t,i] = d_pooled[t,g] * factor / divisor`. Eq. (M9).
    ///
    /// # Shapes
    /// `d_pooled [tokens, groups]` -> `d_x [tokens, in]`, written as `write` says
    ///
    /// # Errors
    /// `Length`.
    fn group_pool_backward(
        &self,
        args: GroupPoolArgs,
        d_pooled: &Self::Floats,
        d_x: &mut Self::Floats,
        write: Write,
    ) -> Result<()>;
}
