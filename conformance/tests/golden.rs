//! Every golden case on every subject of this program, in every precision it has.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::golden;
use plumbline_conformance::judge::judge;
use plumbline_conformance::judge::report::{Counts, Status};
use plumbline_conformance::ops::OPERATIONS;
use plumbline_conformance::subject::{BUILT_IN, select};

#[test]
fn every_subject_conforms_to_every_golden_case() {
    let cases = golden();
    let mut rejected = Vec::new();
    for name in BUILT_IN {
        let mut subject = select(name, Duration::from_secs(60)).unwrap();
        for precision in subject.precisions().to_vec() {
            let mut counts = Counts::default();
            for case in &cases {
                let report = judge(case, subject.as_mut(), precision);
                counts.add(&report);
                if matches!(report.status, Status::Fail { .. }) {
                    rejected.push(report.to_string());
                }
            }
            println!("{name} {precision}: {counts}");
            assert!(counts.pass > 0, "{name} {precision} passed nothing: {counts}");
        }
    }
    assert!(rejected.is_empty(), "{} rejected\n{}", rejected.len(), rejected.join("\n"));
}

#[test]
fn the_reference_skips_nothing() {
    let mut reference = select("reference", Duration::from_secs(60)).unwrap();
    for precision in reference.precisions().to_vec() {
        for case in golden() {
            let report = judge(&case, reference.as_mut(), precision);
            assert!(!matches!(report.status, Status::Skip { .. }), "{report}");
        }
    }
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
