//! Frozen grids, warm-up as LoRA, and dropout on what adapters read.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::program::{Place, json, plumbline, refused};
use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Interpreter};
use plumbline::methods::{AdapterDropout, BackwardCall, LinearMethod, Lora, LoraOptions, Scratch};
use plumbline::ops::Write;
use plumbline::ops::dropout::{Dropout, DropoutArgs};
use plumbline::ops::widen::FrozenWeight;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const L4Q: &str = "name = \"l4q\"\nbits = 4\ngroup_size = 16\nrank = 2";

fn cuda() -> Cuda<Interpreter> {
    Cuda::new(Interpreter::with_orders(3)).unwrap()
}

fn floats(seed: u64, len: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn dropped<B: Dropout>(backend: &B, (key, probability): (u64, f32), write: Write) -> Vec<f32> {
    let len = 1003;
    let x = backend.upload(&floats(1, len)).unwrap();
    let mut output = backend.upload(&floats(2, len)).unwrap();
    backend.dropout(DropoutArgs { len, key, probability, write }, &x, &mut output).unwrap();
    backend.download(&output, len).unwrap()
}

#[test]
fn dropout_has_the_bits_of_the_cpu_and_its_probability() {
    for probability in [0.0, 0.05, 0.5, 0.9] {
        for write in [Write::Replace, Write::Add] {
            let expected = dropped(&Cpu, (7, probability), write);
            assert_eq!(bits(&dropped(&cuda(), (7, probability), write)), bits(&expected));
        }
        let left = dropped(&Cpu, (7, probability), Write::Replace);
        let zeros = left.iter().filter(|value| **value == 0.0).count() as f64;
        let (n, p) = (left.len() as f64, f64::from(probability));
        assert!((zeros - n * p).abs() <= 4.0 * (n * p * (1.0 - p)).sqrt(), "{p}: {zeros}");
        let factor = (1.0 / (1.0 - p)) as f32;
        for (left, x) in left.iter().zip(floats(1, left.len())) {
            assert!(*left == 0.0 || *left == x * factor);
        }
        let is_chance = probability > 0.0;
        assert_eq!(left != dropped(&Cpu, (8, probability), Write::Replace), is_chance);
    }
}

const TOKENS: usize = 5;
const WIDTH: usize = 8;

struct Layer<B: Backend> {
    lora: Lora<B>,
    scratch: Scratch<B>,
}

/// A layer without a weight of its own, so that all of it is the adapter.
fn layer<B: Backend>(
    backend: &B,
    factors: (&[f32], &[f32]),
    dropout: Option<AdapterDropout>,
    key: Option<u64>,
) -> Layer<B> {
    let weight = FrozenWeight::F32(vec![0.0; WIDTH * WIDTH]);
    let options = LoraOptions { rank: WIDTH, lora_scaling: 1.0 };
    let shape = (WIDTH, WIDTH);
    let lora = Lora::from_tensors(backend, &weight, shape, options, factors.0, factors.1).unwrap();
    let lora = lora.with_dropout(dropout);
    let mut scratch = lora.scratch_need().allocate(backend, TOKENS).unwrap();
    scratch.path.dropout_key = key;
    Layer { lora, scratch }
}

/// Output, gradient of the input, and gradients of the factors.
fn through<B: Backend>(backend: &B, layer: &mut Layer<B>, x: &[f32], d_y: &[f32]) -> Vec<Vec<f32>> {
    let Layer { lora, scratch } = layer;
    let (x, d_y) = (backend.upload(x).unwrap(), backend.upload(d_y).unwrap());
    let (mut y, mut d_x) =
        (backend.zeros(TOKENS * WIDTH).unwrap(), backend.zeros(TOKENS * WIDTH).unwrap());
    lora.forward(backend, TOKENS, &x, &mut y, scratch).unwrap();
    let call = BackwardCall::new(TOKENS, &x, &d_y, &mut d_x, Write::Replace);
    lora.backward(backend, call, scratch).unwrap();
    let download = |buffer| backend.download(buffer, TOKENS * WIDTH).unwrap();
    let mut all = vec![download(&y), download(&d_x)];
    for tensor in lora.trainable() {
        all.push(backend.download(tensor.gradient, tensor.len).unwrap());
    }
    all
}

/// A layer with dropout is one without it on what is left of its input, and so are its gradients;
/// that of the input passes where the input did.
fn is_a_layer_on_what_is_left<B: Backend>(backend: &B) {
    let identity: Vec<f32> =
        (0..WIDTH * WIDTH).map(|i| if i % (WIDTH + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let (x, d_y) = (floats(3, TOKENS * WIDTH), floats(4, TOKENS * WIDTH));
    let dropout = Some(AdapterDropout::new(0.5, "a"));
    let factors = (floats(5, WIDTH * WIDTH), floats(6, WIDTH * WIDTH));
    let mut shows = layer(backend, (&identity, &identity), dropout, Some(9));
    let left = through(backend, &mut shows, &x, &d_y).remove(0);
    let zeros = left.iter().filter(|value| **value == 0.0).count();
    assert!((10..31).contains(&zeros), "{zeros} of {}", left.len());

    let mut drops = layer(backend, (&factors.0, &factors.1), dropout, Some(9));
    let mut plain = layer(backend, (&factors.0, &factors.1), None, Some(9));
    let (actual, expected) =
        (through(backend, &mut drops, &x, &d_y), through(backend, &mut plain, &left, &d_y));
    for which in [0, 2, 3] {
        assert_eq!(bits(&actual[which]), bits(&expected[which]), "{which}");
    }
    for ((d_x, through_all), left) in actual[1].iter().zip(&expected[1]).zip(&left) {
        assert_eq!(*d_x, if *left == 0.0 { 0.0 } else { 2.0 * through_all });
    }
    // Another key, another layer, and no key.
    for (dropout, key) in [(dropout, Some(10)), (Some(AdapterDropout::new(0.5, "b")), Some(9))] {
        let mut other = layer(backend, (&identity, &identity), dropout, key);
        assert_ne!(through(backend, &mut other, &x, &d_y)[0], left);
    }
    let mut evaluated = layer(backend, (&identity, &identity), dropout, None);
    assert_eq!(through(backend, &mut evaluated, &x, &d_y)[0], x);
}

#[test]
fn dropout_is_on_what_the_adapter_reads() {
    is_a_layer_on_what_is_left(&Cpu);
    is_a_layer_on_what_is_left(&cuda());
}

/// Loss of every step.
fn losses(place: &Place, method: &str, change: impl Fn(String) -> String) -> Vec<f64> {
    let _ = fs::remove_dir_all(place.path().join("run"));
    place.recipe(|recipe| change(recipe.replace(L4Q, method)));
    json(&plumbline(place.path(), &["train", "recipe.toml", "--json"]));
    let metrics = fs::read_to_string(place.path().join("run/metrics.jsonl")).unwrap();
    let lines =
        metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn dropout_changes_training_and_not_with_recomputation() {
    for method in [
        "name = \"lora\"\nrank = 2",
        "name = \"qlora\"\nbits = 4\ngroup_size = 16\nrank = 2",
        "name = \"qa_lora\"\nbits = 4\ngroup_size = 8\nrank = 2",
        "name = \"qat_lora\"\nbits = 4\ngroup_size = 16\nrank = 2",
    ] {
        let place = Place::new();
        let with = format!("{method}\ndropout = 0.5");
        let two = |recipe: String| recipe.replace("steps = 3", "steps = 3\naccumulation = 2");
        let blocks =
            |recipe: String| two(recipe).replace("seed = 9", "seed = 9\nrecompute = \"blocks\"");
        let drops = losses(&place, &with, two);
        assert_eq!(drops, losses(&place, &with, blocks), "{method}");
        assert_ne!(drops, losses(&place, method, two), "{method}");
    }
}

#[test]
fn dropout_is_refused_where_there_is_no_adapter_beside_the_weight() {
    let place = Place::new();
    let lr_qat = "name = \"lr_qat\"\nbits = 4\nrank = 2\nlora_scaling = 1.0\ndowncast = \"int\"";
    for (method, parts) in [
        (format!("{L4Q}\ndropout = 0.1"), ["method.dropout is 0.1", "inside the quantizer"]),
        (format!("{lr_qat}\ndropout = 0.1"), ["method.dropout is 0.1", "inside the quantizer"]),
        ("name = \"lora\"\nrank = 2\ndropout = 1.0".into(), ["method.dropout is 1", "below 1"]),
        ("name = \"peqa\"\nbits = 4\ndropout = 0.1".into(), ["recipe.toml", "dropout"]),
        (
            format!("{}\nlora_warmup_steps = 2", L4Q.replace("l4q", "qat_lora")),
            ["method.lora_warmup_steps is 2", "l4q"],
        ),
        (
            format!("{L4Q}\nlora_warmup_steps = 2\ntrain_scale = false"),
            ["method.train_scale", "method.lora_warmup_steps"],
        ),
    ] {
        place.recipe(|recipe| recipe.replace(L4Q, &method));
        place.train_refused(&parts);
    }
}

/// Values of an adapter by name.
fn adapter(run: &Path, step: u64) -> BTreeMap<String, Vec<f32>> {
    let path = run.join(format!("checkpoints/step-{step}/adapter.safetensors"));
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    file.iter().map(|(name, tensor)| (name.to_string(), values(tensor.data()))).collect()
}

#[test]
fn a_frozen_grid_is_not_trained_and_merges_to_the_trained_bits() {
    let lr_qat = "name = \"lr_qat\"\nbits = 4\ngroup_size = 16\nrank = 2\nlora_scaling = 4.0";
    for (method, merges) in [
        (L4Q.to_owned(), true),
        (format!("{lr_qat}\ndowncast = \"int\""), true),
        (format!("{lr_qat}\ndowncast = \"f32\"\ninner_scale = \"live\""), true),
        ("name = \"qat\"\nbits = 4\ngroup_size = 16".to_owned(), true),
        ("name = \"qat\"\nbits = 4\ngroup_size = 16\nquantizer = \"lsq\"".to_owned(), true),
        ("name = \"qat_lora\"\nbits = 4\ngroup_size = 16\nrank = 2".to_owned(), false),
    ] {
        let place = Place::new();
        let at = place.path();
        let losses = losses(&place, &format!("{method}\ntrain_scale = false"), |recipe| recipe);
        assert!(losses[2] != losses[0], "{method}: nothing moves");
        let trained = adapter(&at.join("run"), 3);
        assert!(!trained.is_empty(), "{method}");
        for name in trained.keys() {
            assert!(!name.ends_with(".scale") && !name.ends_with(".offset"), "{method}: {name}");
        }
        if merges {
            let merged = json(&plumbline(at, &["merge", "run", "--out", "merged", "--json"]));
            assert_eq!(merged["bitwise_equal"], true, "{method}");
        }
    }
}

/// Steps of a warm-up are those of LoRA, bit for bit; then the grid begins on the weight with its
/// update, and its first step is as long as a first step of AdamW is.
#[test]
fn a_warm_up_is_lora_and_then_the_grid_begins() {
    let place = Place::new();
    let at = place.path();
    let longer = |recipe: String| {
        recipe
            .replace("steps = 3", "steps = 4")
            .replace("[output]", "[checkpoints]\nevery = 1\nkeep = 9\n[output]")
            .replace("[output]", "[optimizer]\nlearning_rate = 1e-3\nmax_grad_norm = 0.0\n[output]")
            .replace("[output]", "[schedule]\nkind = \"constant\"\n[output]")
    };
    let lora = losses(&place, "name = \"lora\"\nrank = 2", longer);
    let plain = losses(&place, L4Q, longer);
    let warmed = losses(&place, &format!("{L4Q}\nlora_warmup_steps = 2"), longer);
    assert_eq!(warmed[..2], lora[..2]);
    assert_ne!(warmed[0], plain[0]);
    assert_ne!(warmed[2], lora[2]);
    let of = |step| adapter(&at.join("run"), step);
    let [first, second, third] = [of(1), of(2), of(3)];
    let name = "model.layers.0.mlp.up_proj.scale";
    assert_ne!(first[name], second[name], "the grid does not begin anew");
    let mut moved: Vec<f32> =
        second[name].iter().zip(&third[name]).map(|(a, b)| (a - b).abs()).collect();
    moved.sort_by(f32::total_cmp);
    let median = moved[moved.len() / 2];
    assert!((median - 1e-3).abs() < 2e-5, "the first step of a scale is {median}");
    let merge = |step: &str| {
        plumbline(at, &["merge", "run", "--out", step, "--checkpoint", step, "--json"])
    };
    refused(&merge("step-1"), &["lora_warmup_steps = 2", "step 1"]);
    for step in ["step-2", "step-4"] {
        assert_eq!(json(&merge(step))["bitwise_equal"], true, "{step}");
    }
}
