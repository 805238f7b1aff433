//! Faults that most cases let through and that show over many: arithmetic that rounds to one side.

#[path = "common/slipping.rs"]
mod slipping;

use std::path::Path;

use plumbline_conformance::generate::generated_case;
use plumbline_conformance::judge::judge;
use plumbline_conformance::judge::report::Status;
use plumbline_conformance::judge::statistics::{Statistics, Summary};
use plumbline_conformance::ops::find;
use plumbline_conformance::precision::{Precision, Products};
use plumbline_conformance::subjects::reference::Reference;
use plumbline_conformance::teeth::arithmetic::Slip;
use slipping::Slipping;

/// What a run of 150 cases comes to; a directed rounding is within most allowances.
fn summaries(op: &str, slip: Slip) -> Vec<Summary> {
    let (mut statistics, mut passed) = (Statistics::default(), 0);
    for index in 0..150 {
        let case = generated_case(Path::new("."), find(op).unwrap(), 9, index).unwrap();
        let report = judge(&case, &mut Slipping(slip, Products::AsStored), Precision::F32);
        passed += usize::from(matches!(report.status, Status::Pass));
        statistics.add(&report, &judge(&case, &mut Reference, Precision::F32));
    }
    assert!(passed > 100, "{op}: {passed} of 150 passed");
    statistics.summaries()
}

fn findings(op: &str, slip: Slip) -> String {
    let summaries = summaries(op, slip);
    summaries.iter().flat_map(|summary| summary.findings.clone()).collect::<Vec<_>>().join("; ")
}

#[test]
fn rounding_down_leans_downwards() {
    for op in ["lora.forward", "rope.forward", "adamw.step"] {
        let found = findings(op, Slip::Downwards);
        assert!(found.contains("leans downwards"), "{op}: {found}");
    }
}

#[test]
fn chopping_leans_towards_zero() {
    for op in ["rope.forward", "adamw.step"] {
        let found = findings(op, Slip::Chop);
        assert!(found.contains("leans towards zero"), "{op}: {found}");
    }
}

#[test]
fn rounding_to_nearest_leans_nowhere() {
    for op in ["lora.forward", "rope.forward", "adamw.step", "affine.dequantize"] {
        assert_eq!(findings(op, Slip::None), "", "{op}");
    }
}
