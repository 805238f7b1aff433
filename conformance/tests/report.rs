//! What `check --report` leaves behind, and the page over several runs.

use std::path::Path;
use std::process::Command;

const CASES: &str = r#"
format = "plumbline-case-1"
op = "fake_quantize.forward"
[notes.tie]
catches = "round half away from zero, or <b>towards</b> it"
[[case]]
id = "right"
flags = ["tie"]
params = { bits = 4 }
in.weight = [[1.25, -1.25]]
in.scale = [[0.5]]
in.offset = [[0.0]]
out.codes = [[2, -2]]
out.output = [[1.0, -1.0]]
[[case]]
id = "wrong"
flags = ["tie"]
params = { bits = 3, group_size = 2 }
in.weight = [[0.75, -0.75]]
in.scale = [[0.5]]
in.offset = [[0.0]]
out.codes = [[2, -1]]
out.output = [[1.0, -1.0]]
"#;

fn conform(folder: &Path, args: &[&str]) -> Option<i32> {
    let run = Command::new(env!("CARGO_BIN_EXE_conform")).current_dir(folder).args(args).output();
    run.unwrap().status.code()
}

fn read(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let text = text.replace(std::env::consts::ARCH, "PROCESSOR");
    text.replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

#[test]
fn a_run_leaves_lines_a_suite_and_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::write(root.join("cases.toml"), CASES).unwrap();
    for (subject, run) in [("reference", "one"), ("cpu", "two")] {
        let args = ["check", "cases.toml", "--subject", subject, "--report", run];
        assert_eq!(conform(root, &args), Some(1));
    }

    let lines = read(&root.join("one/cases.jsonl"));
    let records: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0]["status"], "pass");
    assert_eq!(records[0]["tensors"][0]["class"], "codes");
    assert_eq!(records[1]["failures"][0]["mismatches"][0]["index"], serde_json::json!([0, 1]));

    let suite = read(&root.join("one/junit.xml"));
    let untimed: Vec<_> = suite.split(" time=\"").collect();
    let untimed = untimed.iter().map(|part| part.split_once('"').map_or(*part, |(_, rest)| rest));
    assert!(suite.contains("&lt;b&gt;towards&lt;/b&gt;") && !suite.contains("<b>"));
    assert_eq!(untimed.count(), 1 + 1 + 2, "one suite and two cases are timed");
    assert!(suite.contains("failures=\"1\" skipped=\"0\""));

    assert_eq!(conform(root, &["report", "one", "two", "--out", "page.html"]), Some(0));
    let page = read(&root.join("page.html"));
    let (_, body) = page.split_once("</head>").unwrap();
    insta::assert_snapshot!(body);
}

#[test]
fn a_line_that_is_no_record_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::create_dir(root.join("run")).unwrap();
    std::fs::write(root.join("run/cases.jsonl"), "{\"op\": 3}\n").unwrap();
    assert_eq!(conform(root, &["report", "run", "--out", "page.html"]), Some(2));
    assert_eq!(conform(root, &["report", "absent", "--out", "page.html"]), Some(2));
    assert!(!root.join("page.html").exists());
}
