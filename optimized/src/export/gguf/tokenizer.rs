//! A byte-level BPE of `tokenizer.json` as llama.cpp reads it.

use serde_json::{Value as Json, json};

use super::metadata::{Metadata, Value};
use crate::checkpoint::{LLAMA3_PATTERN, ModelFolder};

/// Types of tokens: parts of texts, never parts of texts, found in a text before it is split, and
/// rows of the embedding that no token has.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Enters the tokenizer, or that there is none.
pub(super) fn describe(metadata: &mut Metadata, source: &ModelFolder) -> Result<(), String> {
    let Some(bytes) = source.tokenizer_bytes() else {
        metadata.set("tokenizer.ggml.model", Value::Text("none".into()));
        return Ok(());
    };
    let json: Json = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let model = &json["model"];
    let kind = model["type"].as_str().unwrap_or("no type");
    if kind != "BPE" || model["byte_fallback"] == true {
        let fallback = if model["byte_fallback"] == true { " with byte_fallback" } else { "" };
        return Err(format!("model.type is {kind}{fallback}, only byte-level BPE is written"));
    }
    if !json["normalizer"].is_null() {
        let normalizer = &json["normalizer"]["type"];
        return Err(format!("has the normalizer {normalizer}, llama.cpp's BPE has none"));
    }
    let config = source.config();
    let (tokens, types) = tokens(&json, config.vocab_size)?;
    metadata.set("tokenizer.ggml.model", Value::Text("gpt2".into()));
    metadata.set("tokenizer.ggml.pre", Value::Text(split(&json)?.into()));
    metadata.set("tokenizer.ggml.merges", Value::Texts(merges(model)?));
    let (first, tokens_seen) = (first_token(&json, &tokens)?, tokens.len());
    metadata.set("tokenizer.ggml.tokens", Value::Texts(tokens));
    metadata.set("tokenizer.ggml.token_type", Value::I32s(types));
    let known = |id: u32| match (id as usize) < tokens_seen {
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
    Ok(())
}

/// Text and type of every row of the embedding.
fn tokens(json: &Json, rows: usize) -> Result<(Vec<String>, Vec<i32>), String> {
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
    Ok(list.into_iter().unzip())
}

/// Pairs with a blank between them.
fn merges(model: &Json) -> Result<Vec<String>, String> {
    let list = model["merges"].as_array().ok_or("model.merges is no list")?;
    let merge = |merge: &Json| match merge {
        Json::String(pair) => Ok(pair.clone()),
        Json::Array(pair) => match &pair[..] {
            [Json::String(left), Json::String(right)] => Ok(format!("{left} {right}")),
            _ => Err(format!("merge {merge} is no pair")),
        },
        _ => Err(format!("merge {merge} is no pair")),
    };
    list.iter().map(merge).collect()
}

/// llama.cpp's name for how a text is split before the merges.
fn split(json: &Json) -> Result<&'static str, String> {
    let before = &json["pre_tokenizer"];
    let steps: Vec<&Json> = match before["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![before],
    };
    let byte_level = |step: &Json, regex: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] == false
            && step["use_regex"].as_bool().unwrap_or(true) == regex
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let llama3 = |step: &Json| {
        step["type"] == "Split"
            && step["pattern"]["Regex"] == LLAMA3_PATTERN
            && step["behavior"] == "Isolated"
            && step["invert"] == false
    };
    let whole_words = json["model"]["ignore_merges"] == true;
    match steps[..] {
        [step] if byte_level(step, true) && !whole_words => Ok("gpt-2"),
        [first, step] if *first == digits && byte_level(step, true) && !whole_words => Ok("smollm"),
        [first, step] if llama3(first) && byte_level(step, false) && whole_words => Ok("llama-bpe"),
        _ => Err("splits texts in a way that is none of GPT-2's, SmolLM's and LLaMA 3's".into()),
    }
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
