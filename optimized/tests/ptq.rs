//! Post-training quantization of the built-in model: what it costs, and that nothing but the model,
//! the settings and the calibration decides it.

mod common;

use std::sync::Arc;

use common::program::{Place, json, plumbline, refused};
use plumbline::checkpoint::ModelFolder;
use plumbline::cpu::Cpu;
use plumbline::embedded;
use plumbline::eval::perplexity;
use plumbline::finetune::MergedModel;
use plumbline::methods::AffineTensors;
use plumbline::ptq::{Calibration, GptqOptions, PtqSettings, quantize_model};
use plumbline_reference::spec::{Bits, RtnSpec};

const CONTEXT: usize = 256;

fn tokens(folder: &ModelFolder, name: &str) -> Vec<i32> {
    folder.tokenizer().unwrap().encode(embedded::text(name).unwrap()).unwrap()
}

fn rtn(bits: u32) -> PtqSettings {
    let (bits, group_size) = (Bits::new(bits).unwrap(), Some(64));
    PtqSettings::Rtn { bits, group_size, rtn: RtnSpec::default() }
}

fn gptq(bits: u32, act_order: bool) -> PtqSettings {
    let (bits, group_size) = (Bits::new(bits).unwrap(), Some(64));
    let options = GptqOptions { act_order, ..GptqOptions::default() };
    PtqSettings::Gptq { bits, group_size, options }
}

fn calibration(folder: &ModelFolder, windows: usize, seed: u64) -> Calibration {
    Calibration::of_text(tokens(folder, "milton_train"), windows, CONTEXT, seed).unwrap()
}

fn quantize(
    folder: &ModelFolder,
    settings: &PtqSettings,
    calibration: &Calibration,
) -> MergedModel<Cpu, AffineTensors> {
    quantize_model(Arc::new(Cpu), folder, settings, calibration).unwrap()
}

#[test]
fn gptq_loses_less_than_round_to_nearest() {
    let folder = embedded::model().unwrap();
    let calibration = calibration(&folder, 12, 3);
    let mut held_back = tokens(&folder, "milton_eval");
    held_back.truncate(2048);
    let measure = |settings: &PtqSettings| {
        let quantized = quantize(&folder, settings, &calibration);
        assert_eq!(quantized.linears.len(), 7 * folder.config().num_hidden_layers);
        perplexity(&quantized.model, &held_back, CONTEXT, |_| {}).unwrap().perplexity
    };
    let dense = folder.load_dense(Arc::new(Cpu), false).unwrap();
    let dense = perplexity(&dense, &held_back, CONTEXT, |_| {}).unwrap().perplexity;
    for bits in [3, 2] {
        let (nearest, in_order) = (measure(&rtn(bits)), measure(&gptq(bits, false)));
        let by_importance = measure(&gptq(bits, true));
        assert!(dense < in_order && in_order < nearest, "{dense} {in_order} {nearest}");
        assert!(dense < by_importance && by_importance < nearest, "{by_importance} {nearest}");
    }
}

#[test]
fn the_codes_depend_on_the_calibration_and_not_on_threads() {
    let folder = embedded::model().unwrap();
    let (settings, few) = (gptq(3, false), calibration(&folder, 2, 3));
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| quantize(&folder, &settings, &few)).linears
    };
    let one = on(1);
    assert_eq!(one, on(2));
    assert_eq!(few, calibration(&folder, 2, 3));
    let other = quantize(&folder, &settings, &calibration(&folder, 2, 4)).linears;
    assert_ne!(one, other);
    // Round-to-nearest has no use for it.
    let nearest = |calibration| quantize(&folder, &rtn(3), calibration).linears;
    assert_eq!(nearest(&Calibration::none()), nearest(&few));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let folder = embedded::model().unwrap();
    let run = |settings: PtqSettings| {
        let made = quantize_model(Arc::new(Cpu), &folder, &settings, &Calibration::none());
        made.map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(run(gptq(4, false)), "gptq: the calibration has no window");
    let PtqSettings::Gptq { bits, options, .. } = gptq(4, false) else { unreachable!() };
    let settings = PtqSettings::Gptq { bits, group_size: Some(7), options };
    assert!(run(settings).contains("group_size 7 does not divide the inputs of model.layers.0"));
    let options = GptqOptions { damping: -1.0, ..options };
    let settings = PtqSettings::Gptq { bits, group_size: Some(64), options };
    assert!(run(settings).contains("damping is -1"));
    let short = Calibration::of_text(vec![1, 2, 3], 1, 8, 0).unwrap_err().to_string();
    assert!(short.contains("has 3 tokens, one window needs 9"), "{short}");
}

/// A grid of the small model.
const GRID: [&str; 5] = ["quantize", "model", "--bits", "3", "--group-size"];

#[test]
fn the_command_writes_a_model_that_is_measured_and_continued() {
    let place = Place::new();
    let at = place.path();
    let calibration = ["--calibration", "text.txt", "--windows", "4", "--context", "24"];
    let quantize = |method: &str, out: &str, more: &[&str]| {
        let asked = ["16", "--method", method, "--out", out, "--json"];
        plumbline(at, &[&GRID[..], &asked, more].concat())
    };
    let nearest = json(&quantize("rtn", "nearest", &[]));
    assert_eq!((&nearest["method"], &nearest["calibration_windows"]), (&"rtn".into(), &0.into()));
    let fitted = json(&quantize("gptq", "fitted", &[&calibration[..], &["--act-order"]].concat()));
    assert_eq!(fitted["calibration_tokens"], 4 * 24);
    for out in ["nearest", "fitted"] {
        let inspected = json(&plumbline(at, &["inspect", out, "--json"]));
        assert_eq!(inspected["quantization"]["zero_point"], true);
        assert_eq!(inspected["quantization"]["bits"], 3);
        let eval = ["eval", "perplexity", "--model", out, "--text", "text.txt", "--json"];
        assert!(json(&plumbline(at, &eval))["perplexity"].as_f64().unwrap() > 1.0);
        let write = ["generate", "--model", out, "--prompt", "Sing", "--tokens", "3", "--json"];
        assert_eq!(json(&plumbline(at, &write))["new_ids"].as_array().unwrap().len(), 3);
    }
    let weights = |out: &str| std::fs::read(at.join(out).join("model.safetensors")).unwrap();
    assert_ne!(weights("nearest"), weights("fitted"));
    json(&quantize("gptq", "again", &[&calibration[..], &["--act-order"]].concat()));
    assert_eq!(weights("fitted"), weights("again"));
    refused(&quantize("rtn", "nearest", &[]), &["nearest", "already exists"]);
    let twice = ["quantize", "nearest", "--method", "rtn", "--bits", "3", "--out", "twice"];
    refused(&plumbline(at, &twice), &["nearest", "merged model"]);
}

#[test]
fn the_command_refuses_what_it_cannot_use_and_writes_nothing() {
    let place = Place::new();
    for (arguments, parts) in [
        (&["--method", "gptq"][..], &["--method gptq needs --calibration"][..]),
        (&["--method", "rtn", "--windows", "2"], &["--windows is for --method gptq"]),
        (&["--method", "rtn", "--act-order"], &["--act-order is for --method gptq"]),
        (
            &["--method", "gptq", "--calibration", "text.txt", "--context", "65"],
            &["--context is 65, expected 1 to 64"],
        ),
        (&["--method", "gptq", "--calibration", "text.txt", "--windows", "0"], &["--windows is 0"]),
        (&["--method", "gptq", "--calibration", "none.txt"], &["none.txt", "cannot read"]),
        (
            &["--method", "gptq", "--calibration", "text.txt", "--damping=-1"],
            &["damping is -1, expected at least 0"],
        ),
    ] {
        let asked = [&GRID[..], &["16", "--out", "out"], arguments].concat();
        refused(&plumbline(place.path(), &asked), parts);
    }
    let asked = [&GRID[..], &["7", "--out", "out", "--method", "rtn"]].concat();
    refused(&plumbline(place.path(), &asked), &["group_size 7 does not divide", "layers.0"]);
    let asked = ["quantize", "model", "--bits", "9", "--out", "out", "--method", "rtn"];
    refused(&plumbline(place.path(), &asked), &["--bits", "bits is 9, expected 2 to 8"]);
    assert!(!place.path().join("out").exists());
}
