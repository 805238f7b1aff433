//! Small mistakes in the compiled kernels, each noticed on a machine without a GPU.

mod common;

use common::golden;
use plumbline::cuda::MODULES;
use plumbline_conformance::teeth::kernels::{Fate, Reach, mutants};

/// Entries of a module, as its text declares them.
fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    let heads = ptx.lines().filter_map(|line| line.split_once(".entry "));
    heads.map(|(_, name)| name.trim().trim_end_matches('('))
}

/// Kernels that no golden case runs, by parts of module and name, and the tests that judge them.
const ELSEWHERE: &[(&str, &str)] = &[
    ("bf16", "optimized/tests/cuda_bf16"),
    ("weight_gradient", "optimized/tests/cuda_bf16"),
    (
        "fake_quantize dequantize",
        "optimized/tests/cuda_quantizer: what merged layers multiply with",
    ),
    ("_of_", "optimized/tests/cuda_quantizer: weights in 16 bits, beside those in f32"),
    ("widen", "optimized/tests/cuda_quantizer: every number of 16 bits"),
    ("random_weights", "optimized/tests/cuda_training.rs: no operation of the protocol"),
    ("attention_16x", "optimized/tests/cuda_transformer.rs: few queries, wide heads"),
    ("128", "optimized/tests/cuda_transformer.rs: heads wider than 64"),
    ("256", "optimized/tests/cuda_transformer.rs: heads wider than 128"),
];

#[test]
fn every_kernel_is_run_by_a_golden_case() {
    let cases = golden();
    let reach = Reach::of(&cases).unwrap();
    let run: Vec<_> = reach.kernels().collect();
    let all =
        MODULES.iter().flat_map(|module| entries(module.ptx).map(|entry| (module.name, entry)));
    let idle: Vec<_> = all.filter(|kernel| !run.contains(kernel)).collect();
    let elsewhere = |(module, entry): &(&str, &str)| {
        let name = format!("{module} {entry}");
        ELSEWHERE.iter().any(|(part, _)| name.contains(part))
    };
    let idle: Vec<_> = idle.into_iter().filter(|kernel| !elsewhere(kernel)).collect();
    assert!(idle.is_empty(), "{idle:?}");
}

/// `KERNEL=name` tries one module.
#[test]
#[ignore = "minutes: every small mistake at every place of every kernel"]
fn every_mistake_is_noticed() {
    let cases = golden();
    let reach = Reach::of(&cases).unwrap();
    let only = std::env::var("KERNEL").ok();
    let chosen = mutants()
        .into_iter()
        .filter(|mutant| only.as_deref().is_none_or(|only| only == mutant.module.name));
    let fates: Vec<Fate> = chosen.map(|mutant| reach.fate(mutant).unwrap()).collect();
    let survivors: Vec<_> = fates.iter().filter(|fate| fate.killer.is_none()).collect();
    for fate in &fates {
        println!("{fate}");
    }
    println!("{} of {} killed", fates.len() - survivors.len(), fates.len());
    assert!(survivors.is_empty(), "{} survive", survivors.len());
}
