//! What the configurations of published models say, field by field, and how many parameters follow.

use plumbline_reference::model::expected_shapes;
use plumbline_reference::spec::{LlamaConfig, ModelType, RopeScaling};
use serde_json::{Value, json};

/// The fields of a published `config.json` that shape the model.
fn read(value: &Value) -> LlamaConfig {
    let config = LlamaConfig::from_value(value).unwrap();
    // What is written is read back as the same model.
    assert_eq!(LlamaConfig::from_value(&config.to_value()).unwrap(), config);
    config
}

fn parameters(config: &LlamaConfig) -> usize {
    expected_shapes(config).values().map(|shape| shape.iter().product::<usize>()).sum()
}

#[test]
fn tiny_llama() {
    let config = read(&json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 5632, "max_position_embeddings": 2048,
        "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32000,
    }));
    assert_eq!((config.model_type, config.head_dim), (ModelType::Llama, 64));
    assert_eq!(parameters(&config), 1_100_048_384);
}

#[test]
fn smol_lm2_135m() {
    let config = read(&json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu",
        "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": true,
        "max_position_embeddings": 8192, "mlp_bias": false, "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
        "rms_norm_eps": 1e-5, "rope_interleaved": false, "rope_scaling": null,
        "rope_theta": 100000, "tie_word_embeddings": true, "vocab_size": 49152,
    }));
    assert_eq!((config.head_dim, config.rope.theta()), (64, 1e5));
    assert_eq!(parameters(&config), 134_515_008);
}

#[test]
fn llama_3_2_1b_in_both_spellings() {
    let mut value = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": false, "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 128256,
    });
    let older = read(&value);
    let RopeScaling::Llama3(scaling) = older.rope.scaling() else { panic!("{:?}", older.rope) };
    assert_eq!((older.rope.theta(), scaling.factor, scaling.high_freq_factor), (5e5, 32.0, 4.0));
    assert_eq!(parameters(&older), 1_235_814_400);

    let mut nested = value["rope_scaling"].take();
    nested["rope_theta"] = value["rope_theta"].take();
    let fields = value.as_object_mut().unwrap();
    fields.remove("rope_theta");
    fields.remove("rope_scaling");
    value["rope_parameters"] = nested;
    assert_eq!(read(&value), older);
    value["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
    let refused = LlamaConfig::from_value(&value).unwrap_err().to_string();
    assert!(
        refused.contains("rope_scaling is") && refused.contains("rope_parameters"),
        "{refused}"
    );
}

fn mistral() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000,
    })
}

#[test]
fn a_mistral_looks_back_as_far_as_its_window() {
    let first = read(&mistral());
    assert_eq!((first.model_type, first.sliding_window), (ModelType::Mistral, Some(4096)));
    assert_eq!((parameters(&first), first.longest_sequence()), (7_241_732_096, 4096));
    first.check_length(4096).unwrap();
    assert_eq!(
        first.check_length(4097).unwrap_err().to_string(),
        "a sequence of 4097 tokens exceeds the model's sliding_window 4096"
    );
    assert!(first.check_length(32769).unwrap_err().to_string().contains("max_position_embeddings"));

    let mut later = mistral();
    later["sliding_window"] = Value::Null;
    let later = read(&later);
    assert_eq!((later.sliding_window, later.longest_sequence()), (None, 32768));

    let mut silent = mistral();
    silent.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(read(&silent).sliding_window, Some(4096), "what transformers assumes");
}

#[test]
fn heads_need_not_fill_the_residual_stream() {
    let mut nemo = mistral();
    for (field, value) in [
        ("hidden_size", json!(5120)),
        ("head_dim", json!(128)),
        ("num_hidden_layers", json!(40)),
        ("max_position_embeddings", json!(128_000)),
        ("rope_theta", json!(1e6)),
        ("sliding_window", Value::Null),
        ("vocab_size", json!(131_072)),
    ] {
        nemo[field] = value;
    }
    let nemo = read(&nemo);
    assert_eq!((nemo.head_dim, nemo.num_attention_heads * nemo.head_dim), (128, 4096));
    assert_eq!(parameters(&nemo), 12_247_782_400);
}
