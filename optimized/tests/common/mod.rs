//! Model folders to break, to train and to export.

pub mod docs;
pub mod merged;
pub mod program;
pub mod settings;

use std::path::Path;
use std::sync::Arc;

use plumbline::checkpoint::{Precision, Tokenizer, save_dense};
use plumbline::cpu::Cpu;
use plumbline::train::new_model;
use plumbline_reference::spec::LlamaConfig;

pub const TEXT: &str = "Sing, heavenly Muse, that on the secret top of Oreb, or of Sinai, didst \
    inspire that shepherd who first taught the chosen seed in the beginning how the heavens and \
    earth rose out of chaos.\n";

/// Untied, grouped-query, two blocks; the feed-forward width is not a multiple of 32.
pub fn config() -> LlamaConfig {
    let value = serde_json::json!({
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 280,
        "max_position_embeddings": 64, "tie_word_embeddings": false,
    });
    LlamaConfig::from_value(&value).unwrap()
}

/// Writes the model and its tokenizer into `folder`, which it makes.
pub fn write_model(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let model = new_model(Arc::new(Cpu), &config(), 11).unwrap();
    let tokenizer = Tokenizer::train(&TEXT.repeat(8), 280).unwrap().to_json().unwrap();
    save_dense(folder, &model, Some(tokenizer.as_bytes()), Precision::F32).unwrap();
}
