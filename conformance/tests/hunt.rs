//! `conform hunt` as a user runs it, on deliberate faults and on subjects that conform.

use std::path::Path;
use std::process::{Command, Output};

use plumbline_conformance::case;
use plumbline_conformance::tensor::Tensor;

fn conform(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_conform")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// The commands that a failure is printed with.
fn replays(stdout: &str) -> Vec<Vec<&str>> {
    let lines = stdout.lines().filter_map(|line| line.split_once(": conform "));
    lines.map(|(_, command)| command.split(' ').collect()).collect()
}

fn only_case(folder: &Path) -> case::Case {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    let [file] = files.as_slice() else { panic!("{files:?}") };
    case::load(file).unwrap().remove(0)
}

#[test]
fn a_fault_is_found_shrunk_and_replayed() {
    for (mutant, op, largest) in
        [("round_half_away", "fake_quantize.forward", 3), ("first_sample_only", "l4q.backward", 16)]
    {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().to_str().unwrap();
        let subject = format!("mutant:{mutant}");
        let args = ["hunt", "--subject", &subject, "--op", op, "--seed", "3", "--out", out];
        let (code, stdout, stderr) = conform(&args);
        assert_eq!((code, stderr.as_str()), (1, ""), "{stdout}");
        let case = only_case(folder.path());
        assert!(case.id.starts_with(&format!("{op}-seed3-")) && case.id.ends_with("-min"));
        assert!(case.note.as_ref().unwrap().contains("seed 3, number"), "{:?}", case.note);
        let elements: usize = case.request.inputs.values().map(Tensor::len).sum();
        assert!(elements <= largest, "{mutant}: {elements} elements\n{stdout}");
        let commands = replays(&stdout);
        assert_eq!(commands.len(), 2, "{stdout}");
        for command in commands {
            let (code, again, _) = conform(&command);
            assert_eq!(code, 1, "{command:?}: {again}");
        }
        // The file is a case like any other: who conforms passes it.
        let file = case.file.to_str().unwrap();
        assert_eq!(conform(&["check", file, "--subject", "reference"]).0, 0);
    }
}

#[test]
fn nothing_is_found_in_what_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let ops = ["--op", "lora.backward", "--op", "fake_quantize.forward"];
    let args = ["hunt", "--subject", "cpu", "--count", "20", "--out", out];
    let (code, stdout, _) = conform(&[&args[..], &ops].concat());
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.starts_with("cpu f32: 40 passed, 0 failed, 0 skipped"), "{stdout}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn families_are_judged_in_memory() {
    let families = ["--family", "ties", "--family", "integer_lattice"];
    let run = |subject: &str| conform(&[&["hunt", "--subject", subject][..], &families].concat());
    let (code, stdout, _) = run("cpu");
    assert_eq!(code, 0, "{stdout}");
    let (code, stdout, _) = run("mutant:round_half_away");
    assert_eq!(code, 1, "{stdout}");
    assert!(stdout.contains("FAIL ties-000-fake_quantize.forward"), "{stdout}");
    assert!(stdout.contains("claims tie over an even integer above zero"), "{stdout}");
}

#[test]
fn bad_use_exits_with_2() {
    for (args, message) in [
        (&["hunt", "--subject", "nobody"][..], "subject is \"nobody\""),
        (&["hunt", "--subject", "cpu", "--op", "l4q"], "op is \"l4q\""),
        (&["hunt", "--subject", "cpu", "--family", "tie"], "no family \"tie\""),
        (&["hunt", "--subject", "cpu", "--exhaustive"], "--exhaustive is for"),
        (&["hunt", "--subject", "cpu", "--op", "cast"], "cpu does none of these operations"),
        (&["hunt", "--subject", "cpu", "--count", "0"], "invalid value '0'"),
    ] {
        let (code, stdout, stderr) = conform(args);
        assert_eq!(code, 2, "{args:?}: {stdout}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
    }
}

#[test]
fn families_are_written_as_cases_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let families = ["--family", "grid_ends", "--family", "narrow_overflow"];
    let (code, stdout, _) = conform(&[&["generate", "--out", out][..], &families].concat());
    assert_eq!(code, 0, "{stdout}");
    assert!(folder.path().join("grid_ends-000-fake_quantize.backward.safetensors").exists());
    assert!(folder.path().join("narrow_overflow-cast.toml").exists());
    let (code, stdout, stderr) = conform(&["check", out, "--subject", "reference"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.contains("reference f64: 40 passed, 0 failed, 0 skipped"), "{stdout}");
    let (code, stdout, _) = conform(&["list", "--families"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("grid_ends"), "{stdout}");
    assert!(stdout.contains("catches a mask with < for <="), "{stdout}");
}
