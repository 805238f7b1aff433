//! SentencePiece's BPE over characters, where a piece has a score: of all neighbours that together are
//! a piece llama.cpp joins those whose piece has the highest, the leftmost of equal ones first.
//!
//! `tokenizer.json` has the pairs in their order. Both are the same where all pairs of a piece stand
//! together, and every pair that makes the piece is one of them.

use std::collections::{HashMap, HashSet};

use serde_json::{Value as Json, json};

use super::super::metadata::{Metadata, Value};
use super::{BYTE, NORMAL, Tokens, UNKNOWN, merges};

/// Stands for a blank in pieces.
const BLANK: &str = "\u{2581}";
/// The unknown token of every LLaMA, where `tokenizer.json` names none.
const UNKNOWN_TOKEN: &str = "<unk>";

pub(super) fn describe(
    metadata: &mut Metadata,
    json: &Json,
    tokens: &mut Tokens,
) -> Result<(), String> {
    let model = &json["model"];
    let prefix = has_prefix(json, &mut metadata.notes)?;
    // With all bytes there nothing is unknown, but llama.cpp wants to be told such a token.
    let unknown = match &model["unk_token"] {
        Json::String(token) => tokens.texts.iter().position(|text| text == token),
        _ => tokens.texts.iter().position(|text| text == UNKNOWN_TOKEN),
    };
    let unknown = unknown
        .ok_or_else(|| format!("model.unk_token is {}, expected a token", model["unk_token"]))?;
    tokens.types[unknown] = UNKNOWN;
    bytes(tokens)?;
    metadata.set("tokenizer.ggml.model", Value::Text("llama".into()));
    metadata.set("tokenizer.ggml.pre", Value::Text("default".into()));
    metadata.set("tokenizer.ggml.scores", Value::F32s(scores(&merges(model)?, tokens)?));
    metadata.set("tokenizer.ggml.add_space_prefix", Value::Bool(prefix));
    metadata.set("tokenizer.ggml.unknown_token_id", Value::U32(unknown as u32));
    Ok(())
}

/// Whether a blank goes before a text. llama.cpp puts one before every part between special tokens, as
/// the normalizer does; a Metaspace does not always, which is noted.
fn has_prefix(json: &Json, notes: &mut Vec<String>) -> Result<bool, String> {
    let (normalizer, before) = (&json["normalizer"], &json["pre_tokenizer"]);
    let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK});
    let prefixed = json!({
        "type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, blanks],
    });
    if before.is_null() && (*normalizer == prefixed || *normalizer == blanks) {
        return Ok(*normalizer == prefixed);
    }
    if normalizer.is_null()
        && before["type"] == "Metaspace"
        && before["replacement"] == BLANK
        && before["split"] == false
    {
        match before["prepend_scheme"].as_str() {
            Some(scheme @ ("first" | "always")) => {
                let behind = match scheme {
                    "first" => ", nor behind a special token",
                    _ => "",
                };
                notes.push(format!(
                    "llama.cpp puts a blank before every text; tokenizer.json puts none before a text \
                     that begins with one{behind}: such texts become other tokens"
                ));
                return Ok(true);
            }
            Some("never") => return Ok(false),
            _ => {}
        }
    }
    let (normalizer, before) = (&normalizer["type"], &before["type"]);
    Err(format!(
        "has byte_fallback, normalizer {normalizer} and pre_tokenizer {before}, which together are \
         not SentencePiece's of a LLaMA"
    ))
}

/// Gives the tokens of bytes their type. All must be there.
fn bytes(tokens: &mut Tokens) -> Result<(), String> {
    let rows: HashMap<&str, usize> =
        tokens.texts.iter().enumerate().map(|(row, token)| (&**token, row)).collect();
    let row = |byte: u8| {
        let token = format!("<0x{byte:02X}>");
        rows.get(&*token).copied().ok_or_else(|| format!("has byte_fallback and no token {token}"))
    };
    let rows = (0..=u8::MAX).map(row).collect::<Result<Vec<_>, _>>()?;
    rows.into_iter().for_each(|row| tokens.types[row] = BYTE);
    Ok(())
}

/// Where the pairs of a piece stand.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    last: usize,
    pairs: usize,
}

/// A score for each token: the place of its pairs among those of all, from -1 down; equal ones where
/// the pairs of several pieces take turns, which only runs of one character may.
fn scores(merges: &[(&str, &str)], tokens: &Tokens) -> Result<Vec<f32>, String> {
    let mut spans: HashMap<String, Span> = HashMap::new();
    for (place, (left, right)) in merges.iter().enumerate() {
        let new = Span { first: place, last: place, pairs: 0 };
        let span = spans.entry(format!("{left}{right}")).or_insert(new);
        span.last = place;
        span.pairs += 1;
    }
    let known: HashSet<&str> = tokens.texts.iter().map(|text| &**text).collect();
    let mut made = Vec::new();
    for (row, piece) in tokens.texts.iter().enumerate() {
        if tokens.types[row] != NORMAL {
            continue;
        }
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let splits = splits.filter(|(left, right)| known.contains(left) && known.contains(right));
        let (splits, span) = (splits.count(), spans.remove(piece));
        let pairs = span.map_or(0, |span| span.pairs);
        if pairs != splits {
            return Err(format!(
                "model.merges has {pairs} of the {splits} pairs that are {piece:?}, where \
                 llama.cpp merges any"
            ));
        }
        made.extend(span.map(|span| (span, row)));
    }
    if let Some(piece) = spans.keys().min() {
        return Err(format!("model.merges makes {piece:?}, which is no part of texts"));
    }
    made.sort_by_key(|(span, _)| span.first);
    let (mut score, mut end, mut before) = (0.0, None, "");
    let mut scores = vec![0.0; tokens.texts.len()];
    for (span, row) in made {
        let piece = &*tokens.texts[row];
        if end.is_some_and(|end| span.first < end) {
            let mut characters = piece.chars().chain(before.chars());
            let first = characters.next();
            if characters.any(|character| Some(character) != first) {
                return Err(format!(
                    "pairs of {before:?} and {piece:?} take turns in model.merges"
                ));
            }
        } else {
            score -= 1.0;
        }
        scores[row] = score;
        (end, before) = (end.max(Some(span.last)), piece);
    }
    // Characters, which nothing is merged to.
    for (row, kind) in tokens.types.iter().enumerate() {
        if *kind == NORMAL && scores[row] == 0.0 {
            scores[row] = score - 1.0;
        }
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores_of(merges: &[(&str, &str)]) -> Result<Vec<f32>, String> {
        let texts = ["<s>", "a", "b", "ab", "_", "__", "___", "aba"];
        let types = [3, 1, 1, 1, 1, 1, 1, 1];
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        scores(merges, &Tokens { texts, types: types.to_vec() })
    }

    #[test]
    fn a_score_is_the_place_of_the_pairs() {
        let runs = [("__", "_"), ("_", "__"), ("_", "_")];
        let all = [&[("a", "b"), ("ab", "a")][..], &runs].concat();
        let expected = [0.0, -5.0, -5.0, -1.0, -5.0, -4.0, -3.0, -2.0];
        assert_eq!(scores_of(&all).unwrap(), expected);
        // In turns: one score.
        let turns = [("__", "_"), ("_", "_"), ("_", "__"), ("ab", "a"), ("a", "b")];
        let expected = [0.0, -4.0, -4.0, -3.0, -4.0, -1.0, -1.0, -2.0];
        assert_eq!(scores_of(&turns).unwrap(), expected);
    }

    #[test]
    fn orders_that_no_scores_have_are_refused() {
        let runs = [("__", "_"), ("_", "__"), ("_", "_")];
        for (words, message) in [
            (&[("a", "b")][..], "model.merges has 0 of the 1 pairs that are \"aba\""),
            (&[("ab", "a"), ("a", "b"), ("b", "a")], "model.merges makes \"ba\""),
        ] {
            let error = scores_of(&[words, &runs].concat()).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
        let turns = [("__", "_"), ("ab", "a"), ("_", "__"), ("_", "_"), ("a", "b")];
        let error = scores_of(&turns).unwrap_err();
        assert_eq!(error, "pairs of \"___\" and \"aba\" take turns in model.merges");
        let missing = [("__", "_"), ("_", "_"), ("a", "b"), ("ab", "a")];
        let error = scores_of(&missing).unwrap_err();
        assert!(error.starts_with("model.merges has 1 of the 2 pairs that are \"___\""), "{error}");
    }
}
