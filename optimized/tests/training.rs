//! The trainer's promises: the same bits however the work is divided, and merged is trained.

mod common;

use std::sync::Arc;

use common::settings::{base, l4q, lr_qat, peqa, qa_lora, qat, qlora};
use plumbline::checkpoint::{ModelFolder, Precision, save_dense};
use plumbline::cpu::Cpu;
use plumbline::eval::next_tokens;
use plumbline::finetune::{MergedModel, Method, Start, first_difference, merge, method_model};
use plumbline::methods::{IntoCodes, L4q, LinearMethod};
use plumbline::model::{Batch, Decoder, Llama, Recompute};
use plumbline::recipe::{LoraSettings, QatLoraSettings};
use plumbline::train::{
    Observer, OnNonfinite, OptimizerSettings, Position, Schedule, StepRecord, TokenWindows,
    Trainer, TrainingSettings,
};
use plumbline_reference::spec::{Downcast, Pool, QatQuantizer};

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

/// Names and bits.
type Tensors = Vec<(String, Vec<u32>)>;

fn trained_bits<L: LinearMethod<Cpu>>(model: &mut Llama<Cpu, L>) -> Tensors {
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    model.trained_values().unwrap().into_iter().map(|t| (t.name, bits(t.values))).collect()
}

fn begun<M: Method>(folder: &ModelFolder, method: &M) -> Llama<Cpu, M::Layer<Cpu>> {
    method_model(Arc::new(Cpu), folder, method, Start::Fresh(3)).unwrap()
}

fn fresh(folder: &ModelFolder, bits: u32) -> Llama<Cpu, L4q<Cpu>> {
    begun(folder, &l4q(bits))
}

fn has_one_trajectory<M: Method + Sync>(method: &M) {
    let (_root, folder) = base();
    let text = tokens(&folder);
    let run = |threads, recompute| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut model = begun(&folder, method);
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
fn a_rerun_one_thread_and_recomputed_activations_have_the_same_bits() {
    has_one_trajectory(&l4q(3));
    has_one_trajectory(&lr_qat(3, Downcast::Fixed8, "frozen"));
    has_one_trajectory(&qa_lora(3, Pool::Sum));
    has_one_trajectory(&qat(3, QatQuantizer::LsqPlus));
    has_one_trajectory(&QatLoraSettings(l4q(3)));
    has_one_trajectory(&peqa(3));
    has_one_trajectory(&qlora(3));
}

/// Bits of losses and of trained tensors.
fn eight_steps<M: Method>(folder: &ModelFolder, method: &M, text: &[i32]) -> (Vec<u64>, Tensors) {
    let mut model = begun(folder, method);
    let losses = train(&mut model, text.to_vec(), (2, 1), Recompute::None);
    (losses.into_iter().map(f64::to_bits).collect(), trained_bits(&mut model))
}

fn frozen_bytes<M: Method>(folder: &ModelFolder, method: &M) -> usize {
    begun(folder, method).linears().iter().map(|(_, layer)| layer.cost().frozen_bytes).sum()
}

fn trains_alike<M: Method>(narrow: &ModelFolder, wide: &ModelFolder, method: &M, text: &[i32]) {
    assert!(eight_steps(narrow, method, text) == eight_steps(wide, method, text));
    assert_eq!(2 * frozen_bytes(narrow, method), frozen_bytes(wide, method));
}

#[test]
fn a_checkpoint_in_bf16_trains_as_the_floats_that_it_stands_for() {
    let (root, folder) = base();
    let text = tokens(&folder);
    let copy = |from: &ModelFolder, name: &str, precision| {
        let path = root.path().join(name);
        std::fs::create_dir(&path).unwrap();
        let model = from.load_dense(Arc::new(Cpu), false).unwrap();
        save_dense(&path, &model, None, precision).unwrap();
        ModelFolder::open(&path).unwrap()
    };
    let narrow = copy(&folder, "narrow", Precision::Bf16);
    let wide = copy(&narrow, "wide", Precision::F32);
    trains_alike(&narrow, &wide, &l4q(3), &text);
    trains_alike(&narrow, &wide, &QatLoraSettings(l4q(3)), &text);
    trains_alike(
        &narrow,
        &wide,
        &LoraSettings { rank: 3, lora_scaling: 2.0, dropout: 0.0, target: None },
        &text,
    );
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
            let batch = Batch { batch: count, tokens: &inputs, targets: &targets, documents: None };
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

/// By how much eight steps lower the loss.
fn fall<M: Method>(folder: &ModelFolder, method: &M) -> f64 {
    let losses = train(&mut begun(folder, method), tokens(folder), (4, 1), Recompute::None);
    losses[0] - losses[losses.len() - 1]
}

#[test]
fn training_lowers_the_loss_of_every_method() {
    let (_root, folder) = base();
    for bits in [2, 3, 4, 8] {
        let fell = fall(&folder, &l4q(bits));
        assert!(fell > 0.3, "L4Q at {bits} bits: the loss fell by {fell}");
    }
    for (name, fell) in [
        (
            "LoRA",
            fall(&folder, &LoraSettings { rank: 3, lora_scaling: 2.0, dropout: 0.0, target: None }),
        ),
        ("LR-QAT", fall(&folder, &lr_qat(4, Downcast::Fixed8, "frozen"))),
        ("LR-QAT live", fall(&folder, &lr_qat(4, Downcast::F32, "live"))),
        ("QA-LoRA", fall(&folder, &qa_lora(4, Pool::Sum))),
        ("QAT", fall(&folder, &qat(4, QatQuantizer::LsqPlus))),
        ("LSQ", fall(&folder, &qat(4, QatQuantizer::Lsq))),
        ("QAT-LoRA", fall(&folder, &QatLoraSettings(l4q(4)))),
        ("PEQA", fall(&folder, &peqa(4))),
        ("QLoRA", fall(&folder, &qlora(4))),
    ] {
        // A live inner scale, which moves every code at once, is the slowest at these rates.
        assert!(fell > 0.1, "{name}: the loss fell by {fell}");
    }
}

/// Trains, merges, and holds the merged model's logits against the trained one's.
fn merged_and_trained<M: Method>(method: &M) -> (MergedModel<Cpu, Codes<M>>, Vec<f32>, Vec<i32>)
where
    M::Layer<Cpu>: IntoCodes<Cpu>,
{
    let (_root, folder) = base();
    let text = tokens(&folder);
    let mut model = begun(&folder, method);
    let before = trained_bits(&mut model);
    train(&mut model, text.clone(), (2, 1), Recompute::None);
    assert!(before != trained_bits(&mut model), "nothing moved");
    let probe = text[..40].to_vec();
    let mut workspace = model.evaluation_workspace(probe.len()).unwrap();
    let trained = model.logits(1, &probe, &mut workspace).unwrap();
    (merge(model).unwrap(), trained, probe)
}

type Codes<M> = <<M as Method>::Layer<Cpu> as IntoCodes<Cpu>>::Tensors;

#[test]
fn the_merged_model_is_the_trained_model_bit_for_bit() {
    for bits in [2, 3, 4, 8] {
        let (MergedModel { model: merged, linears }, trained, probe) =
            merged_and_trained(&l4q(bits));
        assert_eq!(first_difference(&trained, &merged, &probe).unwrap(), None);
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
        assert!(first_difference(&trained, &broken, &probe).unwrap().is_some());
    }
}

#[test]
fn every_method_that_ends_in_codes_merges_bit_for_bit() {
    fn assert_merges<M: Method>(name: &str, method: &M)
    where
        M::Layer<Cpu>: IntoCodes<Cpu>,
    {
        let (merged, trained, probe) = merged_and_trained(method);
        assert_eq!(first_difference(&trained, &merged.model, &probe).unwrap(), None, "{name}");
    }
    let kinds = [Downcast::F32, Downcast::Bf16, Downcast::F16, Downcast::Fixed8, Downcast::Int];
    for kind in kinds {
        assert_merges(&format!("LR-QAT {kind:?}"), &lr_qat(4, kind, "frozen"));
    }
    assert_merges("LR-QAT live", &lr_qat(3, Downcast::F32, "live"));
    assert_merges("LSQ+", &qat(3, QatQuantizer::LsqPlus));
    assert_merges("LSQ", &qat(3, QatQuantizer::Lsq));
    assert_merges("PEQA", &peqa(4));
}

/// The merged zero points are the same function in other roundings.
#[test]
fn qa_lora_merges_to_the_same_function() {
    for pool in [Pool::Sum, Pool::Mean] {
        let (merged, trained, probe) = merged_and_trained(&qa_lora(4, pool));
        let mut workspace = merged.model.evaluation_workspace(probe.len()).unwrap();
        let logits = merged.model.logits(1, &probe, &mut workspace).unwrap();
        let largest = trained.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let apart = logits.iter().zip(&trained).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart <= 1e-5 * largest, "{pool:?}: {apart} of {largest}");
        let moved = merged.linears.values().flat_map(|linear| &linear.zero_point);
        assert!(moved.into_iter().any(|z| z.fract() != 0.0), "no zero point moved");
    }
}

/// Rounded anew, so another function: the nearer to the trained one, the finer the grid.
#[test]
fn qlora_merges_to_another_model() {
    let apart = [2, 4, 8].map(|bits| {
        let (merged, trained, probe) = merged_and_trained(&qlora(bits));
        let mut workspace = merged.model.evaluation_workspace(probe.len()).unwrap();
        let logits = merged.model.logits(1, &probe, &mut workspace).unwrap();
        logits.iter().zip(&trained).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    });
    assert!(apart[2] > 0.0 && apart.is_sorted_by(|a, b| *a > 2.0 * b), "{apart:?}");
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

/// Poisons a gradient after one step, so that the next one has no number to go by.
struct Poison {
    after: u64,
    skipped: Vec<(u64, String)>,
    bits: Vec<Vec<(String, Vec<u32>)>>,
}

impl<L: LinearMethod<Cpu>> Observer<Cpu, L> for Poison {
    fn after_step(
        &mut self,
        record: &StepRecord,
        model: &mut Llama<Cpu, L>,
    ) -> plumbline::error::Result<()> {
        self.skipped.extend(record.skipped.clone().map(|reason| (record.step, reason)));
        self.bits.push(trained_bits(model));
        if record.step >= self.after {
            let tensor = model.trainable().into_iter().nth(5).unwrap();
            plumbline::backend::Storage::write(&Cpu, &[f32::INFINITY], tensor.gradient)?;
        }
        Ok(())
    }
}

/// Runs with the last steps poisoned.
fn poisoned(
    on_nonfinite: OnNonfinite,
    (steps, after): (u64, u64),
) -> (plumbline::error::Result<()>, Poison, Position) {
    let (_root, folder) = base();
    let mut model = fresh(&folder, 4);
    let settings = TrainingSettings {
        steps,
        micro_batch: 2,
        accumulation: 1,
        seed: 5,
        recompute: Recompute::None,
        eval_every: 0,
    };
    let optimizer = OptimizerSettings { on_nonfinite, ..OptimizerSettings::default() };
    let data = TokenWindows::new(tokens(&folder), 24, 5).unwrap();
    let schedule = Schedule::default();
    let mut trainer = Trainer::new(&mut model, data, 24, settings, &optimizer, schedule).unwrap();
    let mut poison = Poison { after, skipped: vec![], bits: vec![] };
    let ended = trainer.run(&mut model, &mut poison);
    (ended, poison, trainer.position())
}

#[test]
fn a_step_without_a_gradient_stops_the_run_or_is_skipped_and_counted() {
    let (ended, poison, _) = poisoned(OnNonfinite::Stop, (4, 2));
    let message = ended.unwrap_err().to_string();
    assert!(message.contains("gradient of model.layers.0.self_attn.k_proj.lora_b"), "{message}");
    assert_eq!(poison.bits.len(), 2);

    let (ended, poison, position) = poisoned(OnNonfinite::Skip, (4, 3));
    ended.unwrap();
    assert_eq!(poison.skipped.len(), 1);
    let (step, reason) = &poison.skipped[0];
    assert!(*step == 4 && reason.contains("k_proj.lora_b"), "{step} {reason}");
    assert!(poison.bits[2] == poison.bits[3], "a skipped step moved something");
    assert!(poison.bits[1] != poison.bits[2], "nothing moves: the comparison is vacuous");
    assert_eq!((position.step, position.updates, position.skipped), (4, 3, 1));
    assert_eq!(position.next_sample, 8, "the samples of the step are not seen again");

    // A run that never gets a gradient again is not kept alive.
    let (ended, poison, position) = poisoned(OnNonfinite::Skip, (40, 1));
    assert!(ended.is_err());
    assert_eq!((poison.skipped.len(), position.skipped_in_a_row), (10, 10));
}

/// What a run says of which some tensors begin with these values.
fn refused(layer: &str, tensors: &[(&str, &[f32])]) -> String {
    let (_root, folder) = base();
    let mut model = fresh(&folder, 4);
    for (tensor, values) in tensors {
        let name = format!("{layer}.{tensor}");
        let bad = model.trainable().into_iter().find(|tensor| tensor.name == name).unwrap();
        plumbline::backend::Storage::write(&Cpu, values, bad.value).unwrap();
    }
    let settings = TrainingSettings {
        steps: 1,
        micro_batch: 2,
        accumulation: 1,
        seed: 5,
        recompute: Recompute::None,
        eval_every: 0,
    };
    let data = TokenWindows::new(tokens(&folder), 24, 5).unwrap();
    let (optimizer, schedule) = (OptimizerSettings::default(), Schedule::default());
    let mut trainer = Trainer::new(&mut model, data, 24, settings, &optimizer, schedule).unwrap();
    trainer.step(&mut model).unwrap_err().to_string()
}

#[test]
fn a_diverging_run_stops_and_names_the_layer() {
    let layer = "model.layers.1.mlp.up_proj";
    let message = refused(layer, &[("lora_b", &[f32::NAN])]);
    assert!(message.contains("model.layers.1.mlp.up_proj.lora_b"), "{message}");
    // The parameters are numbers, and their product is none: infinity less infinity.
    let mut lora_a = [0.0; 33];
    (lora_a[0], lora_a[32]) = (1e30, -1e30);
    let message = refused(layer, &[("lora_a", &lora_a), ("lora_b", &[1e30, 1e30])]);
    assert!(message.contains("model.layers.1.mlp.up_proj: "), "{message}");
    // The weight is a number too, and what it makes of the inputs is none.
    let message = refused(layer, &[("offset", &[f32::MAX])]);
    assert!(message.contains("output of model.layers.1: loss"), "{message}");
}

#[test]
fn a_parameter_that_is_no_number_is_named() {
    let (_root, folder) = base();
    let mut model = fresh(&folder, 4);
    let text = tokens(&folder);
    let targets = next_tokens(&text[..16], 1);
    let mut workspace = model.training_workspace(16, Recompute::None).unwrap();
    let batch = Batch { batch: 1, tokens: &text[..16], targets: &targets, documents: None };
    for tensor in model.trainable() {
        if tensor.name == "model.layers.1.mlp.up_proj.lora_b" {
            plumbline::backend::Storage::write(&Cpu, &[f32::NAN], tensor.value).unwrap();
        }
    }
    let error = model.loss_and_gradients(&batch, 1.0, &mut workspace).unwrap_err().to_string();
    assert!(error.contains("lora_b") && error.contains("NaN"), "{error}");
}
