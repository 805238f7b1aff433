//! The documentation of the functions and `docs/spec.md` say the same.

use std::collections::BTreeSet;
use std::path::Path;

/// Every source file of the crate.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(std::fs::read_to_string(path).unwrap());
        }
    }
}

fn all_sources() -> Vec<String> {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

fn spec() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/spec.md");
    std::fs::read_to_string(path).unwrap()
}

/// The trimmed lines inside fenced text blocks, of comments where `prefix` says so.
fn formulas(text: &str, prefix: &str) -> Vec<String> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let Some(line) = line.trim_start().strip_prefix(prefix) else {
            inside = false;
            continue;
        };
        match line.trim() {
            "```text" => inside = true,
            fence if fence.starts_with("```") => inside = false,
            formula if inside => lines.push(formula.to_owned()),
            _ => {}
        }
    }
    lines
}

/// The labels behind `before`, as in `Eq. (Q4).`
fn labels<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
    text.split(before)
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(label, _)| label))
        .collect()
}

#[test]
fn every_formula_of_the_code_is_in_the_specification_and_back() {
    let code: BTreeSet<String> =
        all_sources().iter().flat_map(|source| formulas(source, "///")).collect();
    let text: BTreeSet<String> = formulas(&spec(), "").into_iter().collect();
    assert!(text.len() > 50, "the formulas were found");
    let only_in_code: Vec<_> = code.difference(&text).collect();
    let only_in_text: Vec<_> = text.difference(&code).collect();
    assert!(
        only_in_code.is_empty() && only_in_text.is_empty(),
        "{only_in_code:#?} {only_in_text:#?}"
    );
}

#[test]
fn every_equation_is_cited_and_every_citation_has_its_equation() {
    let spec = spec();
    let equations = labels(&spec, "\n### (");
    assert!(equations.len() > 20, "the headings were found");
    let parts = labels(&spec, "\n- (");
    let lettered = labels(&spec, ". (");
    let sources = all_sources();
    let cited: BTreeSet<&str> = sources.iter().flat_map(|source| labels(source, "Eq. (")).collect();
    for label in &cited {
        let known = [&equations, &parts, &lettered].iter().any(|known| known.contains(label));
        assert!(known, "Eq. ({label}) is not in docs/spec.md");
    }
    for equation in equations {
        let is_cited =
            cited.iter().any(|label| label.trim_end_matches(char::is_lowercase) == equation);
        assert!(is_cited, "({equation}) has no function");
    }
}

#[test]
fn every_section_has_every_part() {
    let spec = spec();
    for section in spec.split("\n### ").skip(1) {
        let section = section.split("\n## ").next().unwrap();
        let name = section.lines().next().unwrap();
        for part in [
            "Meaning.",
            "Formula.",
            "Shapes.",
            "Constraints",
            "Rounding.",
            "Example.",
            "Judged by.",
        ] {
            assert!(section.contains(&format!("\n{part}")), "{name} has no {part}");
        }
    }
}
