//! The program as a user meets it: a whole way, and every kind of bad input.

mod common;

use std::fs;
use std::sync::Arc;

use common::program::{Place, json, plumbline, refused};
use plumbline::checkpoint::ModelFolder;
use plumbline::cpu::Cpu;

#[test]
fn a_run_is_trained_merged_reloaded_and_measured() {
    let place = Place::new();
    let at = place.path();
    let trained = json(&plumbline(at, &["train", "recipe.toml", "--json"]));
    assert_eq!(trained["steps"], 3);
    let metrics = fs::read_to_string(at.join("run/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["loss"].is_number()).count(), 3);
    assert_eq!(lines.iter().filter(|line| line["perplexity"].is_number()).count(), 2);

    // The resolved recipe is a recipe: it states the defaults and can be read again.
    let resolved = fs::read_to_string(at.join("run/recipe.toml")).unwrap();
    assert!(resolved.contains("beta2 = 0.999"), "{resolved}");

    let merged = json(&plumbline(at, &["merge", "run", "--out", "merged", "--json"]));
    assert_eq!(merged["bitwise_equal"], true);
    assert_eq!(merged["layers"], 14);
    let eval = ["eval", "perplexity", "--model", "merged", "--text", "text.txt", "--context", "24"];
    let measured = json(&plumbline(at, &[&eval[..], &["--json"]].concat()));
    assert_eq!(measured["perplexity"], trained["perplexity"]["text.txt"], "merged is trained");

    let inspected = json(&plumbline(at, &["inspect", "merged", "--json"]));
    assert_eq!(inspected["quantization"]["bits"], 4);
    let codes = &inspected["tensors"]["model.layers.0.mlp.down_proj.codes"];
    assert_eq!(codes["dtype"], "I8");
    let human = plumbline(at, &["inspect", "merged"]);
    assert!(String::from_utf8_lossy(&human.stdout).contains("4 bits, groups of 16"));

    let write = ["generate", "--model", "merged", "--prompt", "Sing", "--tokens", "5"];
    let once = json(&plumbline(at, &[&write[..], &["--json", "--seed", "4"]].concat()));
    let again = json(&plumbline(at, &[&write[..], &["--json", "--seed", "4"]].concat()));
    assert_eq!(once, again);
    assert_eq!(once["new_ids"].as_array().unwrap().len(), 5);

    // Outputs are never overwritten.
    refused(&plumbline(at, &["train", "recipe.toml"]), &["run", "already exists"]);
    refused(&plumbline(at, &["merge", "run", "--out", "merged"]), &["merged", "already exists"]);
}

/// The method of the recipe as [`Place`] writes it.
const L4Q: &str = "name = \"l4q\"\nbits = 4\ngroup_size = 16\nrank = 2";

/// Every method from its recipe to a merged folder that measures as the trained model did.
#[test]
fn every_method_is_a_recipe_and_merges_where_it_can() {
    let qa_lora = "name = \"qa_lora\"\nbits = 4\ngroup_size = 16\nrank = 2";
    for (method, bitwise) in [
        (
            "name = \"lr_qat\"\nbits = 4\ngroup_size = 16\nrank = 2\nlora_scaling = 4.0\n\
          downcast = \"int\"",
            Some(true),
        ),
        (
            "name = \"lr_qat\"\nbits = 3\nrank = 2\nlora_scaling = 4.0\ndowncast = \"f32\"\n\
          inner_scale = \"live\"",
            Some(true),
        ),
        ("name = \"qat\"\nbits = 4\ngroup_size = 16\nquantizer = \"lsq\"", Some(true)),
        ("name = \"peqa\"\nbits = 4\nrange = \"lp\"\nrange_p = 2.0\nrange_steps = 10", Some(true)),
        (qa_lora, Some(false)),
        ("name = \"peqa\"\nbits = 3\nbase = \"gptq\"\ngptq.windows = 2", Some(true)),
        ("name = \"qat_lora\"\nbits = 4\ngroup_size = 16\nrank = 2", None),
        ("name = \"lora\"\nrank = 2", None),
    ] {
        let place = Place::new();
        let at = place.path();
        place.recipe(|recipe| recipe.replace(L4Q, method));
        let trained = json(&plumbline(at, &["train", "recipe.toml", "--json"]));
        let merge = plumbline(at, &["merge", "run", "--out", "merged", "--json"]);
        let Some(bitwise) = bitwise else {
            refused(&merge, &["recipe.toml", "beside the weight"]);
            continue;
        };
        let merged = json(&merge);
        assert_eq!(merged["bitwise_equal"], bitwise, "{method}");
        let apart = merged["largest_difference"].as_f64().unwrap();
        assert!(if bitwise { apart == 0.0 } else { apart < 1e-4 }, "{method}: {apart}");
        let eval =
            ["eval", "perplexity", "--model", "merged", "--text", "text.txt", "--context", "24"];
        let measured = json(&plumbline(at, &[&eval[..], &["--json"]].concat()));
        let (measured, trained) = (&measured["perplexity"], &trained["perplexity"]["text.txt"]);
        if bitwise {
            assert_eq!(measured, trained, "{method}");
        } else {
            let ratio = measured.as_f64().unwrap() / trained.as_f64().unwrap();
            assert!((ratio - 1.0).abs() < 1e-4, "{method}: {ratio}");
        }
        let human = plumbline(at, &["inspect", "merged"]);
        assert!(String::from_utf8_lossy(&human.stdout).contains("% high"), "{method}");
    }
}

#[test]
fn a_target_is_recorded_shown_and_refused_where_a_layer_does_not_fit() {
    let place = Place::new();
    let at = place.path();
    let target = |format: &str| format!("{L4Q}\ntarget = \"{format}\"");
    // A row of down_proj has 48 inputs.
    let whole_rows = target("gguf-q4_0").replace("\ngroup_size = 16", "");
    for (method, expected) in [
        (
            target("gguf-q4_0"),
            "method.group_size is 16, gguf-q4_0 holds groups of a multiple of 32",
        ),
        (whole_rows, "down_proj: a row, which is one group, is 48, gguf-q4_0 holds groups"),
        (target("gguf-q4"), "target: gguf-q4 is no format, expected one of compressed-tensors"),
    ] {
        place.recipe(|recipe| recipe.replace(L4Q, &method));
        place.train_refused(&["recipe.toml", expected]);
    }
    place.recipe(|recipe| recipe.replace(L4Q, &target("awq")));
    let trained = json(&plumbline(at, &["train", "recipe.toml", "--json"]));
    let resolved = fs::read_to_string(at.join("run/recipe.toml")).unwrap();
    assert!(resolved.contains("target = \"awq\""), "{resolved}");
    let merged = json(&plumbline(at, &["merge", "run", "--out", "merged", "--json"]));
    assert_eq!(merged["bitwise_equal"], true);
    let eval = ["eval", "perplexity", "--model", "merged", "--text", "text.txt", "--context", "24"];
    let measured = json(&plumbline(at, &[&eval[..], &["--json"]].concat()));
    assert_eq!(measured["perplexity"], trained["perplexity"]["text.txt"]);
    let inspected = json(&plumbline(at, &["inspect", "merged", "--json"]));
    assert_eq!(inspected["quantization"]["target"], "awq");
    let human = plumbline(at, &["inspect", "merged"]);
    assert!(String::from_utf8_lossy(&human.stdout).contains("trained for: awq"));

    let path = at.join("merged/config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("\"awq\"", "\"exl2\"")).unwrap();
    let unknown = ["config.json", "quantization_config", "target: exl2 is no format"];
    refused(&plumbline(at, &["inspect", "merged"]), &unknown);
}

#[test]
fn a_merge_of_qlora_says_that_it_is_another_model() {
    let place = Place::new();
    let at = place.path();
    let qlora = "name = \"qlora\"\nbits = 4\ngroup_size = 16\nrank = 2";
    place.recipe(|recipe| recipe.replace(L4Q, qlora));
    json(&plumbline(at, &["train", "recipe.toml", "--json"]));
    let merged = json(&plumbline(at, &["merge", "run", "--out", "merged", "--json"]));
    assert_eq!(merged["bitwise_equal"], false);
    let apart = merged["largest_difference"].as_f64().unwrap();
    assert!(apart > 1e-4, "{apart}");
    let human = plumbline(at, &["merge", "run", "--out", "again"]);
    let said = String::from_utf8_lossy(&human.stdout);
    assert!(said.contains("another model") && !said.contains("equal"), "{said}");
    let inspected = json(&plumbline(at, &["inspect", "merged", "--json"]));
    assert_eq!(inspected["quantization"]["zero_point"], true);

    place.recipe(|recipe| recipe.replace(L4Q, qlora).replace("\"run\"", "\"next\""));
    let bad =
        [("block_size = 0", "block_size is 0"), ("range = \"lp\"", "p is"), ("rank = 0", "rank")];
    for (field, expected) in bad {
        let without_rank = qlora.replace("\nrank = 2", "");
        let method = match field.starts_with("rank") {
            true => format!("{without_rank}\n{field}"),
            false => format!("{qlora}\n{field}"),
        };
        place.recipe(|recipe| recipe.replace(L4Q, &method).replace("\"run\"", "\"next\""));
        refused(&plumbline(at, &["train", "recipe.toml"]), &["recipe.toml", expected]);
        assert!(!at.join("next").exists());
    }
}

#[test]
fn a_merge_refuses_another_base_and_a_damaged_checkpoint() {
    let place = Place::new();
    let at = place.path();
    assert!(plumbline(at, &["train", "recipe.toml"]).status.success());
    let adapter = at.join("run/checkpoints/step-3/adapter.safetensors");
    let good = fs::read(&adapter).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    fs::write(&adapter, bad).unwrap();
    refused(&plumbline(at, &["merge", "run", "--out", "m"]), &["adapter.safetensors", "SHA-256"]);
    fs::write(&adapter, good).unwrap();
    let mut weights = fs::read(place.weights()).unwrap();
    let last = weights.len() - 4;
    weights[last] ^= 1;
    fs::write(place.weights(), weights).unwrap();
    refused(&plumbline(at, &["merge", "run", "--out", "m"]), &["step-3", "fingerprint"]);
    assert!(!at.join("m").exists());
}

#[test]
fn a_pretrained_model_can_be_trained_further() {
    let place = Place::new();
    let at = place.path();
    let recipe = r#"
[model]
vocab_size = 280
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
rope_theta = 10000.0
rms_norm_eps = 1e-5

[data]
train = ["text.txt"]
context = 16

[training]
steps = 2
micro_batch = 2

[output]
dir = "pre"
"#;
    fs::write(at.join("pretrain.toml"), recipe).unwrap();
    let output = plumbline(at, &["pretrain", "pretrain.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let change = |recipe: String| {
        recipe
            .replace("\"model\"", "\"pre/model\"")
            .replace("group_size = 16", "group_size = 8")
            .replace("context = 24", "context = 16")
    };
    place.recipe(change);
    assert!(plumbline(at, &["train", "recipe.toml"]).status.success());
}

#[test]
fn a_missing_shard_is_named() {
    let place = Place::new();
    let model = place.path().join("model");
    fs::rename(place.weights(), model.join("model-00001-of-00002.safetensors")).unwrap();
    let index = serde_json::json!({ "weight_map": {
        "model.norm.weight": "model-00001-of-00002.safetensors",
        "lm_head.weight": "model-00002-of-00002.safetensors",
    }});
    fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    place.train_refused(&["model-00002-of-00002.safetensors"]);
}

#[test]
fn shards_load_like_one_file() {
    let place = Place::new();
    let at = place.path();
    let eval = ["eval", "perplexity", "--model", "model", "--text", "text.txt", "--json"];
    let whole = json(&plumbline(at, &eval));
    let model = at.join("model");
    let bytes = fs::read(place.weights()).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut shards = [vec![], vec![]];
    let mut weight_map = serde_json::Map::new();
    for (number, (name, tensor)) in tensors.tensors().into_iter().enumerate() {
        weight_map.insert(name.clone(), format!("shard-{}.safetensors", number % 2).into());
        shards[number % 2].push((name, tensor));
    }
    for (number, shard) in shards.into_iter().enumerate() {
        let bytes = safetensors::serialize(shard, None).unwrap();
        fs::write(model.join(format!("shard-{number}.safetensors")), bytes).unwrap();
    }
    let index = serde_json::json!({ "weight_map": weight_map });
    fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::remove_file(place.weights()).unwrap();
    assert_eq!(json(&plumbline(at, &eval)), whole);
}

#[test]
fn a_truncated_file_is_refused() {
    let place = Place::new();
    let bytes = fs::read(place.weights()).unwrap();
    for length in [0, 4, 100, bytes.len() - 1] {
        fs::write(place.weights(), &bytes[..length]).unwrap();
        place.train_refused(&["model.safetensors", "bytes long"]);
    }
    let mut longer = bytes.clone();
    longer.push(0);
    fs::write(place.weights(), longer).unwrap();
    place.train_refused(&["model.safetensors", "damaged"]);
    let mut huge = bytes;
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(place.weights(), huge).unwrap();
    place.train_refused(&["model.safetensors", "not a safetensors file"]);
}

/// Rewrites the weights with one tensor changed.
fn change_tensor(place: &Place, name: &str, shape: &[usize], values: &[f32]) {
    let bytes = fs::read(place.weights()).unwrap();
    let old = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let dtype = safetensors::Dtype::F32;
    let new = safetensors::tensor::TensorView::new(dtype, shape.to_vec(), &data).unwrap();
    let tensors: Vec<_> = old
        .tensors()
        .into_iter()
        .filter(|(other, _)| other != name)
        .chain([(name.to_owned(), new)])
        .collect();
    fs::write(place.weights(), safetensors::serialize(tensors, None).unwrap()).unwrap();
}

#[test]
fn wrong_shapes_and_strange_tensors_are_named() {
    let place = Place::new();
    let name = "model.layers.1.mlp.up_proj.weight";
    change_tensor(&place, name, &[32, 48], &vec![0.1; 32 * 48]);
    place.train_refused(&["model.safetensors", name, "[32, 48]", "[48, 32]"]);
    change_tensor(&place, name, &[48, 32], &vec![0.1; 32 * 48]);
    change_tensor(&place, "model.layers.0.self_attn.q_proj.bias", &[32], &[0.0; 32]);
    place.train_refused(&["model.layers.0.self_attn.q_proj.bias", "does not belong"]);
}

#[test]
fn a_nan_weight_is_named() {
    for value in [f32::NAN, f32::INFINITY] {
        let place = Place::new();
        let name = "model.layers.0.mlp.gate_proj.weight";
        let mut values = vec![0.1; 48 * 32];
        values[77] = value;
        change_tensor(&place, name, &[48, 32], &values);
        place.train_refused(&["model.safetensors", name, "77", &value.to_string()]);
    }
}

#[test]
fn a_group_size_that_does_not_divide_lists_every_layer() {
    let place = Place::new();
    place.recipe(|recipe| recipe.replace("group_size = 16", "group_size = 32"));
    let layers =
        ["model.layers.0.mlp.down_proj (48 inputs)", "model.layers.1.mlp.down_proj (48 inputs)"];
    place.train_refused(&["group_size 32", layers[0], layers[1]]);
}

#[test]
fn recipes_with_mistakes_are_refused_by_field() {
    let place = Place::new();
    let cases: [(&str, &str, &[&str]); 13] = [
        ("rank = 2", "rank = 2\nranks = 3", &["recipe.toml", "ranks"]),
        ("steps = 3", "steps = 3\nepochs = 3", &["recipe.toml", "line 18", "epochs"]),
        ("steps = 3", "steps = 0", &["training.steps", "0"]),
        ("rank = 2", "rank = 0", &["method.rank", "0"]),
        ("bits = 4", "bits = 9", &["recipe.toml", "bits is 9"]),
        ("bits = 4", "bits = 4\ninit = \"best\"", &["best", "lsq_plus"]),
        ("name = \"l4q\"", "name = \"l5q\"", &["recipe.toml", "l5q"]),
        ("context = 24", "context = 65", &["data.context", "65", "64"]),
        ("[output]", "[optimizer]\nlearning_rate = -1.0\n[output]", &["learning_rate", "-1"]),
        ("[output]", "[optimizer]\nbeta1 = 1.0\n[output]", &["beta1", "1"]),
        ("[output]", "[schedule]\nfinal_ratio = -0.5\n[output]", &["final_ratio", "-0.5"]),
        ("\"model\"", "\"nowhere\"", &["nowhere", "config.json"]),
        ("[\"text.txt\"]", "[\"builtin:homer\"]", &["homer", "builtin:milton_train"]),
    ];
    for (from, to, parts) in cases {
        place.recipe(|recipe| recipe.replace(from, to));
        place.train_refused(parts);
    }
}

#[test]
fn texts_and_token_ids_that_mean_nothing_are_refused() {
    let place = Place::new();
    let at = place.path();
    fs::write(at.join("text.txt"), " \n").unwrap();
    place.train_refused(&["text.txt", "empty"]);
    fs::write(at.join("text.txt"), "Sing").unwrap();
    place.train_refused(&["tokens", "25"]);
    fs::write(at.join("text.txt"), [0xff, 0xfe, b'a']).unwrap();
    place.train_refused(&["text.txt", "UTF-8"]);

    fs::write(at.join("ids.json"), "[1, 2, 280]").unwrap();
    let eval = |file: &str| {
        plumbline(at, &["eval", "perplexity", "--model", "model", "--token-ids", file])
    };
    refused(&eval("ids.json"), &["ids.json", "280", "position 2"]);
    fs::write(at.join("ids.json"), "{\"input_ids\": [1, -1]}").unwrap();
    refused(&eval("ids.json"), &["ids.json", "-1", "position 1"]);
    fs::write(at.join("ids.json"), "[1]").unwrap();
    refused(&eval("ids.json"), &["1 tokens", "at least 2"]);
    fs::write(at.join("ids.json"), "{\"ids\": 3}").unwrap();
    refused(&eval("ids.json"), &["ids.json", "input_ids"]);
    let ids = ["generate", "--model", "model", "--prompt-ids", "5,300"];
    refused(&plumbline(at, &ids), &["300", "position 1"]);
    let none = ["generate", "--model", "model"];
    refused(&plumbline(at, &none), &["--prompt"]);
    let cold = ["generate", "--model", "model", "--prompt", "a", "--temperature=-1"];
    refused(&plumbline(at, &cold), &["temperature", "-1"]);
}

#[test]
fn a_model_that_is_not_llama_is_refused_by_field() {
    let place = Place::new();
    let path = place.path().join("model/config.json");
    let good: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let cases = [
        ("model_type", serde_json::json!("gpt2"), "gpt2"),
        ("rope_scaling", serde_json::json!({"rope_type": "yarn"}), "rope_type is yarn"),
        ("rope_scaling", serde_json::json!({"rope_type": "llama3"}), "factor is missing"),
        ("quantization_config", serde_json::json!({"quant_method": "aqlm"}), "aqlm"),
        ("num_attention_heads", serde_json::json!(0), "0"),
        ("hidden_size", serde_json::json!("wide"), "wide"),
    ];
    for (field, value, shown) in cases {
        let mut bad = good.clone();
        bad[field] = value;
        fs::write(&path, bad.to_string()).unwrap();
        place.train_refused(&["config.json", shown]);
    }
}

#[test]
fn a_mistral_is_trained_within_its_window_and_stays_one() {
    let place = Place::new();
    let (at, path) = (place.path(), place.path().join("model/config.json"));
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["model_type"] = "mistral".into();
    config["sliding_window"] = 24.into();
    fs::write(&path, config.to_string()).unwrap();
    place.recipe(|recipe| recipe.replace("context = 24", "context = 25"));
    place.train_refused(&["data.context is 25", "sliding_window 24"]);
    place.recipe(|recipe| recipe);
    json(&plumbline(at, &["train", "recipe.toml", "--json"]));
    json(&plumbline(at, &["merge", "run", "--out", "merged", "--json"]));
    let human = plumbline(at, &["inspect", "merged"]);
    let shown = String::from_utf8_lossy(&human.stdout);
    assert!(shown.contains("mistral, rotary base 10000, sliding window 24"), "{shown}");
    let merged: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(at.join("merged/config.json")).unwrap()).unwrap();
    assert_eq!(merged["architectures"][0], "MistralForCausalLM");
    let eval = ["eval", "perplexity", "--model", "merged", "--text", "text.txt", "--context", "25"];
    refused(&plumbline(at, &eval), &["25 tokens", "sliding_window 24"]);
}

#[test]
fn bf16_products_need_a_cuda_device() {
    let place = Place::new();
    let run = |device: &str, compute: &str| {
        let arguments = ["train", "recipe.toml", "--device", device, "--compute", compute];
        plumbline(place.path(), &arguments)
    };
    refused(&run("cpu", "bf16"), &["--compute bf16 needs a CUDA device"]);
    refused(&run("cuda-host", "f16"), &["--compute", "f16"]);
}

/// Where there is no driver. With one, there is no device of that number.
#[test]
fn a_missing_gpu_is_said_in_one_line() {
    let place = Place::new();
    for arguments in [
        &["train", "recipe.toml", "--device", "cuda:99"][..],
        &["eval", "perplexity", "--text", "text.txt", "--device", "cuda:99"],
        &["generate", "--device", "cuda:99"],
    ] {
        refused(&plumbline(place.path(), arguments), &["cuda: "]);
    }
    refused(
        &plumbline(place.path(), &["train", "recipe.toml", "--device", "gpu"]),
        &["gpu", "cuda:N"],
    );
    assert!(!place.path().join("run").exists());
}

/// The kernels of a GPU, interpreted: the same run folder, and a merged model with the same bits.
#[test]
fn a_recipe_runs_through_the_kernels() {
    let place = Place::new();
    let on_host = ["--device", "cuda-host", "--json"];
    let train = plumbline(place.path(), &[&["train", "recipe.toml"][..], &on_host].concat());
    assert!(json(&train)["last_loss"].as_f64().unwrap().is_finite());
    let merge =
        plumbline(place.path(), &[&["merge", "run", "--out", "merged"][..], &on_host].concat());
    assert_eq!(json(&merge)["bitwise_equal"], true);
}

#[test]
fn logits_are_written_as_the_library_computes_them() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    common::write_model(&at.join("model"));
    let tokens: Vec<i32> = (0..20).map(|at| at * 7 % 40).collect();
    fs::write(at.join("ids.json"), serde_json::to_string(&tokens).unwrap()).unwrap();
    let command = ["eval", "logits", "--model", "model", "--token-ids", "ids.json", "--out", "out"];
    let told = json(&plumbline(at, &[&command[..], &["--json"]].concat()));
    let folder = ModelFolder::open(&at.join("model")).unwrap();
    let vocabulary = folder.config().vocab_size;
    assert_eq!(told["vocabulary"], vocabulary);
    let bytes = fs::read(at.join("out")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let written = file.tensor("logits").unwrap();
    assert_eq!(written.shape(), [20, vocabulary]);
    let model = folder.load_dense(Arc::new(Cpu), false).unwrap();
    let mut workspace = model.evaluation_workspace(tokens.len()).unwrap();
    let logits = model.logits(1, &tokens, &mut workspace).unwrap();
    let expected: Vec<u8> = logits.into_iter().flat_map(f32::to_le_bytes).collect();
    assert_eq!(written.data(), expected);
    let ids: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
    assert_eq!(file.tensor("input_ids").unwrap().data(), ids);

    refused(&plumbline(at, &command), &["out"]);
    fs::write(at.join("ids.json"), format!("{:?}", vec![1; 1000])).unwrap();
    let long = plumbline(at, &[&command[..7], &["other"]].concat());
    refused(&long, &["ids.json: has 1000 tokens, the model takes 1 to"]);
    assert!(!at.join("other").exists());
}
