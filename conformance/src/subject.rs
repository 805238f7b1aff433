//! Implementations under test.

use crate::case::Request;
use crate::error::Error;
use crate::ops::Operation;
use crate::precision::Precision;
use crate::subjects::cuda::{cuda, cuda_host};
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

/// Names of the subjects that run wherever this program does.
pub const BUILT_IN: &[&str] = &["reference", "cpu", "cuda-host"];

/// Names of the subjects that need hardware.
pub const ON_HARDWARE: &[&str] = &["cuda"];

/// The subjects of [`ON_HARDWARE`] that this machine cannot run, and what is missing.
pub fn absent() -> Vec<(&'static str, String)> {
    let select = |name: &&'static str| match select(name, Duration::ZERO) {
        Err(Error::Absent { subject, why }) => Some((subject, why)),
        _ => None,
    };
    ON_HARDWARE.iter().filter_map(select).collect()
}

/// The subject that a name on the command line selects.
///
/// # Errors
/// `Usage` for a name that selects nothing, `Absent` for one whose hardware is not there.
pub fn select(name: &str, timeout: Duration) -> Result<Box<dyn Subject>, Error> {
    if let Some(command) = name.strip_prefix("exec:") {
        return Ok(Box::new(Exec::new(command, timeout)?));
    }
    if let Some(name) = name.strip_prefix("mutant:") {
        let mutant = Faulty::find(name);
        let unknown = || Error::Usage(format!("there is no mutant {name:?} (conform teeth)"));
        return Ok(Box::new(mutant.ok_or_else(unknown)?));
    }
    match name {
        "reference" => Ok(Box::new(Reference)),
        "cpu" => Ok(Box::new(cpu())),
        "cuda-host" => Ok(Box::new(cuda_host().map_err(|e| Error::Usage(e.to_string()))?)),
        "cuda" => match cuda() {
            Ok(subject) => Ok(Box::new(subject)),
            Err(why) => Err(Error::Absent { subject: "cuda", why: why.to_string() }),
        },
        _ => {
            let known = [BUILT_IN, ON_HARDWARE].concat().join(", ");
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
