//! The loop.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::data::TokenWindows;
use super::metrics::StepRecord;
use super::optimizer::{Optimizer, OptimizerSettings};
use super::schedule::Schedule;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;
use crate::model::{Batch, Llama, Recompute, Workspace};
use crate::ops::cross_entropy::LossSum;

/// The loop as a recipe states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSettings {
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences whose activations exist together.
    pub micro_batch: usize,
    /// Micro-batches of one optimizer step.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// Seed of initialisation and data order.
    #[serde(default)]
    pub seed: u64,
    /// Keep activations or recompute them.
    #[serde(default)]
    pub recompute: Recompute,
    /// Evaluate every so many steps; 0 only at the end.
    #[serde(default)]
    pub eval_every: u64,
}

fn one() -> usize {
    1
}

impl TrainingSettings {
    /// Checks every number.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("steps", self.steps),
            ("micro_batch", self.micro_batch as u64),
            ("accumulation", self.accumulation as u64),
        ];
        match counts.iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => {
                Err(Error::Invalid(format!("training.{field} is 0, expected at least 1")))
            }
            None => Ok(()),
        }
    }
}

/// Told of every step; may stop the run with an error.
pub trait Observer<B: Backend, L> {
    /// After a step.
    ///
    /// # Errors
    /// Stops the run.
    fn after_step(&mut self, record: &StepRecord, model: &mut Llama<B, L>) -> Result<()>;
}

/// A run: model, data, optimizer, schedule.
pub struct Trainer<B: Backend> {
    settings: TrainingSettings,
    schedule: Schedule,
    optimizer: Optimizer<B>,
    data: TokenWindows,
    context: usize,
    workspace: Workspace<B>,
}

impl<B: Backend> Trainer<B> {
    /// Plans the memory; nothing is trained yet.
    ///
    /// # Errors
    /// `Invalid` naming a field; when the device has no room.
    pub fn new<L: LinearMethod<B>>(
        model: &Llama<B, L>,
        data: TokenWindows,
        context: usize,
        settings: TrainingSettings,
        optimizer: &OptimizerSettings,
        schedule: Schedule,
    ) -> Result<Self> {
        settings.check()?;
        let tokens = settings.micro_batch * context;
        let workspace = model.training_workspace(tokens, settings.recompute)?;
        let optimizer = Optimizer::new(optimizer)?;
        Ok(Self { settings, schedule, optimizer, data, context, workspace })
    }

    /// Runs all steps.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor when training diverges; whatever the observer returns.
    pub fn run<L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        observer: &mut impl Observer<B, L>,
    ) -> Result<()> {
        let start = Instant::now();
        for step in 1..=self.settings.steps {
            let began = Instant::now();
            let (loss, grad_norm, rate_factor) = self.step(model, step)?;
            let per_step = self.settings.micro_batch * self.settings.accumulation * self.context;
            let record = StepRecord {
                step,
                loss: loss.sum / loss.counted as f64,
                rate_factor,
                grad_norm,
                tokens: step * per_step as u64,
                seconds: start.elapsed().as_secs_f64(),
                tokens_per_second: per_step as f64 / began.elapsed().as_secs_f64(),
            };
            observer.after_step(&record, model)?;
        }
        Ok(())
    }

    /// One optimizer step: the gradient is that of the mean loss over all tokens of all
    /// micro-batches, however they are divided.
    fn step<L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        step: u64,
    ) -> Result<(LossSum, f64, f64)> {
        let TrainingSettings { micro_batch, accumulation, steps, .. } = self.settings;
        let tokens = micro_batch * accumulation * self.context;
        let mut loss = LossSum::default();
        for micro in 0..accumulation as u64 {
            let first = ((step - 1) * accumulation as u64 + micro) * micro_batch as u64;
            let (inputs, targets) = self.data.batch(first, micro_batch);
            let batch = Batch { batch: micro_batch, tokens: &inputs, targets: &targets };
            let multiplier = 1.0 / tokens as f32;
            loss += model.loss_and_gradients(&batch, multiplier, &mut self.workspace)?;
        }
        if !loss.sum.is_finite() {
            let tensor = format!("loss of step {step}");
            return Err(Error::NonFinite { tensor, index: 0, value: loss.sum as f32 });
        }
        let rate_factor = self.schedule.factor(step, steps);
        let grad_norm = self.optimizer.step(model, rate_factor)?;
        Ok((loss, grad_norm, rate_factor))
    }
}
