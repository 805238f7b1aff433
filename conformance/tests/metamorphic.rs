//! Every property holds for every built-in subject, compares something, and notices a subject that
//! is wrong.

use plumbline_conformance::metamorphic::{Options, Outcome, PROPERTIES, Violation, find};
use plumbline_conformance::precision::Precision;
use plumbline_conformance::subject::{BUILT_IN, Subject, select};
use std::time::Duration;

mod wrong_subjects;
use wrong_subjects::{Wrong, subject_for};

const OPTIONS: Options = Options { seed: 5, count: 8, repeats: 3, size: 24, one_order: true };

fn run(name: &str, subject: &mut dyn Subject, precision: Precision, options: Options) -> Outcome {
    find(name).unwrap().run(subject, precision, options).unwrap()
}

/// Every built-in subject at every precision that it has.
fn built_in() -> Vec<(Box<dyn Subject>, Precision)> {
    let subject = |name: &str| select(name, Duration::from_secs(60)).unwrap();
    let mut all = Vec::new();
    for name in BUILT_IN {
        for precision in subject(name).precisions() {
            all.push((subject(name), *precision));
        }
    }
    all
}

/// The claim is about codes: elements beyond the grid and exact ties must have been among them.
const ABOUT_CODES: &[&str] = &[
    "powers_of_two",
    "factors_rebalanced",
    "rows_permuted",
    "groups_permuted",
    "zero_update",
    "idempotent",
    "merge_is_forward",
    "deterministic",
];

fn holds(name: &str) {
    let rows = find(name).unwrap().operations().unwrap().len() as u64;
    // An exact tie is rare where an update is added to the weight.
    let count = if name == "factors_rebalanced" { 30 } else { OPTIONS.count };
    for (mut subject, precision) in built_in() {
        let outcome = run(name, subject.as_mut(), precision, Options { count, ..OPTIONS });
        let who = format!("{} {precision}: {outcome}", subject.name());
        assert_eq!(outcome.failed, 0, "{who}");
        assert_eq!(outcome.passed + outcome.skipped, rows * count, "{who}");
        assert_eq!(outcome.skipped > 0, outcome.why_skipped.is_some(), "{who}");
        assert_eq!(outcome.passed > 0, outcome.seen.compared > 0, "{who}");
        if subject.name() != "reference" {
            continue;
        }
        assert_eq!(outcome.skipped, 0, "{who}");
        if ABOUT_CODES.contains(&name) {
            assert!(outcome.seen.clipped > 0 && outcome.seen.ties > 0, "{who} {:?}", outcome.seen);
        }
        if name == "negation" {
            // Only inside the symmetric range is rounding odd, ties to even among it.
            assert!(outcome.seen.clipped == 0 && outcome.seen.ties > 0, "{who}");
        }
    }
}

/// The property fails for the wrong subject, and by comparing: not because there is no answer.
fn notices(name: &str) {
    let mut subject = subject_for(name);
    let options = Options { count: 30, ..OPTIONS };
    let outcome = run(name, subject.as_mut(), Precision::F32, options);
    let Some((_, _, Violation::Differs(difference))) = &outcome.first else {
        panic!("{} survives: {outcome}", subject.name());
    };
    assert!(difference.count > 0 && difference.is != difference.should, "{outcome}");
    assert!(outcome.failed > 0);
}

macro_rules! properties {
    ($($name:ident)*) => {
        const NAMED: &[&str] = &[$(stringify!($name)),*];

        mod holds {
            $(#[test] fn $name() { super::holds(stringify!($name)); })*
        }

        mod notices {
            $(#[test] fn $name() { super::notices(stringify!($name)); })*
        }
    };
}

properties! {
    powers_of_two
    norm_ignores_size
    negation
    factors_rebalanced
    rows_permuted
    groups_permuted
    inputs_permuted
    tokens_permuted
    sequences_permuted
    heads_permuted
    elements_permuted
    batch_twice
    batches_joined
    accumulation
    padding
    zero_update
    idempotent
    affine_round_trip
    pack_round_trip
    merge_is_forward
    merge_keeps_outputs
    causal
    position_is_place
    rotation_back
    ignored_tokens
    mean_of_twice
    shifted_logits
    nothing_to_learn
    continued
    deterministic
}

#[test]
fn every_property_of_the_table_has_its_tests() {
    let table: Vec<_> = PROPERTIES.iter().map(|property| property.name).collect();
    assert_eq!(table, NAMED);
}

#[test]
fn a_number_is_the_same_trial_whatever_else_runs() {
    let mut subject = subject_for("powers_of_two");
    let all = run("powers_of_two", subject.as_mut(), Precision::F32, OPTIONS);
    let (_, number, violation) = all.first.unwrap();
    let options = Options { count: number + 1, ..OPTIONS };
    let mut subject = subject_for("powers_of_two");
    let again = run("powers_of_two", subject.as_mut(), Precision::F32, options);
    let (_, same, repeated) = again.first.unwrap();
    assert_eq!((same, repeated.to_string()), (number, violation.to_string()));
}

#[test]
fn operations_that_a_subject_lacks_are_skipped_and_not_passed() {
    let mut subject = Wrong::in_op("pack", |_, _, _| Ok(()));
    let outcome = run("rows_permuted", &mut subject, Precision::F32, OPTIONS);
    assert_eq!((outcome.passed, outcome.failed), (OPTIONS.count, 0));
    assert!(outcome.skipped > 0 && outcome.why_skipped.is_some());
    let outcome = run("pack_round_trip", &mut subject, Precision::F32, OPTIONS);
    assert_eq!((outcome.passed, outcome.failed, outcome.skipped), (0, 0, OPTIONS.count));
    assert_eq!(outcome.seen.compared, 0);
}

#[test]
fn an_answer_of_nan_is_a_violation_though_its_bits_agree() {
    let mut subject = Wrong::in_op("rope.forward", |_, outputs, _| {
        wrong_subjects::map(outputs, "output", |_| f32::NAN);
        Ok(())
    });
    let outcome = run("position_is_place", &mut subject, Precision::F32, OPTIONS);
    let (_, _, violation) = outcome.first.unwrap();
    assert!(violation.to_string().contains("is NaN"), "{violation}");
}

/// A subject that sums every second row in another order conforms; it has not one order.
#[test]
fn an_order_that_depends_on_the_place_is_noticed_only_where_it_is_promised() {
    let mut subject = Wrong::in_op("lora.forward", wrong_subjects::sum_backwards_in_odd_rows);
    let strict = run("rows_permuted", &mut subject, Precision::F32, OPTIONS);
    assert!(strict.failed > 0, "{strict}");
    let options = Options { one_order: false, ..OPTIONS };
    let lenient = run("rows_permuted", &mut subject, Precision::F32, options);
    assert!(lenient.failed == 0 && lenient.passed > 0, "{lenient}");
}

/// What is wrong beyond rounding is noticed by the bounds as well.
#[test]
fn an_order_that_is_free_excuses_nothing_else() {
    for name in ["rows_permuted", "groups_permuted", "heads_permuted", "causal", "padding"] {
        let mut subject = subject_for(name);
        let options = Options { count: 30, one_order: false, ..OPTIONS };
        let outcome = run(name, subject.as_mut(), Precision::F32, options);
        assert!(outcome.failed > 0, "{name}: {outcome}");
    }
}
