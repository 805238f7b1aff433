//! Every golden case on every subject of this program, in every precision it has. The golden
//! trainings are in whole_model_gate.rs, the kernels in kernel_teeth.rs.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{golden, golden_operations};
use plumbline_conformance::judge::judge;
use plumbline_conformance::judge::report::{Counts, Status};
use plumbline_conformance::ops::OPERATIONS;
use plumbline_conformance::subject::{BUILT_IN, ROUNDING, select};

/// What a subject makes of every case, in every precision that it has; none may be rejected.
fn conforms(name: &str) -> Counts {
    let cases = golden_operations();
    let mut subject = select(name, Duration::from_secs(60)).unwrap();
    let (mut counts, mut rejected) = (Counts::default(), Vec::new());
    for precision in subject.precisions().to_vec() {
        for case in &cases {
            let report = judge(case, subject.as_mut(), precision);
            counts.add(&report);
            if matches!(report.status, Status::Fail { .. }) {
                rejected.push(report.to_string());
            }
        }
    }
    assert!(rejected.is_empty(), "{} rejected\n{}", rejected.len(), rejected.join("\n"));
    assert!(counts.pass > 0, "{name} passed nothing: {counts}");
    counts
}

#[test]
fn the_reference_conforms_and_skips_nothing() {
    assert_eq!(conforms("reference").skip, 0);
}

#[test]
fn the_cpu_conforms() {
    conforms("cpu");
}

#[test]
fn the_reference_with_rounded_factors_conforms() {
    assert_eq!(conforms("reference-bf16").skip, 0);
}

/// The kernels: tests/kernel_teeth.rs.
#[test]
fn no_subject_is_left_out() {
    assert_eq!(BUILT_IN, ["reference", "cpu", "cuda-host"]);
    assert_eq!(ROUNDING, ["reference-bf16", "cuda-host-bf16"]);
}

#[test]
fn every_operation_has_a_golden_case_and_every_input_is_an_f32() {
    let cases = golden();
    let covered: BTreeSet<_> = cases.iter().map(|case| case.request.op.name).collect();
    let missing: Vec<_> =
        OPERATIONS.iter().map(|op| op.name).filter(|name| !covered.contains(name)).collect();
    assert!(missing.is_empty(), "no golden case for {missing:?}");
    for case in &cases {
        assert_eq!(case.not_f32_exact(), None, "{}", case.label());
        assert!(case.origin.is_some(), "{} does not say who computed it", case.label());
    }
}
