//! The loop of a run: steps, evaluations, checkpoints, and where it ends.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{TrainingState, save_checkpoint};
use plumbline::eval::Perplexity;
use plumbline::methods::LinearMethod;
use plumbline::model::Llama;
use plumbline::recipe::{CheckpointSettings, EarlyStopping};
use plumbline::train::{
    LayerStatistics, RunFolder, SESSIONS, Session, StepRecord, Trainer, add_session, header,
    layer_statistics, scalars,
};
use serde::Serialize;

use super::interrupt::Interrupt;
use super::progress::Progress;
use super::run::Measured;

/// When the loop does what.
pub struct Timetable {
    /// Optimizer steps.
    pub steps: u64,
    /// Steps from one evaluation to the next; 0 for one at the end.
    pub eval_every: u64,
    /// Whether the untrained model is evaluated too.
    pub eval_start: bool,
    /// Tokens of an evaluation window.
    pub context: usize,
    /// Which states are kept.
    pub checkpoints: CheckpointSettings,
    /// When the run ends before its last step.
    pub early_stopping: EarlyStopping,
}

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// All steps are done.
    Complete,
    /// The evaluations have not become better for as long as the recipe waits.
    Early,
    /// A signal asked for it; the exit code says which.
    Interrupted(u8),
}

impl End {
    /// What the process says to its caller.
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::Complete | Self::Early => ExitCode::SUCCESS,
            Self::Interrupted(code) => ExitCode::from(code),
        }
    }
}

/// A run in its folder.
pub struct Run {
    folder: RunFolder,
    /// What the next checkpoint will say.
    pub state: TrainingState,
    timetable: Timetable,
    measured: Vec<Measured>,
    interrupt: Interrupt,
    progress: Progress,
}

/// One layer at an evaluation, as `metrics.jsonl` has it.
#[derive(Serialize)]
struct LayerRecord<'a> {
    step: u64,
    #[serde(flatten)]
    statistics: &'a LayerStatistics,
}

/// One evaluation, as `metrics.jsonl` has it.
#[derive(Serialize)]
struct EvalRecord<'a> {
    step: u64,
    text: &'a str,
    #[serde(flatten)]
    result: Perplexity,
}

impl Run {
    /// Goes on from the newest checkpoint of the folder that is whole, or begins where there is
    /// none.
    pub fn begin<B: Backend, L: LinearMethod<B>>(
        mut folder: RunFolder,
        state: TrainingState,
        timetable: Timetable,
        measured: Vec<Measured>,
        (model, trainer): (&mut Llama<B, L>, &mut Trainer<B>),
    ) -> Result<Self> {
        let mut state = state;
        if let Some(newest) = folder.checkpoints.newest()? {
            let found = newest.checkpoint.state.clone();
            same_run(&newest.path, &found, &state)?;
            for (path, error) in newest.damaged {
                let aside = folder.checkpoints.put_aside(&path)?;
                eprintln!("warning: {error}; it is put aside as {}", aside.display());
            }
            trainer.restore(model, &newest.checkpoint)?;
            eprintln!("going on from {}", newest.path.display());
            state = TrainingState { device: state.device, version: state.version, ..found };
        }
        for name in folder.rewind(&state.logs)? {
            let path = folder.path().join(name);
            eprintln!("warning: {}: lines before the checkpoint are missing", path.display());
        }
        if folder.events.is_empty() {
            folder.events.write(&header(now()))?;
        }
        let session = Session::new(&state.device, state.position.step);
        add_session(&folder.path().join(SESSIONS), session)?;
        let progress = Progress::from("training", state.position.step, timetable.steps);
        let interrupt = Interrupt::listen()?;
        Ok(Self { folder, state, timetable, measured, interrupt, progress })
    }

    /// Runs until the last step, an early end or a signal. What stands in the folder then is
    /// enough to go on.
    pub fn fit<B: Backend, L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        trainer: &mut Trainer<B>,
    ) -> Result<End> {
        if self.state.position.step == 0 && self.timetable.eval_start {
            self.evaluate(0, model, trainer)?;
            // The time that is left is judged by steps alone.
            self.progress = Progress::from("training", 0, self.timetable.steps);
        }
        loop {
            if let Some(end) = self.end() {
                return Ok(end);
            }
            let record = trainer.step(model)?;
            self.record(&record)?;
            let (step, steps) = (record.step, self.timetable.steps);
            self.state.position = trainer.position();
            let is_due = |every: u64| step == steps || every > 0 && step.is_multiple_of(every);
            let mut is_best = false;
            if is_due(self.timetable.eval_every) {
                is_best = self.evaluate(step, model, trainer)?;
            }
            let interrupted = self.interrupt.exit_code();
            let is_saved = is_due(self.timetable.checkpoints.every) || self.end().is_some();
            if is_saved || is_best || interrupted.is_some() {
                self.save(model, trainer)?;
            }
            if let Some(code) = interrupted {
                // Whoever interrupts the last step has a run that is complete.
                return Ok(self.end().unwrap_or(End::Interrupted(code)));
            }
        }
    }

    fn end(&self) -> Option<End> {
        let patience = self.timetable.early_stopping.patience;
        if self.state.position.step >= self.timetable.steps {
            return Some(End::Complete);
        }
        (patience > 0 && self.state.evaluations.since_best >= patience).then_some(End::Early)
    }

    fn record(&mut self, record: &StepRecord) -> Result<()> {
        self.folder.metrics.write_json(record)?;
        let shown = [
            ("train/loss", record.loss),
            ("train/grad_norm", record.grad_norm),
            ("train/learning_rate", record.learning_rate),
            ("train/tokens_per_second", record.tokens_per_second),
        ];
        self.show(record.step, &shown.map(|(tag, value)| (tag.to_owned(), value)))?;
        if let Some(reason) = &record.skipped {
            self.progress.say(&format!("step {} is skipped: {reason}", record.step));
        }
        self.progress.at(record.step, || {
            format!(
                "loss {:.4}, rate {:.2e}, {:.0} tokens/s",
                record.loss, record.learning_rate, record.tokens_per_second
            )
        });
        Ok(())
    }

    /// Perplexity of every text and file of samples and statistics of every layer, written to the
    /// metrics; whether the mean loss over all their predicted tokens is the best so far.
    fn evaluate<B: Backend, L: LinearMethod<B>>(
        &mut self,
        step: u64,
        model: &Llama<B, L>,
        trainer: &mut Trainer<B>,
    ) -> Result<bool> {
        if !self.measured.is_empty() {
            // So that the run never needs both a step's memory and an evaluation's.
            trainer.release_workspace();
        }
        let (mut sum, mut predicted) = (0.0, 0);
        let mut scalars = Vec::new();
        for measured in &mut self.measured {
            let result = measured.perplexity(model, self.timetable.context)?;
            let text = measured.name();
            self.folder.metrics.write_json(&EvalRecord { step, text, result })?;
            let line = format!("step {step}: perplexity of {text} {:.3}", result.perplexity);
            self.progress.say(&line);
            scalars.push((format!("perplexity/{text}"), result.perplexity));
            sum += result.mean_nll * result.predicted_tokens as f64;
            predicted += result.predicted_tokens;
            let value = result.perplexity.is_finite().then_some(result.perplexity);
            self.state.evaluations.perplexity.insert(text.to_owned(), value);
        }
        for statistics in &layer_statistics(model)? {
            self.folder.metrics.write_json(&LayerRecord { step, statistics })?;
            let LayerStatistics { layer, scale, codes } = statistics;
            if let Some(scale) = scale {
                scalars.push((format!("scale_mean/{layer}"), scale.scale_mean));
            }
            if let Some(codes) = codes {
                let share = codes.codes_lowest + codes.codes_highest;
                scalars.push((format!("codes_at_ends/{layer}"), share));
            }
        }
        self.show(step, &scalars)?;
        // Step 0 has no checkpoint that could be the best.
        let is_judged = step > 0 && predicted > 0;
        Ok(is_judged && self.state.evaluations.add(step, sum / predicted as f64))
    }

    /// Numbers for TensorBoard.
    fn show(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        Ok(self.folder.events.write(&scalars(now(), step, values))?)
    }

    fn save<B: Backend, L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        trainer: &mut Trainer<B>,
    ) -> Result<()> {
        self.state.position = trainer.position();
        self.state.logs = self.folder.sync()?;
        let path = self.folder.checkpoints.path(self.state.position.step);
        let (backend, optimizer) = (model.shared_backend(), trainer.optimizer());
        let moments = (optimizer.moment_tensors(&*backend), optimizer.state());
        save_checkpoint(&path, model.trained_tensors(), moments, &self.state)?;
        let best = self.state.evaluations.best.map(|best| best.step);
        Ok(self.folder.checkpoints.prune(self.timetable.checkpoints.keep, best)?)
    }

    /// Prints how the run ended.
    pub fn report(&self, end: End, json: bool) {
        let TrainingState { position, evaluations, .. } = &self.state;
        let (step, checkpoint) = (position.step, self.folder.checkpoints.path(position.step));
        let best = evaluations.best.map(|best| best.step);
        if json {
            let value = serde_json::json!({
                "run": self.folder.path(), "checkpoint": checkpoint, "steps": step,
                "last_loss": position.last_loss, "perplexity": evaluations.perplexity,
                "best_step": best, "skipped": position.skipped, "end": end,
            });
            println!("{value}");
            return;
        }
        let loss = position.last_loss.map_or("none".to_owned(), |loss| format!("{loss:.4}"));
        let why = match end {
            End::Complete => "",
            End::Early => ", ended early: the evaluations do not improve",
            End::Interrupted(_) => ", interrupted: --resume goes on from here",
        };
        println!("{step} steps, last loss {loss}; checkpoint {}{why}", checkpoint.display());
        if let Some(best) = best.filter(|best| *best != step) {
            println!("the best evaluation was after step {best}: merge it by --checkpoint best");
        }
        if position.skipped > 0 {
            println!("{} steps were skipped: metrics.jsonl says why", position.skipped);
        }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// That a checkpoint belongs to what is about to be trained.
fn same_run(path: &Path, found: &TrainingState, asked: &TrainingState) -> Result<()> {
    for (what, found, asked) in [
        ("base model", &found.base_sha256, &asked.base_sha256),
        ("training data", &found.data_sha256, &asked.data_sha256),
        ("recipe.toml", &found.recipe_sha256, &asked.recipe_sha256),
    ] {
        if found != asked {
            let path = path.display();
            bail!("{path}: trained with a {what} of fingerprint {found}, now it has {asked}");
        }
    }
    for (what, found, asked) in
        [("device", &found.device, &asked.device), ("version", &found.version, &asked.version)]
    {
        if found != asked {
            eprintln!(
                "warning: {}: written by {what} {found}, going on with {asked}: the bits may \
                 differ from those of an uninterrupted run",
                path.display()
            );
        }
    }
    Ok(())
}
