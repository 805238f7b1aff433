//! The configuration of a LLaMA.

use serde::Deserialize;

use super::{RopeSpec, SpecError, out_of_range};

/// Which of the models that are built like a LLaMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelType {
    /// LLaMA and what calls itself so: TinyLlama, SmolLM2.
    Llama,
    /// Mistral: a LLaMA that may limit how far a token looks back.
    Mistral,
}

impl ModelType {
    /// `model_type` in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
        }
    }

    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
        }
    }

    fn from_name(name: &str) -> Result<Self, SpecError> {
        match name {
            "llama" => Ok(Self::Llama),
            "mistral" => Ok(Self::Mistral),
            other => unsupported("model_type", other, "llama, mistral"),
        }
    }
}

/// Shape and constants of a LLaMA, parsed from a Hugging Face `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Which model it is.
    pub model_type: ModelType,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Token ids run from 0 to `vocab_size - 1`.
    pub vocab_size: usize,
    /// Longest sequence the model was trained for.
    pub max_position_embeddings: usize,
    /// How many tokens a token sees, itself among them, where that is limited. Attention here
    /// sees every earlier token, so no sequence may be longer.
    pub sliding_window: Option<usize>,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary frequencies.
    pub rope: RopeSpec,
    /// The output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// Token that begins a text, where the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// No side of a model is longer: products of two of them fit 64 bits with room to spare.
const LARGEST_SIZE: usize = 1 << 28;

impl LlamaConfig {
    /// Parses the text of a `config.json`.
    ///
    /// # Errors
    /// `Malformed` for text that is not a JSON object with the needed fields, `OutOfRange` for
    /// impossible sizes, `Unsupported` for a model that would need something else than LLaMA.
    pub fn from_json(text: &str) -> Result<Self, SpecError> {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|e| SpecError::Malformed(e.to_string()))?;
        Self::from_value(&value)
    }

    /// The same from parsed JSON.
    ///
    /// # Errors
    /// As [`LlamaConfig::from_json`].
    pub fn from_value(value: &serde_json::Value) -> Result<Self, SpecError> {
        let raw: RawConfig = serde_json::from_value(value.clone())
            .map_err(|e| SpecError::Malformed(format!("config: {e}")))?;
        raw.validate()
    }

    /// The configuration as a Hugging Face `config.json` object.
    pub fn to_value(&self) -> serde_json::Value {
        let eos = match self.eos_token_ids.as_slice() {
            [] => serde_json::Value::Null,
            [one] => (*one).into(),
            many => many.to_vec().into(),
        };
        let mut value = serde_json::json!({
            "architectures": [self.model_type.architecture()],
            "model_type": self.model_type.name(),
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope.theta(),
            "rope_scaling": self.rope.scaling_value(),
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
        });
        // A Mistral without this field has a window.
        if self.sliding_window.is_some() || self.model_type == ModelType::Mistral {
            value["sliding_window"] = self.sliding_window.into();
        }
        value
    }

    /// The longest sequence that this program can run: what the model was trained for, as far as
    /// every token sees all before it.
    pub fn longest_sequence(&self) -> usize {
        self.sliding_window
            .map_or(self.max_position_embeddings, |window| window.min(self.max_position_embeddings))
    }

    /// Whether a sequence of so many tokens can be run.
    ///
    /// # Errors
    /// `TooLong` naming the field that limits it.
    pub fn check_length(&self, length: usize) -> Result<(), SpecError> {
        if length > self.max_position_embeddings {
            let limit = self.max_position_embeddings;
            return Err(SpecError::TooLong { length, field: "max_position_embeddings", limit });
        }
        match self.sliding_window {
            Some(limit) if length > limit => {
                Err(SpecError::TooLong { length, field: "sliding_window", limit })
            }
            _ => Ok(()),
        }
    }
}

/// `config.json` as it is written; unknown fields are other libraries' business.
#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default)]
    num_key_value_heads: Option<usize>,
    #[serde(default)]
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default)]
    max_position_embeddings: Option<usize>,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_theta")]
    rope_theta: f64,
    #[serde(default)]
    rope_scaling: serde_json::Value,
    #[serde(default)]
    rope_parameters: serde_json::Value,
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default, deserialize_with = "stated")]
    sliding_window: Option<Option<usize>>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    bos_token_id: serde_json::Value,
    #[serde(default)]
    eos_token_id: serde_json::Value,
}

/// A field that is there, even if it is null.
fn stated<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(from).map(Some)
}

// What transformers assumes for a field that the file leaves out.
fn default_eps() -> f64 {
    1e-6
}
fn default_theta() -> f64 {
    10_000.0
}

fn unsupported<T>(
    field: &'static str,
    value: impl ToString,
    supported: &'static str,
) -> Result<T, SpecError> {
    Err(SpecError::Unsupported { field, value: value.to_string(), supported })
}

impl RawConfig {
    fn validate(self) -> Result<LlamaConfig, SpecError> {
        let model_type =
            self.model_type.as_deref().map_or(Ok(ModelType::Llama), ModelType::from_name)?;
        if let Some(act) = self.hidden_act.as_deref()
            && act != "silu"
        {
            return unsupported("hidden_act", act, "silu");
        }
        if self.attention_bias {
            return unsupported("attention_bias", true, "false");
        }
        if self.mlp_bias {
            return unsupported("mlp_bias", true, "false");
        }
        let rope = self.rope()?;
        let (positions, window) = match model_type {
            ModelType::Llama => (2048, None),
            ModelType::Mistral => (131_072, Some(4096)),
        };
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let max_position_embeddings = self.max_position_embeddings.unwrap_or(positions);
        let sliding_window = self.sliding_window.unwrap_or(window);
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", kv_heads),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", max_position_embeddings),
            ("sliding_window", sliding_window.unwrap_or(1)),
        ] {
            if value == 0 || value > LARGEST_SIZE {
                out_of_range(field, value, "1 to 268435456")?;
            }
        }
        if !self.num_attention_heads.is_multiple_of(kv_heads) {
            out_of_range("num_key_value_heads", kv_heads, "a divisor of num_attention_heads")?;
        }
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None if self.hidden_size.is_multiple_of(self.num_attention_heads) => {
                self.hidden_size / self.num_attention_heads
            }
            None => match out_of_range(
                "hidden_size",
                self.hidden_size,
                "a multiple of num_attention_heads where head_dim is absent",
            )? {},
        };
        if head_dim == 0 || head_dim > LARGEST_SIZE || !head_dim.is_multiple_of(2) {
            out_of_range("head_dim", head_dim, "a positive even number")?;
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps.is_finite()) {
            out_of_range("rms_norm_eps", self.rms_norm_eps, "a positive number")?;
        }
        let bos = token_ids("bos_token_id", &self.bos_token_id, self.vocab_size)?;
        Ok(LlamaConfig {
            model_type,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: self.vocab_size,
            max_position_embeddings,
            sliding_window,
            rms_norm_eps: self.rms_norm_eps,
            rope,
            tie_word_embeddings: self.tie_word_embeddings,
            bos_token_id: bos.first().copied(),
            eos_token_ids: token_ids("eos_token_id", &self.eos_token_id, self.vocab_size)?,
        })
    }

    /// Older files have `rope_scaling`, newer ones `rope_parameters` with the base inside of it.
    fn rope(&self) -> Result<RopeSpec, SpecError> {
        let older = RopeSpec::from_config(self.rope_theta, "rope_scaling", &self.rope_scaling)?;
        if self.rope_parameters.is_null() {
            return Ok(older);
        }
        let newer =
            RopeSpec::from_config(self.rope_theta, "rope_parameters", &self.rope_parameters)?;
        if !self.rope_scaling.is_null() && older.scaling() != newer.scaling() {
            let (older, newer) = (&self.rope_scaling, &self.rope_parameters);
            return Err(SpecError::Malformed(format!(
                "rope_scaling is {older}, and rope_parameters {newer}: expected one of them"
            )));
        }
        Ok(newer)
    }
}

/// One id, a list of ids, or null.
fn token_ids(
    field: &'static str,
    value: &serde_json::Value,
    vocab_size: usize,
) -> Result<Vec<u32>, SpecError> {
    let list = match value {
        serde_json::Value::Null => return Ok(Vec::new()),
        serde_json::Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    list.iter()
        .map(|id| match id.as_u64() {
            Some(id) if (id as usize) < vocab_size => Ok(id as u32),
            _ => match out_of_range(field, id, "a token id below vocab_size")? {},
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_that_is_not_llama_is_refused_by_field() {
        let base = serde_json::json!({
            "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
            "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512,
        });
        let config = LlamaConfig::from_value(&base).unwrap();
        assert_eq!((config.head_dim, config.rope.theta()), (8, 10_000.0));
        assert_eq!(LlamaConfig::from_value(&config.to_value()).unwrap(), config);
        for (field, value) in [
            ("attention_bias", serde_json::json!(true)),
            ("rope_scaling", serde_json::json!({"rope_type": "llama3"})),
            ("rope_scaling", serde_json::json!({"type": "yarn", "factor": 4.0})),
            ("hidden_act", serde_json::json!("gelu")),
            ("model_type", serde_json::json!("gemma")),
            ("num_key_value_heads", serde_json::json!(3)),
            ("head_dim", serde_json::json!(7)),
            ("mlp_bias", serde_json::json!(true)),
            ("sliding_window", serde_json::json!(0)),
            ("num_hidden_layers", serde_json::json!(0)),
            ("rms_norm_eps", serde_json::json!(-1e-5)),
            ("rope_theta", serde_json::json!(0.0)),
            ("rope_parameters", serde_json::json!({"rope_type": "yarn"})),
            ("bos_token_id", serde_json::json!(512)),
            ("eos_token_id", serde_json::json!([2, "end"])),
        ] {
            let mut bad = base.clone();
            bad[field] = value;
            let message = LlamaConfig::from_value(&bad).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }

    #[test]
    fn a_file_is_read_with_ids_as_a_number_or_a_list_and_with_a_nested_base() {
        let text = r#"{
            "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
            "num_attention_heads": 8, "vocab_size": 512, "bos_token_id": 1,
            "eos_token_id": [2, 3], "rope_theta": 10000.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}
        }"#;
        let config = LlamaConfig::from_json(text).unwrap();
        assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(1), &[2, 3][..]));
        assert_eq!((config.num_key_value_heads, config.rope.theta()), (8, 500_000.0));
        assert_eq!(LlamaConfig::from_value(&config.to_value()).unwrap(), config);
        let cut = LlamaConfig::from_json(&text[..40]).unwrap_err();
        assert!(matches!(cut, SpecError::Malformed(_)), "{cut}");
    }
}
