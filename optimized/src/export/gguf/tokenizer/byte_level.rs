//! BPE over bytes.

use serde_json::{Value as Json, json};

use super::super::metadata::{Metadata, Value};
use super::merges;
use crate::checkpoint::LLAMA3_PATTERN;

pub(super) fn describe(metadata: &mut Metadata, json: &Json) -> Result<(), String> {
    if !json["normalizer"].is_null() {
        let normalizer = &json["normalizer"]["type"];
        return Err(format!(
            "has the normalizer {normalizer}, llama.cpp's byte-level BPE has none"
        ));
    }
    metadata.set("tokenizer.ggml.model", Value::Text("gpt2".into()));
    metadata.set("tokenizer.ggml.pre", Value::Text(split(json)?.into()));
    let merges = merges(&json["model"])?.into_iter();
    let merges = merges.map(|(left, right)| format!("{left} {right}")).collect();
    metadata.set("tokenizer.ggml.merges", Value::Texts(merges));
    Ok(())
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
