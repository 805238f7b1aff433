//! The folder of a run: its recipe, the files that grow, its checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::log::Log;
use crate::checkpoint::{
    Checkpoint, new_folder, open_checkpoint, remove_folder, remove_unfinished, sha256_file,
    write_file,
};
use crate::error::{Error, Result};

/// One line per step or evaluation.
pub const METRICS: &str = "metrics.jsonl";
/// What TensorBoard reads.
pub const EVENTS: &str = "events.out.tfevents.plumbline";
/// Where and when the run was trained.
pub const SESSIONS: &str = "sessions.json";
/// The resolved recipe.
pub const RECIPE: &str = "recipe.toml";

/// The folder of a run while a process trains into it; another one is kept out.
pub struct RunFolder {
    path: PathBuf,
    /// One line per step or evaluation.
    pub metrics: Log,
    /// What TensorBoard reads.
    pub events: Log,
    /// The run's checkpoints.
    pub checkpoints: Checkpoints,
}

impl RunFolder {
    /// Makes the folder with the recipe in it.
    ///
    /// # Errors
    /// `File` when it exists; `Io`.
    pub fn create(path: &Path, recipe: &str) -> Result<Self> {
        new_folder(path, |folder| {
            write_file(&folder.join(RECIPE), recipe.as_bytes())?;
            for log in [METRICS, EVENTS] {
                write_file(&folder.join(log), b"")?;
            }
            Ok(())
        })?;
        Self::open(path)
    }

    /// Opens the folder of a run to go on with it, and removes what a killed process left
    /// half-made.
    ///
    /// # Errors
    /// `File` while another process trains into it; `Io`.
    pub fn open(path: &Path) -> Result<Self> {
        let metrics = Log::open(&path.join(METRICS))?;
        metrics.lock()?;
        let events = Log::open(&path.join(EVENTS))?;
        remove_unfinished(path)?;
        let checkpoints = Checkpoints::of_run(path);
        if checkpoints.folder.exists() {
            remove_unfinished(&checkpoints.folder)?;
        }
        Ok(Self { path: path.to_path_buf(), metrics, events, checkpoints })
    }

    /// SHA-256 of the recipe in the folder.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn recipe_sha256(&self) -> Result<String> {
        sha256_file(&self.path.join(RECIPE))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the files that grow, all of which are on the disk when this returns.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn sync(&mut self) -> Result<BTreeMap<String, u64>> {
        let lengths = [(METRICS, self.metrics.sync()?), (EVENTS, self.events.sync()?)];
        Ok(lengths.map(|(name, bytes)| (name.to_owned(), bytes)).into())
    }

    /// Cuts the files that grow to the lengths that they had, so that nothing stands in them
    /// twice; those that are shorter are returned.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn rewind(&mut self, lengths: &BTreeMap<String, u64>) -> Result<Vec<&'static str>> {
        let mut short = Vec::new();
        for (name, log) in [(METRICS, &mut self.metrics), (EVENTS, &mut self.events)] {
            if !log.cut(lengths.get(name).copied().unwrap_or(0))? {
                short.push(name);
            }
        }
        Ok(short)
    }
}

/// The folder `checkpoints/` of a run.
pub struct Checkpoints {
    folder: PathBuf,
}

/// The newest checkpoint that is whole.
pub struct Newest {
    /// Its folder.
    pub path: PathBuf,
    /// Opened and checked.
    pub checkpoint: Checkpoint,
    /// Newer ones, each with what is wrong with it.
    pub damaged: Vec<(PathBuf, Error)>,
}

impl Checkpoints {
    /// Of the run in a folder.
    pub fn of_run(run: &Path) -> Self {
        Self { folder: run.join("checkpoints") }
    }

    /// The folder of the checkpoint after `step` steps.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Steps that have a checkpoint, whole or not, ascending.
    ///
    /// # Errors
    /// `Io` naming the folder.
    pub fn steps(&self) -> Result<Vec<u64>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let mut steps = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder, "read"))? {
            let name = entry.map_err(Error::io(&self.folder, "read"))?.file_name();
            let name = name.to_string_lossy();
            steps.extend(name.strip_prefix("step-").and_then(|step| step.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// The newest checkpoint that is whole; `None` where none was written yet.
    ///
    /// # Errors
    /// `File` naming each checkpoint where all are damaged.
    pub fn newest(&self) -> Result<Option<Newest>> {
        let mut damaged = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            let path = self.path(step);
            match open_checkpoint(&path) {
                Ok(checkpoint) => return Ok(Some(Newest { path, checkpoint, damaged })),
                Err(error) => damaged.push((path, error)),
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        let each: Vec<String> = damaged.iter().map(|(_, error)| error.to_string()).collect();
        let reason = format!("every checkpoint is damaged: {}", each.join("; "));
        Err(Error::file(&self.folder, reason))
    }

    /// Puts a damaged checkpoint aside as `step-N.damaged`.
    ///
    /// # Errors
    /// `Io` naming the folder.
    pub fn put_aside(&self, path: &Path) -> Result<PathBuf> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!("{name}.damaged"));
        if aside.exists() {
            remove_folder(&aside)?;
        }
        std::fs::rename(path, &aside).map_err(Error::io(path, "rename"))?;
        Ok(aside)
    }

    /// Removes all but the `keep` newest and the best.
    ///
    /// # Errors
    /// `Io` naming the folder.
    pub fn prune(&self, keep: usize, best: Option<u64>) -> Result<()> {
        let steps = self.steps()?;
        let old = steps.len().saturating_sub(keep);
        for step in steps[..old].iter().filter(|step| Some(**step) != best) {
            remove_folder(&self.path(*step))?;
        }
        Ok(())
    }
}
