//! What is told of runs: one run on a page that needs nothing beside it, `report.html`, and several
//! methods in one table.

mod chart;
pub mod comparison;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use self::chart::{Series, chart, short, sparkline};
use crate::error::{Error, Result};
use crate::train::{METRICS, RECIPE, SESSIONS, Session, read_sessions};

/// The page of a run, from the files in its folder; a run that goes on may be read too.
///
/// # Errors
/// `Io` and `File` naming the file.
pub fn page(run: &Path) -> Result<String> {
    let metrics = Metrics::read(&run.join(METRICS))?;
    let recipe_path = run.join(RECIPE);
    let recipe = std::fs::read_to_string(&recipe_path).map_err(Error::io(&recipe_path, "read"))?;
    let sessions = read_sessions(&run.join(SESSIONS))?;
    let name = run.file_name().unwrap_or(run.as_os_str()).to_string_lossy();
    let title = escaped(&name);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
        include_str!("page.css"),
    );
    summary(&mut out, &metrics);
    out.push_str(&chart("Loss", "nats a token, over steps", &[metrics.of_steps("loss")]));
    out.push_str(&chart("Perplexity", "of each file, over steps", &metrics.perplexity()));
    out.push_str(&chart("Learning rate", "over steps", &[metrics.of_steps("learning_rate")]));
    let norm = metrics.of_steps("grad_norm");
    out.push_str(&chart("Gradient norm", "before clipping, over steps", &[norm]));
    let speed = metrics.of_steps("tokens_per_second");
    out.push_str(&chart("Speed", "tokens a second, over steps", &[speed]));
    layers(&mut out, &metrics);
    _ = writeln!(out, "<h2>Recipe</h2>\n<pre>{}</pre>", escaped(&recipe));
    environment(&mut out, &sessions);
    out.push_str("</body>\n</html>\n");
    Ok(out)
}

/// The lines of `metrics.jsonl` by what they are about.
struct Metrics {
    steps: Vec<Value>,
    evaluations: Vec<Value>,
    layers: Vec<Value>,
}

impl Metrics {
    /// A last line that is still being written is left out.
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let mut metrics = Self { steps: vec![], evaluations: vec![], layers: vec![] };
        for (index, line) in text.split_inclusive('\n').enumerate() {
            if !line.ends_with('\n') {
                continue;
            }
            let value: Value = serde_json::from_str(line)
                .map_err(|error| Error::file(path, format!("line {}: {error}", index + 1)))?;
            let kind = if value.get("layer").is_some() {
                &mut metrics.layers
            } else if value.get("perplexity").is_some() {
                &mut metrics.evaluations
            } else {
                &mut metrics.steps
            };
            kind.push(value);
        }
        Ok(metrics)
    }

    fn of_steps(&self, field: &str) -> Series {
        Series { name: field.into(), points: points(self.steps.iter(), field) }
    }

    fn perplexity(&self) -> Vec<Series> {
        let mut by_text: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for value in &self.evaluations {
            by_text.entry(value["text"].as_str().unwrap_or_default()).or_default().push(value);
        }
        let series = |(text, values): (&str, Vec<&Value>)| Series {
            name: text.into(),
            points: points(values.into_iter(), "perplexity"),
        };
        by_text.into_iter().map(series).collect()
    }

    /// Lines of each layer, in the order of the model.
    fn by_layer(&self) -> Vec<(&str, Vec<&Value>)> {
        let mut all: Vec<(&str, Vec<&Value>)> = Vec::new();
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for value in &self.layers {
            let name = value["layer"].as_str().unwrap_or_default();
            let place = *places.entry(name).or_insert(all.len());
            if place == all.len() {
                all.push((name, Vec::new()));
            }
            all[place].1.push(value);
        }
        all
    }
}

/// Step and value of one field; a step that was skipped has none.
fn points<'a>(values: impl Iterator<Item = &'a Value>, field: &str) -> Vec<(f64, f64)> {
    let point = |value: &Value| Some((value["step"].as_f64()?, value[field].as_f64()?));
    values.filter_map(point).collect()
}

fn summary(out: &mut String, metrics: &Metrics) {
    let Some(last) = metrics.steps.last() else {
        out.push_str("<p>No step is done yet.</p>\n");
        return;
    };
    let number = |field: &str| last[field].as_f64().map_or("none".to_owned(), short);
    let skipped = metrics.steps.iter().filter(|step| step.get("skipped").is_some()).count();
    let mut rows = vec![
        ("Steps".to_owned(), last["step"].to_string()),
        ("Tokens".to_owned(), last["tokens"].to_string()),
        ("Time".to_owned(), format!("{} s", number("seconds"))),
        ("Last loss".to_owned(), format!("{} nats", number("loss"))),
    ];
    for Series { name, points } in metrics.perplexity() {
        let ends = points.first().zip(points.last());
        if let Some((first, last)) = ends {
            let best = points.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(last);
            let text = format!(
                "{} at step {}, {} at step {}; best {} at step {}",
                short(first.1),
                first.0,
                short(last.1),
                last.0,
                short(best.1),
                best.0
            );
            rows.push((format!("Perplexity of {name}"), text));
        }
    }
    if skipped > 0 {
        rows.push(("Skipped steps".into(), skipped.to_string()));
    }
    table(out, &rows);
    for step in metrics.steps.iter().filter(|step| step.get("skipped").is_some()).take(20) {
        let reason = escaped(step["skipped"].as_str().unwrap_or_default());
        _ = writeln!(out, "<p class=\"bad\">Step {} was skipped: {reason}</p>", step["step"]);
    }
}

fn table(out: &mut String, rows: &[(String, String)]) {
    out.push_str("<table class=\"facts\">\n");
    for (name, value) in rows {
        _ = writeln!(out, "<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(value));
    }
    out.push_str("</table>\n");
}

/// A row a layer: its scale and its codes at the last evaluation, and how they came there.
fn layers(out: &mut String, metrics: &Metrics) {
    let layers = metrics.by_layer();
    if layers.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Layers</h2>\n<p>Scales, and the share of codes at the lowest and the highest code, \
         at the last evaluation; the small lines begin at the first.</p>\n<div class=\"wide\">\
         <table>\n<tr><th>layer</th><th>smallest scale</th><th>mean scale</th><th></th>\
         <th>largest scale</th><th>at the floor</th><th>lowest code</th><th>highest code</th>\
         <th></th></tr>\n",
    );
    for (name, values) in layers {
        let Some(last) = values.last() else { continue };
        let number = |field: &str| last[field].as_f64().map(short).unwrap_or_default();
        let share = |field: &str| {
            last[field].as_f64().map(|share| format!("{:.2} %", 100.0 * share)).unwrap_or_default()
        };
        let ends: Vec<(f64, f64)> = points(values.iter().copied(), "codes_lowest")
            .into_iter()
            .zip(points(values.iter().copied(), "codes_highest"))
            .map(|((step, low), (_, high))| (step, low + high))
            .collect();
        _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td></tr>",
            escaped(name),
            number("scale_min"),
            number("scale_mean"),
            sparkline(&points(values.iter().copied(), "scale_mean")),
            number("scale_max"),
            last["scale_floored"].as_u64().map(|count| count.to_string()).unwrap_or_default(),
            share("codes_lowest"),
            share("codes_highest"),
            sparkline(&ends),
        );
    }
    out.push_str("</table></div>\n");
}

fn environment(out: &mut String, sessions: &[Session]) {
    out.push_str(
        "<h2>Environment</h2>\n<div class=\"wide\"><table>\n<tr><th>began</th><th>at step</th>\
         <th>version</th><th>device</th><th>threads</th><th>host</th><th>processor</th>\
         <th>system</th></tr>\n",
    );
    for session in sessions {
        let Session { began, step, version, device, threads, host, processor, system } = session;
        let [began, version, device, host, processor, system] =
            [began, version, device, host, processor, system].map(|text| escaped(text));
        _ = writeln!(
            out,
            "<tr><td>{began}</td><td>{step}</td><td>{version}</td><td>{device}</td>\
             <td>{threads}</td><td>{host}</td><td>{processor}</td><td>{system}</td></tr>",
        );
    }
    out.push_str("</table></div>\n");
}

/// Text as HTML shows it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
