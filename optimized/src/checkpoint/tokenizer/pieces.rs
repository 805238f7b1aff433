//! A text tokenized piece by piece with the ids of the whole: a tokenizer takes a hundred bytes for
//! each byte of what it is given at once.
//!
//! A seam is where a line feed stands between two characters that are not white space, behind the
//! line feed. Three pre-tokenizers are known to have a border there whatever stands around:
//!
//! - GPT-2's: no alternative of its pattern matches a line feed together with anything that is not
//!   white space, so a match begins at the line feed and one ends behind it. The lookahead of
//!   `\s+(?!\S)` decides which alternative takes it, not what it takes.
//! - SmolLM's: GPT-2's on the parts between digits, which each stand alone. A part that ends with
//!   the line feed has its last match there.
//! - LLaMA 3's: behind a letter or a number a match begins at the line feed, which `\s*[\r\n]+`
//!   takes alone; behind any other character the match of ` ?[^\s\p{L}\p{N}]+[\r\n]*` takes it last.
//!
//! Neither looks behind, so what follows is split as if the text began there, and BPE joins nothing
//! across a border. No added token may hold a line feed or take the white space beside it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::{LLAMA3_PATTERN, Tokenizer};
use crate::error::{Error, Result};

/// What the tokenizer adds before and behind every text.
type Frame = (Vec<i32>, Vec<i32>);

/// Bytes of a file that are read at once.
const BLOCK: usize = 1 << 20;

impl Tokenizer {
    /// The ids of a text file, some megabytes of it in memory at a time.
    ///
    /// # Errors
    /// `Io`; `File` for what is not UTF-8 or blank; `Invalid` when the library fails.
    pub fn encode_file(&self, path: &Path) -> Result<Vec<i32>> {
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        self.encode_read(path, file, BLOCK)
    }

    /// The ids that [`Tokenizer::encode`] gives of the whole text, of which no more than about
    /// `block` bytes between two seams are taken at once. A tokenizer or a text without seams is
    /// taken whole. `path` is for messages.
    ///
    /// # Errors
    /// `Io`; `File` for what is not UTF-8 or blank; `Invalid` when the library fails.
    fn encode_read(&self, path: &Path, mut text: impl Read, block: usize) -> Result<Vec<i32>> {
        let frame = self.frame()?;
        let (mut ids, suffix) = frame.clone().unwrap_or_default();
        let (mut buffer, mut is_blank) = (Vec::new(), true);
        let mut take = |bytes: &[u8], ids: &mut Vec<i32>| -> Result<()> {
            let piece = std::str::from_utf8(bytes);
            let piece = piece.map_err(|_| Error::file(path, "is not UTF-8 text"))?;
            is_blank &= piece.trim().is_empty();
            ids.extend(self.encode_as(piece, frame.is_none())?);
            Ok(())
        };
        loop {
            let known = buffer.len();
            let more = text.by_ref().take(block as u64).read_to_end(&mut buffer);
            if more.map_err(Error::io(path, "read"))? == 0 {
                break;
            }
            if frame.is_some()
                && let Some(seam) = last_seam(&buffer, known)
            {
                take(&buffer[..seam], &mut ids)?;
                buffer.drain(..seam);
            }
        }
        take(&buffer, &mut ids)?;
        if is_blank {
            return Err(Error::file(path, "the text is empty"));
        }
        ids.extend(suffix);
        Ok(ids)
    }

    /// What is added to every text, where the ids of pieces are otherwise those of the whole.
    fn frame(&self) -> Result<Option<Frame>> {
        if !self.has_seams() {
            return Ok(None);
        }
        let around = |text: &str| -> Result<Option<Frame>> {
            let (bare, framed) = (self.encode_as(text, false)?, self.encode_as(text, true)?);
            let at = framed.windows(bare.len().max(1)).position(|window| window == bare);
            Ok(at.map(|at| (framed[..at].to_vec(), framed[at + bare.len()..].to_vec())))
        };
        let (frame, other) = (around("a")?, around("b")?);
        Ok(frame.filter(|frame| Some(frame) == other.as_ref()))
    }

    fn has_seams(&self) -> bool {
        let inner = &self.inner;
        let is_bytes =
            |level: &ByteLevel, use_regex| !level.add_prefix_space && level.use_regex == use_regex;
        let is_split = match inner.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::ByteLevel(level)) => is_bytes(level, true),
            Some(PreTokenizerWrapper::Sequence(steps)) => match steps.as_ref() {
                [PreTokenizerWrapper::Digits(digits), PreTokenizerWrapper::ByteLevel(level)] => {
                    digits.individual_digits && is_bytes(level, true)
                }
                [PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(level)] => {
                    matches!(&split.pattern, SplitPattern::Regex(pattern) if pattern == LLAMA3_PATTERN)
                        && split.behavior == SplitDelimiterBehavior::Isolated
                        && !split.invert
                        && is_bytes(level, false)
                }
                _ => false,
            },
            _ => false,
        };
        let is_bpe =
            matches!(inner.get_model(), ModelWrapper::BPE(model) if model.dropout.is_none());
        let added = inner.get_added_tokens_decoder();
        let stays_within = added
            .values()
            .all(|token| !token.content.contains('\n') && !token.lstrip && !token.rstrip);
        is_split
            && is_bpe
            && stays_within
            && inner.get_normalizer().is_none()
            && inner.get_truncation().is_none()
            && inner.get_padding().is_none()
            && inner.get_post_processor().is_none_or(adds_a_frame)
    }

    fn encode_as(&self, text: &str, with_added: bool) -> Result<Vec<i32>> {
        let encoding = self.inner.encode_fast(text, with_added);
        let encoding = encoding.map_err(|error| Error::Invalid(format!("tokenizer: {error}")))?;
        Ok(encoding.get_ids().iter().map(|id| *id as i32).collect())
    }
}

/// Whether all that is done to ids is that others are put before and behind them.
fn adds_a_frame(processor: &PostProcessorWrapper) -> bool {
    match processor {
        PostProcessorWrapper::ByteLevel(_) | PostProcessorWrapper::Template(_) => true,
        PostProcessorWrapper::Sequence(steps) => steps.as_ref().iter().all(adds_a_frame),
        PostProcessorWrapper::Bert(_) | PostProcessorWrapper::Roberta(_) => false,
    }
}

/// The last seam of a text of which the first `known` bytes were looked at before.
fn last_seam(text: &[u8], known: usize) -> Option<usize> {
    let is_seam = |at: usize| {
        let is_in_word = |character: Option<char>| character.is_some_and(|c| !c.is_whitespace());
        text[at - 1] == b'\n'
            && is_in_word(before(&text[..at - 1]))
            && is_in_word(after(&text[at..]))
    };
    // The character behind a line feed may have been incomplete.
    (known.saturating_sub(4).max(1)..=text.len()).rev().find(|at| is_seam(*at))
}

/// The last character of a text.
fn before(text: &[u8]) -> Option<char> {
    let first =
        (text.len().saturating_sub(4)..text.len()).rev().find(|at| text[*at] & 0xc0 != 0x80);
    std::str::from_utf8(&text[first?..]).ok()?.chars().next()
}

/// The first character of a text; none where it is incomplete.
fn after(text: &[u8]) -> Option<char> {
    let lengths = 1..=text.len().min(4);
    lengths.into_iter().find_map(|length| std::str::from_utf8(&text[..length]).ok()?.chars().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use serde_json::{Value, json};

    const TEXT: &str = "To be, or not to be: that's the question.\n\nWhether 'tis nobler\nin 1603 \
        the mind to suffer;\r\n  The slings\tand arrows\n of outrageous fortune,\nOr to take arms!\n";

    fn changed(tokenizer: &Tokenizer, change: impl FnOnce(&mut Value)) -> Tokenizer {
        let mut value: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
        change(&mut value);
        Tokenizer::from_bytes(Path::new("changed"), value.to_string().as_bytes()).unwrap()
    }

    fn gpt_2() -> Tokenizer {
        Tokenizer::train(&TEXT.repeat(6), 300).unwrap()
    }

    fn llama_3(tokenizer: &Tokenizer) -> Tokenizer {
        changed(tokenizer, |value| {
            let level = json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": false
            });
            let split = json!({
                "type": "Split", "pattern": { "Regex": LLAMA3_PATTERN }, "behavior": "Isolated",
                "invert": false
            });
            value["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [split, level] });
        })
    }

    fn smollm(tokenizer: &Tokenizer) -> Tokenizer {
        changed(tokenizer, |value| {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            let level = value["pre_tokenizer"].take();
            value["pre_tokenizer"] =
                json!({ "type": "Sequence", "pretokenizers": [digits, level] });
        })
    }

    /// With a token before every text and one in texts.
    fn framed(tokenizer: &Tokenizer) -> Tokenizer {
        changed(tokenizer, |value| {
            let token = |id: u32, content: &str| {
                json!({
                    "id": id, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true
                })
            };
            value["added_tokens"] = json!([token(300, "<s>"), token(301, "<|x|>")]);
            value["post_processor"] = json!({
                "type": "TemplateProcessing",
                "single": [
                    { "SpecialToken": { "id": "<s>", "type_id": 0 } },
                    { "Sequence": { "id": "A", "type_id": 0 } },
                ],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
                    { "Sequence": { "id": "B", "type_id": 1 } }],
                "special_tokens": { "<s>": { "id": "<s>", "ids": [300], "tokens": ["<s>"] } },
            });
        })
    }

    /// Texts of everything that a pattern tells apart, line feeds above all.
    fn texts() -> impl Iterator<Item = String> {
        const PARTS: [&str; 20] = [
            "\n",
            "\n",
            "\n",
            "\n",
            " ",
            "  ",
            "\t",
            "\r\n",
            "\r",
            "\u{a0}",
            "a",
            "be",
            "é",
            "7",
            "1603",
            "'s",
            "'LL",
            "!",
            "?\u{2028}",
            "<|x|>",
        ];
        let mut random = ChaCha8Rng::seed_from_u64(4);
        (0..3000).map(move |_| {
            let parts = random.random_range(1..24);
            (0..parts).map(|_| PARTS[random.random_range(0..PARTS.len())]).collect()
        })
    }

    #[test]
    fn pieces_have_the_ids_of_the_whole() {
        let (gpt_2, mut pieces) = (gpt_2(), 0);
        let (llama_3, smollm) = (llama_3(&gpt_2), smollm(&gpt_2));
        let framed = [framed(&gpt_2), framed(&llama_3), framed(&smollm)];
        for tokenizer in framed.iter().chain([&gpt_2, &llama_3, &smollm]) {
            assert!(tokenizer.frame().unwrap().is_some());
            for text in texts().chain([TEXT.to_owned()]).filter(|text| !text.trim().is_empty()) {
                let whole = tokenizer.encode(&text).unwrap();
                for block in [1, 3, 16] {
                    let read = tokenizer.encode_read(Path::new("text"), text.as_bytes(), block);
                    assert_eq!(read.unwrap(), whole, "{text:?} by {block}");
                }
                pieces += usize::from(last_seam(text.as_bytes(), 0).is_some());
            }
        }
        assert!(pieces > 6000, "{pieces} texts have a seam");
    }

    /// Why a seam needs a character that is not white space on both sides.
    #[test]
    fn other_line_ends_are_no_seams() {
        let gpt_2 = gpt_2();
        let joined = |a: &str, b: &str| {
            [gpt_2.encode(a).unwrap(), gpt_2.encode(b).unwrap()].concat()
                == gpt_2.encode(&format!("{a}{b}")).unwrap()
        };
        assert!(joined("question.\n", "Whether"));
        assert!(!joined("arrows\n ", "of"));
        assert_eq!(last_seam(b"a\n\nb\n c\n", 0), None);
        assert_eq!(last_seam("é\né\nb".as_bytes(), 0), Some(6));
        assert_eq!(last_seam(&"a\né".as_bytes()[..3], 0), None, "half a character");
        assert_eq!(last_seam("a\né".as_bytes(), 3), Some(2));
        assert_eq!(last_seam("\u{2028}\na\n".as_bytes(), 0), None);
    }

    #[test]
    fn a_tokenizer_whose_pieces_are_not_known_takes_a_text_whole() {
        let gpt_2 = gpt_2();
        let other = |change: &dyn Fn(&mut Value)| changed(&gpt_2, |value| change(value));
        let token = json!([{
            "id": 300, "content": "<x>", "single_word": false, "lstrip": true, "rstrip": false,
            "normalized": false, "special": true
        }]);
        let mut line = token.clone();
        line[0]["content"] = "\n\n".into();
        line[0]["lstrip"] = false.into();
        for tokenizer in [
            other(&|value| value["pre_tokenizer"]["add_prefix_space"] = true.into()),
            other(&|value| value["pre_tokenizer"] = Value::Null),
            other(&|value| value["normalizer"] = json!({ "type": "Lowercase" })),
            other(&|value| value["added_tokens"] = token.clone()),
            other(&|value| value["added_tokens"] = line.clone()),
        ] {
            assert_eq!(tokenizer.frame().unwrap(), None);
            let read = tokenizer.encode_read(Path::new("text"), TEXT.as_bytes(), 5).unwrap();
            assert_eq!(read, tokenizer.encode(TEXT).unwrap());
        }
        let refused =
            |bytes: &[u8]| gpt_2.encode_read(Path::new("text"), bytes, 4).unwrap_err().to_string();
        assert_eq!(refused(b"be\nor\xff\nnot"), "text: is not UTF-8 text");
        assert_eq!(refused(b" \n\n"), "text: the text is empty");
        assert_eq!(refused(b""), "text: the text is empty");
    }
}
