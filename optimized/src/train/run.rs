//! The loop.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::data::TokenWindows;
use super::metrics::StepRecord;
use super::optimizer::{Optimizer, OptimizerSettings, StepSums};
use super::schedule::Schedule;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;
use crate::model::{Batch, Llama, Plan, Recompute, Workspace};

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
    /// `Invalid` naming a field; when the device has no room, with the plan.
    pub fn new<L: LinearMethod<B>>(
        model: &mut Llama<B, L>,
        data: TokenWindows,
        context: usize,
        settings: TrainingSettings,
        optimizer: &OptimizerSettings,
        schedule: Schedule,
    ) -> Result<Self> {
        settings.check()?;
        let tokens = settings.micro_batch * context;
        let mut optimizer = Optimizer::new(optimizer)?;
        let plan = Plan::new(model, tokens, settings.recompute, settings.accumulation);
        let mut allocate = || {
            let workspace = model.training_workspace(tokens, settings.recompute)?;
            optimizer.reserve(model, settings.accumulation).map(|()| workspace)
        };
        let workspace = allocate().map_err(|error| plan.explain(error))?;
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
                loss,
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
    ) -> Result<(f64, f64, f64)> {
        let TrainingSettings { micro_batch, accumulation, steps, .. } = self.settings;
        let tokens = micro_batch * accumulation * self.context;
        let mut counted = 0;
        for micro in 0..accumulation {
            let first = ((step - 1) * accumulation as u64 + micro as u64) * micro_batch as u64;
            let (inputs, targets) = self.data.batch(first, micro_batch);
            let batch =
                Batch { batch: micro_batch, tokens: &inputs, targets: &targets, documents: None };
            let (multiplier, loss) = (1.0 / tokens as f32, self.optimizer.loss_slot(micro)?);
            counted += model.add_gradients(&batch, multiplier, &mut self.workspace, loss)?;
        }
        let rate_factor = self.schedule.factor(step, steps);
        let StepSums { loss, grad_norm } = self.optimizer.step(model, rate_factor)?;
        Ok((loss / counted as f64, grad_norm, rate_factor))
    }
}
