//! What a run says: per case for people and machines, and in sum.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

use super::compare::Verdict;
use crate::ops::{self, Class};
use crate::params::Params;
use crate::precision::Precision;
use crate::report::{Record, TensorRecord, build};

/// Everything about one judged case.
#[derive(Debug, Clone)]
pub struct CaseReport {
    /// The case's file.
    pub file: PathBuf,
    /// The case's name inside the file.
    pub id: String,
    /// Its operation.
    pub op: &'static str,
    /// Its parameters.
    pub params: Params,
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
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Failure {
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
    /// A tensor that cannot be compared.
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is no answer to compare.
    Case {
        /// What happened.
        what: String,
    },
}

/// One element that differs too much.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    pub fn record(&self) -> Record {
        let (failures, why) = match &self.status {
            Status::Pass => (Vec::new(), None),
            Status::Fail { failures } => (failures.clone(), None),
            Status::Skip { why } => (Vec::new(), Some(why.clone())),
        };
        Record {
            file: self.file.display().to_string(),
            id: self.id.clone(),
            op: self.op.to_owned(),
            params: self.params.0.clone().into(),
            subject: self.subject.clone(),
            precision: self.precision.to_string(),
            build: build(),
            status: self.outcome().to_owned(),
            seconds: self.seconds,
            note: self.note.clone(),
            why,
            tensors: self.tensors.iter().map(|verdict| tensor_record(self.op, verdict)).collect(),
            failures,
        }
    }
}

fn tensor_record(op: &str, verdict: &Verdict) -> TensorRecord {
    let specs = ops::find(op).map(|op| op.outputs).unwrap_or_default();
    let class = specs.iter().find(|spec| *spec.name == *verdict.tensor).map(|spec| spec.class);
    let class = match class {
        Some(Class::Codes) => "codes",
        Some(Class::Exact) => "exact",
        _ => "bounded",
    };
    TensorRecord {
        tensor: verdict.tensor.clone(),
        class: class.to_owned(),
        elements: verdict.elements,
        // JSON has no infinity.
        worst_ratio: verdict.worst_ratio.is_finite().then_some(verdict.worst_ratio),
        open: verdict.open,
        flips: verdict.flips,
        histogram: verdict.histogram.to_vec(),
        status: if verdict.failure.is_none() { "pass" } else { "fail" }.to_owned(),
    }
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
