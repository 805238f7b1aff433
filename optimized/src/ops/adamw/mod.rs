//! `adamw`: one optimizer step with decoupled weight decay, for every trained tensor. Eq. (T1).

mod cpu;
mod cuda;
mod moment;

use plumbline_reference::spec::AdamWSpec;

use crate::backend::Storage;
use crate::error::Result;
use crate::ops::counter::{key_of_name, subkey};

pub use moment::{Moment, StateType};

/// Constants of one step.
#[derive(Debug, Clone, Copy)]
pub struct AdamWArgs {
    /// Betas and eps.
    pub spec: AdamWSpec,
    /// What the moments of every tensor are kept in.
    pub state: StateType,
}

/// What is the same for every tensor, rounded once from f64, the same on every backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Constants {
    pub(crate) eps: f32,
    /// `beta1`
    pub(crate) old1: f32,
    /// `1 - beta1`
    pub(crate) new1: f32,
    /// `beta2`
    pub(crate) old2: f32,
    /// `1 - beta2`
    pub(crate) new2: f32,
}

impl AdamWArgs {
    pub(crate) fn constants(&self) -> Constants {
        let (beta1, beta2) = (self.spec.beta1, self.spec.beta2);
        Constants {
            eps: self.spec.eps as f32,
            old1: beta1 as f32,
            new1: (1.0 - beta1) as f32,
            old2: beta2 as f32,
            new2: (1.0 - beta2) as f32,
        }
    }
}

/// The factor on a gradient before anything else: clipping by the global norm.
pub struct GradientMultiplier<'a, S> {
    /// Where it is.
    pub sums: &'a S,
    /// Its slot there; rounded to f32.
    pub slot: usize,
}

/// One tensor: its rates, and what a step reads and changes.
pub struct AdamWTensor<'a, B: Storage> {
    /// Its name: what its moments are rounded by depends on it where they are bf16.
    pub name: &'a str,
    /// Values of the tensor.
    pub len: usize,
    /// How many updates of the tensor this is; the first is 1.
    pub step: u64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Updated.
    pub parameter: &'a mut B::Floats,
    /// Read.
    pub gradient: &'a B::Floats,
    /// Updated.
    pub first_moment: &'a mut Moment<B>,
    /// Updated.
    pub second_moment: &'a mut Moment<B>,
}

/// What depends on the tensor and its step, computed in f64 and rounded once, the same on every
/// backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorConstants {
    /// Of the random words that a moment's values are rounded by.
    pub(crate) key: u64,
    /// `1 - lr * weight_decay`
    pub(crate) keep: f32,
    /// `lr / (1 - beta1^step)`
    pub(crate) rate: f32,
    /// `sqrt(1 - beta2^step)`
    pub(crate) correction: f32,
}

impl<B: Storage> AdamWTensor<'_, B> {
    pub(crate) fn constants(&self, args: &AdamWArgs) -> TensorConstants {
        let exponent = self.step.min(i32::MAX as u64) as i32;
        TensorConstants {
            key: subkey(key_of_name(self.name), self.step),
            keep: (1.0 - self.learning_rate * self.weight_decay) as f32,
            rate: (self.learning_rate / (1.0 - args.spec.beta1.powi(exponent))) as f32,
            correction: (1.0 - args.spec.beta2.powi(exponent)).sqrt() as f32,
        }
    }
}

/// Updates parameters.
pub trait AdamW: Storage {
    /// `m = beta1 * m + (1 - beta1) * g`, `v = beta2 * v + (1 - beta2) * g^2`,
    /// `p = p * (1 - lr * weight_decay) - lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)`
    /// for every tensor. Eq. (T1). A multiplier that is not finite leaves everything as it is.
    ///
    /// All of it is f32. Moments that are kept in bf16 are rounded after they were used, up or down
    /// by chance, so that the mean of what is kept is what was computed: `random_word(key, i)`,
    /// `key` of the tensor's name and the step, has the 16 bits that are added to the lower half of
    /// value `i` of `m` in its bits 0 to 15, and those for `v` in its bits 16 to 31.
    ///
    /// # Errors
    /// `Length` when a buffer is too short, or there is no such slot; `Invalid` for moments of
    /// another type than the arguments'. Nothing is updated then.
    fn adamw(
        &self,
        args: AdamWArgs,
        multiplier: GradientMultiplier<'_, Self::Sums>,
        tensors: &mut [AdamWTensor<'_, Self>],
    ) -> Result<()>
    where
        Self: Sized;
}
