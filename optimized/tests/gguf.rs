//! A GGUF file in place of a model folder: the same model from the same numbers.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use plumbline::checkpoint::{LoadedModel, ModelFolder};
use plumbline::cpu::Cpu;
use plumbline::model::Projection;

/// A GGUF file as it is written, little-endian throughout.
#[derive(Default)]
struct Writer {
    metadata: Vec<u8>,
    values: u64,
    infos: Vec<u8>,
    tensors: u64,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    fn value(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        self.metadata.extend([text(key), kind.to_le_bytes().to_vec(), bytes.to_vec()].concat());
        self.values += 1;
    }

    fn count(&mut self, key: &str, value: usize) {
        self.value(key, 4, &(value as u32).to_le_bytes());
    }

    fn float(&mut self, key: &str, value: f64) {
        self.value(key, 6, &(value as f32).to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.value(key, 8, &text(value));
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(text(value)));
        self.value(key, 9, &bytes);
    }

    /// An F32 tensor, `shape` slowest first.
    fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.infos.extend(text(name));
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| self.infos.extend((*size as u64).to_le_bytes()));
        self.infos.extend(0u32.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        values.iter().for_each(|value| self.data.extend(value.to_le_bytes()));
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors += 1;
    }

    fn write(self, path: &Path) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.values.to_le_bytes());
        file.extend([self.metadata, self.infos].concat());
        file.resize(file.len().next_multiple_of(32), 0);
        std::fs::write(path, [file, self.data].concat()).unwrap();
    }
}

/// Rows of each head from halves to pairs that are turned together.
fn pairs_together(values: &[f32], width: usize, heads: usize) -> Vec<f32> {
    let head_dim = values.len() / width / heads;
    let row = |row: usize| &values[row * width..][..width];
    let rows = (0..heads * head_dim).flat_map(|at| {
        let (head, place) = (at / head_dim, at % head_dim);
        row(head * head_dim + place % 2 * (head_dim / 2) + place / 2)
    });
    rows.copied().collect()
}

fn write(folder: &ModelFolder, path: &Path, change: impl FnOnce(&mut Writer)) {
    let config = folder.config();
    let mut file = Writer::default();
    file.text("general.architecture", "llama");
    for (key, value) in [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
    ] {
        file.count(&format!("llama.{key}"), value);
    }
    file.float("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps);
    file.float("llama.rope.freq_base", config.rope.theta());
    let json: serde_json::Value =
        serde_json::from_slice(folder.tokenizer_bytes().unwrap()).unwrap();
    let vocab: BTreeMap<u64, String> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap(), token.clone()))
        .collect();
    let merge = |pair: &serde_json::Value| {
        format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())
    };
    let merges: Vec<String> =
        json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "gpt-2");
    file.texts("tokenizer.ggml.tokens", &vocab.into_values().collect::<Vec<_>>());
    file.texts("tokenizer.ggml.merges", &merges);
    let hidden = config.hidden_size;
    let mut plain = |theirs: &str, ours: &str, shape: &[usize]| {
        file.tensor(theirs, shape, &folder.tensor(ours, shape).unwrap());
    };
    plain("token_embd.weight", "model.embed_tokens.weight", &[config.vocab_size, hidden]);
    plain("output.weight", "lm_head.weight", &[config.vocab_size, hidden]);
    plain("output_norm.weight", "model.norm.weight", &[hidden]);
    for block in 0..config.num_hidden_layers {
        for (theirs, ours) in
            [("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")]
        {
            let ours = format!("model.layers.{block}.{ours}.weight");
            plain(&format!("blk.{block}.{theirs}.weight"), &ours, &[hidden]);
        }
    }
    for linear in Projection::all(config) {
        let mut values = folder.weight(&linear).unwrap().into_floats();
        let (path, kind) = linear.name.rsplit_once('.').unwrap();
        let block = path.split('.').nth(2).unwrap();
        let (theirs, heads) = match kind {
            "q_proj" => ("attn_q", config.num_attention_heads),
            "k_proj" => ("attn_k", config.num_key_value_heads),
            "v_proj" => ("attn_v", 0),
            "o_proj" => ("attn_output", 0),
            "gate_proj" => ("ffn_gate", 0),
            "up_proj" => ("ffn_up", 0),
            _ => ("ffn_down", 0),
        };
        if heads > 0 {
            values = pairs_together(&values, linear.in_features, heads);
        }
        let shape = [linear.out_features, linear.in_features];
        file.tensor(&format!("blk.{block}.{theirs}.weight"), &shape, &values);
    }
    change(&mut file);
    file.write(path);
}

fn logits(folder: &ModelFolder, tokens: &[i32]) -> Vec<u32> {
    let LoadedModel::Dense(model) = folder.load(Arc::new(Cpu)).unwrap() else {
        panic!("full precision")
    };
    let mut workspace = model.evaluation_workspace(tokens.len()).unwrap();
    let logits = model.logits(1, tokens, &mut workspace).unwrap();
    logits.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_gguf_file_is_the_folder_that_it_was_made_from() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("folder");
    common::write_model(&path);
    let folder = ModelFolder::open(&path).unwrap();
    let file = place.path().join("model.gguf");
    write(&folder, &file, |_| {});
    let gguf = ModelFolder::open(&file).unwrap();
    assert_eq!(gguf.config(), folder.config());
    let text = format!("{} 1674, naïve — Ω\n\n  two  spaces", common::TEXT);
    let tokens = folder.tokenizer().unwrap().encode(&text).unwrap();
    assert_eq!(gguf.tokenizer().unwrap().encode(&text).unwrap(), tokens);
    let tokens = &tokens[..folder.config().max_position_embeddings];
    assert_eq!(logits(&gguf, tokens), logits(&folder, tokens));
}

#[test]
fn scaled_frequencies_are_those_of_a_folder() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("folder");
    common::write_model(&path);
    let unscaled = ModelFolder::open(&path).unwrap();
    let file = place.path().join("model.gguf");
    let config_path = path.join("config.json");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&config_path).unwrap()).unwrap();
    let tokens: Vec<i32> = (0..40).collect();
    let llama3 = serde_json::json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    // Of the four pairs with base 10000 only the last turns less than four times in 8192 positions:
    // 1.3038 times, of which a part of 0.10127 is kept.
    let last = 1.0 / (0.898_734_2 / 8.0 + 0.101_265_8);
    let divisors = |file: &mut Writer| {
        file.tensor("rope_freqs.weight", &[4], &[1.0, 1.0, 1.0, last]);
    };
    let linear = serde_json::json!({"type": "linear", "factor": 2.5});
    let factor = |file: &mut Writer| {
        file.text("llama.rope.scaling.type", "linear");
        file.float("llama.rope.scaling.factor", 2.5);
    };
    for (scaling, change) in
        [(llama3, &divisors as &dyn Fn(&mut Writer)), (linear, &factor as &dyn Fn(&mut Writer))]
    {
        let mut scaled = config.clone();
        scaled["rope_scaling"] = scaling;
        std::fs::write(&config_path, scaled.to_string()).unwrap();
        let folder = ModelFolder::open(&path).unwrap();
        write(&unscaled, &file, |file| change(file));
        let gguf = ModelFolder::open(&file).unwrap();
        assert_eq!(gguf.config(), folder.config());
        assert_eq!(logits(&gguf, &tokens), logits(&folder, &tokens));
        assert_ne!(logits(&gguf, &tokens), logits(&unscaled, &tokens));
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("folder");
    common::write_model(&path);
    let folder = ModelFolder::open(&path).unwrap();
    let file = place.path().join("model.gguf");
    type Change = fn(&mut Writer);
    let changes: [(Change, &str); 4] = [
        (|file| file.text("general.architecture", "qwen2"), "qwen2"),
        (|file| file.text("llama.rope.scaling.type", "yarn"), "yarn"),
        (|file| file.tensor("rope_freqs.weight", &[4], &[1.0, 1.0, 2.0, 8.0]), "rope_freqs.weight"),
        (|file| file.count("llama.expert_count", 8), "llama.expert_count is 8"),
    ];
    for (change, message) in changes {
        write(&folder, &file, change);
        let error = ModelFolder::open(&file).err().unwrap().to_string();
        assert!(error.contains(message) && error.contains("model.gguf"), "{error}");
    }
    // A model whose tokenizer is of another kind is still a model.
    for (kind, message) in [
        ("bert", "tokenizer.ggml.model is bert"),
        ("llama", "metadata has no list tokenizer.ggml.scores"),
    ] {
        write(&folder, &file, |file| file.text("tokenizer.ggml.model", kind));
        let error = ModelFolder::open(&file).unwrap().tokenizer().err().unwrap().to_string();
        assert!(error.contains(message), "{error}");
    }
}
