//! `sums`: sums in f64 that stay on the device, and what clipping by the global norm makes of them.

mod cpu;
pub(crate) mod cuda;

use std::ops::Range;

use crate::backend::Storage;
use crate::error::Result;

/// What the slots of an optimizer step's sums hold: losses, then squared norms, then two results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSlots {
    /// Sums of losses, one of each micro-batch.
    pub losses: usize,
    /// Trained tensors: a squared norm of each one's gradient.
    pub tensors: usize,
}

impl StepSlots {
    /// Slots in all.
    pub fn count(self) -> usize {
        self.losses + self.tensors + 2
    }

    /// Where the squared norms are.
    pub fn squares(self) -> Range<usize> {
        self.losses..self.losses + self.tensors
    }

    /// Where the global norm is written.
    pub fn norm(self) -> usize {
        self.losses + self.tensors
    }

    /// Where the factor on every gradient is written.
    pub fn factor(self) -> usize {
        self.norm() + 1
    }
}

/// Clips a gradient by its global norm, without telling the host.
pub trait Clip: Storage {
    /// `norm = sqrt(sum(squares))` and `factor = min(1, max_norm / norm)`, in f64 and in the order
    /// of the slots; `max_norm` 0 is no limit. The factor is NaN, which updates nothing, where the
    /// losses or the norm are not finite, or the device has a complaint that it was not asked for.
    ///
    /// # Errors
    /// `Length` when there are fewer sums than slots.
    fn clip(&self, slots: StepSlots, max_norm: f64, sums: &mut Self::Sums) -> Result<()>;
}
