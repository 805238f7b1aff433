//! The compiled kernels on a machine without a GPU: they conform, and small mistakes in them are
//! noticed.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{golden, golden_operations};
use plumbline::cuda::{Compute, Cuda, Interpreter, MODULES};
use plumbline_conformance::case::Case;
use plumbline_conformance::judge::judge;
use plumbline_conformance::judge::report::Status;
use plumbline_conformance::precision::Precision;
use plumbline_conformance::subject::Subject;
use plumbline_conformance::subjects::cuda::interpreted;
use plumbline_conformance::teeth::kernels::{Fate, Mutant, Reach, SLIPS, mutants};
use rayon::prelude::*;

/// Entries of a module, as its text declares them.
fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    let heads = ptx.lines().filter_map(|line| line.split_once(".entry "));
    heads.map(|(_, name)| name.trim().trim_end_matches('('))
}

/// Kernels that no golden case runs, by parts of module and name, and the tests that judge them.
const ELSEWHERE: &[(&str, &str)] = &[
    ("nf4 nf4_dequantize", "optimized/tests/cuda_methods: no operation of the protocol multiplies"),
    (
        "fake_quantize dequantize",
        "optimized/tests/cuda_quantizer: what merged layers multiply with",
    ),
    ("_of_", "optimized/tests/cuda_quantizer: weights in 16 bits, beside those in f32"),
    ("adamw adamw_bf16", "optimized/tests/adamw.rs: moments in bf16, drawn as on the cpu"),
    ("dropout", "optimized/tests/adapter_options.rs: no operation of the protocol"),
    ("widen", "optimized/tests/cuda_quantizer: every number of 16 bits"),
    ("random_weights", "optimized/tests/cuda_training.rs: no operation of the protocol"),
    ("attention_16x", "optimized/tests/cuda_transformer.rs: few queries, wide heads"),
    ("x128", "optimized/tests/cuda_transformer.rs: heads wider than 64"),
    ("keys_128", "optimized/tests/cuda_transformer.rs: heads wider than 64"),
    ("rows_128", "optimized/tests/cuda_transformer.rs: heads wider than 64"),
    ("attention_bf16_128", "optimized/tests/cuda_transformer.rs: heads wider than 64"),
    ("256", "optimized/tests/cuda_transformer.rs: heads wider than 128"),
];

fn elsewhere(module: &str, entry: &str) -> bool {
    let name = format!("{module} {entry}");
    ELSEWHERE.iter().any(|(part, _)| name.contains(part))
}

/// A training of a whole model: some kernels are launched by nothing smaller.
fn a_training() -> Case {
    golden().into_iter().find(|case| case.request.op.name == "llama.train").unwrap()
}

/// Judges every golden case on the kernels, and adds those that ran.
fn conform(compute: Compute, run: &mut BTreeSet<(&'static str, &'static str)>) {
    let backend = Arc::new(Cuda::with_compute(Interpreter::new(), compute).unwrap());
    let mut subject = interpreted(Arc::clone(&backend));
    let mut judged = |case: &Case| judge(case, &mut subject, Precision::F32);
    let reports: Vec<_> = golden_operations().iter().map(&mut judged).collect();
    let rejected = reports.iter().filter(|report| matches!(report.status, Status::Fail { .. }));
    let rejected: Vec<_> = rejected.map(ToString::to_string).collect();
    assert!(rejected.is_empty(), "{} rejected\n{}", rejected.len(), rejected.join("\n"));
    // Trainings are judged in whole_model_gate.rs; one of them runs what only the optimizer does.
    let training = a_training().request.to_precision(Precision::F32);
    subject.run(&training, Precision::F32).unwrap();
    run.extend(backend.launcher().launched());
}

#[test]
fn the_kernels_conform_and_each_is_run_by_a_golden_case() {
    let mut run = BTreeSet::new();
    conform(Compute::F32, &mut run);
    conform(Compute::Bf16, &mut run);
    let all =
        MODULES.iter().flat_map(|module| entries(module.ptx).map(|entry| (module.name, entry)));
    let idle: Vec<_> = all
        .filter(|kernel| !run.contains(kernel))
        .filter(|(module, entry)| !elsewhere(module, entry))
        .collect();
    assert!(idle.is_empty(), "{idle:?}");
}

/// Each kind of mistake is noticed at one place at least; every place of every kernel is the
/// campaign below.
#[test]
fn every_kind_of_mistake_is_noticed() {
    let modules = ["rms_norm", "fake_quantize"];
    let ops = ["rms_norm.", "fake_quantize.", "l4q.forward"];
    let is_run = |case: &Case| ops.iter().any(|op| case.request.op.name.starts_with(op));
    let cases: Vec<_> = golden_operations().into_iter().filter(is_run).collect();
    let reach = Reach::of(&cases).unwrap();
    let module_of = |name: &str| MODULES.iter().find(|module| module.name == name).unwrap();
    let mut places = BTreeMap::<_, Vec<_>>::new();
    for mutant in modules.map(module_of).into_iter().flat_map(|module| mutants(module)) {
        if !elsewhere(mutant.module.name, mutant.entry) {
            places.entry(mutant.slip.name).or_default().push(mutant);
        }
    }
    let kinds: BTreeSet<_> = SLIPS.iter().map(|slip| slip.name).collect();
    assert_eq!(places.keys().copied().collect::<BTreeSet<_>>(), kinds);
    let known = |name: &&str| MODULES.iter().any(|module| module.name == *name);
    assert!(SLIPS.iter().flat_map(|slip| slip.modules).all(known));
    for (kind, mutants) in places {
        let mut fates = mutants.into_iter().map(|mutant| reach.fate(mutant).unwrap());
        assert!(fates.any(|fate| fate.killer.is_some()), "{kind}");
    }
}

/// Mistakes that no case rejects, one in a line, and whether a case comes by the place.
const SURVIVORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel_survivors.txt");

fn survivor(fate: &Fate) -> Option<String> {
    let Mutant { slip, module, entry, source, .. } = &fate.mutant;
    let reached = if fate.is_reached { "reached" } else { "not reached" };
    let line = || format!("{} {} {entry} {source} {reached}", slip.name, module.name);
    fate.killer.is_none().then(line)
}

/// `KERNEL=name` tries one module, `SLIP=name` one kind of mistake. Copies of a line that the
/// compiler made, by unrolling a loop, are one place: the first is tried, and all of them with
/// `EVERY_COPY=1`. What survives has to be in the list; `PLUMBLINE_WRITE_SURVIVORS=1` makes it anew.
#[test]
#[ignore = "five minutes: every small mistake at every place of every kernel"]
fn every_mistake_is_noticed_or_known() {
    let mut cases = golden_operations();
    cases.push(a_training());
    let reach = Reach::of(&cases).unwrap();
    let asked = |variable: &str, name: &str| std::env::var(variable).is_ok_and(|only| only != name);
    let every_copy = std::env::var_os("EVERY_COPY").is_some();
    let mut places = BTreeSet::new();
    let mut tried: Vec<_> = MODULES.iter().copied().flat_map(mutants).collect();
    tried.retain(|mutant| {
        let (slip, module, entry) = (mutant.slip.name, mutant.module.name, mutant.entry);
        let left_out = elsewhere(module, entry) || asked("KERNEL", module) || asked("SLIP", slip);
        !left_out && (places.insert((slip, entry, mutant.source.clone())) || every_copy)
    });
    println!("{} places", tried.len());
    let fates = tried.into_par_iter().map(|mutant| {
        let fate = reach.fate(mutant).unwrap();
        println!("{fate}");
        survivor(&fate)
    });
    let survivors: BTreeSet<String> = fates.collect::<Vec<_>>().into_iter().flatten().collect();
    let filters = ["KERNEL", "SLIP", "EVERY_COPY"];
    let is_whole = filters.iter().all(|filter| std::env::var_os(filter).is_none());
    if is_whole && std::env::var_os("PLUMBLINE_WRITE_SURVIVORS").is_some() {
        let lines: Vec<String> = survivors.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(SURVIVORS, lines.concat()).unwrap();
    }
    let listed = std::fs::read_to_string(SURVIVORS).unwrap();
    let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
    let new: Vec<_> = survivors.difference(&listed).collect();
    assert!(new.is_empty(), "not noticed: {new:#?}");
    let gone: Vec<_> = listed.difference(&survivors).collect();
    assert!(!is_whole || gone.is_empty(), "listed, and noticed or no more there: {gone:#?}");
}
