//! A record's text as token ids and the targets that count.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::format::{SampleFormat, Span};
use crate::checkpoint::Tokenizer;
use crate::model::IGNORE;

/// What is learnt of a sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// Its answers.
    #[default]
    Response,
    /// All of it.
    All,
}

/// What becomes of a sample that is longer than a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// Its end is cut off.
    #[default]
    Cut,
    /// It is left out.
    Drop,
}

/// Inputs, and for each what should follow: `IGNORE` where that is not learnt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// One less than the text has tokens: after the last nothing follows.
    pub tokens: Vec<i32>,
    /// As many.
    pub targets: Vec<i32>,
}

impl Sample {
    /// Targets that are learnt.
    pub fn counted(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORE).count()
    }
}

/// Why a sample is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dropped {
    /// It has no answer.
    NoResponse,
    /// Its answer lies beyond the window.
    ResponseBeyondWindow,
    /// It is longer than a window.
    TooLong,
}

/// What a record becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoded {
    /// All of it.
    Whole(Sample),
    /// As much as a window holds.
    Cut(Sample),
    /// Nothing.
    Dropped(Dropped),
}

/// How records become samples.
pub struct Encoder {
    /// What a record holds.
    pub format: SampleFormat,
    /// What counts.
    pub loss: LossOn,
    /// What becomes of the long.
    pub too_long: TooLong,
    /// Tokens of a window.
    pub context: usize,
    /// Ids that the model has.
    pub vocab_size: usize,
    /// Text to ids.
    pub tokenizer: Tokenizer,
}

impl Encoder {
    /// The sample of a record.
    ///
    /// # Errors
    /// What is wrong with the record; the first line of its text counts as line 1.
    pub fn encode(&self, record: &[u8]) -> Result<Encoded, BadRecord> {
        let value = serde_json::from_slice(record).map_err(|error| BadRecord {
            line: error.line(),
            reason: format!("not JSON: {error}"),
        })?;
        let bad = |reason| BadRecord { line: 1, reason };
        let spans = self.format.spans(&value).map_err(bad)?;
        let (ids, is_learnt) = self.ids(&spans).map_err(bad)?;
        Ok(self.fit(&ids, &is_learnt))
    }

    /// Token ids of the whole text, and which of them are learnt: those that begin in an answer.
    fn ids(&self, spans: &[Span]) -> Result<(Vec<i32>, Vec<bool>), String> {
        let (mut text, mut answers) = (String::new(), Vec::new());
        for span in spans {
            let start = text.len();
            let _ = text.write_str(&span.text); // a String takes everything
            if span.is_answer || self.loss == LossOn::All {
                answers.push(start..text.len());
            }
        }
        let (ids, places) =
            self.tokenizer.encode_with_places(&text).map_err(|error| error.to_string())?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(format!("token id {id} is outside 0..{}", self.vocab_size));
        }
        // A token that the tokenizer adds by itself has an empty place and is not learnt.
        let in_answer = |place: &std::ops::Range<usize>| {
            !place.is_empty() && answers.iter().any(|answer| answer.contains(&place.start))
        };
        Ok((ids, places.iter().map(in_answer).collect()))
    }

    fn fit(&self, ids: &[i32], is_learnt: &[bool]) -> Encoded {
        let Some(last) = ids.len().checked_sub(1) else {
            return Encoded::Dropped(Dropped::NoResponse);
        };
        let target = |index: usize| if is_learnt[index] { ids[index] } else { IGNORE };
        let mut sample =
            Sample { tokens: ids[..last].to_vec(), targets: (1..ids.len()).map(target).collect() };
        if sample.counted() == 0 {
            return Encoded::Dropped(Dropped::NoResponse);
        }
        if sample.tokens.len() <= self.context {
            return Encoded::Whole(sample);
        }
        if self.too_long == TooLong::Drop {
            return Encoded::Dropped(Dropped::TooLong);
        }
        sample.tokens.truncate(self.context);
        sample.targets.truncate(self.context);
        match sample.counted() {
            0 => Encoded::Dropped(Dropped::ResponseBeyondWindow),
            _ => Encoded::Cut(sample),
        }
    }
}

/// What is wrong with a record, and in which of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecord {
    /// From 1.
    pub line: usize,
    /// Field, and what was expected.
    pub reason: String,
}
