//! The tokenizer inside a GGUF file as a `tokenizer.json`.

mod byte_level;
mod sentence_pieces;

use serde_json::{Map, Value, json};

use super::llama::Values;

/// Tokens of this type are parts of texts.
const NORMAL: i64 = 1;
/// Tokens of these types are never parts of a text.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
/// Tokens that are found in a text before it is split.
const USER_DEFINED: i64 = 4;

/// What the kinds of tokenizers differ in; the other fields of `tokenizer.json` are shared.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// The model without its vocabulary.
    model: Value,
    /// Token before every text, where the file does not say.
    first_token: Option<usize>,
}

/// The text of `tokenizer.json`, or why it cannot be made.
pub(super) fn json(values: &Values<'_>) -> Result<Vec<u8>, String> {
    let kind = values.text("tokenizer.ggml.model")?;
    let Parts { normalizer, pre_tokenizer, decoder, mut model, first_token } = match kind {
        "gpt2" => byte_level::parts(values)?,
        "llama" => sentence_pieces::parts(values)?,
        other => {
            return Err(format!(
                "tokenizer.ggml.model is {other}, supported: gpt2 (byte-level BPE), llama \
                 (SentencePiece); use the model's folder with its tokenizer.json, or token ids"
            ));
        }
    };
    let tokens = values.texts("tokenizer.ggml.tokens")?;
    let added = |kind: i64| {
        let tokens = &tokens;
        let places = values.places("tokenizer.ggml.token_type", kind).into_iter();
        places.filter_map(move |id| {
            let content = tokens.get(id)?;
            Some(json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": kind != USER_DEFINED,
            }))
        })
    };
    let added: Vec<Value> = [UNKNOWN, CONTROL, USER_DEFINED].into_iter().flat_map(added).collect();
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).into(), id.into())).collect();
    model["vocab"] = vocab.into();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer,
        "added_tokens": added,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": template(values, &tokens, first_token)?,
        "decoder": decoder,
        "model": model,
    });
    Ok(json.to_string().into_bytes())
}

/// Puts a token before every text, if the tokenizer does.
fn template(values: &Values<'_>, tokens: &[&str], known: Option<usize>) -> Result<Value, String> {
    if !values.is_on("tokenizer.ggml.add_bos_token", known.is_some()) {
        return Ok(Value::Null);
    }
    let id = match (values.count("tokenizer.ggml.bos_token_id")?, known) {
        (Some(id), _) | (None, Some(id)) => id,
        (None, None) => return Err("metadata has no tokenizer.ggml.bos_token_id".into()),
    };
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
