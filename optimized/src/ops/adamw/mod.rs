//! `adamw`: one optimizer step with decoupled weight decay. Eq. (T1).

mod cpu;
mod cuda;

use plumbline_reference::spec::AdamWSpec;

use crate::backend::Storage;
use crate::error::Result;

/// Constants of one step for one tensor.
#[derive(Debug, Clone, Copy)]
pub struct AdamWArgs {
    /// Values of the tensor.
    pub len: usize,
    /// Betas and eps.
    pub spec: AdamWSpec,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The first step is 1.
    pub step: u64,
}

/// What depends on the step alone, computed in f64 and rounded once, the same on every backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Constants {
    /// `1 - lr * weight_decay`
    pub(crate) keep: f32,
    /// `lr / (1 - beta1^step)`
    pub(crate) rate: f32,
    /// `sqrt(1 - beta2^step)`
    pub(crate) correction: f32,
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
        let exponent = self.step.min(i32::MAX as u64) as i32;
        let (beta1, beta2) = (self.spec.beta1, self.spec.beta2);
        Constants {
            keep: (1.0 - self.learning_rate * self.weight_decay) as f32,
            rate: (self.learning_rate / (1.0 - beta1.powi(exponent))) as f32,
            correction: (1.0 - beta2.powi(exponent)).sqrt() as f32,
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

/// What one step reads and changes.
pub struct AdamWTensors<'a, F> {
    /// Updated.
    pub parameter: &'a mut F,
    /// Read.
    pub gradient: &'a F,
    /// Updated.
    pub first_moment: &'a mut F,
    /// Updated.
    pub second_moment: &'a mut F,
}

/// Updates parameters.
pub trait AdamW: Storage {
    /// `m = beta1 * m + (1 - beta1) * g`, `v = beta2 * v + (1 - beta2) * g^2`,
    /// `p = p * (1 - lr * weight_decay) - lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)`.
    /// Eq. (T1). A multiplier that is not finite leaves all three tensors as they are.
    ///
    /// # Errors
    /// `Length` when a buffer is too short, or there is no such slot.
    fn adamw(
        &self,
        args: AdamWArgs,
        multiplier: GradientMultiplier<'_, Self::Sums>,
        tensors: AdamWTensors<'_, Self::Floats>,
    ) -> Result<()>;
}
