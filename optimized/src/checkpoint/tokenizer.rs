//! Text to token ids and back, by the `tokenizers` library.

mod pieces;

use std::ops::Range;
use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder};

use crate::error::{Error, Result};

/// How LLaMA 3 splits a text before the merges.
pub(crate) const LLAMA3_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// A `tokenizer.json`.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Parses the bytes of a `tokenizer.json`; `path` is for messages.
    ///
    /// # Errors
    /// `File` when the library cannot use it.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::file(path, format!("not a usable tokenizer: {error}")))?;
        Ok(Self { inner })
    }

    /// Learns a byte-level BPE of exactly `vocab_size` entries from one text.
    ///
    /// # Errors
    /// `Invalid` when the text is too small for that many entries.
    pub fn train(text: &str, vocab_size: usize) -> Result<Self> {
        let failed = |error: tokenizers::Error| Error::Invalid(format!("tokenizer: {error}"));
        let mut trainer = BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(vocab_size)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut tokenizer = TokenizerBuilder::<
            BPE,
            NormalizerWrapper,
            ByteLevel,
            PostProcessorWrapper,
            DecoderWrapper,
        >::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevelDecoder::default())))
        .build()
        .map_err(failed)?;
        // Lines as the units of counting; the line end stays with its line.
        let lines = text.split_inclusive('\n');
        tokenizer.train(&mut trainer, lines).map_err(failed)?;
        let json = tokenizer.to_string(true).map_err(failed)?;
        let trained = Self::from_bytes(Path::new("trained tokenizer"), json.as_bytes())?;
        if trained.vocab_size() != vocab_size {
            let reached = trained.vocab_size();
            let reason = format!("the text gives {reached} token entries, not {vocab_size}");
            return Err(Error::Invalid(reason));
        }
        Ok(trained)
    }

    /// Entries, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Token ids, with the special tokens that the tokenizer itself adds.
    ///
    /// # Errors
    /// `Invalid` when the library fails.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|error| Error::Invalid(format!("tokenizer: {error}")))?;
        Ok(encoding.get_ids().iter().map(|id| *id as i32).collect())
    }

    /// The same, and of every token the bytes of the text that it stands for; none for a special
    /// token that the tokenizer itself adds.
    ///
    /// # Errors
    /// `Invalid` when the library fails.
    pub fn encode_with_places(&self, text: &str) -> Result<(Vec<i32>, Vec<Range<usize>>)> {
        let encoding = self
            .inner
            .encode(text, true)
            .map_err(|error| Error::Invalid(format!("tokenizer: {error}")))?;
        let ids = encoding.get_ids().iter().map(|id| *id as i32).collect();
        Ok((ids, encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect()))
    }

    /// The token of an id, where there is one.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether a text is one token, as special ones are.
    pub fn is_one_token(&self, text: &str) -> bool {
        self.inner.encode_fast(text, false).is_ok_and(|encoding| encoding.len() == 1)
    }

    /// Text of token ids, special tokens left out.
    ///
    /// # Errors
    /// `Invalid` when the library fails.
    pub fn decode(&self, ids: &[i32]) -> Result<String> {
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        self.inner.decode(&ids, true).map_err(|error| Error::Invalid(format!("tokenizer: {error}")))
    }

    /// The `tokenizer.json` text.
    ///
    /// # Errors
    /// `Invalid` when the library fails.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|error| Error::Invalid(format!("tokenizer: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trained_tokenizer_gives_every_text_back() {
        let text = "To be, or not to be, that is the question:\n".repeat(20);
        let tokenizer = Tokenizer::train(&text, 280).unwrap();
        assert_eq!(tokenizer.vocab_size(), 280);
        for sample in [text.as_str(), "naïve — Ω\n\n  two  spaces", "", "\u{0}\u{1f600}"] {
            let ids = tokenizer.encode(sample).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), sample);
        }
        assert!(Tokenizer::train("a", 2000).is_err());
    }
}
