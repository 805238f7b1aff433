//! Samples of answers: what a batch holds, that nothing is left out in silence, and that a step
//! does not depend on how its samples are divided.

#[path = "../common/mod.rs"]
mod common;
mod held_back;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use assert_cmd::Command;
use common::settings::{base, l4q};
use plumbline::checkpoint::{ModelFolder, Tokenizer};
use plumbline::cpu::Cpu;
use plumbline::finetune::{Start, method_model};
use plumbline::methods::L4q;
use plumbline::model::{Batch, IGNORE, Llama, Recompute};
use plumbline::train::samples::{
    ChatTemplate, Encoder, LossOn, SampleFormat, Samples, TooLong, WindowSettings,
};
use plumbline::train::{
    Observer, OptimizerSettings, Schedule, StepRecord, Trainer, TrainingData, TrainingSettings,
};

const CONTEXT: usize = 64;
const END: &str = ";";

/// A chat of one question.
fn chat(question: &str, answer: &str) -> serde_json::Value {
    let turn = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
    serde_json::json!({ "messages": [turn("user", question), turn("assistant", answer)] })
}

/// Words of the tokenizer's text, so that a chat is a few tokens; answers of unequal lengths.
fn chats() -> Vec<serde_json::Value> {
    let words = ["chaos", "heavenly Muse", "the secret top", "seed", "rose out of"];
    (0..17)
        .map(|n| {
            let answer = format!("{}{}", words[n % 5], " the earth".repeat(n % 3));
            chat(&"ab"[..n % 3], &answer)
        })
        .collect()
}

fn write_lines(path: &Path, records: &[serde_json::Value]) -> PathBuf {
    let lines: Vec<String> = records.iter().map(ToString::to_string).collect();
    fs::write(path, lines.join("\n")).unwrap();
    path.to_path_buf()
}

fn encoder(tokenizer: &Tokenizer, context: usize) -> Encoder {
    Encoder {
        format: SampleFormat::Messages { template: ChatTemplate::Plain, end: END.into() },
        loss: LossOn::Response,
        too_long: TooLong::Cut,
        context,
        vocab_size: 280,
        tokenizer: tokenizer.clone(),
    }
}

fn windows(packing: bool) -> WindowSettings {
    WindowSettings { packing, max_dropped: 0.0, seed: 3 }
}

struct Place {
    root: tempfile::TempDir,
    folder: ModelFolder,
    tokenizer: Tokenizer,
}

impl Place {
    fn new() -> Self {
        let (root, folder) = base();
        let tokenizer = folder.tokenizer().unwrap();
        Self { root, folder, tokenizer }
    }

    fn file(&self, records: &[serde_json::Value]) -> PathBuf {
        write_lines(&self.root.path().join("chats.jsonl"), records)
    }

    fn samples(&self, settings: WindowSettings) -> Samples {
        let file = self.file(&chats());
        Samples::open(&[file], encoder(&self.tokenizer, CONTEXT), settings).unwrap()
    }

    /// Opens with another window and threshold.
    fn opened(
        &self,
        records: &[serde_json::Value],
        change: impl FnOnce(&mut Encoder, &mut WindowSettings),
    ) -> plumbline::error::Result<Samples> {
        let (mut encoder, mut settings) = (encoder(&self.tokenizer, CONTEXT), windows(false));
        change(&mut encoder, &mut settings);
        Samples::open(&[self.file(records)], encoder, settings)
    }

    fn fresh(&self) -> Llama<Cpu, L4q<Cpu>> {
        method_model(Arc::new(Cpu), &self.folder, &l4q(4), Start::Fresh(3)).unwrap()
    }
}

#[test]
fn the_answer_and_its_end_are_learnt_and_nothing_else() {
    let place = Place::new();
    let mut samples = place.samples(windows(false));
    let mut answers = Vec::new();
    for number in 0..samples.windows_per_epoch() {
        let sequences = samples.batch(number as u64, 1).unwrap();
        let batch = sequences.batch();
        let counted: Vec<i32> = batch.targets.iter().copied().filter(|t| *t != IGNORE).collect();
        answers.push(place.tokenizer.decode(&counted).unwrap());
        // A target is the token after its input.
        let followed = batch.targets.iter().zip(&batch.tokens[1..]);
        assert!(followed.clone().all(|(target, next)| *target == IGNORE || target == next));
        let text = place.tokenizer.decode(batch.tokens).unwrap();
        assert!(text.starts_with("### User:\n") && text.contains("### Assistant:\n"), "{text}");
    }
    let answer =
        |chat: &serde_json::Value| chat["messages"][1]["content"].as_str().unwrap().to_owned();
    let mut expected: Vec<String> = chats().iter().map(|chat| answer(chat) + END).collect();
    answers.sort();
    expected.sort();
    assert_eq!(answers, expected);
    let counted = samples.report().counted_tokens;
    let everything = place.opened(&chats(), |encoder, _| encoder.loss = LossOn::All).unwrap();
    assert!(counted < everything.report().counted_tokens);
    // The first token of a text is predicted from nothing.
    assert_eq!(everything.report().counted_tokens, everything.report().tokens);
}

#[test]
fn a_batch_is_a_function_of_its_number() {
    let place = Place::new();
    for packing in [false, true] {
        let mut samples = place.samples(windows(packing));
        let per_epoch = samples.windows_per_epoch() as u64;
        let mut epoch = |number: u64| -> Vec<Vec<i32>> {
            let of = |window| samples.batch(window, 1).unwrap().batch().tokens.to_vec();
            (number * per_epoch..(number + 1) * per_epoch).map(of).collect()
        };
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second, "an epoch has its own order");
        let sorted = |mut windows: Vec<Vec<i32>>| {
            windows.sort();
            windows
        };
        assert_eq!(sorted(first), sorted(second.clone()), "and the same windows");
        let mut resumed = place.samples(windows(packing));
        let fourth = resumed.batch(per_epoch + 3, 1).unwrap();
        assert_eq!(fourth.batch().tokens, second[3], "without those before it");
    }
}

#[test]
fn lines_and_an_array_hold_the_same_samples() {
    let place = Place::new();
    let samples = |file: PathBuf| {
        let encoder = encoder(&place.tokenizer, CONTEXT);
        Samples::open(&[file], encoder, windows(true)).unwrap()
    };
    let lines = samples(place.file(&chats()));
    let array = place.root.path().join("chats.json");
    fs::write(&array, serde_json::to_string_pretty(&chats()).unwrap()).unwrap();
    let mut array = samples(array);
    assert_eq!(lines.fingerprint(), array.fingerprint());
    assert_eq!(lines.report(), array.report());
    assert!(array.batch(0, 2).is_ok());
    let other = Samples::open(
        &[place.file(&chats()[1..])],
        encoder(&place.tokenizer, CONTEXT),
        windows(true),
    );
    assert_ne!(lines.fingerprint(), other.unwrap().fingerprint());
    assert_ne!(lines.fingerprint(), place.samples(windows(false)).fingerprint());
}

#[test]
fn what_is_cut_or_dropped_is_counted_and_too_much_of_it_is_refused() {
    let place = Place::new();
    let mut records = chats();
    records[4] = chat("a", " ");
    records[6] = chat("a", &"chaos ".repeat(40));
    records[9] = chat(&"chaos ".repeat(60), "seed");
    let found = |too_long, max_dropped| {
        place.opened(&records, |encoder, settings| {
            (encoder.too_long, settings.max_dropped) = (too_long, max_dropped);
        })
    };
    let cut = found(TooLong::Cut, 0.2).unwrap();
    let report = cut.report();
    assert_eq!((report.samples, report.cut, report.without_response), (17, 1, 1));
    assert_eq!((report.response_beyond_window, report.too_long), (1, 0));
    assert_eq!(cut.windows_per_epoch(), 15);
    let dropped = found(TooLong::Drop, 0.2).unwrap();
    assert_eq!((dropped.report().cut, dropped.report().too_long), (0, 2));
    assert_eq!(dropped.windows_per_epoch(), 14);
    let refused = found(TooLong::Cut, 0.1).err().unwrap().to_string();
    for part in ["of 17 samples 14 fit", "1 cut, 1 dropped without", "17.6 %", "10.0 %", "jsonl:5"]
    {
        assert!(refused.contains(part), "no {part:?} in: {refused}");
    }
    let nothing_left = place.opened(&[chat("a", "")], |_, settings| settings.max_dropped = 1.0);
    let nothing_left = nothing_left.err().unwrap().to_string();
    assert!(nothing_left.contains("none of 1 samples is left"), "{nothing_left}");
}

#[test]
fn a_file_that_changes_under_a_run_is_noticed() {
    let place = Place::new();
    let mut samples = place.samples(windows(false));
    let mut changed = chats();
    changed.iter_mut().for_each(|record| *record = chat("", "chaos"));
    place.file(&changed);
    let error = samples.batch(0, 17).unwrap_err().to_string();
    assert!(error.contains("chats.jsonl"), "{error}");
}

/// Sum of the losses of an epoch, and the gradient of that sum.
fn epoch(place: &Place, packing: bool) -> (f64, Vec<Vec<f32>>) {
    let mut model = place.fresh();
    let mut samples = place.samples(windows(packing));
    let mut workspace = model.training_workspace(CONTEXT, Recompute::None).unwrap();
    let mut sum = 0.0;
    for number in 0..samples.windows_per_epoch() as u64 {
        let sequences = samples.batch(number, 1).unwrap();
        sum += model.loss_and_gradients(&sequences.batch(), 1.0, &mut workspace).unwrap().sum;
    }
    (sum, model.trainable().into_iter().map(|trained| trained.gradient.clone()).collect())
}

#[test]
fn packed_samples_have_the_losses_and_gradients_that_they_have_alone() {
    let place = Place::new();
    let packed = place.samples(windows(true));
    let alone = place.samples(windows(false));
    let (few, many) = (packed.windows_per_epoch(), alone.windows_per_epoch());
    assert!(few < many, "{few} windows of {many} samples: nothing was packed");
    let ((packed_sum, packed), (sum, alone)) = (epoch(&place, true), epoch(&place, false));
    // The same f32 losses, or a few roundings away where a kernel's tiles fall otherwise.
    assert!((packed_sum - sum).abs() <= 4.0 * f64::from(f32::EPSILON) * sum, "{packed_sum} {sum}");
    for (packed, alone) in packed.iter().zip(&alone) {
        // Sums over the same tokens in another order: at most a rounding for each of them.
        let norm =
            |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let apart: Vec<f32> = packed.iter().zip(alone).map(|(a, b)| a - b).collect();
        let tokens = (many * CONTEXT) as f64;
        assert!(norm(&apart) <= tokens * f64::from(f32::EPSILON) * norm(alone));
    }
}

#[test]
fn a_packed_window_without_its_documents_would_be_another_loss() {
    let place = Place::new();
    let model = place.fresh();
    let mut workspace = model.evaluation_workspace(CONTEXT).unwrap();
    let mut samples = place.samples(windows(true));
    // Padding is a document too, but nothing is learnt of it.
    let learns_of_a_second = |batch: Batch<'_>| {
        let Some(documents) = batch.documents else { return false };
        documents.iter().zip(batch.targets).any(|(begin, target)| *begin > 0 && *target != IGNORE)
    };
    let shared = (0..samples.windows_per_epoch() as u64)
        .map(|number| samples.batch(number, 1).unwrap())
        .find(|sequences| learns_of_a_second(sequences.batch()))
        .expect("a window holds two samples");
    let mut loss = |batch: &Batch<'_>| model.loss(batch, &mut workspace).unwrap().sum;
    let apart = loss(&shared.batch());
    let joined = loss(&Batch { documents: None, ..shared.batch() });
    assert!((apart - joined).abs() > 1e-4 * apart, "{apart} and {joined}");
}

/// Loss and gradient norm of the first step.
#[derive(Default)]
struct First(Option<(f64, f64)>);

impl<L> Observer<Cpu, L> for First {
    fn after_step(
        &mut self,
        record: &StepRecord,
        _model: &mut Llama<Cpu, L>,
    ) -> plumbline::error::Result<()> {
        self.0.get_or_insert((record.loss, record.grad_norm));
        Ok(())
    }
}

/// Samples have unequal numbers of counted targets, so a mean of means would be another number.
#[test]
fn a_step_is_normalised_by_all_its_counted_targets_however_they_are_divided() {
    let place = Place::new();
    let step = |micro_batch: usize, accumulation: usize| {
        let mut model = place.fresh();
        let data = TrainingData::Samples(Box::new(place.samples(windows(false))));
        let settings = TrainingSettings {
            steps: 1,
            micro_batch,
            accumulation,
            seed: 5,
            recompute: Recompute::None,
            eval_every: 0,
        };
        let (optimizer, schedule) = (OptimizerSettings::default(), Schedule::default());
        let mut trainer =
            Trainer::new(&mut model, data, CONTEXT, settings, &optimizer, schedule).unwrap();
        let mut first = First::default();
        trainer.run(&mut model, &mut first).unwrap();
        first.0.unwrap()
    };
    let (loss, norm) = step(8, 1);
    for (micro_batch, accumulation) in [(4, 2), (2, 4), (1, 8)] {
        let (other_loss, other_norm) = step(micro_batch, accumulation);
        // A token's loss is the same f32 in any batch; the sum of them is f64.
        assert!((loss - other_loss).abs() <= 1e-12 * loss, "{loss} and {other_loss}");
        // A gradient is a sum over at most 8 * 64 tokens in another order: at most that many
        // roundings of its terms, of which the norm sees the root of their squares.
        let bound = (8 * CONTEXT) as f64 * f64::from(f32::EPSILON) * norm;
        assert!((norm - other_norm).abs() <= bound, "{norm} and {other_norm}");
    }
}

// --- The program ---------------------------------------------------------------------------------

impl Place {
    /// `plumbline train` on this file of chats.
    fn train(&self, chats: &str, more: &str) -> Output {
        let at = self.root.path();
        fs::write(at.join("chats.jsonl"), chats).unwrap();
        let recipe = format!(
            "model.path = \"model\"\noutput.dir = \"run\"\n\
             method = {{ name = \"l4q\", bits = 4, group_size = 16, rank = 2 }}\n\
             training = {{ steps = 2, micro_batch = 2 }}\n\
             [data]\ntrain = [\"chats.jsonl\"]\ncontext = 48\nformat = \"messages\"\n{more}\n"
        );
        fs::write(at.join("recipe.toml"), recipe).unwrap();
        let arguments = ["train", "recipe.toml", "--json"];
        Command::cargo_bin("plumbline").unwrap().current_dir(at).args(arguments).output().unwrap()
    }

    /// Exit code 2, one message with all of `parts`, and no run folder.
    fn refused(&self, output: &Output, parts: &[&str]) {
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        let errors = message.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "{message}");
        for part in parts {
            assert!(message.contains(part), "no {part:?} in: {message}");
        }
        assert!(!self.root.path().join("run").exists(), "something was written");
    }
}

#[test]
fn a_run_says_what_it_found() {
    let place = Place::new();
    let mut lines: Vec<String> = (0..9).map(|_| chat("a", "seed").to_string()).collect();
    lines.push(chat("a", " ").to_string());
    let output = place.train(&lines.join("\n"), "end_token = \";\"\nmax_dropped = 0.1");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("10 samples: 0 cut, 1 dropped without an answer"), "{stderr}");
    let found = fs::read(place.root.path().join("run/data.json")).unwrap();
    let found: serde_json::Value = serde_json::from_slice(&found).unwrap();
    assert_eq!((&found["samples"], &found["without_response"]), (&10.into(), &1.into()));
}

#[test]
fn bad_samples_are_refused_with_file_and_line() {
    let place = Place::new();
    let good = format!("{0}\n\n{0}\n", chat("a", "seed"));
    for (line, parts) in [
        ("{\"messages\": [}", &["chats.jsonl: line 4: not JSON"][..]),
        ("{\"text\": 1}", &["chats.jsonl: line 4: has no messages"]),
        (
            "{\"messages\": [{\"role\": \"bot\", \"content\": \"\"}]}",
            &["chats.jsonl: line 4: messages[0]: role is \"bot\""],
        ),
        ("{\"messages\": []}", &["of 3 samples 2 fit", "33.3 %", "5.0 %", "chats.jsonl:4"]),
    ] {
        place.refused(&place.train(&format!("{good}{line}\n"), ""), parts);
    }
    let chatml = place.train(&good, "template = \"chatml\"");
    place.refused(&chatml, &["recipe.toml", "data.template", "<|im_start|>", "not one token"]);
    let broken = place.train("[{}", "");
    place.refused(&broken, &["chats.jsonl: line 1: expected a comma or the end of the array"]);
    place.refused(&place.train(" \n", ""), &["chats.jsonl: holds no sample"]);
    let both = place.train(&good, "max_dropped = -0.5");
    place.refused(&both, &["recipe.toml", "data.max_dropped is -0.5, expected 0 to 1"]);
}
