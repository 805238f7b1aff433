//! Shapes of the published LLaMA models, for plans and timings without their files.

use plumbline_reference::spec::{LlamaConfig, ModelType, RopeSpec};

/// A published shape.
#[derive(Debug)]
pub struct Preset {
    /// What `--config` calls it.
    pub name: &'static str,
    hidden: usize,
    intermediate: usize,
    blocks: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    positions: usize,
    eps: f64,
    theta: f64,
}

/// Sizes as in the `config.json` that each model was published with. Heads are 128 wide and the
/// output projection is a table of its own in all of them.
///
/// `llama-33b` is the 32.5 B model of arXiv:2302.13971, table 2; the 2 series is arXiv:2307.09288,
/// the 3 series arXiv:2407.21783.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "llama-2-7b",
        hidden: 4096,
        intermediate: 11008,
        blocks: 32,
        heads: 32,
        kv_heads: 32,
        vocab: 32000,
        positions: 4096,
        eps: 1e-5,
        theta: 1e4,
    },
    Preset {
        name: "llama-2-13b",
        hidden: 5120,
        intermediate: 13824,
        blocks: 40,
        heads: 40,
        kv_heads: 40,
        vocab: 32000,
        positions: 4096,
        eps: 1e-5,
        theta: 1e4,
    },
    Preset {
        name: "llama-33b",
        hidden: 6656,
        intermediate: 17920,
        blocks: 60,
        heads: 52,
        kv_heads: 52,
        vocab: 32000,
        positions: 2048,
        eps: 1e-6,
        theta: 1e4,
    },
    Preset {
        name: "llama-2-70b",
        hidden: 8192,
        intermediate: 28672,
        blocks: 80,
        heads: 64,
        kv_heads: 8,
        vocab: 32000,
        positions: 4096,
        eps: 1e-5,
        theta: 1e4,
    },
    Preset {
        name: "llama-3-8b",
        hidden: 4096,
        intermediate: 14336,
        blocks: 32,
        heads: 32,
        kv_heads: 8,
        vocab: 128_256,
        positions: 8192,
        eps: 1e-5,
        theta: 5e5,
    },
];

/// The configuration of a published model by name.
pub fn preset(name: &str) -> Option<LlamaConfig> {
    let preset = PRESETS.iter().find(|preset| preset.name == name)?;
    Some(LlamaConfig {
        model_type: ModelType::Llama,
        hidden_size: preset.hidden,
        intermediate_size: preset.intermediate,
        num_hidden_layers: preset.blocks,
        num_attention_heads: preset.heads,
        num_key_value_heads: preset.kv_heads,
        head_dim: 128,
        vocab_size: preset.vocab,
        max_position_embeddings: preset.positions,
        sliding_window: None,
        rms_norm_eps: preset.eps,
        rope: RopeSpec::new(preset.theta).ok()?,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tensor_shapes;

    /// The numbers of parameters that the published checkpoints have.
    #[test]
    fn every_shape_has_the_published_number_of_parameters() {
        let published = [
            ("llama-2-7b", 6_738_415_616),
            ("llama-2-13b", 13_015_864_320),
            ("llama-33b", 32_528_943_616),
            ("llama-2-70b", 68_976_648_192),
            ("llama-3-8b", 8_030_261_248),
        ];
        assert_eq!(PRESETS.len(), published.len());
        for (name, parameters) in published {
            let config = preset(name).unwrap();
            assert_eq!(config.hidden_size, config.num_attention_heads * config.head_dim);
            let shapes = tensor_shapes(&config);
            let all: usize = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
            assert_eq!(all, parameters, "{name}");
        }
    }
}
