//! `cross_entropy`: the loss of next-token prediction, with its gradient in one pass. Eq. (N7).

mod cpu;
mod cuda;

use crate::backend::Storage;
use crate::error::Result;

/// Sizes of the loss and its normalisation.
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropyArgs {
    /// Rows of the logits.
    pub tokens: usize,
    /// Columns of the logits.
    pub vocab_size: usize,
    /// A target with this id is not counted.
    pub ignore_index: i32,
    /// Factor on the gradient: 1 / (tokens counted in the whole optimizer step).
    pub gradient_multiplier: f32,
}

/// Sum of the losses and how many tokens entered it, on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSum {
    /// Sum over counted tokens, in nats, f64.
    pub sum: f64,
    /// Tokens counted.
    pub counted: usize,
}

impl std::ops::AddAssign for LossSum {
    fn add_assign(&mut self, other: Self) {
        self.sum += other.sum;
        self.counted += other.counted;
    }
}

/// Judges logits.
pub trait CrossEntropy: Storage {
    /// Adds `sum_t (log(sum_v exp(logits[t,v])) - logits[t,targets[t]])` over counted tokens to a
    /// slot, and returns how many those are. Eq. (N7).
    ///
    /// # Shapes
    /// `logits [tokens, vocab_size]`, `targets [tokens]`
    ///
    /// # Errors
    /// `TokenOutOfRange`; `Length`, also when there is no such slot.
    fn cross_entropy(
        &self,
        args: CrossEntropyArgs,
        logits: &Self::Floats,
        targets: &Self::Tokens,
        sums: &mut Self::Sums,
        slot: usize,
    ) -> Result<usize>;

    /// The same; the logits are replaced by their gradient
    /// `gradient_multiplier * (softmax(logits[t,:]) - one_hot(targets[t]))`, zero for a token that
    /// is not counted. Eq. (N7b).
    ///
    /// # Errors
    /// As [`CrossEntropy::cross_entropy`].
    fn cross_entropy_backward(
        &self,
        args: CrossEntropyArgs,
        logits: &mut Self::Floats,
        targets: &Self::Tokens,
        sums: &mut Self::Sums,
        slot: usize,
    ) -> Result<usize>;
}
