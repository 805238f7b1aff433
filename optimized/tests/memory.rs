//! What a training run takes of the memory of the process, beside its plan.

#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;

use common::settings::l4q;
use plumbline::checkpoint::{TrainingState, save_checkpoint};
use plumbline::cpu::Cpu;
use plumbline::embedded;
use plumbline::eval::perplexity;
use plumbline::finetune::{Start, method_model};
use plumbline::model::{Plan, Recompute};
use plumbline::train::{OptimizerSettings, Schedule, TokenWindows, Trainer, TrainingSettings};

const CONTEXT: usize = 256;

fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// What `plumbline train` does: a step, an evaluation, another step and a
/// checkpoint. No other test stands in
/// this file, so that none's memory is counted.
#[test]
fn a_run_takes_what_its_plan_says_within_a_tenth() {
    let root = tempfile::tempdir().unwrap();
    let base = embedded::model().unwrap();
    let tokenizer = base.tokenizer().unwrap();
    let tokens = tokenizer.encode(embedded::text("plays_eval").unwrap()).unwrap();
    let held_back = tokens[..8 * CONTEXT].to_vec();
    // The highest mark of resident memory starts again from what is resident now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");

    let mut model = method_model(Arc::new(Cpu), &base, &l4q(4), Start::Fresh(1)).unwrap();
    let settings = TrainingSettings {
        steps: 2,
        micro_batch: 8,
        accumulation: 1,
        seed: 0,
        recompute: Recompute::None,
        eval_every: 0,
    };
    let optimizer = OptimizerSettings::default();
    let micro_batch = settings.micro_batch * CONTEXT;
    let state = optimizer.state;
    let plan = Plan::new(&mut model, micro_batch, Recompute::None, 1, state).total() as u64;
    let data = TokenWindows::new(tokens, CONTEXT, 0).unwrap();
    let schedule = Schedule::default();
    let mut trainer =
        Trainer::new(&mut model, data, CONTEXT, settings, &optimizer, schedule).unwrap();
    trainer.step(&mut model).unwrap();
    trainer.release_workspace();
    perplexity(&model, &held_back, CONTEXT, |_| {}).unwrap();
    trainer.step(&mut model).unwrap();
    let [base, data, recipe] = ["b", "d", "r"].map(|letter| letter.repeat(64));
    let position = TrainingState::new("cpu".into(), base, data, recipe);
    let backend = model.shared_backend();
    let moments = (trainer.optimizer().moment_tensors(&*backend), state);
    let folder = root.path().join("step-2");
    save_checkpoint(&folder, model.trained_tensors(), moments, &position).unwrap();
    let peak = status("VmHWM") - before;
    println!("planned {plan} bytes, measured {peak}");
    assert!(peak.abs_diff(plan) < plan / 10, "planned {plan}, measured {peak}");
}
