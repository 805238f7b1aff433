//! JUnit XML: a suite for each operation, so that a build server shows which case failed and why.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Record, Run, escaped};

/// The document.
pub(super) fn page(records: &[Record], run: &Run) -> String {
    let mut suites: BTreeMap<(&str, &str, &str), Vec<&Record>> = BTreeMap::new();
    for record in records {
        let suite = (record.op.as_str(), record.subject.as_str(), record.precision.as_str());
        suites.entry(suite).or_default().push(record);
    }
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for ((op, subject, precision), cases) in suites {
        let count = |status: &str| cases.iter().filter(|case| case.status == status).count();
        let seconds: f64 = cases.iter().map(|case| case.seconds).sum();
        let name = escaped(&format!("{op} {subject} {precision}"));
        let (tests, failures, skipped) = (cases.len(), count("fail"), count("skip"));
        _ = writeln!(
            out,
            "  <testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\" \
             skipped=\"{skipped}\" time=\"{seconds:.6}\">"
        );
        for case in cases {
            testcase(&mut out, case, &name);
        }
        out.push_str("  </testsuite>\n");
    }
    whole_run(&mut out, run);
    out.push_str("</testsuites>\n");
    out
}

/// A test for each output, over all of its cases.
fn whole_run(out: &mut String, run: &Run) {
    let name = escaped(&format!("whole run {} {}", run.subject, run.precision));
    let failures = run.outputs.iter().filter(|output| !output.findings.is_empty()).count();
    let tests = run.outputs.len();
    _ = writeln!(
        out,
        "  <testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\" skipped=\"0\">"
    );
    for output in &run.outputs {
        let id = escaped(&format!("{} {}", output.op, output.tensor));
        _ = write!(out, "    <testcase classname=\"{name}\" name=\"{id}\"");
        if output.findings.is_empty() {
            out.push_str("/>\n");
        } else {
            let text = escaped(&output.findings.join("; "));
            _ = writeln!(out, "><failure message=\"{text}\"/></testcase>");
        }
    }
    out.push_str("  </testsuite>\n");
}

fn testcase(out: &mut String, case: &Record, suite: &str) {
    let (id, seconds) = (escaped(&case.id), case.seconds);
    _ = write!(out, "    <testcase classname=\"{suite}\" name=\"{id}\" time=\"{seconds:.6}\"");
    match case.status.as_str() {
        "fail" => {
            let reasons: Vec<_> = case.failures.iter().map(ToString::to_string).collect();
            let first = reasons.first().and_then(|reason| reason.lines().next()).unwrap_or("");
            let note = case.note.as_deref().map(|note| format!("{note}\n")).unwrap_or_default();
            let text = escaped(&format!("{}\n{note}{}", case.file, reasons.join("\n")));
            let first = escaped(first);
            _ = writeln!(
                out,
                ">\n      <failure message=\"{first}\">{text}</failure>\n    </testcase>"
            );
        }
        "skip" => {
            let why = escaped(case.why.as_deref().unwrap_or_default());
            _ = writeln!(out, "><skipped message=\"{why}\"/></testcase>");
        }
        _ => out.push_str("/>\n"),
    }
}
