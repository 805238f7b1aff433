//! BPE over bytes, which merges by the order of its pairs.

use serde_json::{Value, json};

use super::super::llama::Values;
use super::Parts;
use crate::checkpoint::tokenizer::LLAMA3_PATTERN;

pub(super) fn parts(values: &Values<'_>) -> Result<Parts, String> {
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
    let merges: Option<Vec<(&str, &str)>> =
        values.texts("tokenizer.ggml.merges")?.iter().map(|pair| pair.split_once(' ')).collect();
    let merges = merges.ok_or("metadata tokenizer.ggml.merges holds something else than pairs")?;
    Ok(Parts {
        normalizer: Value::Null,
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": before}),
        decoder: byte_level(true),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "merges": merges,
        }),
        first_token: None,
    })
}

fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}
