//! The reference crate, in both precisions.

use crate::case::Request;
use crate::ops::Operation;
use crate::precision::{Precision, Products};
use crate::subject::{Subject, SubjectError, Support};
use crate::teeth::arithmetic::{Slip, with_slip};
use crate::tensor::Tensors;

/// The reference: every operation, generic over the scalar.
#[derive(Debug, Clone, Copy)]
pub struct Reference;

impl Subject for Reference {
    fn name(&self) -> &str {
        "reference"
    }

    fn precisions(&self) -> &[Precision] {
        &[Precision::F64, Precision::F32]
    }

    fn supports(&self, _: &Operation, _: Precision) -> Support {
        Support::Yes
    }

    fn run(&mut self, request: &Request, precision: Precision) -> Result<Tensors, SubjectError> {
        let run = match precision {
            Precision::F32 => request.op.run.f32,
            Precision::F64 => request.op.run.f64,
        };
        run(request).map_err(SubjectError::Refused)
    }
}

/// Whether the operation's products may be of rounded factors. The searches of AWQ decide by theirs,
/// and another decision is another result: nobody is allowed to round there.
pub(crate) fn multiplies(op: &Operation) -> bool {
    !op.name.starts_with("awq.")
}

/// The reference in binary32, the factors of its products rounded to bf16: what an implementation
/// on tensor cores is compared with.
#[derive(Debug, Clone, Copy)]
pub struct RoundingReference;

impl Subject for RoundingReference {
    fn name(&self) -> &str {
        "reference-bf16"
    }

    fn products(&self) -> Products {
        Products::Bf16
    }

    fn precisions(&self) -> &[Precision] {
        &[Precision::F32]
    }

    fn supports(&self, _: &Operation, _: Precision) -> Support {
        Support::Yes
    }

    fn run(&mut self, request: &Request, _: Precision) -> Result<Tensors, SubjectError> {
        if !multiplies(request.op) {
            return (request.op.run.f32)(request).map_err(SubjectError::Refused);
        }
        with_slip(Slip::Bf16Factors, || (request.op.run.faulty)(request))
            .map_err(SubjectError::Refused)
    }
}
