//! `metrics.jsonl`: one line per optimizer step or evaluation, readable while the run goes on.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};

/// What one optimizer step did.
#[derive(Debug, Clone, Serialize)]
pub struct StepRecord {
    /// From 1.
    pub step: u64,
    /// Mean loss over the step's tokens, nats.
    pub loss: f64,
    /// Factor of the schedule on every learning rate.
    pub rate_factor: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Since the run began.
    pub seconds: f64,
    /// Of this step.
    pub tokens_per_second: f64,
}

/// An append-only JSON-lines file.
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Creates the file.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path).map_err(Error::io(path, "create"))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends one line.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn write(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(record).expect("plain data serialises");
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path, "write"))
    }
}
