//! What a training step computes on, and where it comes from.

use std::collections::BTreeMap;

use super::data::TokenWindows;
use super::samples::{DataReport, Samples};
use crate::error::Result;
use crate::model::{Batch, IGNORE};

/// Equally long sequences of token ids, with what each token should predict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequences {
    sequences: usize,
    length: usize,
    tokens: Vec<i32>,
    targets: Vec<i32>,
    /// For each token the place in its sequence where its document begins.
    documents: Vec<i32>,
    /// Tokens that fill each sequence that is filled, by its number.
    padding: BTreeMap<usize, usize>,
}

impl Sequences {
    /// Room for `sequences` sequences of `length` tokens.
    pub fn new(sequences: usize, length: usize) -> Self {
        let room = || Vec::with_capacity(sequences * length);
        let padding = BTreeMap::new();
        Self { sequences, length, tokens: room(), targets: room(), documents: room(), padding }
    }

    /// Appends a document to the sequence at hand.
    ///
    /// # Panics
    /// When there are not as many targets as tokens, or the sequence has no room for them.
    pub fn add_document(&mut self, tokens: &[i32], targets: &[i32]) {
        assert_eq!(tokens.len(), targets.len(), "targets of a document");
        let begin = self.tokens.len() % self.length;
        let used = if self.is_between() { 0 } else { begin };
        assert!(used + tokens.len() <= self.length, "{used} and {} tokens", tokens.len());
        self.tokens.extend_from_slice(tokens);
        self.targets.extend_from_slice(targets);
        self.documents.extend(std::iter::repeat_n(begin as i32, tokens.len()));
    }

    /// Fills the sequence at hand: a document of its own, of which nothing is learnt.
    pub fn end_sequence(&mut self) {
        if self.is_between() {
            return;
        }
        let missing = self.length - self.tokens.len() % self.length;
        self.padding.insert(self.tokens.len() / self.length, missing);
        self.add_document(&vec![0; missing], &vec![IGNORE; missing]);
    }

    fn is_between(&self) -> bool {
        self.tokens.len().is_multiple_of(self.length)
    }

    /// Tokens and their documents' places of each sequence, without what fills it.
    pub fn unpadded(&self) -> impl Iterator<Item = (&[i32], &[i32])> {
        let each = self.tokens.chunks(self.length).zip(self.documents.chunks(self.length));
        each.enumerate().map(|(number, (tokens, documents))| {
            let used = tokens.len() - self.padding.get(&number).unwrap_or(&0);
            (&tokens[..used], &documents[..used])
        })
    }

    /// How many targets count.
    pub fn counted(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORE).count()
    }

    /// As the model takes them.
    pub fn batch(&self) -> Batch<'_> {
        let Self { sequences, tokens, targets, documents, .. } = self;
        // One document that begins at 0 is what the model takes a sequence for by itself.
        let several = documents.iter().any(|begin| *begin != 0);
        let documents = several.then_some(documents.as_slice());
        Batch { batch: *sequences, tokens, targets, documents }
    }
}

/// What a run is trained on.
pub enum TrainingData {
    /// Windows of one text.
    Text(TokenWindows),
    /// Windows of samples.
    Samples(Box<Samples>),
}

impl From<TokenWindows> for TrainingData {
    fn from(text: TokenWindows) -> Self {
        Self::Text(text)
    }
}

impl TrainingData {
    /// `count` windows, beginning with the run's window number `first`; a function of the data, the
    /// seed and these two.
    ///
    /// # Errors
    /// `Io`; `File` for a file that is no longer what it was.
    pub fn batch(&mut self, first: u64, count: usize) -> Result<Sequences> {
        match self {
            Self::Samples(samples) => samples.batch(first, count),
            Self::Text(text) => {
                let (tokens, targets) = text.batch(first, count);
                let length = tokens.len() / count.max(1);
                let mut sequences = Sequences::new(count, length);
                for (tokens, targets) in tokens.chunks(length).zip(targets.chunks(length)) {
                    sequences.add_document(tokens, targets);
                }
                Ok(sequences)
            }
        }
    }

    /// SHA-256 over what is trained on and how it is cut: equal for data of equal batches.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Text(text) => text.fingerprint(),
            Self::Samples(samples) => samples.fingerprint().to_owned(),
        }
    }

    /// What was found in the files of samples.
    pub fn report(&self) -> Option<&DataReport> {
        match self {
            Self::Text(_) => None,
            Self::Samples(samples) => Some(samples.report()),
        }
    }

    /// Windows of one epoch.
    pub fn windows_per_epoch(&self) -> usize {
        match self {
            Self::Text(text) => text.windows_per_epoch(),
            Self::Samples(samples) => samples.windows_per_epoch(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fills_a_sequence_is_known() {
        let mut sequences = Sequences::new(3, 4);
        sequences.add_document(&[5, 6], &[6, IGNORE]);
        sequences.add_document(&[7], &[IGNORE]);
        sequences.end_sequence();
        sequences.add_document(&[1, 2, 3, 0], &[2, 3, 0, IGNORE]);
        sequences.end_sequence();
        sequences.add_document(&[0], &[IGNORE]);
        sequences.end_sequence();
        let unpadded: Vec<_> = sequences.unpadded().collect();
        let expected: [(&[i32], &[i32]); 3] =
            [(&[5, 6, 7], &[0, 0, 2]), (&[1, 2, 3, 0], &[0; 4]), (&[0], &[0])];
        assert_eq!(unpadded, expected);
    }
}
