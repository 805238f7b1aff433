//! The trainer's promises: the same bits however the work is divided, and merged is trained.

mod common;

use std::sync::Arc;

use plumbline::checkpoint::ModelFolder;
use plumbline::cpu::Cpu;
use plumbline::eval::next_tokens;
use plumbline::finetune::{MergedModel, Start, first_difference, l4q_model, lora_model, merge};
use plumbline::methods::{L4q, LinearMethod};
use plumbline::model::{Batch, Decoder, Llama, Recompute};
use plumbline::recipe::{L4qSettings, LoraSettings};
use plumbline::train::{
    Observer, OptimizerSettings, Schedule, StepRecord, TokenWindows, Trainer, TrainingSettings,
};
use plumbline_reference::spec::{Bits, GradScale};

fn base() -> (tempfile::TempDir, ModelFolder) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model");
    common::write_model(&path);
    let folder = ModelFolder::open(&path).unwrap();
    (root, folder)
}

fn l4q(bits: u32) -> L4qSettings {
    L4qSettings {
        bits: Bits::new(bits).unwrap(),
        group_size: Some(16),
        rank: 3,
        lora_scaling: 2.0,
        init: "l4q".into(),
        init_p: None,
        init_steps: None,
        grad_scale: GradScale::None,
    }
}

fn tokens(folder: &ModelFolder) -> Vec<i32> {
    folder.tokenizer().unwrap().encode(&common::TEXT.repeat(12)).unwrap()
}

#[derive(Default)]
struct Losses(Vec<f64>);

impl<L> Observer<Cpu, L> for Losses {
    fn after_step(
        &mut self,
        record: &StepRecord,
        _model: &mut Llama<Cpu, L>,
    ) -> plumbline::error::Result<()> {
        self.0.push(record.loss);
        Ok(())
    }
}

/// Trains a model for some steps and returns its losses.
fn train<L: LinearMethod<Cpu>>(
    model: &mut Llama<Cpu, L>,
    tokens: Vec<i32>,
    (micro_batch, accumulation): (usize, usize),
    recompute: Recompute,
) -> Vec<f64> {
    let context = 24;
    let settings =
        TrainingSettings { steps: 8, micro_batch, accumulation, seed: 5, recompute, eval_every: 0 };
    // Rates high enough that weights clip and scales move within eight steps.
    let optimizer = OptimizerSettings { learning_rate: 2e-2, ..OptimizerSettings::default() };
    let data = TokenWindows::new(tokens, context, 5).unwrap();
    let schedule = Schedule { warmup_steps: 2, ..Schedule::default() };
    let mut trainer = Trainer::new(model, data, context, settings, &optimizer, schedule).unwrap();
    let mut losses = Losses::default();
    trainer.run(model, &mut losses).unwrap();
    losses.0
}

fn trained_bits<L: LinearMethod<Cpu>>(model: &mut Llama<Cpu, L>) -> Vec<(String, Vec<u32>)> {
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    model.trained_values().unwrap().into_iter().map(|t| (t.name, bits(t.values))).collect()
}

fn fresh(folder: &ModelFolder, bits: u32) -> Llama<Cpu, L4q<Cpu>> {
    l4q_model(Arc::new(Cpu), folder, &l4q(bits), Start::Fresh(3)).unwrap()
}

#[test]
fn a_rerun_one_thread_and_recomputed_activations_have_the_same_bits() {
    let (_root, folder) = base();
    let text = tokens(&folder);
    let run = |threads, recompute| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut model = fresh(&folder, 3);
            let losses = train(&mut model, text.clone(), (2, 2), recompute);
            (losses.into_iter().map(f64::to_bits).collect::<Vec<_>>(), trained_bits(&mut model))
        })
    };
    let first = run(2, Recompute::None);
    assert!(first == run(2, Recompute::None), "a rerun differs");
    assert!(first == run(1, Recompute::None), "one thread differs");
    assert!(first == run(3, Recompute::None), "three threads differ");
    assert!(first == run(2, Recompute::Blocks), "recomputing activations differs");
}

#[test]
fn micro_batches_add_up_to_one_big_batch() {
    let (_root, folder) = base();
    let text = tokens(&folder);
    let gradients = |parts: usize| -> Vec<(String, Vec<f32>)> {
        let mut model = fresh(&folder, 4);
        let mut data = TokenWindows::new(text.clone(), 16, 1).unwrap();
        let mut workspace = model.training_workspace(64, Recompute::None).unwrap();
        for part in 0..parts {
            let count = 4 / parts;
            let (inputs, targets) = data.batch((part * count) as u64, count);
            let batch = Batch { batch: count, tokens: &inputs, targets: &targets };
            model.loss_and_gradients(&batch, 1.0 / 64.0, &mut workspace).unwrap();
        }
        model.trainable().into_iter().map(|t| (t.name, t.gradient.clone())).collect()
    };
    let (one, many) = (gradients(1), gradients(4));
    for ((name, one), (_, many)) in one.iter().zip(&many) {
        // Both are sums of the same f32 terms in different orders: the difference is rounding of
        // the order of sqrt(terms) units of the largest gradient.
        let largest = one.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let worst = one.iter().zip(many).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 2e-5 * largest, "{name}: {worst} of {largest}");
    }
    let nonzero = |suffix: &str| {
        one.iter().any(|(name, v)| name.ends_with(suffix) && v.iter().any(|v| *v != 0.0))
    };
    assert!(nonzero("lora_b") && nonzero("scale"), "the comparison is vacuous");
}

#[test]
fn training_lowers_the_loss_of_every_method() {
    let (_root, folder) = base();
    let text = tokens(&folder);
    let drop = |losses: Vec<f64>| losses[0] - losses[losses.len() - 1];
    for bits in [2, 3, 4, 8] {
        let mut model = fresh(&folder, bits);
        let fell = drop(train(&mut model, text.clone(), (4, 1), Recompute::None));
        assert!(fell > 0.3, "L4Q at {bits} bits: the loss fell by {fell}");
    }
    let settings = LoraSettings { rank: 3, lora_scaling: 2.0 };
    let mut model = lora_model(Arc::new(Cpu), &folder, &settings, 3).unwrap();
    let fell = drop(train(&mut model, text, (4, 1), Recompute::None));
    assert!(fell > 0.3, "LoRA: the loss fell by {fell}");
}

#[test]
fn the_merged_model_is_the_trained_model_bit_for_bit() {
    let (_root, folder) = base();
    let text = tokens(&folder);
    for bits in [2, 3, 4, 8] {
        let mut model = fresh(&folder, bits);
        train(&mut model, text.clone(), (2, 1), Recompute::None);
        let probe = &text[..40];
        let mut workspace = model.evaluation_workspace(probe.len()).unwrap();
        let trained = model.logits(1, probe, &mut workspace).unwrap();
        let MergedModel { model: merged, linears } = merge(model).unwrap();
        assert_eq!(first_difference(&trained, &merged, probe).unwrap(), None);
        let moved = linears.values().any(|linear| linear.offset.iter().any(|o| *o != 0.0));
        assert!(moved, "no offset moved at {bits} bits: nothing was clipped, a vacuous run");
        // And the comparison sees a single changed code.
        let mut broken = linears.clone();
        let linear = broken.values_mut().next().unwrap();
        let spec = linear.spec;
        let code = &mut linear.codes[0];
        *code = if i32::from(*code) == spec.qmin() { *code + 1 } else { *code - 1 };
        let broken = merged
            .map_linears(|linear, _| plumbline::methods::Merged::new(&Cpu, &broken[&linear.name]))
            .unwrap();
        assert!(first_difference(&trained, &broken, probe).unwrap().is_some());
    }
}

#[test]
fn the_cached_decoder_agrees_with_the_whole_sequence() {
    let (_root, folder) = base();
    let model = folder.load_dense(Arc::new(Cpu), false).unwrap();
    let text = &tokens(&folder)[..50];
    let mut workspace = model.evaluation_workspace(text.len()).unwrap();
    let whole = model.logits(1, text, &mut workspace).unwrap();
    let vocab = model.config().vocab_size;
    let mut decoder = Decoder::new(&model, text.len()).unwrap();
    let mut position = 0;
    for piece in [7, 1, 1, 20, 1, 13, 1, 6] {
        let logits = decoder.append(&text[position..position + piece]).unwrap();
        position += piece;
        let expected = &whole[(position - 1) * vocab..][..vocab];
        for (a, b) in logits.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-5, "position {position}: {a} against {b}");
        }
    }
    assert!(decoder.append(&[0]).is_err(), "the sequence outgrew its room");
    decoder.clear();
    assert!(decoder.append(&[0]).is_ok());
}

#[test]
fn a_diverging_run_stops_and_names_the_tensor() {
    let (_root, folder) = base();
    let mut model = fresh(&folder, 4);
    let text = tokens(&folder);
    let targets = next_tokens(&text[..16], 1);
    let mut workspace = model.training_workspace(16, Recompute::None).unwrap();
    let batch = Batch { batch: 1, tokens: &text[..16], targets: &targets };
    for tensor in model.trainable() {
        if tensor.name == "model.layers.1.mlp.up_proj.lora_b" {
            plumbline::backend::Storage::write(&Cpu, &[f32::NAN], tensor.value).unwrap();
        }
    }
    let error = model.loss_and_gradients(&batch, 1.0, &mut workspace).unwrap_err().to_string();
    assert!(error.contains("lora_b") && error.contains("NaN"), "{error}");
}
