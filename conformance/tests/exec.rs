//! Outside subjects, well behaved and not: shell scripts that speak the protocol.
#![cfg(unix)]

use std::path::Path;
use std::time::{Duration, Instant};

use plumbline_conformance::case::{Case, load};
use plumbline_conformance::generate::generate;
use plumbline_conformance::judge::judge;
use plumbline_conformance::judge::report::{CaseReport, Status};
use plumbline_conformance::ops;
use plumbline_conformance::precision::Precision;
use plumbline_conformance::subject::select;

/// Long enough for a loaded machine to start a shell, short enough to wait for.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Reads `eval <in>\t<out>` into `$in` and `$out` and runs the body for each.
fn each(body: &str) -> String {
    format!(
        "tab=$(printf '\\t'); while IFS=\"$tab\" read -r in out; do in=${{in#eval }}; {body}; done"
    )
}

fn cases(folder: &Path, op: &str, count: u64) -> Vec<Case> {
    let files = generate(folder, &[ops::find(op).unwrap()], count, 3).unwrap();
    files.iter().flat_map(|file| load(file).unwrap()).collect()
}

/// Judges a few cases on one process; each report as text, and the time it all took.
fn run(command: &str, timeout: Duration, count: u64) -> (Vec<CaseReport>, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let cases = cases(folder.path(), "swiglu.forward", count);
    let mut subject = select(&format!("exec:{command}"), timeout).unwrap();
    let started = Instant::now();
    let reports = cases.iter().map(|case| judge(case, subject.as_mut(), Precision::F32)).collect();
    drop(subject);
    (reports, started.elapsed())
}

fn all_fail_with(command: &str, timeout: Duration, expected: &str) {
    let (reports, _) = run(command, timeout, 2);
    for report in reports {
        assert!(matches!(report.status, Status::Fail { .. }), "{report}");
        assert!(report.to_string().contains(expected), "{expected:?} is not in\n{report}");
    }
}

/// The reference behind a pipe, through this crate's own `eval`.
fn honest() -> String {
    let conform = env!("CARGO_BIN_EXE_conform");
    each(&format!(
        "if why=$({conform} eval \"$in\" --subject reference --precision f32 --out \"$out\" 2>&1); \
         then echo ok; else echo \"error $why\"; fi"
    ))
}

#[test]
fn an_honest_process_conforms_and_is_started_once() {
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    let command = format!("echo started >> {}; {}", starts.display(), honest());
    let mut subject = select(&format!("exec:{command}"), Duration::from_secs(60)).unwrap();
    for op in ["l4q.forward", "l4q.backward", "rms_norm.forward", "cross_entropy.forward"] {
        for case in cases(folder.path(), op, 2) {
            for precision in [Precision::F32, Precision::F64] {
                let report = judge(&case, subject.as_mut(), precision);
                assert!(matches!(report.status, Status::Pass), "{report}");
            }
        }
    }
    assert_eq!(std::fs::read_to_string(starts).unwrap(), "started\n");
}

#[test]
fn a_refusal_travels_through_the_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("refusal.toml");
    let text = "format = \"plumbline-case-1\"\nop = \"swiglu.forward\"\n[[case]]\nid = \"nan\"\n\
                in.gate = [nan]\nin.up = [1.0]\nexpect_error = ";
    let judged = |expected: &str, command: &str| {
        std::fs::write(&file, format!("{text}{expected:?}\n")).unwrap();
        let mut subject = select(&format!("exec:{command}"), Duration::from_secs(60)).unwrap();
        judge(&load(&file).unwrap()[0], subject.as_mut(), Precision::F32)
    };
    // `eval` refuses to read a request with a NaN in it, and says where.
    assert!(matches!(judged("gate[0]", &honest()).status, Status::Pass));
    assert!(matches!(judged("up[0]", &honest()).status, Status::Fail { .. }));
    assert!(matches!(judged("gate", &each("echo error the gate")).status, Status::Pass));
}

#[test]
fn a_skip_is_shown_and_is_no_pass() {
    let (reports, _) = run(&each("echo skip no time today"), Duration::from_secs(60), 2);
    for report in reports {
        match &report.status {
            Status::Skip { why } => assert_eq!(why, "no time today"),
            _ => panic!("{report}"),
        }
        assert!(report.to_string().starts_with("SKIP"));
    }
}

#[test]
fn a_process_that_hangs_is_killed_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let alive = folder.path().join("alive");
    let child = format!("(sleep 4; touch {}) & wait", alive.display());
    for command in ["sleep 1000", "exec sleep 1000", &child] {
        let (reports, took) = run(command, Duration::from_millis(400), 1);
        assert!(matches!(reports[0].status, Status::Fail { .. }));
        assert!(reports[0].to_string().contains("no answer within 0.4 s"), "{}", reports[0]);
        assert!(took < Duration::from_secs(20), "{took:?}");
    }
    std::thread::sleep(Duration::from_secs(5));
    assert!(!alive.exists(), "a child of the killed process went on");
}

#[test]
fn a_process_that_dies_fails_with_its_last_words() {
    all_fail_with("echo out of memory >&2; exit 3", PATIENCE, "exit status: 3");
    all_fail_with("echo out of memory >&2; exit 3", PATIENCE, "stderr: out of memory");
    all_fail_with(&each("kill -9 $$"), PATIENCE, "signal: 9");
    all_fail_with("no-such-program-anywhere", PATIENCE, "127");
    // An answer that stops in the middle of its line is none.
    all_fail_with(&each("printf ok; exit 0"), PATIENCE, "exit status: 0");
}

#[test]
fn after_a_death_the_next_case_gets_a_fresh_process() {
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    let command = format!("echo x >> {}; {}", starts.display(), each("echo skip once; exit 1"));
    let (reports, _) = run(&command, Duration::from_secs(60), 3);
    // Whether the end is noticed before the next question or by it, that question fails.
    assert!(matches!(reports[0].status, Status::Skip { .. }), "{}", reports[0]);
    assert!(matches!(reports[1].status, Status::Fail { .. }), "{}", reports[1]);
    assert!(matches!(reports[2].status, Status::Skip { .. }), "{}", reports[2]);
    assert_eq!(std::fs::read_to_string(starts).unwrap(), "x\nx\n");
}

#[test]
fn garbage_is_a_failure() {
    all_fail_with(&each("echo hello"), PATIENCE, "answered \"hello\"");
    all_fail_with(&each("echo"), PATIENCE, "answered \"\"");
    all_fail_with(&each("echo okay"), PATIENCE, "answered \"okay\"");
    all_fail_with(&each("echo ok maybe"), PATIENCE, "answered \"ok maybe\"");
    all_fail_with(&each(r"printf '\377\376\n'"), PATIENCE, "not UTF-8");
    all_fail_with("exec cat", PATIENCE, "answered \"eval ");
}

#[test]
fn a_flood_is_cut_off() {
    let endless_line = each("tr '\\0' x < /dev/zero");
    all_fail_with(&endless_line, Duration::from_secs(60), "without a line end");
    let (reports, took) = run("yes", Duration::from_secs(60), 3);
    assert!(reports.iter().all(|report| matches!(report.status, Status::Fail { .. })));
    assert!(took < Duration::from_secs(30), "{took:?}");
    let stderr = each("head -c 10000000 /dev/zero | tr '\\0' x >&2; echo hello");
    let (reports, _) = run(&stderr, Duration::from_secs(60), 1);
    assert!(reports[0].to_string().len() < 10_000);
}

#[test]
fn ok_without_a_readable_and_right_answer_is_a_failure() {
    all_fail_with(&each("echo ok"), PATIENCE, "answered ok, but its output file");
    all_fail_with(&each("echo x > \"$out\"; echo ok"), PATIENCE, "answered ok, but");
    all_fail_with(&each("head -c 50 \"$in\" > \"$out\"; echo ok"), PATIENCE, "truncated");
    // The request itself as an answer: readable, and without outputs.
    all_fail_with(&each("cp \"$in\" \"$out\"; echo ok"), PATIENCE, "out.output is missing");
    // The gate in place of the output: the right shape, the wrong numbers.
    let renamed = "sed 's/in.gate/out.output/; s/       $//' \"$in\" > \"$out\"; echo ok";
    let (reports, _) = run(&each(renamed), PATIENCE, 2);
    assert!(reports.iter().all(|report| matches!(report.status, Status::Fail { .. })));
}
