//! The byte-level BPE inside a GGUF file as a `tokenizer.json`.

use serde_json::{Map, Value, json};

use super::llama::Values;
use crate::checkpoint::tokenizer::LLAMA3_PATTERN;

/// Tokens of this type are never parts of a text.
const CONTROL: i64 = 3;
/// Tokens that are found in a text before it is split.
const USER_DEFINED: i64 = 4;

/// The text of `tokenizer.json`, or why it cannot be made.
pub(super) fn json(values: &Values<'_>) -> Result<Vec<u8>, String> {
    let kind = values.text("tokenizer.ggml.model")?;
    if kind != "gpt2" {
        return Err(format!(
            "tokenizer.ggml.model is {kind}, supported: gpt2 (byte-level BPE); use the model's \
             folder with its tokenizer.json, or token ids"
        ));
    }
    let split = values.text("tokenizer.ggml.pre")?;
    let (before, ignore_merges) = match split {
        "gpt-2" => (json!([byte_level(true)]), false),
        "smollm" => {
            (json!([{"type": "Digits", "individual_digits": true}, byte_level(true)]), false)
        }
        "llama-bpe" => {
            let split = json!({
                "type": "Split", "pattern": {"Regex": LLAMA3_PATTERN},
                "behavior": "Isolated", "invert": false,
            });
            (json!([split, byte_level(false)]), true)
        }
        other => {
            let supported = "gpt-2, smollm, llama-bpe";
            return Err(format!("tokenizer.ggml.pre is {other}, supported: {supported}"));
        }
    };
    let tokens = values.texts("tokenizer.ggml.tokens")?;
    let merges: Option<Vec<(&str, &str)>> =
        values.texts("tokenizer.ggml.merges")?.iter().map(|pair| pair.split_once(' ')).collect();
    let merges = merges.ok_or("metadata tokenizer.ggml.merges holds something else than pairs")?;
    let added = |kind: i64| {
        let tokens = &tokens;
        let places = values.places("tokenizer.ggml.token_type", kind).into_iter();
        places.filter_map(move |id| {
            let content = tokens.get(id)?;
            Some(json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": kind == CONTROL,
            }))
        })
    };
    let added: Vec<Value> = added(CONTROL).chain(added(USER_DEFINED)).collect();
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).into(), id.into())).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": before},
        "post_processor": first_token(values, &tokens)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
        },
    });
    Ok(json.to_string().into_bytes())
}

fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

/// The token that the tokenizer puts before every text, if it does.
fn first_token(values: &Values<'_>, tokens: &[&str]) -> Result<Value, String> {
    if !values.is_on("tokenizer.ggml.add_bos_token") {
        return Ok(Value::Null);
    }
    let id = values.need("tokenizer.ggml.bos_token_id")?;
    let token = tokens.get(id).ok_or(format!("tokenizer.ggml.bos_token_id is {id}, no token"))?;
    let first = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, first, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {*token: {"id": token, "ids": [id], "tokens": [token]}},
    }))
}
