//! The golden cases notice every fault of the catalogue, each by a case that says so in a flag.

mod common;

use std::collections::BTreeSet;

use common::golden;
use plumbline_conformance::case::Case;
use plumbline_conformance::ops::OPERATIONS;
use plumbline_conformance::teeth::arithmetic::Slip;
use plumbline_conformance::teeth::{self, Fault, MUTANTS, Mutant, Score};

fn catalogue() -> impl Iterator<Item = &'static Mutant> {
    MUTANTS.iter().flat_map(|family| family.iter())
}

#[test]
fn every_fault_is_noticed_by_a_case_that_names_it() {
    let score = Score::new(teeth::campaign(&golden()));
    assert!(score.is_full(), "{score}");
    // A catalogue that lost a family would be full too.
    let faults = catalogue().filter(|mutant| mutant.equivalent.is_none()).count();
    assert!(faults >= 300, "{faults} faults");
    // Its golden cases are binary and carry no flags; tests/whole_model_gate.rs shows that it can
    // fail.
    let unflagged = "llama.train";
    let mut touched: BTreeSet<_> = catalogue().flat_map(|mutant| mutant.ops).copied().collect();
    touched.insert(unflagged);
    let untouched: Vec<_> = OPERATIONS.iter().filter(|op| !touched.contains(op.name)).collect();
    assert!(untouched.is_empty(), "no fault in {untouched:?}");
}

#[test]
fn an_operation_without_a_fault_is_rejected_nowhere() {
    let ops: Vec<&'static str> = OPERATIONS.iter().map(|op| op.name).collect();
    let edits =
        [Fault::Arithmetic(Slip::None), Fault::Request(|_| Ok(())), Fault::Answer(|_, _| Ok(()))];
    let cases = golden();
    for fault in edits {
        let unfaulted: &'static Mutant = Box::leak(Box::new(Mutant {
            name: "unfaulted",
            what: "nothing",
            ops: ops.clone().leak(),
            flags: &[],
            fault,
            equivalent: Some("nothing is wrong"),
        }));
        let fate = teeth::fate(unfaulted, &cases);
        assert!(fate.cases > 700, "{fate}");
        assert_eq!(fate.killers, 0, "{fault:?}: {fate}");
    }
}

#[test]
fn names_are_unique_and_words_are_there() {
    let mut seen = BTreeSet::new();
    for mutant in catalogue() {
        assert!(seen.insert(mutant.name), "{} stands twice", mutant.name);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(mutant.name.chars().all(plain), "{}", mutant.name);
        assert!(!mutant.what.is_empty() && !mutant.ops.is_empty(), "{}", mutant.name);
        let unknown: Vec<_> =
            mutant.ops.iter().filter(|op| !OPERATIONS.iter().any(|row| row.name == **op)).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", mutant.name);
    }
}

#[test]
fn every_flag_of_a_fault_is_one_of_its_operation() {
    let cases = golden();
    for mutant in catalogue() {
        assert_eq!(mutant.flags.is_empty(), mutant.equivalent.is_some(), "{}", mutant.name);
        for flag in mutant.flags {
            let has = |case: &Case| {
                mutant.ops.contains(&case.request.op.name)
                    && case.flags.iter().any(|given| given == flag)
            };
            assert!(cases.iter().any(has), "{}: no case has flag {flag}", mutant.name);
        }
    }
}

#[test]
fn the_eight_faults_of_public_code_are_there() {
    for letter in 'a'..='h' {
        let label = format!("(public: {letter})");
        assert!(catalogue().any(|mutant| mutant.what.starts_with(&label)), "{label}");
    }
}

#[test]
fn a_fault_without_a_case_and_a_changed_equivalent_are_told() {
    let table = |mutant: &'static Mutant, cases: &[Case]| {
        let score = Score::new(vec![teeth::fate(mutant, cases)]);
        assert!(!score.is_full());
        score.to_string()
    };
    let half_away = catalogue().find(|mutant| mutant.name == "round_half_away").unwrap();
    let mut cases = golden();
    cases.retain(|case| case.request.op.name == "fake_quantize.forward");
    let wrongly_equivalent: &'static Mutant = Box::leak(Box::new(Mutant {
        name: half_away.name,
        what: half_away.what,
        ops: half_away.ops,
        flags: &[],
        fault: half_away.fault,
        equivalent: Some("ties never happen"),
    }));
    assert!(table(wrongly_equivalent, &cases).contains("KILLED "));
    assert!(table(wrongly_equivalent, &[]).contains("0/0"));
    cases.iter_mut().for_each(|case| case.flags.clear());
    assert!(table(half_away, &cases).contains("UNNAMED "));
    assert!(table(half_away, &[]).contains("SURVIVED "));
}
