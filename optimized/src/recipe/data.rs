//! `[data]`: files, and how they become windows.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::train::samples::{CHATML_END, CHATML_START, ChatTemplate, LossOn, TooLong};

/// Texts or samples, and how they are cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Files, read one after the other; `builtin:NAME` for a text inside this program.
    pub train: Vec<PathBuf>,
    /// Text files whose perplexity is measured.
    #[serde(default)]
    pub eval: Vec<PathBuf>,
    /// Files of samples, of the format of `train`, whose loss is measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eval_samples: Vec<PathBuf>,
    /// Tokens of a window.
    pub context: usize,
    /// What the files of `train` hold.
    #[serde(default)]
    pub format: DataFormat,
    /// How the turns of messages are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<ChatTemplate>,
    /// What is learnt of a sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossOn>,
    /// Token after an answer; the model's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_token: Option<String>,
    /// Several samples to a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packing: Option<bool>,
    /// What becomes of a sample that is longer than a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub too_long: Option<TooLong>,
    /// Share of the samples that may be dropped or cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_dropped: Option<f64>,
}

/// What files hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataFormat {
    /// Running text, joined and cut into windows.
    #[default]
    Text,
    /// JSON objects of `instruction`, `input` and `output`.
    Alpaca,
    /// JSON objects of `messages`.
    Messages,
}

/// Share of the samples that may be dropped or cut where the recipe does not say.
const MAX_DROPPED: f64 = 0.05;

impl DataSettings {
    /// Refuses fields that do not go together.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self) -> Result<()> {
        if self.train.is_empty() {
            return Err(Error::Invalid("data.train is empty".into()));
        }
        let of_samples = [
            ("eval_samples", !self.eval_samples.is_empty()),
            ("loss", self.loss.is_some()),
            ("end_token", self.end_token.is_some()),
            ("packing", self.packing.is_some()),
            ("too_long", self.too_long.is_some()),
            ("max_dropped", self.max_dropped.is_some()),
        ];
        if self.format == DataFormat::Text
            && let Some((field, _)) = of_samples.iter().find(|(_, given)| *given)
        {
            let reason = format!("data.{field} is for the formats alpaca and messages, not text");
            return Err(Error::Invalid(reason));
        }
        if self.format != DataFormat::Messages && self.template.is_some() {
            return Err(Error::Invalid("data.template is for the format messages".into()));
        }
        if self.template() == ChatTemplate::Chatml && self.end_token.is_some() {
            let reason = format!("data.end_token is for other templates: chatml has {CHATML_END}");
            return Err(Error::Invalid(reason));
        }
        let max_dropped = self.max_dropped();
        if !(0.0..=1.0).contains(&max_dropped) {
            let reason = format!("data.max_dropped is {max_dropped}, expected 0 to 1");
            return Err(Error::Invalid(reason));
        }
        Ok(())
    }

    /// Every file.
    pub fn files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.train.iter_mut().chain(&mut self.eval).chain(&mut self.eval_samples)
    }

    /// How many files are measured.
    pub fn measured(&self) -> usize {
        self.eval.len() + self.eval_samples.len()
    }

    /// How the turns of messages are written.
    pub fn template(&self) -> ChatTemplate {
        self.template.unwrap_or_default()
    }

    /// Share of the samples that may be dropped or cut.
    pub fn max_dropped(&self) -> f64 {
        self.max_dropped.unwrap_or(MAX_DROPPED)
    }

    /// The tokens that the format writes, each of which the tokenizer must have as one, with the
    /// field that asks for it.
    pub fn special_tokens(&self) -> Vec<(&'static str, &str)> {
        match (self.format, self.template()) {
            (DataFormat::Messages, ChatTemplate::Chatml) => {
                [CHATML_START, CHATML_END].map(|token| ("data.template", token)).to_vec()
            }
            _ => self.end_token.iter().map(|token| ("data.end_token", token.as_str())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(more: &str) -> Result<DataSettings, String> {
        let text = format!("train = [\"a.jsonl\"]\ncontext = 64\n{more}");
        let settings: DataSettings = toml::from_str(&text).map_err(|error| error.to_string())?;
        settings.check().map(|()| settings).map_err(|error| error.to_string())
    }

    #[test]
    fn every_field_is_checked_against_the_format() {
        for (more, expected) in [
            ("format = \"parquet\"", "expected one of `text`, `alpaca`, `messages`"),
            ("loss = \"all\"", "data.loss is for the formats alpaca and messages, not text"),
            ("packing = false", "data.packing is for the formats"),
            ("eval_samples = [\"b.jsonl\"]", "data.eval_samples is for the formats"),
            ("format = \"alpaca\"\ntemplate = \"plain\"", "data.template is for the format"),
            ("format = \"alpaca\"\nmax_dropped = 1.5", "data.max_dropped is 1.5, expected 0 to 1"),
            (
                "format = \"messages\"\ntemplate = \"chatml\"\nend_token = \"</s>\"",
                "data.end_token is for other templates",
            ),
            ("format = \"alpaca\"\nloss = \"prompt\"", "expected `response` or `all`"),
        ] {
            let error = settings(more).unwrap_err();
            assert!(error.contains(expected), "{more:?}: {error}");
        }
        let chat = settings("format = \"messages\"\ntemplate = \"chatml\"").unwrap();
        assert_eq!(chat.special_tokens().len(), 2);
        assert_eq!(settings("").unwrap().special_tokens(), []);
    }
}
