//! Every adversarial family on every subject of this program.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use plumbline_conformance::families::{FamilyCase, Scope, all};
use plumbline_conformance::judge::report::{Counts, Status};
use plumbline_conformance::subject::{BUILT_IN, select};

/// Judges the cases of every family; making them has checked their claims.
fn every_subject_conforms(scope: Scope) {
    let mut problems = Vec::new();
    for family in all() {
        let started = Instant::now();
        let cases = match family.cases(scope) {
            Ok(cases) => cases,
            Err(error) => {
                problems.push(error.to_string());
                continue;
            }
        };
        println!("{} made in {:?}", family.name, started.elapsed());
        for name in BUILT_IN {
            let mut subject = select(name, Duration::from_secs(60)).unwrap();
            for precision in subject.precisions().to_vec() {
                let (mut counts, started) = (Counts::default(), Instant::now());
                for FamilyCase { case, .. } in &cases {
                    assert_eq!(case.not_f32_exact(), None, "{}", case.id);
                }
                for case in &cases {
                    let report = case.judge(subject.as_mut(), precision);
                    counts.add(&report);
                    if matches!(report.status, Status::Fail { .. }) {
                        problems.push(report.to_string());
                    }
                }
                println!("{} {name} {precision} {:?}: {counts}", family.name, started.elapsed());
            }
        }
    }
    assert!(problems.is_empty(), "{}\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn every_subject_conforms_to_every_family() {
    every_subject_conforms(Scope::default());
}

/// 16.7 million weights at 4 widths on 64 scales.
#[test]
#[ignore = "minutes: every bf16 number on 64 scales at 4 widths"]
fn every_subject_conforms_to_everything() {
    every_subject_conforms(Scope { exhaustive: true });
}

#[test]
fn names_are_unique() {
    let names: Vec<_> = all().map(|family| family.name).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
}
