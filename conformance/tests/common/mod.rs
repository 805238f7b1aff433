//! What several tests read.

use std::path::PathBuf;

use plumbline_conformance::case::Case;
use plumbline_conformance::collect::collect;

/// Every golden case of the repository.
pub fn golden() -> Vec<Case> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../golden"));
    let collected = collect(&[folder]);
    let errors: Vec<_> = collected.errors.iter().map(ToString::to_string).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    collected.cases
}

/// All but the trainings of whole models, which take long and have tests of their own.
#[allow(dead_code, reason = "not every test that reads golden cases")]
pub fn golden_operations() -> Vec<Case> {
    golden().into_iter().filter(|case| case.request.op.name != "llama.train").collect()
}
