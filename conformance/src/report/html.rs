//! One page that needs nothing else: no script, no other file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::{Record, Run, TensorRecord, escaped};
use crate::ops::OPERATIONS;

/// Failing cases shown in full for one operation and subject; the JSON lines have all.
const SHOWN: usize = 20;

/// Who was judged: subject and precision.
type Who<'a> = (&'a str, &'a str);

/// The document.
pub(super) fn page(records: &[Record], runs: &[Run]) -> String {
    let everyone: BTreeSet<Who> = records.iter().map(who).collect();
    let judged: BTreeSet<&str> = records.iter().map(|record| record.op.as_str()).collect();
    let operations: Vec<&str> =
        OPERATIONS.iter().map(|op| op.name).filter(|name| judged.contains(name)).collect();
    let builds: BTreeSet<&str> = records.iter().map(|record| record.build.as_str()).collect();
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Conformance</title>\n<style>\n{}</style>\n</head>\n<body>\n\
         <h1>Conformance</h1>\n<p>{} cases, judged by {}.</p>\n",
        include_str!("page.css"),
        records.len(),
        escaped(&builds.into_iter().collect::<Vec<_>>().join(", ")),
    );
    legend(&mut out);
    matrix(&mut out, records, &everyone, &operations);
    for run in runs {
        whole_run(&mut out, run);
    }
    for op in operations {
        _ = writeln!(out, "<h2 id=\"{0}\">{0}</h2>", escaped(op));
        for &one in &everyone {
            let cases: Vec<_> =
                records.iter().filter(|case| case.op == op && who(case) == one).collect();
            section(&mut out, one, &cases);
        }
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn who(record: &Record) -> Who<'_> {
    (&record.subject, &record.precision)
}

fn legend(out: &mut String) {
    out.push_str(
        "<p class=\"legend\"><span class=\"exact\">exact</span><span class=\"far\">up to 1/4\
         </span><span class=\"near\">up to 1/2</span><span class=\"close\">up to 1</span>\
         <span class=\"fail\">beyond, or wrong</span><span class=\"skip\">skipped</span>\
         A number is the largest difference over its allowance, which is derived from the case's \
         own data.</p>\n",
    );
}

/// The worst of some cases.
struct Summary {
    failed: usize,
    skipped: usize,
    cases: usize,
    worst: f64,
}

impl Summary {
    fn of<'a>(cases: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut summary = Self { failed: 0, skipped: 0, cases: 0, worst: 0.0 };
        for case in cases {
            summary.cases += 1;
            summary.failed += usize::from(case.status == "fail");
            summary.skipped += usize::from(case.status == "skip");
            summary.worst = case.tensors.iter().map(ratio).fold(summary.worst, f64::max);
        }
        summary
    }

    fn class(&self) -> &'static str {
        if self.failed > 0 {
            return "fail";
        }
        if self.skipped == self.cases {
            return "skip";
        }
        match self.worst {
            0.0 => "exact",
            worst if worst <= 0.25 => "far",
            worst if worst <= 0.5 => "near",
            _ => "close",
        }
    }

    fn text(&self) -> String {
        match self.class() {
            "fail" => format!("{} of {} fail", self.failed, self.cases),
            "skip" => "skipped".to_owned(),
            "exact" => "0".to_owned(),
            _ if self.worst < 0.005 => "&lt; 0.01".to_owned(),
            _ => format!("{:.2}", self.worst),
        }
    }
}

fn ratio(tensor: &TensorRecord) -> f64 {
    tensor.worst_ratio.unwrap_or(f64::INFINITY)
}

fn matrix(out: &mut String, records: &[Record], everyone: &BTreeSet<Who>, operations: &[&str]) {
    out.push_str("<div class=\"wide\"><table>\n<tr><th>operation</th>");
    for (subject, precision) in everyone {
        _ = write!(out, "<th>{} {}</th>", escaped(subject), escaped(precision));
    }
    out.push_str("</tr>\n");
    for op in operations {
        _ = write!(out, "<tr><th><a href=\"#{0}\">{0}</a></th>", escaped(op));
        for &one in everyone {
            let cases: Vec<_> =
                records.iter().filter(|case| case.op == *op && who(case) == one).collect();
            if cases.is_empty() {
                out.push_str("<td></td>");
                continue;
            }
            let summary = Summary::of(cases);
            let (class, text, op) = (summary.class(), summary.text(), escaped(op));
            _ = write!(out, "<td class=\"cell {class}\"><a href=\"#{op}\">{text}</a></td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

/// What only all cases together show; the numbers behind it are folded away.
fn whole_run(out: &mut String, run: &Run) {
    let (subject, precision) = (escaped(&run.subject), escaped(&run.precision));
    _ = writeln!(out, "<h2>Over the whole run: {subject} {precision}</h2>");
    let mut sound = true;
    for output in &run.outputs {
        for finding in &output.findings {
            sound = false;
            let name = escaped(&format!("{} {}", output.op, output.tensor));
            _ = writeln!(
                out,
                "<p><span class=\"cell fail\">{name}</span> {}</p>",
                escaped(finding)
            );
        }
    }
    if sound {
        out.push_str("<p>No output leans to one side or is rougher than it should be.</p>\n");
    }
    out.push_str(
        "<details class=\"plain\"><summary>Root mean squares and means of differences over \
         allowances</summary><div class=\"wide\"><table>\n<tr><th>output</th><th>cases</th>\
         <th>zero</th><th>rms</th><th>reference</th><th>upwards</th><th>&plusmn;</th>\
         <th>outwards</th><th>&plusmn;</th>\
         <th>flips</th></tr>\n",
    );
    for output in &run.outputs {
        let reference = output.reference.map(|rms| format!("{rms:.1e}")).unwrap_or_default();
        let flips = match output.open {
            0 => String::new(),
            open => format!("{} up, {} of {open}", output.upwards, output.flips),
        };
        _ = writeln!(
            out,
            "<tr><td>{} {}</td><td class=\"number\">{}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{:.1e}</td><td class=\"number\">{reference}</td>\
             <td class=\"number\">{:.1e}</td><td class=\"number\">{:.1e}</td>\
             <td class=\"number\">{:.1e}</td><td class=\"number\">{:.1e}</td>\
             <td class=\"number\">{flips}</td></tr>",
            escaped(&output.op),
            escaped(&output.tensor),
            output.cases,
            output.empty,
            output.deviation,
            output.upward.mean,
            output.upward.error,
            output.outward.mean,
            output.outward.error,
        );
    }
    out.push_str("</table></div></details>\n");
}

fn section(out: &mut String, (subject, precision): Who, cases: &[&Record]) {
    if cases.is_empty() {
        return;
    }
    _ = writeln!(out, "<h3>{} {}</h3>", escaped(subject), escaped(precision));
    let skips: BTreeSet<&str> = cases.iter().filter_map(|case| case.why.as_deref()).collect();
    for why in skips {
        _ = writeln!(out, "<p>Skipped: {}</p>", escaped(why));
    }
    grid(out, cases);
    tensors(out, cases);
    let failing: Vec<_> = cases.iter().filter(|case| case.status == "fail").collect();
    for case in failing.iter().take(SHOWN) {
        failure(out, case);
    }
    if failing.len() > SHOWN {
        let rest = failing.len() - SHOWN;
        _ = writeln!(out, "<p>and {rest} more in cases.jsonl</p>");
    }
}

/// Width of the codes against group size, for operations that have them.
fn grid(out: &mut String, cases: &[&Record]) {
    let mut cells: BTreeMap<(u64, Option<u64>), Vec<&Record>> = BTreeMap::new();
    for case in cases {
        if let Some(bits) = case.params["bits"].as_u64() {
            cells.entry((bits, case.params["group_size"].as_u64())).or_default().push(case);
        }
    }
    if cells.is_empty() {
        return;
    }
    let groups: BTreeSet<_> = cells.keys().map(|(_, group)| *group).collect();
    let widths: BTreeSet<_> = cells.keys().map(|(bits, _)| *bits).collect();
    out.push_str("<div class=\"wide\"><table>\n<tr><th>bits</th>");
    for group in &groups {
        let name = group.map_or("per row".to_owned(), |group| format!("group {group}"));
        _ = write!(out, "<th>{name}</th>");
    }
    out.push_str("</tr>\n");
    for bits in widths {
        _ = write!(out, "<tr><th>{bits}</th>");
        for group in &groups {
            match cells.get(&(bits, *group)) {
                None => out.push_str("<td></td>"),
                Some(cases) => {
                    let summary = Summary::of(cases.iter().copied());
                    let (class, text) = (summary.class(), summary.text());
                    _ = write!(out, "<td class=\"cell {class}\">{text}</td>");
                }
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

/// One row an output: how close it came, and how its elements are spread.
fn tensors(out: &mut String, cases: &[&Record]) {
    let mut by_name: BTreeMap<&str, Vec<&TensorRecord>> = BTreeMap::new();
    for tensor in cases.iter().flat_map(|case| &case.tensors) {
        by_name.entry(&tensor.tensor).or_default().push(tensor);
    }
    if by_name.is_empty() {
        return;
    }
    out.push_str(
        "<div class=\"wide\"><table>\n<tr><th>output</th><th>class</th><th>elements</th>\
         <th>worst</th><th>open</th><th>flips</th><th>equal &hellip; 2<sup>-9</sup> &hellip; 1 \
         &hellip;</th></tr>\n",
    );
    for (name, records) in by_name {
        let sum = |count: fn(&TensorRecord) -> usize| -> usize {
            records.iter().map(|record| count(record)).sum()
        };
        let worst = records.iter().map(|record| ratio(record)).fold(0.0, f64::max);
        let mut histogram = vec![0; records[0].histogram.len()];
        for record in &records {
            for (total, count) in histogram.iter_mut().zip(&record.histogram) {
                *total += count;
            }
        }
        _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}</td></tr>",
            escaped(name),
            escaped(&records[0].class),
            sum(|record| record.elements),
            if worst.is_finite() { format!("{worst:.3}") } else { "no allowance".to_owned() },
            sum(|record| record.open),
            sum(|record| record.flips),
            bars(&histogram),
        );
    }
    out.push_str("</table></div>\n");
}

/// A bar for each bin, its height the logarithm of the count, so that one element is seen.
fn bars(histogram: &[usize]) -> String {
    const WIDTH: usize = 9;
    const HEIGHT: f64 = 24.0;
    let largest = histogram.iter().max().copied().unwrap_or(0).max(1) as f64;
    let mut out = format!(
        "<svg width=\"{0}\" height=\"{HEIGHT}\" viewBox=\"0 0 {0} {HEIGHT}\" role=\"img\" \
         aria-label=\"{1}\">",
        histogram.len() * WIDTH,
        histogram.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    );
    for (bin, &count) in histogram.iter().enumerate().filter(|(_, count)| **count > 0) {
        let height = HEIGHT * (1.0 + count as f64).ln() / (1.0 + largest).ln();
        _ = write!(
            out,
            "<rect x=\"{}\" y=\"{:.1}\" width=\"{}\" height=\"{height:.1}\"><title>{count}</title>\
             </rect>",
            bin * WIDTH,
            HEIGHT - height,
            WIDTH - 1,
        );
    }
    out.push_str("</svg>");
    out
}

fn failure(out: &mut String, case: &Record) {
    let reasons: Vec<_> = case.failures.iter().map(ToString::to_string).collect();
    let note = case.note.as_deref().map(|note| format!(" &ndash; {}", escaped(note)));
    _ = writeln!(
        out,
        "<details open><summary>{}{}</summary>\n<pre>{}\nparams {}\n{}</pre></details>",
        escaped(&case.id),
        note.unwrap_or_default(),
        escaped(&case.file),
        escaped(&case.params.to_string()),
        escaped(&reasons.join("\n")),
    );
}
