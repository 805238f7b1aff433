//! The tokenizer of a `tokenizer.json` as llama.cpp reads it.

mod byte_level;
mod sentence_pieces;

use serde_json::Value as Json;

use super::metadata::{Metadata, Value};
use crate::checkpoint::ModelFolder;

/// Types of tokens: parts of texts, what stands for a character that is none, never parts of texts,
/// found in a text before it is split, rows of the embedding that no token has, and bytes.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// A token of each row of the embedding, and its type.
struct Tokens {
    texts: Vec<String>,
    types: Vec<i32>,
}

/// Enters the tokenizer, or that there is none.
pub(super) fn describe(metadata: &mut Metadata, source: &ModelFolder) -> Result<(), String> {
    let Some(bytes) = source.tokenizer_bytes() else {
        metadata.set("tokenizer.ggml.model", Value::Text("none".into()));
        return Ok(());
    };
    let json: Json = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let model = &json["model"];
    let config = source.config();
    let mut tokens = tokens(&json, config.vocab_size)?;
    match model["type"].as_str() {
        Some("BPE") if model["byte_fallback"] == true => {
            sentence_pieces::describe(metadata, &json, &mut tokens)?;
        }
        Some("BPE") => byte_level::describe(metadata, &json)?,
        kind => {
            let kind = kind.unwrap_or("absent");
            return Err(format!("model.type is {kind}, only BPE is written"));
        }
    }
    let (first, seen) = (first_token(&json, &tokens.texts)?, tokens.texts.len());
    metadata.set("tokenizer.ggml.tokens", Value::Texts(tokens.texts));
    metadata.set("tokenizer.ggml.token_type", Value::I32s(tokens.types));
    let known = |id: u32| match (id as usize) < seen {
        true => Ok(Value::U32(id)),
        false => Err(format!("has no token {id}, which config.json names")),
    };
    if let Some(id) = first.or(config.bos_token_id) {
        metadata.set("tokenizer.ggml.bos_token_id", known(id)?);
    }
    if let Some(id) = config.eos_token_ids.first() {
        metadata.set("tokenizer.ggml.eos_token_id", known(*id)?);
    }
    metadata.set("tokenizer.ggml.add_bos_token", Value::Bool(first.is_some()));
    if let Some(template) = source.chat_template() {
        metadata.set("tokenizer.chat_template", Value::Text(template.into()));
    }
    Ok(())
}

/// Text and type of every row of the embedding.
fn tokens(json: &Json, rows: usize) -> Result<Tokens, String> {
    let vocabulary = json["model"]["vocab"].as_object().ok_or("model.vocab is no object")?;
    let unused = |row: usize| (format!("[PAD{row}]"), UNUSED);
    let mut list: Vec<(String, i32)> = (0..rows).map(unused).collect();
    let mut enter = |id: &Json, token: &str, kind: i32| {
        let row = id.as_u64().map(|id| id as usize).filter(|row| *row < rows);
        let row = row.ok_or(format!("token {token:?} is {id}, the model has {rows} rows"))?;
        list[row] = (token.to_owned(), kind);
        Ok::<_, String>(())
    };
    for (token, id) in vocabulary {
        enter(id, token, NORMAL)?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let content = added["content"].as_str().ok_or("an added token has no content")?;
        let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
        enter(&added["id"], content, kind)?;
    }
    let (texts, types) = list.into_iter().unzip();
    Ok(Tokens { texts, types })
}

/// The pairs of tokens that become one, in their order.
fn merges<'m>(model: &'m Json) -> Result<Vec<(&'m str, &'m str)>, String> {
    let list = model["merges"].as_array().ok_or("model.merges is no list")?;
    let merge = |merge: &'m Json| {
        let pair = match merge {
            Json::String(pair) => pair.split_once(' '),
            Json::Array(pair) => match &pair[..] {
                [Json::String(left), Json::String(right)] => Some((&**left, &**right)),
                _ => None,
            },
            _ => None,
        };
        pair.ok_or_else(|| format!("merge {merge} is no pair"))
    };
    list.iter().map(merge).collect()
}

/// The token that the tokenizer puts before every text, if it does.
fn first_token(json: &Json, tokens: &[String]) -> Result<Option<u32>, String> {
    let post = &json["post_processor"];
    let steps: Vec<&Json> = match post["processors"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![post],
    };
    let mut first = None;
    for step in steps {
        match step["type"].as_str() {
            None | Some("ByteLevel") => {}
            Some("TemplateProcessing") => {
                let single = step["single"].as_array().ok_or("its template is no list")?;
                first = match &single[..] {
                    [sequence] if !sequence["Sequence"].is_null() => None,
                    [token, sequence] if !sequence["Sequence"].is_null() => {
                        let name = token["SpecialToken"]["id"].as_str();
                        let place = name.and_then(|name| tokens.iter().position(|t| t == name));
                        Some(place.ok_or("its template begins with no token")? as u32)
                    }
                    _ => return Err("its template adds more than a first token".into()),
                };
            }
            Some(other) => return Err(format!("has the post-processor {other}")),
        }
    }
    Ok(first)
}
