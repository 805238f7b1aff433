//! `conform properties`: exit codes, what it prints, and that a violation can be repeated.

use assert_cmd::Command;
use plumbline_conformance::metamorphic::PROPERTIES;
use serde_json::Value;
use std::process::Output;

fn properties(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("conform").unwrap();
    let Output { status, stdout, stderr } =
        command.arg("properties").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn a_subject_that_holds_them_ends_with_0() {
    let only = ["--only", "idempotent", "--only", "causal", "--count", "3", "--one-order"];
    let (code, stdout, _) = properties(&[&["--subject", "cpu"], &only[..]].concat());
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("pass idempotent"), "{stdout}");
    assert!(stdout.ends_with("cpu f32: 12 passed, 0 failed, 0 skipped\n"), "{stdout}");
}

#[test]
fn a_violation_ends_with_1_and_comes_again() {
    let run = |rest: &[&str]| properties(&[&["--subject", "mutant:sees_one_ahead"], rest].concat());
    let (code, stdout, _) = run(&["--seed", "3", "--count", "9"]);
    assert_eq!(code, Some(1), "{stdout}");
    let violation = |stdout: &str| {
        let mut lines = stdout.lines().skip_while(|line| !line.starts_with("fail causal"));
        let lines: Vec<_> = lines.by_ref().take(4).map(str::to_owned).collect();
        (lines[2].clone(), lines[3].clone())
    };
    let (what, again) = violation(&stdout);
    assert!(what.contains("(0x") && what.contains("the property says"), "{what}");
    let arguments = again.trim().strip_prefix("again: ").unwrap();
    let (code, stdout, _) = run(&arguments.split(' ').collect::<Vec<_>>());
    assert_eq!((code, violation(&stdout)), (Some(1), (what, again)));
}

#[test]
fn bad_use_ends_with_2_and_names_what_is_wrong() {
    for (arguments, message) in [
        (&["--subject", "cpu", "--only", "causl"][..], "there is no property \"causl\""),
        (&["--only", "causal"], "--subject <SUBJECT>"),
        (&["--subject", "gpu"], "subject is \"gpu\""),
        (&["--subject", "cpu", "--precision", "f64"], "does not compute in f64"),
        (&["--subject", "cpu", "--count", "0"], "--count"),
        (&["--subject", "cpu", "--size", "1"], "--size"),
        (&["--subject", "cpu", "--repeats", "1"], "--repeats"),
    ] {
        let (code, _, stderr) = properties(arguments);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
}

#[test]
fn the_object_counts_what_was_compared() {
    let arguments = ["--subject", "mutant:floor", "--only", "negation", "--count", "4", "--json"];
    let (code, stdout, _) = properties(&arguments);
    assert_eq!(code, Some(1));
    let object: Value = serde_json::from_str(&stdout).unwrap();
    let row = &object["properties"][0];
    assert_eq!(row["name"], "negation");
    assert_eq!(object["counts"]["fail"], row["failed"]);
    assert!(row["compared"].as_u64().unwrap() > 0 && row["skipped"].as_u64().unwrap() > 0);
    let violation = &row["first"]["violation"];
    assert_eq!(
        (&violation["op"], &violation["allowed"]),
        (&"fake_quantize.forward".into(), &0.0.into())
    );
    assert_eq!(violation["index"].as_array().unwrap().len(), 2);
}

#[test]
fn the_list_and_the_page_have_every_property() {
    let (code, stdout, _) = properties(&["--list"]);
    let names = || PROPERTIES.iter().map(|property| property.name);
    assert_eq!(code, Some(0));
    let listed = stdout.lines().map(|line| line.split_whitespace().next().unwrap());
    assert!(listed.eq(names()), "{stdout}");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/properties.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, table) = page.split_once("\n## The table\n").unwrap();
    let table = table.split("\n## ").next().unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(rows.collect::<Vec<_>>(), names().collect::<Vec<_>>());
}
