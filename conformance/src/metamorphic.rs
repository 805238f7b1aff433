//! Properties that relate the answers of one subject to each other.
//!
//! No reference value is needed, so they hold every subject to account, at any size: what is
//! permuted on the way in comes out permuted, a factor of `2^k` comes out as `2^k`, gradients add
//! up over a batch, a merged layer is the trained one. Each property is a row of [`PROPERTIES`];
//! `docs/properties.md` says why each holds, and how strictly.
//!
//! Results are compared bit for bit, or within the derived bounds of the operation
//! ([`crate::judge::bound`]) for both results together. No tolerance is chosen by hand.

mod along;
mod answer;
mod batches;
mod places;
mod powers;
mod quantizer;
mod table;
mod tensors;
mod transformer;
mod trial;
mod violation;

use serde_json::{Value, json};
use std::fmt;

use crate::error::Error;
use crate::ops::{self, OPERATIONS, Operation};
use crate::precision::Precision;
use crate::sampler::Sampler;
use crate::subject::{Subject, Support};

pub use table::PROPERTIES;
pub use trial::{Checked, Equal, Options, Seen, Stop, Trial};
pub use violation::{Difference, Violation};

/// One property.
pub struct Property {
    /// Its name on the command line.
    pub name: &'static str,
    /// What must hold, in one sentence.
    pub what: &'static str,
    /// How strictly results are compared.
    pub equal: &'static [Equal],
    /// Operations that it makes sense for, those of one trial together; none means all.
    pub on: &'static [&'static [&'static str]],
    /// One trial on operations of a row of `on`.
    pub check: fn(&mut Trial, &[&'static Operation]) -> Checked,
}

impl fmt::Debug for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The property of that name.
///
/// # Errors
/// `Usage` for a name that is not in the table.
pub fn find(name: &str) -> Result<&'static Property, Error> {
    PROPERTIES.iter().find(|property| property.name == name).ok_or_else(|| {
        Error::Usage(format!("there is no property {name:?} (conform properties --list)"))
    })
}

impl Property {
    /// The operations of each row.
    ///
    /// # Errors
    /// For a name that is not in the registry.
    pub fn operations(&self) -> Result<Vec<Vec<&'static Operation>>, String> {
        if self.on.is_empty() {
            return Ok(OPERATIONS.iter().map(|op| vec![*op]).collect());
        }
        let row = |names: &&[&str]| names.iter().map(|name| ops::find(name)).collect();
        self.on.iter().map(row).collect()
    }

    /// Runs `options.count` trials on each row of operations.
    ///
    /// # Errors
    /// `Usage` where the table names an operation that is not in the registry.
    pub fn run(
        &'static self,
        subject: &mut dyn Subject,
        precision: Precision,
        options: Options,
    ) -> Result<Outcome, Error> {
        let mut outcome = Outcome::new(self);
        for row in self.operations().map_err(Error::Usage)? {
            let unsupported = row.iter().find_map(|op| match subject.supports(op, precision) {
                Support::Yes => None,
                Support::No(why) => Some(format!("{}: {why}", op.name)),
            });
            if let Some(why) = unsupported {
                outcome.skipped += options.count;
                outcome.why_skipped.get_or_insert(why);
                continue;
            }
            let names = row.iter().map(|op| op.name).collect::<Vec<_>>().join(" ");
            for number in 0..options.count {
                let stream = format!("{} {names}", self.name);
                let sampler = Sampler::new(options.seed, &stream, number);
                let mut trial = Trial::new(subject, precision, options, sampler);
                let checked = (self.check)(&mut trial, &row);
                outcome.add(trial.seen, checked, &names, number);
            }
        }
        Ok(outcome)
    }
}

/// What became of a property.
#[derive(Debug)]
pub struct Outcome {
    /// The property.
    pub property: &'static Property,
    /// Trials in which it held.
    pub passed: u64,
    /// Trials in which it did not.
    pub failed: u64,
    /// Trials that the subject has no operations for.
    pub skipped: u64,
    /// What was compared.
    pub seen: Seen,
    /// Operations and number of the first trial that failed, and how.
    pub first: Option<(String, u64, Violation)>,
    /// Why the first was skipped.
    pub why_skipped: Option<String>,
}

impl Outcome {
    fn new(property: &'static Property) -> Self {
        let seen = Seen::default();
        Self { property, passed: 0, failed: 0, skipped: 0, seen, first: None, why_skipped: None }
    }

    fn add(&mut self, seen: Seen, checked: Checked, ops: &str, number: u64) {
        self.seen.compared += seen.compared;
        self.seen.clipped += seen.clipped;
        self.seen.ties += seen.ties;
        match checked {
            Ok(()) => self.passed += 1,
            Err(Stop::Skip(why)) => {
                self.skipped += 1;
                self.why_skipped.get_or_insert(why);
            }
            Err(Stop::Fail(violation)) => {
                self.failed += 1;
                self.first.get_or_insert_with(|| (ops.to_owned(), number, violation));
            }
        }
    }

    /// One object.
    pub fn to_json(&self) -> Value {
        let first = self.first.as_ref().map(|(ops, number, violation)| {
            json!({ "ops": ops, "number": number, "violation": violation.to_json() })
        });
        json!({
            "name": self.property.name,
            "what": self.property.what,
            "passed": self.passed,
            "failed": self.failed,
            "skipped": self.skipped,
            "compared": self.seen.compared,
            "clipped": self.seen.clipped,
            "ties": self.seen.ties,
            "first": first,
            "why_skipped": self.why_skipped,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { property, passed, failed, skipped, seen, .. } = self;
        let verdict = match (*passed, *failed) {
            (_, 1..) => "fail",
            (1.., 0) => "pass",
            (0, 0) => "skip",
        };
        write!(f, "{verdict} {:<20}{passed:>6} passed {failed:>5} failed ", property.name)?;
        write!(f, "{skipped:>5} skipped {:>9} compared", seen.compared)?;
        if let Some((ops, number, violation)) = &self.first {
            write!(f, "\n     {}\n     trial {number} of {ops}: {violation}", property.what)?;
        }
        Ok(())
    }
}
