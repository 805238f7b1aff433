//! The loop.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::metrics::StepRecord;
use super::optimizer::{OnNonfinite, Optimizer, OptimizerSettings, StepSums};
use super::position::Position;
use super::schedule::Schedule;
use super::sequences::{Sequences, TrainingData};
use crate::backend::Backend;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;
use crate::model::{Llama, Plan, Recompute, Workspace};
use crate::ops::counter::subkey;

/// Tells the seed's random numbers for dropout from those for anything else.
const DROPOUT: u64 = 0x6472_6f70;

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

/// Steps in a row that may be skipped: a run that cannot compute a gradient any more is stopped.
const MOST_SKIPPED_IN_A_ROW: u64 = 10;

/// A run: model, data, optimizer, schedule.
pub struct Trainer<B: Backend> {
    settings: TrainingSettings,
    on_nonfinite: OnNonfinite,
    learning_rate: f64,
    schedule: Schedule,
    optimizer: Optimizer<B>,
    data: TrainingData,
    context: usize,
    /// Absent where it was released and no step has asked for it since.
    workspace: Option<Workspace<B>>,
    position: Position,
    /// When `position.seconds` was counted last.
    clock: Instant,
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
        let OptimizerSettings { on_nonfinite, learning_rate, .. } = *optimizer;
        let mut optimizer = Optimizer::new(optimizer)?;
        let (recompute, state) = (settings.recompute, optimizer.state());
        let plan = Plan::new(model, tokens, recompute, settings.accumulation, state);
        let mut allocate = || {
            let workspace = model.training_workspace(tokens, settings.recompute)?;
            optimizer.reserve(model, settings.accumulation).map(|()| workspace)
        };
        let workspace = allocate().map_err(|error| plan.explain(error))?;
        let (position, clock) = (Position::default(), Instant::now());
        Ok(Self {
            settings,
            on_nonfinite,
            learning_rate,
            schedule,
            optimizer,
            data: data.into(),
            context,
            workspace: Some(workspace),
            position,
            clock,
        })
    }

    /// Goes on where a checkpoint was written: the steps after it have the bits that they had or
    /// would have had.
    ///
    /// # Errors
    /// `File` for a checkpoint of another model; when the device failed.
    pub fn restore<L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        checkpoint: &Checkpoint,
    ) -> Result<()> {
        let backend = model.shared_backend();
        let position = checkpoint.state.position;
        model.at_update(position.updates)?;
        model.write_trained(|name, shape| checkpoint.tensor(name, shape))?;
        let moments = |name: &str, len| checkpoint.moments(name, len);
        self.optimizer.restore(&*backend, position.updates, moments)?;
        self.position = position;
        self.clock = Instant::now();
        Ok(())
    }

    /// Where the run stands.
    pub fn position(&mut self) -> Position {
        let now = Instant::now();
        self.position.seconds += (now - self.clock).as_secs_f64();
        self.clock = now;
        self.position
    }

    /// The state of the optimizer, for a checkpoint.
    pub fn optimizer(&self) -> &Optimizer<B> {
        &self.optimizer
    }

    /// Gives the memory of a step to whatever is computed before the next one, which takes it back.
    pub fn release_workspace(&mut self) {
        self.workspace = None;
    }

    /// Runs all steps that are left.
    ///
    /// # Errors
    /// As [`Trainer::step`]; whatever the observer returns.
    pub fn run<L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        observer: &mut impl Observer<B, L>,
    ) -> Result<()> {
        self.clock = Instant::now();
        while self.position.step < self.settings.steps {
            let record = self.step(model)?;
            observer.after_step(&record, model)?;
        }
        Ok(())
    }

    /// One optimizer step, or under `on_nonfinite = "skip"` one that changes nothing.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor when training diverges.
    pub fn step<L: LinearMethod<B>>(&mut self, model: &mut Llama<B, L>) -> Result<StepRecord> {
        let began = Instant::now();
        let step = self.position.step + 1;
        let rate_factor = self.schedule.factor(step, self.settings.steps);
        let may_skip = self.on_nonfinite == OnNonfinite::Skip
            && self.position.skipped_in_a_row < MOST_SKIPPED_IN_A_ROW;
        let mut workspace = match self.workspace.take() {
            Some(workspace) => workspace,
            None => {
                let tokens = self.settings.micro_batch * self.context;
                model.training_workspace(tokens, self.settings.recompute)?
            }
        };
        let done = self
            .update(model, rate_factor, &mut workspace)
            .map_err(|error| model.locate(error, &workspace));
        self.workspace = Some(workspace);
        let (sums, skipped) = match done {
            Ok(sums) => (sums, None),
            Err(error @ Error::NonFinite { .. }) if may_skip => {
                self.optimizer.discard(model)?;
                let sums = StepSums { loss: f64::NAN, grad_norm: f64::NAN };
                (sums, Some(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        let TrainingSettings { micro_batch, accumulation, .. } = self.settings;
        let samples = (micro_batch * accumulation) as u64;
        let tokens = samples * self.context as u64;
        let position = &mut self.position;
        position.step = step;
        position.updates = self.optimizer.steps();
        position.next_sample += samples;
        position.tokens += tokens;
        if skipped.is_none() {
            position.last_loss = Some(sums.loss);
        }
        position.skipped += u64::from(skipped.is_some());
        position.skipped_in_a_row =
            if skipped.is_some() { position.skipped_in_a_row + 1 } else { 0 };
        let position = self.position();
        Ok(StepRecord {
            step,
            loss: sums.loss,
            learning_rate: self.learning_rate * rate_factor,
            rate_factor,
            grad_norm: sums.grad_norm,
            tokens: position.tokens,
            seconds: position.seconds,
            tokens_per_second: tokens as f64 / began.elapsed().as_secs_f64(),
            skipped,
        })
    }

    /// The gradient of the mean loss over all counted targets of all micro-batches, however they are
    /// divided, and the update by it. The loss returned is that mean.
    fn update<L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        rate_factor: f64,
        workspace: &mut Workspace<B>,
    ) -> Result<StepSums> {
        let TrainingSettings { micro_batch, accumulation, .. } = self.settings;
        let first = self.position.next_sample;
        let batches: Vec<Sequences> = (0..accumulation)
            .map(|micro| self.data.batch(first + (micro * micro_batch) as u64, micro_batch))
            .collect::<Result<_>>()?;
        let counted: usize = batches.iter().map(Sequences::counted).sum();
        if counted == 0 {
            let step = self.position.step + 1;
            return Err(Error::Invalid(format!("step {step} has no target that counts")));
        }
        let of_step = subkey(subkey(self.settings.seed, DROPOUT), self.position.step);
        for (micro, sequences) in batches.iter().enumerate() {
            let loss = self.optimizer.loss_slot(micro)?;
            let multiplier = 1.0 / counted as f32;
            workspace.set_dropout_key(Some(subkey(of_step, micro as u64)));
            model.add_gradients(&sequences.batch(), multiplier, workspace, loss)?;
        }
        let StepSums { loss, grad_norm } = self.optimizer.step(model, rate_factor)?;
        model.at_update(self.optimizer.steps())?;
        Ok(StepSums { loss: loss / counted as f64, grad_norm })
    }
}
