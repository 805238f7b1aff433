//! Every equation of docs/spec.md stands in all of its places: a function of the reference that
//! cites it, a property that tests it, an operation of the registry that judges it, and golden
//! vectors of that operation. And every operation belongs to an equation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use plumbline_conformance::ops::OPERATIONS;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Rust file below a folder.
fn sources(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(std::fs::read_to_string(path).unwrap());
        }
    }
    found
}

/// The labels of a text, `Q4` for `(Q4)`, `(Q4b)` and `(Q4, rule lp)`.
fn labels(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in text.split('(').skip(1) {
        let letter: String = rest.chars().take(1).filter(char::is_ascii_uppercase).collect();
        let number: String = rest.chars().skip(1).take_while(char::is_ascii_digit).collect();
        if !letter.is_empty() && !number.is_empty() {
            found.insert(letter + &number);
        }
    }
    found
}

/// The labels in the lines that contain `marker`, from the marker on.
fn marked(sources: &[String], marker: &str) -> BTreeSet<String> {
    let lines = sources.iter().flat_map(|source| source.lines());
    lines.filter_map(|line| line.split_once(marker)).flat_map(|(_, rest)| labels(rest)).collect()
}

/// The operations that judge each equation, as its section says.
fn equations() -> BTreeMap<String, Vec<String>> {
    let spec = std::fs::read_to_string(root().join("docs/spec.md")).unwrap();
    let mut found = BTreeMap::new();
    for section in spec.split("\n### ").skip(1) {
        let section = section.split("\n## ").next().unwrap();
        let label = labels(section.lines().next().unwrap()).pop_first().expect("a label");
        let (_, judged) = section.split_once("\nJudged by. ").unwrap_or_default();
        let judged = judged.split("\n\n").next().unwrap_or_default();
        let operations: Vec<_> = judged.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(found.insert(label.clone(), operations).is_none(), "({label}) stands twice");
    }
    assert!(found.len() > 20, "the sections were found");
    found
}

/// Operations that have golden vectors.
fn golden() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("golden/MANIFEST.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let files = manifest["file"].as_array().unwrap();
    files.iter().map(|file| file["op"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_equation_stands_in_every_place() {
    let functions = marked(&sources(&root().join("reference/src")), "Eq. ");
    let tests = sources(&root().join("reference/tests"));
    let properties = marked(&tests, "Property of ");
    let registered: BTreeSet<_> = OPERATIONS.iter().map(|op| op.name.to_owned()).collect();
    let golden = golden();
    let mut missing = Vec::new();
    for (label, operations) in equations() {
        if !functions.contains(&label) {
            missing.push(format!("({label}) has no function in reference/src"));
        }
        if !properties.contains(&label) {
            missing.push(format!("({label}) has no property in reference/tests"));
        }
        if operations.is_empty() {
            missing.push(format!("({label}) is judged by no operation"));
        }
        for operation in operations {
            if !registered.contains(&operation) {
                missing.push(format!("({label}): {operation} is not in the registry"));
            }
            if !golden.contains(&operation) {
                missing.push(format!("({label}): {operation} has no golden vector"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_operation_belongs_to_an_equation() {
    let judging: BTreeSet<String> = equations().into_values().flatten().collect();
    for op in OPERATIONS.iter() {
        assert!(judging.contains(op.name), "{} is named by no equation of docs/spec.md", op.name);
    }
}

#[test]
fn labels_are_read_from_prose() {
    let found = labels("of (Q1), (N4b) and (M12) C1, not (see f(x)) nor (T)");
    assert_eq!(found, ["M12", "N4", "Q1"].map(str::to_owned).into());
}
