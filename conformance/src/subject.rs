//! Implementations under test.

use crate::case::Request;
use crate::error::Error;
use crate::ops::Operation;
use crate::precision::Precision;
use crate::subjects::{cpu::cpu, exec::Exec, reference::Reference};
use crate::teeth::Faulty;
use crate::tensor::Tensors;
use std::time::Duration;

/// An implementation of some of the operations.
pub trait Subject {
    /// The name that selects it and that reports show.
    fn name(&self) -> &str;

    /// Precisions it can be asked for, its default first.
    fn precisions(&self) -> &[Precision];

    /// Whether it does an operation.
    fn supports(&self, op: &Operation, precision: Precision) -> Support;

    /// Whether it may answer floats in another type than it was asked for; it is judged by the
    /// rounding errors of the type it returns.
    fn answers_in_any_type(&self) -> bool {
        false
    }

    /// Runs one request, whose float inputs have the given precision.
    ///
    /// # Errors
    /// Where there is no answer, and why.
    fn run(&mut self, request: &Request, precision: Precision) -> Result<Tensors, SubjectError>;
}

/// Whether a subject does an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// It does, or only running it can tell.
    Yes,
    /// It does not.
    No(String),
}

/// Why a subject gave no outputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// It says that it does not do this.
    #[error("skipped: {0}")]
    Skip(String),
    /// It says that the request is wrong.
    #[error("refused: {0}")]
    Refused(String),
    /// It died, hung, panicked or broke the protocol.
    #[error("{0}")]
    Broken(String),
}

/// Names of the subjects inside this program.
pub const BUILT_IN: &[&str] = &["reference", "cpu"];

/// Subjects of the protocol that this program was built without, and what they need.
pub const ABSENT: &[(&str, &str)] = &[
    ("cuda-host", "the compiled CUDA kernels, run by an interpreter, are not part of this version"),
    ("cuda", "the CUDA backend is not part of this version"),
];

/// The subject that a name on the command line selects.
///
/// # Errors
/// `Usage` for a name that selects nothing, `Absent` for one that this program was built without.
pub fn select(name: &str, timeout: Duration) -> Result<Box<dyn Subject>, Error> {
    if let Some(command) = name.strip_prefix("exec:") {
        return Ok(Box::new(Exec::new(command, timeout)?));
    }
    if let Some(name) = name.strip_prefix("mutant:") {
        let mutant = Faulty::find(name);
        let unknown = || Error::Usage(format!("there is no mutant {name:?} (conform teeth)"));
        return Ok(Box::new(mutant.ok_or_else(unknown)?));
    }
    if let Some((subject, why)) = ABSENT.iter().find(|(absent, _)| *absent == name) {
        return Err(Error::Absent { subject, why });
    }
    match name {
        "reference" => Ok(Box::new(Reference)),
        "cpu" => Ok(Box::new(cpu())),
        _ => {
            let known = BUILT_IN.join(", ");
            Err(Error::Usage(format!(
                "subject is {name:?}, expected {known}, mutant:NAME or exec:COMMAND LINE"
            )))
        }
    }
}

/// The precision to run in: the one asked for, or the subject's default.
///
/// # Errors
/// `Usage` where the subject does not have it.
pub fn precision_of(subject: &dyn Subject, asked: Option<Precision>) -> Result<Precision, Error> {
    let precisions = subject.precisions();
    match asked {
        None => Ok(precisions[0]),
        Some(precision) if precisions.contains(&precision) => Ok(precision),
        Some(precision) => {
            let name = subject.name();
            Err(Error::Usage(format!("subject {name} does not compute in {precision}")))
        }
    }
}
