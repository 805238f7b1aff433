//! Training and merging with bf16 products.

use std::sync::Arc;

use plumbline::backend::Backend;
use plumbline::checkpoint::ModelFolder;
use plumbline::cuda::{Compute, Cuda, Host, Interpreter};
use plumbline::finetune::{Method, Start, first_difference, merge, method_model};
use plumbline::methods::{IntoCodes, LinearMethod};
use plumbline::model::{Llama, Recompute};
use plumbline::train::{
    Observer, OptimizerSettings, Schedule, StepRecord, TokenWindows, Trainer, TrainingSettings,
};
use plumbline_reference::spec::Downcast;

use super::common;
use super::common::settings::{base, l4q, lr_qat, peqa};

fn backend(compute: Compute) -> Arc<Host> {
    Arc::new(Cuda::with_compute(Interpreter::new(), compute).unwrap())
}

fn tokens(folder: &ModelFolder) -> Vec<i32> {
    folder.tokenizer().unwrap().encode(&common::TEXT.repeat(12)).unwrap()
}

struct Losses(Vec<f64>);

impl<B: Backend, L> Observer<B, L> for Losses {
    fn after_step(
        &mut self,
        record: &StepRecord,
        _model: &mut Llama<B, L>,
    ) -> plumbline::error::Result<()> {
        self.0.push(record.loss);
        Ok(())
    }
}

fn train<L: LinearMethod<Host>>(
    model: &mut Llama<Host, L>,
    tokens: Vec<i32>,
    steps: u64,
) -> Vec<f64> {
    let (context, recompute) = (20, Recompute::None);
    let settings = TrainingSettings {
        steps,
        micro_batch: 2,
        accumulation: 1,
        seed: 5,
        recompute,
        eval_every: 0,
    };
    let optimizer = OptimizerSettings { learning_rate: 2e-2, ..OptimizerSettings::default() };
    let data = TokenWindows::new(tokens, context, 5).unwrap();
    let schedule = Schedule { warmup_steps: 1, ..Schedule::default() };
    let mut trainer = Trainer::new(model, data, context, settings, &optimizer, schedule).unwrap();
    let mut losses = Losses(Vec::new());
    trainer.run(model, &mut losses).unwrap();
    losses.0
}

/// Both operands of a product are off by at most 2^-9 of themselves, so a product by 2^-8; sums of
/// products of either sign by less. A loss that is no worse conditioned than the products of its
/// run stays within as much.
const APART: f64 = 1.0 / 256.0;

#[test]
fn an_l4q_run_follows_that_of_f32() {
    let (_root, folder) = base();
    let text = tokens(&folder);
    let [exact, rounded, again] = [Compute::F32, Compute::Bf16, Compute::Bf16].map(|compute| {
        let mut model = method_model(backend(compute), &folder, &l4q(4), Start::Fresh(3)).unwrap();
        train(&mut model, text.clone(), 8)
    });
    assert_eq!(rounded, again);
    assert!(exact != rounded, "nothing was rounded");
    for (exact, rounded) in exact.iter().zip(&rounded) {
        assert!((exact - rounded).abs() <= APART * exact, "{rounded} beside {exact}");
    }
    let fell = rounded[0] - rounded[7];
    assert!(fell > 8.0 * APART * exact[0], "the loss fell by {fell} only: the bound says little");
}

fn assert_merges<M: Method>(folder: &ModelFolder, name: &str, method: &M)
where
    M::Layer<Host>: IntoCodes<Host>,
{
    let text = tokens(folder);
    let backend = backend(Compute::Bf16);
    let mut model = method_model(backend, folder, method, Start::Fresh(3)).unwrap();
    train(&mut model, text.clone(), 2);
    let probe = &text[..24];
    let mut workspace = model.evaluation_workspace(probe.len()).unwrap();
    let trained = model.logits(1, probe, &mut workspace).unwrap();
    let merged = merge(model).unwrap();
    assert_eq!(first_difference(&trained, &merged.model, probe).unwrap(), None, "{name}");
}

#[test]
fn the_merged_model_is_the_trained_model_bit_for_bit() {
    let (_root, folder) = base();
    for bits in [2, 4] {
        assert_merges(&folder, &format!("L4Q {bits}"), &l4q(bits));
    }
    assert_merges(&folder, "LR-QAT", &lr_qat(4, Downcast::Fixed8, "frozen"));
    assert_merges(&folder, "PEQA", &peqa(4));
}
