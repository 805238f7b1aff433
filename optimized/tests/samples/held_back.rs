//! Held-back samples are measured as the training ones are learnt.

use std::fs;
use std::sync::Arc;

use plumbline::cpu::Cpu;
use plumbline::eval::samples_perplexity;
use plumbline::finetune::{Start, method_model};
use plumbline::methods::L4q;
use plumbline::model::{Batch, Llama};
use plumbline::recipe::L4qSettings;
use plumbline::train::samples::{Encoded, Encoder, LossOn, WindowSettings};
use serde_json::Value;

use super::common::TEXT;
use super::common::settings::l4q;
use super::{CONTEXT, Place, chat, chats, encoder};

/// Sum of the losses of every record read alone, and the counted targets.
fn one_by_one(model: &Llama<Cpu, L4q<Cpu>>, encoder: &Encoder, records: &[Value]) -> (f64, usize) {
    let mut workspace = model.evaluation_workspace(CONTEXT).unwrap();
    let (mut sum, mut counted) = (0.0, 0);
    for record in records {
        let sample = match encoder.encode(record.to_string().as_bytes()).unwrap() {
            Encoded::Whole(sample) | Encoded::Cut(sample) => sample,
            Encoded::Dropped(_) => continue,
        };
        let (tokens, targets) = (&sample.tokens, &sample.targets);
        let batch = Batch { batch: 1, tokens, targets, documents: None };
        let loss = model.loss(&batch, &mut workspace).unwrap();
        sum += loss.sum;
        counted += loss.counted;
    }
    (sum, counted)
}

/// More windows than are evaluated together, one record cut and one dropped.
#[test]
fn held_back_samples_have_the_mean_of_the_losses_that_they_have_one_by_one() {
    let place = Place::new();
    let model = place.fresh();
    let mut records: Vec<_> = (0..6).flat_map(|_| chats()).collect();
    records[4] = chat("a", " ");
    records[6] = chat("a", &"chaos ".repeat(40));
    for (packing, loss) in
        [(true, LossOn::Response), (false, LossOn::Response), (true, LossOn::All)]
    {
        let open = |records: &[Value]| {
            let settings = WindowSettings { packing, max_dropped: 0.1, seed: 3 };
            place.opened(records, |encoder, windows| (encoder.loss, *windows) = (loss, settings))
        };
        let mut samples = open(&records).unwrap();
        assert!(samples.windows_per_epoch() > 2048 / CONTEXT, "all in one batch");
        let found = samples_perplexity(&model, &mut samples).unwrap();
        let mut encoder = encoder(&place.tokenizer, CONTEXT);
        encoder.loss = loss;
        let (sum, counted) = one_by_one(&model, &encoder, &records);
        assert_eq!(found.predicted_tokens, counted);
        assert_eq!(found.predicted_tokens as u64, samples.report().counted_tokens);
        assert_eq!(found.windows, samples.windows_per_epoch());
        // The same f32 losses, or a few roundings away where a kernel's tiles fall otherwise.
        let mean = sum / counted as f64;
        let bound = 4.0 * f64::from(f32::EPSILON) * mean;
        assert!((found.mean_nll - mean).abs() <= bound, "{} {mean}", found.mean_nll);
        assert_eq!(found.perplexity, found.mean_nll.exp());
        let again = samples_perplexity(&model, &mut samples).unwrap();
        assert_eq!(again, found, "the same bits");
        // In another order samples stand in other windows and batches.
        let reversed: Vec<_> = records.iter().rev().cloned().collect();
        let other = samples_perplexity(&model, &mut open(&reversed).unwrap()).unwrap();
        assert_eq!(other.predicted_tokens, counted);
        assert!((other.mean_nll - mean).abs() <= bound, "{} {mean}", other.mean_nll);
    }
}

#[test]
fn held_back_samples_are_measured_as_the_training_ones_are_learnt() {
    let place = Place::new();
    let at = place.root.path();
    let lines: Vec<String> = chats().iter().map(ToString::to_string).collect();
    let held_back: Vec<String> = chats()[..9].iter().map(ToString::to_string).collect();
    fs::write(at.join("held_back.jsonl"), held_back.join("\n")).unwrap();
    let more = "end_token = \";\"\nmax_dropped = 0.2\neval_samples = [\"held_back.jsonl\"]";
    let output = place.train(&lines.join("\n"), more);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("held_back.jsonl: 9 samples: "), "{stderr}");

    let encoder = encoder(&place.tokenizer, 48);
    let (sum, counted) = one_by_one(&untrained(&place), &encoder, &chats()[..9]);
    let read = |name: &str| fs::read_to_string(at.join("run").join(name)).unwrap();
    let metrics = read("metrics.jsonl");
    let lines = metrics.lines().map(|line| serde_json::from_str(line).unwrap());
    let measured: Vec<Value> =
        lines.filter(|line: &Value| line.get("perplexity").is_some()).collect();
    assert_eq!(measured.len(), 2, "before the first step and after the last");
    assert_eq!((&measured[0]["step"], &measured[1]["step"]), (&0.into(), &2.into()));
    assert_eq!(measured[0]["text"], "held_back.jsonl");
    assert_eq!(measured[0]["predicted_tokens"], counted);
    let (mean, found) = (sum / counted as f64, measured[0]["mean_nll"].as_f64().unwrap());
    assert!((found - mean).abs() <= 4.0 * f64::from(f32::EPSILON) * mean, "{found} {mean}");

    let data: Value = serde_json::from_str(&read("data.json")).unwrap();
    assert_eq!(data["samples"], 17);
    assert_eq!(data["eval_samples"]["held_back.jsonl"]["samples"], 9);
    assert_eq!(data["eval_samples"]["held_back.jsonl"]["counted_tokens"], counted);
    let state = read("checkpoints/step-2/state.json");
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["evaluations"]["best"]["mean_nll"], measured[1]["mean_nll"]);
    assert!(
        fs::read(at.join("run/events.out.tfevents.plumbline"))
            .unwrap()
            .windows(26)
            .any(|bytes| bytes == b"perplexity/held_back.jsonl")
    );
}

/// As `plumbline train` of this file begins.
fn untrained(place: &Place) -> Llama<Cpu, L4q<Cpu>> {
    let settings = L4qSettings { rank: 2, ..l4q(4) };
    method_model(Arc::new(Cpu), &place.folder, &settings, Start::Fresh(0)).unwrap()
}

#[test]
fn held_back_samples_that_cannot_be_measured_are_refused() {
    let place = Place::new();
    let good = format!("{0}\n{0}\n", chat("a", "seed"));
    let held_back = |text: &str, more: &str| {
        fs::write(place.root.path().join("held_back.jsonl"), text).unwrap();
        place.train(&good, &format!("eval_samples = [\"held_back.jsonl\"]\n{more}"))
    };
    place.refused(&held_back("{}", ""), &["held_back.jsonl: line 1: has no messages"]);
    let blank = format!("{}\n{}", chat("a", "seed"), chat("a", " "));
    let parts = ["of 2 samples 1 fit", "data.max_dropped", "held_back.jsonl:2"];
    place.refused(&held_back(&blank, ""), &parts);
    let none = chat("a", " ").to_string();
    place.refused(&held_back(&none, ""), &["none of 1 samples is left", "held_back.jsonl:1"]);
    let twice = held_back(&good, "eval = [\"elsewhere/held_back.jsonl\"]");
    place.refused(&twice, &["recipe.toml", "elsewhere/held_back.jsonl", "cannot read"]);
    fs::create_dir(place.root.path().join("elsewhere")).unwrap();
    fs::write(place.root.path().join("elsewhere/held_back.jsonl"), TEXT).unwrap();
    let twice = held_back(&good, "eval = [\"elsewhere/held_back.jsonl\"]");
    place.refused(&twice, &["data.eval_samples", "held_back.jsonl", "another file"]);
}
