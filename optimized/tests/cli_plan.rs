//! `plan` and `bench step` as a user meets them.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

const METHODS: [&str; 7] = ["l4q", "lora", "lr_qat", "peqa", "qa_lora", "qat", "qat_lora"];

fn plumbline(arguments: &[&str]) -> Output {
    Command::cargo_bin("plumbline").unwrap().args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = plumbline(&[arguments, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Exit code 2, nothing on standard output, and one message with all of `parts`.
fn refused(arguments: &[&str], parts: &[&str]) {
    let output = plumbline(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(output.stdout.is_empty());
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

/// A shape small enough to be trained in a test.
fn small_config(folder: &Path) -> String {
    let path = folder.join("config.json");
    let config = serde_json::json!({
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 90,
        "max_position_embeddings": 64,
    });
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn every_method_is_timed_and_uses_the_memory_that_its_plan_says() {
    let folder = tempfile::tempdir().unwrap();
    let config = small_config(folder.path());
    for method in METHODS {
        let shape = ["--config", &config, "--method", method, "--group-size", "16", "--rank", "2"];
        let sizes = ["--layers", "2", "--tokens", "12", "--context", "6"];
        let shape = [&shape[..], &sizes[..]].concat();
        let once = ["--steps", "1", "--warmup", "1", "--device", "cuda-host"];
        let timed = json(&[&["bench", "step"], &shape[..], &once[..]].concat());
        let planned = json(&[&["plan"], &shape[..], &["--compute", "f32"]].concat());
        assert_eq!(timed["memory"]["plan"], planned["ways"][0]["plan"], "{method}");
        assert_eq!(timed["operations"], planned["ways"][0]["operations"], "{method}");
        assert_eq!((&timed["layers"], &timed["tokens"]), (&2.into(), &12.into()));
        let median = timed["step_seconds"]["median"].as_f64().unwrap();
        let rate = timed["tokens_per_second"].as_f64().unwrap();
        assert!((rate * median / 12.0 - 1.0).abs() < 1e-9);
        assert!(timed["floor_seconds"].is_null() && timed["last_loss"].as_f64().unwrap() > 0.0);
        // Beside the plan there are the kernels' own few bytes.
        let memory = &timed["memory"];
        let beside =
            memory["measured_bytes"].as_u64().unwrap() - memory["planned_bytes"].as_u64().unwrap();
        assert!(beside < 64 << 10, "{method}: {beside}");
    }
}

/// Of a block's five rounded copies the first is as wide as the widest input of a linear layer.
#[test]
fn rounded_activations_cost_one_set_of_copies() {
    let folder = tempfile::tempdir().unwrap();
    let config = small_config(folder.path());
    let shape = ["plan", "--config", &config, "--group-size", "16", "--tokens", "24"];
    let activations = |more: &[&str], way: usize| {
        let told = json(&[&shape[..], &["--method", "lr_qat"], more].concat());
        told["ways"][way]["plan"]["activations"].as_u64().unwrap()
    };
    for way in [0, 1] {
        let rounded = activations(&["--activation-bits", "8", "--kv-bits", "4"], way);
        assert_eq!(rounded - activations(&[], way), 4 * 24 * (64 + 32 + 3 * 16));
    }
    refused(&[&shape[..], &["--activation-bits", "8"]].concat(), &["--method l4q", "activations"]);
    let wide = ["--method", "lr_qat", "--activation-bits", "9"];
    refused(&[&shape[..], &wide[..]].concat(), &["activations.bits is 9, expected 2 to 8"]);
    let other = ["--method", "lr_qat", "--kv-bits", "4"];
    refused(&[&shape[..], &other[..]].concat(), &["--activation-bits"]);
}

#[test]
fn weights_have_the_type_that_the_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = small_config(folder.path());
    let frozen = |more: &[&str]| {
        let told = json(&[&["plan", "--config", &path, "--group-size", "16"], more].concat());
        (told["frozen"].clone(), told["ways"][0]["plan"]["frozen"].as_u64().unwrap())
    };
    let (stored, narrow) = frozen(&[]);
    assert_eq!(stored, "bf16");
    let weights = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64);
    assert_eq!(frozen(&["--frozen", "f32"]), ("f32".into(), narrow + 2 * weights));
    let text = std::fs::read_to_string(&path).unwrap();
    for (dtype, name) in [("float16", "f16"), ("float32", "f32"), ("bfloat16", "bf16")] {
        let named = text.replacen('{', &format!("{{\"torch_dtype\": \"{dtype}\","), 1);
        std::fs::write(&path, named).unwrap();
        assert_eq!(frozen(&[]).0, name);
    }
}

#[test]
fn a_plan_says_whether_it_fits_and_ends_well_either_way() {
    let shape = ["plan", "--config", "llama-2-7b", "--tokens", "8192", "--context", "2048"];
    for (memory, fits) in [("24GB", [false, false]), ("60GB", [false, true]), ("1TB", [true; 2])] {
        let told = json(&[&shape[..], &["--memory", memory]].concat());
        assert_eq!([&told["ways"][0]["fits"], &told["ways"][1]["fits"]], fits, "{memory}");
    }
    let told = json(&shape);
    assert!(told["ways"][0]["fits"].is_null());
    assert_eq!(told["parameters"], 6_738_415_616_u64);
    assert_eq!(told["linear_parameters"], 6_476_005_376_u64);
    let text = plumbline(&[&shape[..], &["--memory", "24GB"]].concat());
    assert!(text.status.success());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("floor, tokens/s: H200") && text.contains("fits 22.35 GiB"), "{text}");
}

#[test]
fn bad_input_is_refused_by_field_and_value() {
    let of = |more: &[&'static str]| [&["plan", "--config", "builtin"], more].concat();
    refused(&["plan", "--config", "llama-9"], &["llama-9: cannot read", "llama-2-7b"]);
    refused(&of(&["--method", "magic"]), &["--method magic", "l4q"]);
    refused(&of(&["--bits", "99"]), &["bits", "99"]);
    refused(&of(&["--group-size", "7"]), &["q_proj", "7"]);
    refused(&of(&["--rank", "0"]), &["rank is 0"]);
    refused(&of(&["--layers", "0"]), &["--layers is 0, expected 1 to 6"]);
    refused(&of(&["--tokens", "100", "--context", "64"]), &["--tokens is 100", "64"]);
    refused(&of(&["--context", "1000000"]), &["--context is 1000000"]);
    refused(&of(&["--batch", "0"]), &["no tokens"]);
    refused(&of(&["--memory", "much"]), &["--memory is \"much\""]);
    let bench = ["bench", "step", "--config", "builtin"];
    refused(&[&bench[..], &["--steps", "0"]].concat(), &["--steps is 0"]);
    refused(&[&bench[..], &["--compute", "bf16"]].concat(), &["--compute bf16"]);
}
