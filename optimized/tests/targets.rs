//! A method on some layers, and on grids of their own: trained, planned, merged, resumed, refused.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::program::{Place, json, plumbline, refused};
use plumbline::checkpoint::{LoadedModel, ModelFolder, Precision, QuantizationConfig, save_dense};
use plumbline::cpu::Cpu;
use plumbline_reference::spec::Bits;

const L4Q: &str = "name = \"l4q\"\nbits = 4\ngroup_size = 16\nrank = 2";

/// Attention on groups of 16 but for one layer, the second block's output on three bits; of the
/// feed-forward only the projections down.
const CHOICE: &str = "targets = [\"self_attn.*_proj\", \"down_proj\"]\n\
    [[method.override]]\npattern = \"*_proj\"\nbits = 3\n\
    [[method.override]]\npattern = \"attn.*\"\nbits = 4\n\
    [[method.override]]\npattern = \"self_attn.*\"\nbits = 4\n\
    [[method.override]]\npattern = \"layers.0.*.q_proj\"\nbits = 8\ngroup_size = 0\n";

/// `CHOICE` without the pattern that matches nothing.
fn choice() -> String {
    CHOICE.replace("[[method.override]]\npattern = \"attn.*\"\nbits = 4\n", "")
}

/// Names of the tensors of a file.
fn tensors(path: &Path) -> BTreeSet<String> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.names().into_iter().map(|name| name.to_string()).collect()
}

/// The small model again with its weights in bf16, so that what stays is not f32.
fn round_the_base(at: &Path) {
    let folder = ModelFolder::open(&at.join("model")).unwrap();
    let LoadedModel::Dense(model) = folder.load(Arc::new(Cpu)).unwrap() else {
        panic!("the model is in full precision");
    };
    let tokenizer = folder.tokenizer_bytes().unwrap().to_vec();
    fs::remove_dir_all(at.join("model")).unwrap();
    fs::create_dir(at.join("model")).unwrap();
    save_dense(&at.join("model"), &model, Some(&tokenizer), Precision::Bf16).unwrap();
}

#[test]
fn chosen_layers_are_trained_and_merged_and_the_others_stay() {
    let place = Place::new();
    let at = place.path();
    round_the_base(at);
    place.recipe(|recipe| recipe.replace(L4Q, &format!("{L4Q}\n{}", choice())));
    let trained = json(&plumbline(at, &["train", "recipe.toml", "--json"]));
    let adapter = tensors(&at.join("run/checkpoints/step-3/adapter.safetensors"));
    let layers: BTreeSet<&str> =
        adapter.iter().filter_map(|name| name.strip_suffix(".lora_a")).collect();
    assert_eq!(layers.len(), 2 * 5);
    assert_eq!(adapter.len(), 4 * 2 * 5);
    assert!(layers.iter().all(|name| name.contains("self_attn") || name.ends_with("down_proj")));

    let merged = json(&plumbline(at, &["merge", "run", "--out", "merged", "--json"]));
    assert_eq!((&merged["bitwise_equal"], &merged["layers"]), (&true.into(), &10.into()));
    let eval = ["eval", "perplexity", "--model", "merged", "--text", "text.txt", "--context", "24"];
    let measured = json(&plumbline(at, &[&eval[..], &["--json"]].concat()));
    assert_eq!(measured["perplexity"], trained["perplexity"]["text.txt"]);

    let folder = ModelFolder::open(&at.join("merged")).unwrap();
    let quantization = folder.quantization().unwrap();
    let grid = |bits: u32, group_size| Some((Bits::new(bits).unwrap(), group_size));
    for (name, expected) in [
        ("model.layers.0.self_attn.q_proj", grid(8, None)),
        ("model.layers.1.self_attn.q_proj", grid(4, Some(16))),
        ("model.layers.0.self_attn.o_proj", grid(4, Some(16))),
        ("model.layers.1.mlp.down_proj", grid(3, Some(16))),
        ("model.layers.0.mlp.up_proj", None),
        ("model.layers.1.mlp.gate_proj", None),
    ] {
        assert_eq!(quantization.grid_of(name), expected, "{name}");
    }
    let stays = "model.layers.0.mlp.up_proj.weight";
    let weight = |folder: &str| {
        let bytes = fs::read(at.join(folder).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor(stays).unwrap();
        (tensor.dtype(), tensor.data().to_vec())
    };
    assert_eq!(weight("merged"), weight("model"));

    let inspected = plumbline(at, &["inspect", "merged"]);
    let said = String::from_utf8_lossy(&inspected.stdout);
    for line in [
        "  merged: 4 bits, groups of 16\n",
        "    model.layers.0.self_attn.q_proj: 8 bits, groups of a row\n",
        "    model.layers.0.mlp.up_proj: full precision\n",
    ] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    // What is merged has no weights to begin from.
    place.recipe(|recipe| recipe.replace("\"model\"", "\"merged\"").replace("\"run\"", "\"next\""));
    refused(&plumbline(at, &["train", "recipe.toml"]), &["merged", "full-precision"]);
}

#[test]
fn every_method_can_be_on_some_layers() {
    for (method, ends_in_codes) in [
        ("name = \"lora\"\nrank = 2", false),
        ("name = \"qat_lora\"\nbits = 4\ngroup_size = 16\nrank = 2", false),
        ("name = \"peqa\"\nbits = 4\ngroup_size = 16", true),
        ("name = \"qa_lora\"\nbits = 4\ngroup_size = 16\nrank = 2", true),
        ("name = \"qlora\"\nbits = 4\ngroup_size = 16\nrank = 2", true),
        ("name = \"qat\"\nbits = 4\ngroup_size = 16", true),
        (
            "name = \"lr_qat\"\nbits = 4\ngroup_size = 16\nrank = 2\nlora_scaling = 4.0\n\
             downcast = \"int\"",
            true,
        ),
    ] {
        let place = Place::new();
        let at = place.path();
        let targets = "targets = [\"mlp.*\"]";
        let other = if ends_in_codes {
            "[[method.override]]\npattern = \"up_proj\"\ngroup_size = 8"
        } else {
            ""
        };
        place.recipe(|recipe| recipe.replace(L4Q, &format!("{method}\n{targets}\n{other}")));
        json(&plumbline(at, &["train", "recipe.toml", "--json"]));
        let adapter = tensors(&at.join("run/checkpoints/step-3/adapter.safetensors"));
        assert!(adapter.iter().all(|name| name.contains(".mlp.")), "{method}: {adapter:?}");
        if ends_in_codes {
            let merged = json(&plumbline(at, &["merge", "run", "--out", "merged", "--json"]));
            assert_eq!(merged["layers"], 6, "{method}");
            let folder = ModelFolder::open(&at.join("merged")).unwrap();
            let up = folder.quantization().unwrap().grid_of("model.layers.1.mlp.up_proj");
            assert_eq!(up, Some((Bits::new(4).unwrap(), Some(8))), "{method}");
        }
    }
}

#[test]
fn a_pattern_that_matches_nothing_is_named() {
    let place = Place::new();
    let with = |choice: &str| {
        place.recipe(|recipe| recipe.replace(L4Q, &format!("{L4Q}\n{choice}")));
    };
    for (choice, parts) in [
        (CHOICE, &["recipe.toml", "method.override", "\"attn.*\""][..]),
        ("targets = [\"q_proj\", \"c_attn\"]", &["recipe.toml", "method.targets", "\"c_attn\""]),
        ("targets = []", &["recipe.toml", "method.targets is empty"]),
        ("target = [\"q_proj\"]", &["recipe.toml", "target: invalid type"]),
        (
            "targets = [\"q_proj\"]\n[[method.override]]\npattern = \"up_proj\"\nbits = 3",
            &["recipe.toml", "\"up_proj\"", "that the method is on"],
        ),
        (
            "[[method.override]]\npattern = \"up_proj\"",
            &["recipe.toml", "\"up_proj\"", "neither bits nor group_size"],
        ),
        ("[[method.override]]\npattern = \"up_proj\"\nrank = 3", &["recipe.toml", "`rank`"]),
        (
            "[[method.override]]\npattern = \"up_proj\"\ngroup_size = 5",
            &["group_size 5", "model.layers.0.mlp.up_proj (32 inputs)"],
        ),
    ] {
        with(choice);
        place.train_refused(parts);
    }
    place.recipe(|recipe| {
        let other = "[[method.override]]\npattern = \"up_proj\"\nbits = 3";
        recipe.replace(L4Q, &format!("name = \"lora\"\nrank = 2\n{other}"))
    });
    place.train_refused(&["recipe.toml", "\"up_proj\"", "lora has no codes"]);
}

#[test]
fn another_choice_of_layers_is_another_run() {
    let place = Place::new();
    let at = place.path();
    let with = |targets: &str| {
        place.recipe(|recipe| recipe.replace(L4Q, &format!("{L4Q}\ntargets = [{targets}]")));
    };
    with("\"q_proj\"");
    json(&plumbline(at, &["train", "recipe.toml", "--json"]));
    assert!(fs::read_to_string(at.join("run/recipe.toml")).unwrap().contains("q_proj"));
    with("\"k_proj\"");
    let output = plumbline(at, &["train", "recipe.toml", "--resume"]);
    refused(&output, &["method.targets", "q_proj", "k_proj"]);
}

#[test]
fn a_plan_follows_the_choice() {
    let place = Place::new();
    let plan = |target: &[&str]| {
        let arguments = ["plan", "--config", "model", "--group-size", "16", "--json"];
        json(&plumbline(place.path(), &[&arguments[..], target].concat()))
    };
    let (all, some) = (plan(&[]), plan(&["--target", "q_proj", "--target", "mlp.*"]));
    let values = |plan: &serde_json::Value| plan["trained_values"].as_u64().unwrap();
    assert!(values(&some) < values(&all) && values(&some) > 0);
    assert_eq!(some["method"]["targets"], serde_json::json!(["q_proj", "mlp.*"]));
    let arguments = ["plan", "--config", "model", "--group-size", "16", "--target", "c_attn"];
    refused(&plumbline(place.path(), &arguments), &["--target", "c_attn"]);
}

#[test]
fn a_layer_that_does_not_exist_is_refused_when_read() {
    let place = Place::new();
    let at = place.path();
    json(&plumbline(at, &["train", "recipe.toml", "--json"]));
    json(&plumbline(at, &["merge", "run", "--out", "merged", "--json"]));
    let path = at.join("merged/config.json");
    let text = fs::read_to_string(&path).unwrap();
    let grid = || [("model.layers.9.mlp.up_proj".to_owned(), None)];
    let own = (Bits::new(4).unwrap(), Some(16));
    let quantization = QuantizationConfig::new(own, false, grid());
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["quantization_config"] = serde_json::json!(quantization);
    fs::write(&path, config.to_string()).unwrap();
    let told = ModelFolder::open(&at.join("merged")).err().unwrap().to_string();
    assert!(told.contains("unquantized: model.layers.9.mlp.up_proj"), "{told}");
}
