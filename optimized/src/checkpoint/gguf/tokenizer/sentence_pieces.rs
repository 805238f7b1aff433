//! SentencePiece's BPE over characters: of two neighbours that together are a piece, those whose
//! piece has the highest score become one, the leftmost first. Characters without a piece are bytes.
//!
//! `tokenizer.json` has pairs in their order in place of scores: all pairs of a piece, by its score.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::super::llama::Values;
use super::{NORMAL, Parts};

/// Stands for a blank in pieces.
const BLANK: &str = "\u{2581}";
/// Bytes of a piece; SentencePiece's own limit is 16 characters unless its user sets another.
const LONGEST: usize = 1024;
/// What the kind means where the file does not say: `<unk>` and `<s>` of LLaMA 1 and 2.
const UNKNOWN_TOKEN: usize = 0;
const FIRST_TOKEN: usize = 1;

pub(super) fn parts(values: &Values<'_>) -> Result<Parts, String> {
    let tokens = values.texts("tokenizer.ggml.tokens")?;
    let scores = values.floats("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        let (scores, tokens) = (scores.len(), tokens.len());
        return Err(format!("tokenizer.ggml.scores has {scores} scores for {tokens} tokens"));
    }
    let pieces = values.places("tokenizer.ggml.token_type", NORMAL);
    if pieces.is_empty() {
        return Err("tokenizer.ggml.token_type names no token as a part of texts".into());
    }
    let unknown = values.count("tokenizer.ggml.unknown_token_id")?.unwrap_or(UNKNOWN_TOKEN);
    let unknown = tokens
        .get(unknown)
        .ok_or_else(|| format!("tokenizer.ggml.unknown_token_id is {unknown}, no token"))?;
    let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": BLANK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let normalizer = match values.is_on("tokenizer.ggml.add_space_prefix", true) {
        true => {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            let before = json!({"type": "Prepend", "prepend": BLANK});
            json!({"type": "Sequence", "normalizers": [before, blanks]})
        }
        false => blanks,
    };
    Ok(Parts {
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false,
            "merges": merges(&tokens, &scores, &pieces)?,
        }),
        first_token: Some(FIRST_TOKEN),
    })
}

/// Every pair of tokens that makes a piece, the highest score first. Where scores are equal the pair
/// with the longer left side is: a run of one character, whose pieces have one score in LLaMA's
/// vocabulary, grows from its left end, as merging the leftmost pair makes it.
fn merges<'a>(
    tokens: &[&'a str],
    scores: &[f64],
    pieces: &[usize],
) -> Result<Vec<(&'a str, &'a str)>, String> {
    let known: HashSet<&str> = tokens.iter().copied().collect();
    let mut pairs = Vec::new();
    for (piece, score) in pieces.iter().filter_map(|id| Some((*tokens.get(*id)?, scores[*id]))) {
        if piece.len() > LONGEST {
            let length = piece.len();
            return Err(format!("a token has {length} bytes, expected at most {LONGEST}"));
        }
        if score.is_nan() {
            return Err(format!("the score of token {piece:?} is no number"));
        }
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if known.contains(left) && known.contains(right) {
                pairs.push((score, left, right));
            }
        }
    }
    let length = |part: &str| part.chars().count();
    pairs.sort_by(|a, b| {
        let by_length = || (length(b.1), length(b.2)).cmp(&(length(a.1), length(a.2)));
        b.0.total_cmp(&a.0).then_with(by_length)
    });
    Ok(pairs.into_iter().map(|(_, left, right)| (left, right)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_in_the_order_of_the_scores_of_what_they_make() {
        let tokens = ["<s>", "a", "b", "c", "ab", "bc", "abc", "__", "_", "___", "é", "aé"];
        let scores = [0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -5.0, -5.0, -5.0, -9.0, -4.0];
        let pieces: Vec<usize> = (1..tokens.len()).collect();
        let expected = [
            ("b", "c"),
            ("a", "b"),
            ("ab", "c"),
            ("a", "bc"),
            ("a", "é"),
            ("__", "_"),
            ("_", "__"),
            ("_", "_"),
        ];
        assert_eq!(merges(&tokens, &scores, &pieces).unwrap(), expected);
        let error = merges(&tokens, &[f64::NAN; 12], &pieces).unwrap_err();
        assert_eq!(error, "the score of token \"a\" is no number");
        let long = "x".repeat(1025);
        let error = merges(&[&long], &[0.0], &[0]).unwrap_err();
        assert_eq!(error, "a token has 1025 bytes, expected at most 1024");
    }
}
