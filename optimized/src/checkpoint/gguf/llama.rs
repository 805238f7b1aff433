//! What a GGUF file of the architecture `llama` means in Hugging Face's words.

use std::collections::BTreeMap;

use serde_json::json;

use super::GgufModel;
use super::header::{Header, Value};
use super::{rope, tokenizer};
use crate::checkpoint::reader::{Storage, TensorInfo};

/// The model of a file.
pub(super) fn model(header: &Header) -> Result<GgufModel, String> {
    let values = Values(&header.metadata);
    let architecture = values.text("general.architecture")?;
    if architecture != "llama" {
        return Err(format!("general.architecture is {architecture}, supported: llama"));
    }
    if let Some(experts) = values.count("llama.expert_count")?
        && experts > 0
    {
        return Err(format!("llama.expert_count is {experts}, supported: 0"));
    }
    let heads = values.need("llama.attention.head_count")?;
    let kv_heads = values.count("llama.attention.head_count_kv")?.unwrap_or(heads);
    let mut tensors = BTreeMap::new();
    for tensor in &header.tensors {
        let name = hugging_face_name(&tensor.name);
        let rotated = match name.rsplit_once('.').map(|(path, _)| path) {
            Some(path) if path.ends_with("q_proj") => Some(heads),
            Some(path) if path.ends_with("k_proj") => Some(kv_heads),
            _ => None,
        };
        let range = tensor.start..tensor.start + tensor.bytes;
        let storage = Storage::Gguf { block: tensor.block, rotated };
        tensors.insert(name, TensorInfo::new(storage, tensor.shape.clone(), range));
    }
    let config = config(&values, &tensors, heads, kv_heads)?;
    let chat_template = values.text("tokenizer.chat_template").ok().map(str::to_owned);
    Ok(GgufModel { config, tokenizer: tokenizer::json(&values), chat_template, tensors })
}

fn config(
    values: &Values<'_>,
    tensors: &BTreeMap<String, TensorInfo>,
    heads: usize,
    kv_heads: usize,
) -> Result<serde_json::Value, String> {
    let embedding = tensors.get("model.embed_tokens.weight").ok_or("has no tensor token_embd")?;
    let hidden = values.need("llama.embedding_length")?;
    let head_dim = match values.count("llama.attention.key_length")? {
        Some(length) => length,
        None if heads > 0 => hidden / heads,
        None => return Err("llama.attention.head_count is 0".into()),
    };
    let turned = values.count("llama.rope.dimension_count")?.unwrap_or(head_dim);
    if turned != head_dim {
        let supported = format!("the width of a head, {head_dim}");
        return Err(format!("llama.rope.dimension_count is {turned}, supported: {supported}"));
    }
    let scaling = match values.text("llama.rope.scaling.type") {
        Err(_) | Ok("none") => serde_json::Value::Null,
        Ok("linear") => {
            let factor = values.float("llama.rope.scaling.factor")?;
            let factor = factor.ok_or("metadata has no llama.rope.scaling.factor")?;
            json!({"rope_type": "linear", "factor": shortest(factor as f32)})
        }
        Ok(kind) => {
            return Err(format!("llama.rope.scaling.type is {kind}, supported: none, linear"));
        }
    };
    let eps = values.float("llama.attention.layer_norm_rms_epsilon")?;
    let eps = eps.ok_or("metadata has no llama.attention.layer_norm_rms_epsilon")?;
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": values.need("llama.feed_forward_length")?,
        "num_hidden_layers": values.need("llama.block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": values.need("llama.context_length")?,
        "rms_norm_eps": shortest(eps as f32),
        "rope_theta": shortest(values.float("llama.rope.freq_base")?.unwrap_or(10_000.0) as f32),
        "rope_scaling": scaling,
        "sliding_window": values.count("llama.attention.sliding_window")?,
        "tie_word_embeddings": !tensors.contains_key("lm_head.weight"),
        "bos_token_id": values.count("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": values.count("tokenizer.ggml.eos_token_id")?,
    }))
}

/// Enters the divisors of a file's frequencies.
pub(super) fn slow_down(config: &mut serde_json::Value, divisors: &[f32]) -> Result<(), String> {
    let theta = config["rope_theta"].as_f64().unwrap_or_default();
    let head_dim = config["head_dim"].as_u64().unwrap_or_default() as usize;
    let scaling = rope::scaling(divisors, theta, head_dim)?;
    if !scaling.is_null() && !config["rope_scaling"].is_null() {
        let tensor = rope::TENSOR;
        return Err(format!(
            "has llama.rope.scaling.type and tensor {tensor}, expected one of them"
        ));
    }
    if !scaling.is_null() {
        config["rope_scaling"] = scaling;
    }
    Ok(())
}

/// The shortest decimal number that rounds to this f32: what its writer meant.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn hugging_face_name(name: &str) -> String {
    let whole = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output.weight" => Some("lm_head.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return whole.into();
    }
    let part = |part: &str| {
        Some(match part {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "ffn_norm" => "post_attention_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        })
    };
    let block = name.strip_prefix("blk.").and_then(|rest| {
        let (block, rest) = rest.split_once('.')?;
        let (kind, tensor) = rest.rsplit_once('.')?;
        Some(format!("model.layers.{block}.{}.{tensor}", part(kind)?))
    });
    // A name that means nothing here stays, and is refused with the tensors of no LLaMA.
    block.unwrap_or_else(|| name.into())
}

/// The metadata by keys.
pub(super) struct Values<'a>(&'a BTreeMap<String, Value>);

impl Values<'_> {
    /// A count, where it is stated.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value as usize)),
            Some(Value::Signed(value)) if *value >= 0 => Ok(Some(*value as usize)),
            Some(value) => Err(format!("metadata {key} is {value:?}, expected a count")),
        }
    }

    /// A count that has to be stated.
    pub(super) fn need(&self, key: &str) -> Result<usize, String> {
        self.count(key)?.ok_or_else(|| format!("metadata has no {key}"))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(value) => Err(format!("metadata {key} is {value:?}, expected a number")),
        }
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<&str, String> {
        match self.0.get(key) {
            Some(Value::Text(text)) => Ok(text),
            None => Err(format!("metadata has no {key}")),
            Some(_) => Err(format!("metadata {key} is not a text")),
        }
    }

    /// Whether a switch is on; `unsaid` where the file has none.
    pub(super) fn is_on(&self, key: &str, unsaid: bool) -> bool {
        match self.0.get(key) {
            Some(value) => *value == Value::Bool(true),
            None => unsaid,
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<&str>, String> {
        self.list(key, "texts", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of floating-point numbers.
    pub(super) fn floats(&self, key: &str) -> Result<Vec<f64>, String> {
        self.list(key, "numbers", |value| match value {
            Value::Float(value) => Some(*value),
            _ => None,
        })
    }

    fn list<'v, T>(
        &'v self,
        key: &str,
        what: &str,
        of: impl Fn(&'v Value) -> Option<T>,
    ) -> Result<Vec<T>, String> {
        let Some(Value::List(list)) = self.0.get(key) else {
            return Err(format!("metadata has no list {key}"));
        };
        let values: Option<Vec<T>> = list.iter().map(of).collect();
        values.ok_or_else(|| format!("metadata {key} holds something else than {what}"))
    }

    /// Places of a list where this number stands.
    pub(super) fn places(&self, key: &str, number: i64) -> Vec<usize> {
        let Some(Value::List(list)) = self.0.get(key) else { return Vec::new() };
        let numbers = list.iter().enumerate();
        numbers.filter(|(_, value)| **value == Value::Signed(number)).map(|(i, _)| i).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_were_decimal_are_decimal_again() {
        assert_ne!(f64::from(1e-5_f32), 1e-5);
        assert_eq!(shortest(1e-5), 1e-5);
        assert_eq!(shortest(500_000.0), 500_000.0);
    }

    #[test]
    fn names_of_other_models_stay() {
        assert_eq!(hugging_face_name("blk.3.ffn_up.weight"), "model.layers.3.mlp.up_proj.weight");
        assert_eq!(hugging_face_name("blk.3.ffn_gate_exps.weight"), "blk.3.ffn_gate_exps.weight");
        assert_eq!(hugging_face_name("rope_freqs.weight"), "rope_freqs.weight");
    }
}
