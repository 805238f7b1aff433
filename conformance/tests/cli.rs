//! The binary as a user runs it: output and exit codes.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use plumbline_conformance::case::container::{self, Container};
use plumbline_conformance::ops::OPERATIONS;
use plumbline_conformance::tensor::Data;
use serde_json::Value;

const SEVERAL: &str = r#"
format = "plumbline-case-1"
op = "fake_quantize.forward"
[notes.tie]
catches = "round half away from zero"
[[case]]
id = "down"
flags = ["tie"]
params = { bits = 4 }
in.weight = [[1.25, -1.25]]
in.scale = [[0.5]]
in.offset = [[0.0]]
out.codes = [[2, -2]]
out.output = [[1.0, -1.0]]
[[case]]
id = "up"
params = { bits = 4 }
in.weight = [[0.75, -0.75]]
in.scale = [[0.5]]
in.offset = [[0.0]]
out.codes = [[2, -2]]
out.output = [[1.0, -1.0]]
[[case]]
id = "refused"
params = { bits = 4 }
in.weight = [[0.75, nan]]
in.scale = [[0.5]]
in.offset = [[0.0]]
expect_error = "weight[0, 1]"
"#;

struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn conform(args: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_conform")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let file = folder.join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn read(file: &Path) -> Container {
    container::parse(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn what_conforms_exits_with_0_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "deep/several.toml", SEVERAL);
    write(folder.path(), "MANIFEST.toml", "[files]\n");
    write(folder.path(), "notes.md", "not a case");
    write(folder.path(), ".hidden/broken.toml", "not a case");
    for precision in ["f32", "f64"] {
        let args = ["check", path(folder.path()), "--subject", "reference"];
        let run = conform(&[&args[..], &["--precision", precision]].concat());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{}", run.stdout);
        let summary = format!("reference {precision}: 3 passed, 0 failed, 0 skipped");
        assert!(run.stdout.contains(&summary), "{}", run.stdout);
        let worst = "fake_quantize.forward          2 cases  codes exact  output exact";
        assert!(run.stdout.contains(worst), "{}", run.stdout);
    }
}

#[test]
fn a_subject_without_its_hardware_is_shown_as_ignored_and_fails_where_it_is_required() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "several.toml", SEVERAL);
    for (required, code) in [("0", 0), ("1", 1)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conform"));
        command.args(["check", path(&file), "--subject", "cuda"]).env("REQUIRE_CUDA", required);
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains("IGNORED subject cuda") && output.stdout.is_empty(), "{stderr}");
    }
}

#[test]
fn one_broken_number_is_named_with_everything_needed_to_find_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "several.toml", &SEVERAL.replacen("-1.0]]", "-1.0625]]", 1));
    let run = conform(&["check", path(&file), "--subject", "reference", "--precision", "f32"]);
    assert_eq!(run.code, 1);
    let report = run.stdout.replace(path(folder.path()), "FOLDER");
    insta::assert_snapshot!(report, @r"
    FAIL FOLDER/several.toml down fake_quantize.forward reference f32
      note: tie: catches round half away from zero
      out.output: 1 of 2 elements differ
        out.output[0, 1]: expected -1.0625 (0xbff1000000000000), actual -1.0 (0xbf800000), bound 1.1920930398368232e-7
    worst difference over its allowance:
    fake_quantize.forward          2 cases  codes exact  output 524287.94
    reference f32: 2 passed, 1 failed, 0 skipped; 0 codes flipped, 0 decisions left open by the precision
    ");
    let codes = write(folder.path(), "codes.toml", &SEVERAL.replacen("[[2, -2]]", "[[3, -2]]", 1));
    let run = conform(&["check", path(&codes), "--subject", "reference"]);
    assert_eq!(run.code, 1);
    assert!(run.stdout.contains("out.codes[0, 0]: expected 3 (0x03), actual 2 (0x02)"));
    assert!(run.stdout.contains("argument 2.5 lies 0e0"), "{}", run.stdout);
}

#[test]
fn a_refusal_that_does_not_come_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let answered = SEVERAL.replace("[[0.75, nan]]", "[[0.75, 1.0]]");
    let file = write(folder.path(), "answered.toml", &answered);
    let run = conform(&["check", path(&file), "--subject", "reference"]);
    assert_eq!(run.code, 1);
    assert!(run.stdout.contains("answered, expected a refusal with \"weight[0, 1]\""));
    let other = write(folder.path(), "other.toml", &SEVERAL.replace("weight[0, 1]\"", "scale\""));
    let run = conform(&["check", path(&other), "--subject", "reference"]);
    assert_eq!(run.code, 1);
    assert!(run.stdout.contains("refused with"), "{}", run.stdout);
}

#[test]
fn unreadable_input_and_bad_use_exit_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let good = write(folder.path(), "good/several.toml", SEVERAL);
    let bad = write(folder.path(), "bad/several.toml", "format = 3");
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let gone = folder.path().join("gone");
    for (args, message) in [
        (vec!["check", path(&empty), "--subject", "reference"], "no case"),
        (vec!["check", path(&gone), "--subject", "reference"], "gone"),
        (vec!["check", path(&bad), "--subject", "reference"], "several.toml: line 1"),
        (vec!["check", path(folder.path()), "--subject", "reference"], "bad/several.toml"),
        (vec!["check", path(&good), "--subject", "gpu"], "\"gpu\""),
        (vec!["check", path(&good), "--subject", "exec:"], "command line"),
        (vec!["check", path(&good), "--subject", "reference", "--precision", "f16"], "f16"),
        (vec!["check", path(&good), "--subject", "reference", "--timeout", "0"], "seconds"),
        (vec!["check", path(&good)], "--subject"),
        (vec!["check", "--subject", "reference"], "PATHS"),
        (vec!["generate", "--out", path(&empty), "--op", "l4q"], "\"l4q\""),
        (vec!["generate", "--out", path(&empty), "--count", "0"], "count"),
        (vec!["judge"], "judge"),
    ] {
        let run = conform(&args);
        assert_eq!(run.code, 2, "{args:?}: {}{}", run.stdout, run.stderr);
        assert!(run.stderr.contains(message), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn an_input_that_f32_cannot_hold_is_an_error_for_f32_subjects_only() {
    let folder = tempfile::tempdir().unwrap();
    let text = SEVERAL.replace("[[1.25, -1.25]]", "[[1.1, -1.1]]");
    let file = write(folder.path(), "inexact.toml", &text);
    let run = conform(&["check", path(&file), "--subject", "reference"]);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    let run = conform(&["check", path(&file), "--subject", "reference", "--precision", "f32"]);
    assert_eq!(run.code, 2, "{}", run.stdout);
    assert!(run.stderr.contains("case down: in.weight[0, 0] is 1.1 (0x3ff199999999999a)"));
}

#[test]
fn eval_writes_the_outputs_of_one_case_in_the_subjects_precision() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "several.toml", SEVERAL);
    let out = folder.path().join("out.safetensors");
    let base = ["eval", path(&file), "--subject", "reference", "--out", path(&out)];
    let run = conform(&base);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("--case down, up, refused"), "{}", run.stderr);
    let run = conform(&[&base[..], &["--case", "left"]].concat());
    assert_eq!((run.code, out.exists()), (2, false), "{}", run.stderr);
    let run = conform(&[&base[..], &["--case", "refused"]].concat());
    assert_eq!((run.code, out.exists()), (2, false));
    assert!(run.stderr.contains("weight[0, 1]"), "{}", run.stderr);

    let run = conform(&[&base[..], &["--case", "up", "--precision", "f32"]].concat());
    assert_eq!((run.code, run.stdout.as_str()), (0, ""), "{}", run.stderr);
    let answer = read(&out);
    assert_eq!(answer.tensors.keys().collect::<Vec<_>>(), ["out.codes", "out.output"]);
    assert_eq!(answer.tensors["out.codes"].data(), &Data::I8(vec![2, -2]));
    assert_eq!(answer.tensors["out.output"].data(), &Data::F32(vec![1.0, -1.0]));
    assert_eq!(answer.metadata["format"], "plumbline-case-1");
    assert_eq!(answer.metadata["op"], "fake_quantize.forward");
    assert_eq!(answer.metadata["params"], r#"{"bits":4}"#);
    assert_eq!(answer.metadata["origin"], "reference f32");

    let run = conform(&[&base[..], &["--case", "up", "--precision", "f64"]].concat());
    assert_eq!(run.code, 0);
    assert_eq!(read(&out).tensors["out.output"].data(), &Data::F64(vec![1.0, -1.0]));
}

#[test]
fn generated_cases_are_the_same_for_a_seed_and_conform() {
    let folder = tempfile::tempdir().unwrap();
    let generate = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let run = conform(&[&["generate", "--out", path(&out), "--count", "3"], more].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        out
    };
    let all = generate("all", &["--seed", "7"]);
    let files = std::fs::read_dir(&all).unwrap().count();
    assert_eq!(files, 3 * OPERATIONS.len());
    let some = generate("some", &["--seed", "7", "--op", "l4q.merge", "--op", "rope.forward"]);
    let names: Vec<_> =
        std::fs::read_dir(&some).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 6);
    for name in &names {
        assert_eq!(std::fs::read(some.join(name)).unwrap(), std::fs::read(all.join(name)).unwrap());
        assert!(read(&some.join(name)).metadata["note"].contains("seed 7"));
    }
    let other = generate("other", &["--seed", "8", "--op", "l4q.merge"]);
    let first = |folder: &Path, seed: u8| {
        read(&folder.join(format!("l4q.merge-seed{seed}-000.safetensors"))).tensors
    };
    assert_ne!(first(&all, 7), first(&other, 8));

    for precision in ["f32", "f64"] {
        let report = folder.path().join(format!("report-{precision}"));
        let args = ["check", path(&all), "--subject", "reference", "--precision", precision];
        let run = conform(&[&args[..], &["--report", path(&report)]].concat());
        assert_eq!(run.code, 0, "{}", run.stdout);
        let lines = std::fs::read_to_string(report.join("cases.jsonl")).unwrap();
        assert_eq!(lines.lines().count(), files);
        for line in lines.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["status"], "pass");
            assert!(record["note"].as_str().unwrap().contains("seed 7"));
            assert!(!record["tensors"].as_array().unwrap().is_empty());
        }
    }
}

#[test]
fn a_damaged_generated_case_fails_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["generate", "--out", path(folder.path()), "--count", "1", "--op", "lora.backward"];
    assert_eq!(conform(&args).code, 0);
    let file = folder.path().join("lora.backward-seed0-000.safetensors");
    let mut case = read(&file);
    if let Data::F64(values) = case.tensors.get_mut("out.d_lora_b").unwrap().data_mut() {
        values[0] += 1e-3;
    }
    container::write(&file, &case).unwrap();
    let args = ["check", path(&file), "--subject", "reference", "--precision", "f32", "--json"];
    let run = conform(&args);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["counts"]["fail"], 1);
    let record = &report["cases"][0];
    assert_eq!(record["id"], "lora.backward-seed0-000");
    assert_eq!(record["status"], "fail");
    assert!(record["note"].as_str().unwrap().contains("seed 0"));
    let failure = &record["failures"][0];
    assert_eq!(failure["tensor"], "d_lora_b");
    assert_eq!(failure["mismatches"][0]["index"], serde_json::json!([0, 0]));
    assert!(failure["mismatches"][0]["bound"].as_f64().unwrap() < 1e-4);
}

#[test]
fn list_shows_every_operation() {
    let text = conform(&["list"]);
    let json = conform(&["list", "--json"]);
    assert_eq!((text.code, json.code), (0, 0));
    let listed: Value = serde_json::from_str(&json.stdout).unwrap();
    let listed = listed["operations"].as_array().unwrap();
    assert_eq!(listed.len(), OPERATIONS.len());
    for (op, listed) in OPERATIONS.iter().zip(listed) {
        assert!(text.stdout.contains(op.name), "{}", op.name);
        assert_eq!(listed["op"], op.name);
        assert_eq!(listed["subjects"]["reference"], serde_json::json!(["f64", "f32"]));
        assert_eq!(listed["params"].as_array().unwrap().len(), op.params.len());
    }
}
