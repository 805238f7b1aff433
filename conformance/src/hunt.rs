//! Hunts for a request that a subject gets wrong, and shrinks it to a small one.

use proptest::strategy::ValueTree;
use std::fmt;
use std::path::Path;

use crate::case::{Case, container};
use crate::error::Error;
use crate::generate::generated_case;
use crate::judge::judge;
use crate::judge::report::{CaseReport, Counts, Failure, Status};
use crate::ops::Operation;
use crate::precision::Precision;
use crate::strategy::{Drawn, Shrinking, answered, sizes};
use crate::subject::Subject;

/// What to draw, and how long to shrink.
#[derive(Debug, Clone, Copy)]
pub struct Hunt {
    /// The same seed draws the same cases.
    pub seed: u64,
    /// Number of the first draw.
    pub first: u64,
    /// Draws per operation.
    pub count: u64,
    /// Most candidates that are tried while a failure is shrunk.
    pub tries: usize,
}

/// A failure, as it was drawn and as small as it became.
#[derive(Debug, Clone)]
pub struct Found {
    /// What the draw failed with.
    pub drawn: CaseReport,
    /// Sizes of the draw.
    pub drawn_sizes: String,
    /// The smallest case that fails in the same way.
    pub smallest: Case,
    /// What that fails with.
    pub report: CaseReport,
    /// Number of the draw.
    pub number: u64,
    /// Candidates that were tried.
    pub tried: usize,
    /// Whether there was nothing left to try.
    pub finished: bool,
}

impl Hunt {
    /// Draws cases of one operation up to the first that the subject fails, which is shrunk and
    /// written into the folder as `OP-seedSEED-NUMBER-min.safetensors`.
    ///
    /// # Errors
    /// Where the reference refuses what was drawn, or the file cannot be written.
    pub fn operation(
        &self,
        op: &'static Operation,
        subject: &mut dyn Subject,
        precision: Precision,
        folder: &Path,
        counts: &mut Counts,
    ) -> Result<Option<Found>, Error> {
        for number in self.first..self.first.saturating_add(self.count) {
            let case = generated_case(folder, op, self.seed, number)?;
            let report = judge(&case, subject, precision);
            counts.add(&report);
            if let Some(way) = Way::of(&report) {
                let mut found = self.shrink(case, report, number, |case| {
                    let report = judge(case, subject, precision);
                    (Way::of(&report).as_ref() == Some(&way)).then_some(report)
                });
                found.write(folder)?;
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Shrinks as long as `fails` gives a report.
    fn shrink(
        &self,
        case: Case,
        drawn: CaseReport,
        number: u64,
        mut fails: impl FnMut(&Case) -> Option<CaseReport>,
    ) -> Found {
        let id = format!("{}-min", case.id);
        let start = Drawn { request: case.request.clone(), seed: self.seed, number };
        let mut found = Found {
            drawn_sizes: sizes(&case.request),
            report: drawn.clone(),
            drawn,
            smallest: case,
            number,
            tried: 0,
            finished: false,
        };
        let mut tree = Shrinking::new(start);
        while found.tried < self.tries {
            if !tree.simplify() {
                found.finished = true;
                break;
            }
            found.tried += 1;
            let candidate = answered(&tree.current().request);
            match candidate.ok().and_then(|case| fails(&case).map(|report| (case, report))) {
                Some((case, report)) => (found.smallest, found.report) = (case, report),
                None => _ = tree.complicate(),
            }
        }
        let note = format!(
            "shrunk from seed {}, number {number}; before: {}",
            self.seed, found.drawn_sizes
        );
        (found.smallest.id, found.smallest.note) = (id, Some(note));
        found
    }
}

impl Found {
    fn write(&mut self, folder: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        let case = &mut self.smallest;
        case.file = folder.join(format!("{}.safetensors", case.id));
        (self.report.file, self.report.id) = (case.file.clone(), case.id.clone());
        self.report.note.clone_from(&case.note);
        container::write(&case.file, &case.container())
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.drawn)?;
        writeln!(f, "  drawn: {}", self.drawn_sizes)?;
        writeln!(f, "  shrunk: {}", sizes(&self.smallest.request))?;
        let end = if self.finished { "nothing smaller fails" } else { "stopped at --tries" };
        writeln!(f, "  {} candidates tried, {end}; what is left:", self.tried)?;
        write!(f, "{}", self.report)
    }
}

/// The way in which a case fails: shrinking must not slip from one fault to another.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// There is no answer; the first words of why.
    NoAnswer(String),
    /// This output cannot be compared.
    Shape(String),
    /// Elements of this output are wrong.
    Elements(String),
}

impl Way {
    fn of(report: &CaseReport) -> Option<Self> {
        let Status::Fail { failures } = &report.status else { return None };
        failures.first().map(|failure| match failure {
            Failure::Case { what } => {
                let words = what.split_whitespace().take(3);
                Self::NoAnswer(words.collect::<Vec<_>>().join(" "))
            }
            Failure::Tensor { tensor, .. } => Self::Shape(tensor.clone()),
            Failure::Elements { tensor, .. } => Self::Elements(tensor.clone()),
        })
    }
}
