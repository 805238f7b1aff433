//! What a run says: per case for people and machines, and in sum.

use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use std::path::PathBuf;

use super::compare::Verdict;
use crate::precision::Precision;

/// Everything about one judged case.
#[derive(Debug, Clone)]
pub struct CaseReport {
    /// The case's file.
    pub file: PathBuf,
    /// The case's name inside the file.
    pub id: String,
    /// Its operation.
    pub op: &'static str,
    /// Who answered.
    pub subject: String,
    /// In which precision.
    pub precision: Precision,
    /// What the case would catch, or its seed.
    pub note: Option<String>,
    /// Time of running and judging.
    pub seconds: f64,
    /// The outcome.
    pub status: Status,
    /// Per output; empty where nothing could be compared.
    pub tensors: Vec<Verdict>,
}

/// Outcome of a case. A skip is not a pass.
#[derive(Debug, Clone)]
pub enum Status {
    /// Every output conforms.
    Pass,
    /// Something does not.
    Fail {
        /// All of it.
        failures: Vec<Failure>,
    },
    /// The subject does not do this.
    Skip {
        /// In its words.
        why: String,
    },
}

/// One reason why a case fails.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Failure {
    /// There is no answer to compare.
    Case {
        /// What happened.
        what: String,
    },
    /// A tensor that cannot be compared.
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
    /// Elements that differ too much.
    Elements {
        /// The tensor's name.
        tensor: String,
        /// Its size.
        elements: usize,
        /// How many elements differ.
        count: usize,
        /// The first of them.
        mismatches: Vec<Mismatch>,
    },
}

/// One element that differs too much.
#[derive(Debug, Clone, Serialize)]
pub struct Mismatch {
    /// Position in the tensor.
    pub index: Vec<usize>,
    /// Decimal and bits.
    pub expected: String,
    /// Decimal and bits.
    pub actual: String,
    /// Largest accepted difference.
    pub bound: f64,
    /// For a code, where its argument lies.
    pub detail: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Case { what } => f.write_str(what),
            Self::Tensor { tensor, what } => write!(f, "out.{tensor} {what}"),
            Self::Elements { tensor, elements, count, mismatches } => {
                write!(f, "out.{tensor}: {count} of {elements} elements differ")?;
                for mismatch in mismatches {
                    let Mismatch { index, expected, actual, bound, detail } = mismatch;
                    write!(f, "\n    out.{tensor}{index:?}: expected {expected}, actual {actual}")?;
                    match detail {
                        Some(detail) => write!(f, "; {detail}")?,
                        None => write!(f, ", bound {bound:e}")?,
                    }
                }
                let hidden = count - mismatches.len();
                if hidden > 0 { write!(f, "\n    and {hidden} more") } else { Ok(()) }
            }
        }
    }
}

impl CaseReport {
    /// `pass`, `fail` or `skip`.
    pub fn outcome(&self) -> &'static str {
        match self.status {
            Status::Pass => "pass",
            Status::Fail { .. } => "fail",
            Status::Skip { .. } => "skip",
        }
    }

    /// The record that `--json` and `--report` write.
    pub fn to_json(&self) -> Value {
        let mut record = json!({
            "file": self.file.display().to_string(),
            "id": self.id,
            "op": self.op,
            "subject": self.subject,
            "precision": self.precision.to_string(),
            "status": self.outcome(),
            "seconds": self.seconds,
            "tensors": self.tensors.iter().map(verdict_json).collect::<Vec<_>>(),
        });
        if let Some(note) = &self.note {
            record["note"] = json!(note);
        }
        match &self.status {
            Status::Pass => {}
            Status::Fail { failures } => record["failures"] = json!(failures),
            Status::Skip { why } => record["why"] = json!(why),
        }
        record
    }
}

/// JSON has no infinity: the ratio of an element that had no allowance at all is null.
fn verdict_json(verdict: &Verdict) -> Value {
    let mut record = json!(verdict);
    record["status"] = json!(if verdict.failure.is_none() { "pass" } else { "fail" });
    record
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, id, op, subject, precision, .. } = self;
        let outcome = self.outcome().to_uppercase();
        write!(f, "{outcome} {} {id} {op} {subject} {precision}", file.display())?;
        match &self.status {
            Status::Pass => Ok(()),
            Status::Skip { why } => write!(f, ": {why}"),
            Status::Fail { failures } => {
                if let Some(note) = &self.note {
                    write!(f, "\n  note: {note}")?;
                }
                failures.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
            }
        }
    }
}

/// Counts over a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Cases whose every output conforms.
    pub pass: usize,
    /// Cases of which something does not.
    pub fail: usize,
    /// Cases that the subject does not do.
    pub skip: usize,
    /// Codes on the other side of a tie that the precision leaves open.
    pub flips: usize,
    /// Codes, and masks, that the precision leaves open.
    pub open: usize,
}

impl Counts {
    /// Adds one case.
    pub fn add(&mut self, report: &CaseReport) {
        match report.status {
            Status::Pass => self.pass += 1,
            Status::Fail { .. } => self.fail += 1,
            Status::Skip { .. } => self.skip += 1,
        }
        self.flips += report.tensors.iter().map(|verdict| verdict.flips).sum::<usize>();
        self.open += report.tensors.iter().map(|verdict| verdict.open).max().unwrap_or(0);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, fail, skip, flips, open } = self;
        write!(f, "{pass} passed, {fail} failed, {skip} skipped; ")?;
        write!(f, "{flips} codes flipped, {open} decisions left open by the precision")
    }
}
