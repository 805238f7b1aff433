//! What was found in the data: nothing is left out in silence.

use std::fmt;

use serde::Serialize;

use super::encode::{Dropped, Encoded};
use crate::error::{Error, Result};

/// Counts over all files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DataReport {
    /// Records.
    pub samples: usize,
    /// Samples whose end does not fit into a window and is cut off.
    pub cut: usize,
    /// Samples without an answer.
    pub without_response: usize,
    /// Samples whose answer lies beyond the window.
    pub response_beyond_window: usize,
    /// Samples left out because they are longer than a window.
    pub too_long: usize,
    /// File and line of the first that was cut or left out.
    pub first_incomplete: Option<String>,
    /// Tokens of all that is kept.
    pub tokens: u64,
    /// Of these, those that are learnt.
    pub counted_tokens: u64,
    /// Windows of an epoch.
    pub windows: usize,
    /// Tokens of a window.
    pub context: usize,
}

impl DataReport {
    /// One more record.
    pub(super) fn count(&mut self, encoded: &Encoded, place: impl FnOnce() -> String) {
        self.samples += 1;
        match encoded {
            Encoded::Whole(_) => {}
            Encoded::Cut(_) => self.cut += 1,
            Encoded::Dropped(Dropped::NoResponse) => self.without_response += 1,
            Encoded::Dropped(Dropped::ResponseBeyondWindow) => self.response_beyond_window += 1,
            Encoded::Dropped(Dropped::TooLong) => self.too_long += 1,
        }
        match encoded {
            Encoded::Whole(sample) | Encoded::Cut(sample) => {
                self.tokens += sample.tokens.len() as u64;
                self.counted_tokens += sample.counted() as u64;
            }
            Encoded::Dropped(_) => {}
        }
        if !matches!(encoded, Encoded::Whole(_)) && self.first_incomplete.is_none() {
            self.first_incomplete = Some(place());
        }
    }

    /// Samples that are left out.
    pub fn dropped(&self) -> usize {
        self.without_response + self.response_beyond_window + self.too_long
    }

    /// Refuses data of which more is dropped or cut than was allowed, or nothing left.
    pub(super) fn check(&self, max_dropped: f64, context: usize) -> Result<()> {
        if self.dropped() == self.samples {
            let first = self.first_incomplete.as_deref().unwrap_or_default();
            let (samples, losses) = (self.samples, self.losses());
            let reason =
                format!("none of {samples} samples is left: {losses}; the first is {first}");
            return Err(Error::Invalid(reason));
        }
        let incomplete = self.cut + self.dropped();
        let share = incomplete as f64 / self.samples as f64;
        if share <= max_dropped {
            return Ok(());
        }
        let first = self.first_incomplete.as_deref().unwrap_or_default();
        Err(Error::Invalid(format!(
            "of {} samples {} fit data.context = {context} whole: {}; that is {:.1} % dropped or \
             cut, and data.max_dropped allows {:.1} %; the first is {first}",
            self.samples,
            self.samples - incomplete,
            self.losses(),
            100.0 * share,
            100.0 * max_dropped,
        )))
    }

    fn losses(&self) -> String {
        format!(
            "{} cut, {} dropped without an answer, {} with the answer beyond the window, {} too \
             long",
            self.cut, self.without_response, self.response_beyond_window, self.too_long
        )
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let room = (self.windows * self.context) as f64;
        write!(
            f,
            "{} samples: {}; {} tokens, {} learnt, in {} windows of {} ({:.1} % full)",
            self.samples,
            self.losses(),
            self.tokens,
            self.counted_tokens,
            self.windows,
            self.context,
            100.0 * self.tokens as f64 / room
        )
    }
}
