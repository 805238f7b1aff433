//! The loop.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::metrics::StepRecord;
use super::optimizer::{Optimizer, OptimizerSettings, StepSums};
use super::schedule::Schedule;
use super::sequences::{Sequences, TrainingData};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;
use crate::model::{Llama, Plan, Recompute, Workspace};

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
    data: TrainingData,
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
        data: impl Into<TrainingData>,
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
        let data = data.into();
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

    /// One optimizer step: the gradient is that of the mean loss over all counted targets of all
    /// micro-batches, however they are divided.
    fn step<L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        step: u64,
    ) -> Result<(f64, f64, f64)> {
        let TrainingSettings { micro_batch, accumulation, steps, .. } = self.settings;
        let first = (step - 1) * (accumulation * micro_batch) as u64;
        let batches: Vec<Sequences> = (0..accumulation)
            .map(|micro| self.data.batch(first + (micro * micro_batch) as u64, micro_batch))
            .collect::<Result<_>>()?;
        let counted: usize = batches.iter().map(Sequences::counted).sum();
        if counted == 0 {
            return Err(Error::Invalid(format!("step {step} has no target that counts")));
        }
        for (micro, sequences) in batches.iter().enumerate() {
            let loss = self.optimizer.loss_slot(micro)?;
            let multiplier = 1.0 / counted as f32;
            model.add_gradients(&sequences.batch(), multiplier, &mut self.workspace, loss)?;
        }
        let rate_factor = self.schedule.factor(step, steps);
        let StepSums { loss, grad_norm } = self.optimizer.step(model, rate_factor)?;
        Ok((loss / counted as f64, grad_norm, rate_factor))
    }
}
