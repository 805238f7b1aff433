//! Recipes: one TOML file says everything about a run. Unknown fields are refused.

mod compare;
mod data;
mod frozen_codes;
mod layers;
mod lr_qat;
mod method;
mod target;

use std::path::{Path, PathBuf};

use plumbline_reference::spec::LlamaConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::train::{OptimizerSettings, Schedule, TrainingSettings};

pub use compare::{CompareRecipe, GptqSettings, Making, Row, RowRecipe};
pub use data::{DataFormat, DataSettings};
pub use frozen_codes::{FrozenBase, GptqBase};
pub use layers::{GridOverride, MethodRecipe};
pub use lr_qat::LrQatSettings;
pub use method::{
    L4qSettings, LoraSettings, MethodSettings, PeqaSettings, QaLoraSettings, QatLoraSettings,
    QatSettings, QloraSettings,
};

/// `plumbline train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// What is fine-tuned.
    #[serde(default)]
    pub model: ModelSource,
    /// What it is trained on.
    pub data: DataSettings,
    /// How its linear layers are trained, and which.
    pub method: MethodRecipe,
    /// The loop.
    pub training: TrainingSettings,
    /// Rates, decay and clipping.
    #[serde(default)]
    pub optimizer: OptimizerSettings,
    /// The learning rate over the steps.
    #[serde(default)]
    pub schedule: Schedule,
    /// Which states of the run are kept.
    #[serde(default)]
    pub checkpoints: CheckpointSettings,
    /// When the run ends before its last step.
    #[serde(default)]
    pub early_stopping: EarlyStopping,
    /// Where results go.
    pub output: OutputSettings,
}

/// `plumbline pretrain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainRecipe {
    /// The model to make.
    pub model: ModelShape,
    /// What it is trained on; the tokenizer is trained on the same text.
    pub data: DataSettings,
    /// The loop.
    pub training: TrainingSettings,
    /// Rates, decay and clipping.
    #[serde(default)]
    pub optimizer: OptimizerSettings,
    /// The learning rate over the steps.
    #[serde(default)]
    pub schedule: Schedule,
    /// Which states of the run are kept.
    #[serde(default)]
    pub checkpoints: CheckpointSettings,
    /// When the run ends before its last step.
    #[serde(default)]
    pub early_stopping: EarlyStopping,
    /// Where results go.
    pub output: OutputSettings,
}

/// Where a model comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSource {
    /// A folder in Hugging Face layout; absent for the model inside this program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// Which states of a run are kept, beside that of the best evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSettings {
    /// Steps from one checkpoint to the next; 0 for one at the end.
    pub every: u64,
    /// How many of the newest are kept.
    pub keep: usize,
}

impl Default for CheckpointSettings {
    fn default() -> Self {
        Self { every: 100, keep: 2 }
    }
}

impl CheckpointSettings {
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self) -> Result<()> {
        match self.keep {
            0 => Err(Error::Invalid("checkpoints.keep is 0, expected at least 1".into())),
            _ => Ok(()),
        }
    }
}

/// When a run ends before its last step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EarlyStopping {
    /// Evaluations in a row without a new best after which the run ends; 0 for never.
    pub patience: u64,
}

impl EarlyStopping {
    /// # Errors
    /// `Invalid` for a patience that waits for evaluations that do not take place.
    pub fn check(&self, eval_every: u64, measured: usize) -> Result<()> {
        let patience = self.patience;
        if patience > 0 && (eval_every == 0 || measured == 0) {
            let reason = format!(
                "early_stopping.patience is {patience}, which needs training.eval_every and \
                 data.eval or data.eval_samples"
            );
            return Err(Error::Invalid(reason));
        }
        Ok(())
    }
}

/// Where results go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSettings {
    /// A folder that does not exist yet.
    pub dir: PathBuf,
}

/// Shape of a model to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Entries of the tokenizer and the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Constant of the normalisations.
    pub rms_norm_eps: f64,
}

impl ModelShape {
    /// The configuration with `context` positions and tied embeddings.
    ///
    /// # Errors
    /// `Spec` naming the field that is impossible.
    pub fn config(&self, context: usize) -> Result<LlamaConfig> {
        let mut value = serde_json::json!(self);
        value["max_position_embeddings"] = context.into();
        value["tie_word_embeddings"] = true.into();
        Ok(LlamaConfig::from_value(&value)?)
    }
}

/// Reads a recipe; relative paths in it count from its own folder.
///
/// # Errors
/// `Io`; `File` with line, field and value.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
        let place = line.map_or(String::new(), |line| format!("line {line}: "));
        Error::file(path, format!("{place}{}", error.message().replace('\n', "; ")))
    })
}

/// The first field in which two recipes differ, with both values.
pub fn difference<T: Serialize>(stored: &T, asked: &T) -> String {
    let value = |recipe: &T| serde_json::to_value(recipe).unwrap_or_default();
    match first_difference("", &value(stored), &value(asked)) {
        Some((field, stored, asked)) => format!("{field} is {stored} there and {asked} here"),
        None => "they differ".to_owned(),
    }
}

fn first_difference(field: &str, stored: &Value, asked: &Value) -> Option<(String, Value, Value)> {
    let (Value::Object(left), Value::Object(right)) = (stored, asked) else {
        let differ = stored != asked;
        return differ.then(|| (field.to_owned(), stored.clone(), asked.clone()));
    };
    left.keys().chain(right.keys()).find_map(|key| {
        let name = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
        first_difference(&name, left.get(key).unwrap_or(&ABSENT), right.get(key).unwrap_or(&ABSENT))
    })
}

const ABSENT: Value = Value::Null;

/// A path as a recipe in `folder` means it, absolute, so that the recipe a run writes beside its
/// outputs means the same from everywhere.
///
/// # Errors
/// `Io` when the current folder is gone.
pub fn resolve(folder: &Path, path: &Path) -> Result<PathBuf> {
    if path.to_string_lossy().starts_with("builtin:") {
        return Ok(path.into());
    }
    std::path::absolute(folder.join(path)).map_err(Error::io(path, "resolve"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_count_from_the_recipe_and_texts_inside_the_program_stay() {
        let resolved = resolve(Path::new("/recipes"), Path::new("text.txt")).unwrap();
        assert_eq!(resolved, Path::new("/recipes/text.txt"));
        let builtin = resolve(Path::new("/recipes"), Path::new("builtin:milton_eval")).unwrap();
        assert_eq!(builtin, Path::new("builtin:milton_eval"));
        assert!(resolve(Path::new("recipes"), Path::new("a")).unwrap().is_absolute());
    }
}
