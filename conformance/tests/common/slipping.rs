//! The reference with a slip in its arithmetic, as a subject of its own.

use plumbline_conformance::case::Request;
use plumbline_conformance::ops::Operation;
use plumbline_conformance::precision::{Precision, Products};
use plumbline_conformance::subject::{Subject, SubjectError, Support};
use plumbline_conformance::teeth::arithmetic::{Slip, with_slip};
use plumbline_conformance::tensor::Tensors;

/// The reference in f32 with this arithmetic, which says this of its products.
pub struct Slipping(pub Slip, pub Products);

impl Subject for Slipping {
    fn name(&self) -> &str {
        "slipping"
    }

    fn products(&self) -> Products {
        self.1
    }

    fn precisions(&self) -> &[Precision] {
        &[Precision::F32]
    }

    fn supports(&self, _: &Operation, _: Precision) -> Support {
        Support::Yes
    }

    fn run(&mut self, request: &Request, _: Precision) -> Result<Tensors, SubjectError> {
        with_slip(self.0, || (request.op.run.faulty)(request)).map_err(SubjectError::Refused)
    }
}
