//! `metrics.jsonl`: one line per optimizer step or evaluation, readable while the run goes on.

use serde::Serialize;

/// What one optimizer step did.
#[derive(Debug, Clone, Serialize)]
pub struct StepRecord {
    /// From 1.
    pub step: u64,
    /// Mean loss over the step's tokens, nats; NaN for a step that was skipped.
    pub loss: f64,
    /// Learning rate of the kinds of parameter without their own.
    pub learning_rate: f64,
    /// Factor of the schedule on every learning rate.
    pub rate_factor: f64,
    /// Global gradient norm before clipping; NaN for a step that was skipped.
    pub grad_norm: f64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Since the run began.
    pub seconds: f64,
    /// Of this step.
    pub tokens_per_second: f64,
    /// What was not finite, where the step was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}
