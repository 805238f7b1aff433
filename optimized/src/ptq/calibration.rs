//! What GPTQ measures the inputs of layers on.

use crate::error::Result;
use crate::model::Batch;
use crate::train::{TokenWindows, TrainingData};

/// Windows of tokens. None is padded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calibration {
    windows: Vec<CalibrationWindow>,
}

/// One window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationWindow {
    tokens: Vec<i32>,
    /// For each token the place where its document begins, where there are several.
    documents: Option<Vec<i32>>,
}

impl Calibration {
    /// Nothing, for round-to-nearest.
    pub fn none() -> Self {
        Self::default()
    }

    /// `windows` windows of `context` tokens of a text, in the order in which a training with this
    /// seed would read them.
    ///
    /// # Errors
    /// `Invalid` for a text that does not fill one window and one token.
    pub fn of_text(tokens: Vec<i32>, windows: usize, context: usize, seed: u64) -> Result<Self> {
        let mut text = TokenWindows::new(tokens, context, seed)?;
        let (tokens, _) = text.batch(0, windows);
        let window = |tokens: &[i32]| CalibrationWindow { tokens: tokens.into(), documents: None };
        Ok(Self { windows: tokens.chunks(context).map(window).collect() })
    }

    /// The first `windows` windows that a training reads.
    ///
    /// # Errors
    /// `Io`; `File` for a file that is no longer what it was.
    pub fn of_training(data: &mut TrainingData, windows: usize) -> Result<Self> {
        let sequences = data.batch(0, windows)?;
        let window = |(tokens, documents): (&[i32], &[i32])| {
            let several = documents.iter().any(|begin| *begin != 0);
            let documents = several.then(|| documents.to_vec());
            CalibrationWindow { tokens: tokens.to_vec(), documents }
        };
        Ok(Self { windows: sequences.unpadded().map(window).collect() })
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len()).sum()
    }

    /// The windows.
    pub fn windows(&self) -> &[CalibrationWindow] {
        &self.windows
    }
}

impl CalibrationWindow {
    /// Token ids.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// As the model takes it.
    pub(super) fn batch(&self) -> Batch<'_> {
        let Self { tokens, documents } = self;
        Batch { batch: 1, tokens, targets: &[], documents: documents.as_deref() }
    }
}
