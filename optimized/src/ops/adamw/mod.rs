//! `adamw`: one optimizer step with decoupled weight decay. Eq. (T1).

mod cpu;

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
    /// Factor on the gradient before anything else: clipping by the global norm.
    pub gradient_multiplier: f32,
    /// The first step is 1.
    pub step: u64,
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
    /// Eq. (T1).
    ///
    /// # Errors
    /// `Length` when a buffer is too short.
    fn adamw(&self, args: AdamWArgs, tensors: AdamWTensors<'_, Self::Floats>) -> Result<()>;
}
