//! Implementations under test.

use crate::case::Request;
use crate::error::Error;
use crate::ops::Operation;
use crate::precision::{Precision, Products};
use crate::subjects::cpu::cpu;
use crate::subjects::cuda::{cuda, cuda_host};
use crate::subjects::exec::Exec;
use crate::subjects::reference::{Reference, RoundingReference};
use crate::teeth::Faulty;
use crate::tensor::Tensors;
use plumbline::cuda::Compute;
use std::time::Duration;

/// An implementation of some of the operations.
pub trait Subject {
    /// The name that selects it and that reports show.
    fn name(&self) -> &str;

    /// Precisions it can be asked for, its default first.
    fn precisions(&self) -> &[Precision];

    /// Whether it does an operation.
    fn supports(&self, op: &Operation, precision: Precision) -> Support;

    /// What it does to the factors of products; it is judged by the roundings that this costs.
    fn products(&self) -> Products {
        Products::AsStored
    }

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

/// Those of them whose products are of bf16 factors.
pub const ROUNDING: &[&str] = &["reference-bf16", "cuda-host-bf16"];

/// Names of the subjects that need hardware.
pub const ON_HARDWARE: &[&str] = &["cuda", "cuda-bf16"];

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
    for (prefix, products) in [("exec:", Products::AsStored), ("exec-bf16:", Products::Bf16)] {
        if let Some(command) = name.strip_prefix(prefix) {
            return Ok(Box::new(Exec::new(command, products, timeout)?));
        }
    }
    if let Some(name) = name.strip_prefix("mutant:") {
        let mutant = Faulty::find(name);
        let unknown = || Error::Usage(format!("there is no mutant {name:?} (conform teeth)"));
        return Ok(Box::new(mutant.ok_or_else(unknown)?));
    }
    match name {
        "reference" => Ok(Box::new(Reference)),
        "cpu" => Ok(Box::new(cpu())),
        "reference-bf16" => Ok(Box::new(RoundingReference)),
        "cuda-host" => on_host(Compute::F32),
        "cuda-host-bf16" => on_host(Compute::Bf16),
        "cuda" => on_gpu("cuda", Compute::F32),
        "cuda-bf16" => on_gpu("cuda-bf16", Compute::Bf16),
        _ => {
            let known = [BUILT_IN, ROUNDING, ON_HARDWARE].concat().join(", ");
            Err(Error::Usage(format!(
                "subject is {name:?}, expected {known}, mutant:NAME, exec:COMMAND LINE or \
                 exec-bf16:COMMAND LINE"
            )))
        }
    }
}

/// The reference in the arithmetic of a subject.
pub fn reference_of(products: Products) -> Box<dyn Subject> {
    match products {
        Products::AsStored => Box::new(Reference),
        Products::Bf16 => Box::new(RoundingReference),
    }
}

fn on_host(compute: Compute) -> Result<Box<dyn Subject>, Error> {
    let subject = cuda_host(compute).map_err(|e| Error::Usage(e.to_string()))?;
    Ok(Box::new(subject))
}

fn on_gpu(name: &'static str, compute: Compute) -> Result<Box<dyn Subject>, Error> {
    match cuda(compute) {
        Ok(subject) => Ok(Box::new(subject)),
        Err(why) => Err(Error::Absent { subject: name, why: why.to_string() }),
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
