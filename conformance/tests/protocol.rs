//! docs/case_protocol.md lists the operations, parameters and tensors of the registry.

use plumbline_conformance::ops::{OPERATIONS, Operation, TensorSpec};

fn document() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/case_protocol.md"))
        .unwrap()
}

fn names(specs: &[TensorSpec]) -> String {
    let name =
        |spec: &TensorSpec| format!("`{}{}`", spec.name, if spec.optional { "?" } else { "" });
    specs.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn row(op: &Operation) -> String {
    let params: Vec<_> = op.params.iter().map(|param| format!("`{param}`")).collect();
    let (inputs, outputs) = (names(op.inputs), names(op.outputs));
    format!("| `{}` | {} | {inputs} | {outputs} |", op.name, params.join(", "))
}

#[test]
fn the_table_is_the_registry() {
    let expected: Vec<_> = OPERATIONS.iter().map(|op| row(op)).collect();
    let document = document();
    let (_, section) = document.split_once("\n## Operations\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(rows, expected, "the rows should be\n{}", expected.join("\n"));
}

#[test]
fn every_parameter_is_explained() {
    let document = document();
    let (_, section) = document.split_once("\n## Parameters\n").unwrap();
    let explained: String = section.lines().filter_map(|line| line.split('|').nth(1)).collect();
    for op in OPERATIONS.iter() {
        for param in op.params {
            assert!(explained.contains(&format!("`{param}`")), "{param} of {}", op.name);
        }
    }
}
