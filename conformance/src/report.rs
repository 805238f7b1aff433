//! What a run leaves behind: one record a case, for machines (JSON lines), for continuous
//! integration (JUnit XML), and for people (one HTML page).

mod html;
mod junit;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::case::container;
use crate::error::Error;
use crate::judge::report::Failure;
use crate::judge::statistics::Summary;

/// Everything that a report says about one case. Absent fields are not written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The case's file.
    pub file: String,
    /// The case's name inside the file.
    pub id: String,
    /// Its operation.
    pub op: String,
    /// Its parameters.
    pub params: Value,
    /// Who answered.
    pub subject: String,
    /// In which precision.
    pub precision: String,
    /// The judge's version and processor.
    pub build: String,
    /// `pass`, `fail` or `skip`.
    pub status: String,
    /// Time of running and judging.
    pub seconds: f64,
    /// What the case would catch, or its seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Why it was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Per output; empty where nothing could be compared.
    pub tensors: Vec<TensorRecord>,
    /// Why it fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
}

/// Everything that a report says about one output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Its name.
    pub tensor: String,
    /// `exact`, `codes` or `bounded`.
    pub class: String,
    /// Elements compared.
    pub elements: usize,
    /// Largest difference over its allowance; none where there was no allowance at all.
    pub worst_ratio: Option<f64>,
    /// Decisions that the precision leaves open.
    pub open: usize,
    /// Codes on the other side of an open tie.
    pub flips: usize,
    /// Elements by difference over allowance: equal, then up to 2^-9, 2^-8, ..., 1, and beyond.
    pub histogram: Vec<usize>,
    /// `pass` or `fail`.
    pub status: String,
}

/// What only all cases of a run together show.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Who answered.
    pub subject: String,
    /// In which precision.
    pub precision: String,
    /// One summary an output.
    pub outputs: Vec<Summary>,
}

/// The version of this crate and the processor it runs on: what a bound may depend on.
pub fn build() -> String {
    format!("conform {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH)
}

/// Writes `cases.jsonl`, `run.json`, `junit.xml` and `report.html` into a folder.
///
/// # Errors
/// `Io`.
pub fn write(folder: &Path, records: &[Record], run: &Run) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    let lines: String = records.iter().map(|record| format!("{}\n", json(record))).collect();
    container::write_bytes(&folder.join("cases.jsonl"), lines.as_bytes())?;
    let whole = serde_json::to_vec(run).expect("names, numbers and texts");
    container::write_bytes(&folder.join("run.json"), &whole)?;
    container::write_bytes(&folder.join("junit.xml"), junit::page(records, run).as_bytes())?;
    write_page(&folder.join("report.html"), records, std::slice::from_ref(run))
}

/// Writes the HTML page alone.
///
/// # Errors
/// `Io`.
pub fn write_page(file: &Path, records: &[Record], runs: &[Run]) -> Result<(), Error> {
    container::write_bytes(file, html::page(records, runs).as_bytes())
}

/// One record as one line.
pub fn json(record: &Record) -> Value {
    serde_json::to_value(record).expect("names, numbers and texts")
}

/// Reads what earlier runs left behind.
///
/// # Errors
/// `Io`, or `Usage` that names the file and line of what is no record.
pub fn read(folders: &[std::path::PathBuf]) -> Result<(Vec<Record>, Vec<Run>), Error> {
    let (mut records, mut runs) = (Vec::new(), Vec::new());
    let text = |file: &Path| std::fs::read_to_string(file).map_err(|e| Error::io(file, e));
    for folder in folders {
        let file = folder.join("cases.jsonl");
        for (number, line) in text(&file)?.lines().enumerate() {
            let record = serde_json::from_str(line).map_err(|e| {
                Error::Usage(format!("{} line {}: {e}", file.display(), number + 1))
            })?;
            records.push(record);
        }
        let file = folder.join("run.json");
        let run = serde_json::from_str(&text(&file)?);
        runs.push(run.map_err(|e| Error::Usage(format!("{}: {e}", file.display())))?);
    }
    Ok((records, runs))
}

/// Text with the five characters that markup reserves replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML 1.0 has no other control characters, not even escaped.
            control if control.is_control() && !matches!(control, '\n' | '\t') => out.push(' '),
            other => out.push(other),
        }
    }
    out
}
