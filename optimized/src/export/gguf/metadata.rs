//! What llama.cpp has to know of a model beside its tensors.

use std::f64::consts::TAU;

use plumbline_reference::spec::{LlamaConfig, RopeScaling};

use super::super::lack::Lack;
use super::blocks::Block;
use super::{lack, tokenizer};
use crate::checkpoint::ModelFolder;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// Keys and values in the order of the file, and what they cannot say of the model.
#[derive(Debug, Clone, Default)]
pub(super) struct Metadata {
    values: Vec<(String, Value)>,
    pub(super) notes: Vec<String>,
}

impl Metadata {
    pub(super) fn set(&mut self, key: impl Into<String>, value: Value) {
        self.values.push((key.into(), value));
    }

    /// The file up to its list of tensors.
    pub(super) fn header(&self, tensors: u64) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            text(&mut bytes, key);
            value.write(&mut bytes);
        }
        bytes
    }
}

impl Value {
    fn write(&self, bytes: &mut Vec<u8>) {
        let kind = |bytes: &mut Vec<u8>, kind: u32| bytes.extend(kind.to_le_bytes());
        let list = |bytes: &mut Vec<u8>, of: u32, len: usize| {
            kind(bytes, 9);
            kind(bytes, of);
            bytes.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::U32(value) => {
                kind(bytes, 4);
                bytes.extend(value.to_le_bytes());
            }
            Self::F32(value) => {
                kind(bytes, 6);
                bytes.extend(value.to_le_bytes());
            }
            Self::Bool(value) => {
                kind(bytes, 7);
                bytes.push(u8::from(*value));
            }
            Self::Text(value) => {
                kind(bytes, 8);
                text(bytes, value);
            }
            Self::Texts(values) => {
                list(bytes, 8, values.len());
                values.iter().for_each(|value| text(bytes, value));
            }
            Self::I32s(values) => {
                list(bytes, 5, values.len());
                values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                list(bytes, 6, values.len());
                values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
            }
        }
    }
}

/// A text with its length before it.
pub(super) fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// The metadata of a model whose linear layers are such blocks.
pub(super) fn of(source: &ModelFolder, block: Block) -> Result<Metadata, Lack> {
    let config = source.config();
    let mut metadata = Metadata::default();
    let name = source.path().file_name().unwrap_or_default().to_string_lossy();
    metadata.set("general.architecture", Value::Text("llama".into()));
    metadata.set("general.name", Value::Text(name.into_owned()));
    metadata.set("general.file_type", Value::U32(block.file_type()));
    metadata.set("general.quantization_version", Value::U32(2));
    let count = |field: &str, value: usize| {
        u32::try_from(value)
            .map_err(|_| lack(format!("{field} is {value}, more than 32 bits hold")))
    };
    for (key, field, value) in [
        ("vocab_size", "vocab_size", config.vocab_size),
        // Within it, a sliding window makes no difference.
        ("context_length", "max_position_embeddings", config.longest_sequence()),
        ("embedding_length", "hidden_size", config.hidden_size),
        ("block_count", "num_hidden_layers", config.num_hidden_layers),
        ("feed_forward_length", "intermediate_size", config.intermediate_size),
        ("attention.head_count", "num_attention_heads", config.num_attention_heads),
        ("attention.head_count_kv", "num_key_value_heads", config.num_key_value_heads),
        ("attention.key_length", "head_dim", config.head_dim),
        ("attention.value_length", "head_dim", config.head_dim),
        ("rope.dimension_count", "head_dim", config.head_dim),
    ] {
        metadata.set(format!("llama.{key}"), Value::U32(count(field, value)?));
    }
    let float = |field: &str, value: f64| match value as f32 {
        narrow if narrow.is_finite() && narrow > 0.0 => Ok(Value::F32(narrow)),
        _ => Err(lack(format!("{field} is {value}, which f32 does not hold"))),
    };
    let eps = float("rms_norm_eps", config.rms_norm_eps)?;
    metadata.set("llama.attention.layer_norm_rms_epsilon", eps);
    metadata.set("llama.rope.freq_base", float("rope_theta", config.rope.theta())?);
    if let RopeScaling::Linear { factor } = config.rope.scaling() {
        metadata.set("llama.rope.scaling.type", Value::Text("linear".into()));
        metadata.set("llama.rope.scaling.factor", float("rope_scaling.factor", factor)?);
    }
    tokenizer::describe(&mut metadata, source).map_err(Lack::Tokenizer)?;
    Ok(metadata)
}

/// What LLaMA 3.1's scaling divides the frequency of each pair by. Eq. (N3c).
pub(super) fn frequency_divisors(config: &LlamaConfig) -> Option<Vec<f32>> {
    let RopeScaling::Llama3(scaling) = config.rope.scaling() else { return None };
    let original = scaling.original_max_position_embeddings as f64;
    let divisor = |pair: usize| {
        let frequency = config.rope.theta().powf(-2.0 * pair as f64 / config.head_dim as f64);
        let turns = original * frequency / TAU;
        let range = scaling.high_freq_factor - scaling.low_freq_factor;
        let kept = ((turns - scaling.low_freq_factor) / range).clamp(0.0, 1.0);
        (1.0 / ((1.0 - kept) / scaling.factor + kept)) as f32
    };
    Some((0..config.head_dim / 2).map(divisor).collect())
}
