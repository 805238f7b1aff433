//! Random requests as a proptest strategy, and how a request that fails becomes a small one.
//!
//! Every request is (operation, seed, number): the numbers of [`crate::generate`], so that a
//! failure is replayed by its name alone. Shrinking knows no operation: it slices tensors by the
//! words that the registry writes shapes in, drops and lowers parameters, and replaces values by
//! zeros, ones and numbers of few digits. A candidate is kept only if the registry and the f64
//! reference accept it.

mod edit;
mod slice;

use proptest::arbitrary::any;
use proptest::strategy::{NewTree, Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::fmt;
use std::path::PathBuf;

use crate::case::{Case, Expected, Request};
use crate::generate::{ORIGIN, generated_case};
use crate::ops::Operation;
use crate::precision::Precision;

use edit::{Edit, edits};

/// Requests of one operation.
#[derive(Debug, Clone, Copy)]
pub struct Requests {
    op: &'static Operation,
    seed: u64,
}

impl Requests {
    /// All that the operation draws with this seed.
    pub fn of(op: &'static Operation, seed: u64) -> Self {
        Self { op, seed }
    }
}

/// A request and where it comes from.
#[derive(Clone)]
pub struct Drawn {
    /// The request, perhaps shrunk.
    pub request: Request,
    /// Seed of the draw.
    pub seed: u64,
    /// Number of the draw.
    pub number: u64,
}

impl fmt::Debug for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, seed, number } = self;
        write!(f, "{} seed {seed} number {number}, {}", request.op.name, sizes(request))
    }
}

/// `weight [2, 3] (1 of 6 not zero), ...` and the parameters.
pub fn sizes(request: &Request) -> String {
    let tensors = request.inputs.iter().map(|(name, tensor)| {
        let filled = tensor.values().filter(|value| *value != 0.0).count();
        format!("{name} {:?} ({filled} of {} not zero)", tensor.shape(), tensor.len())
    });
    format!("{}; params {}", tensors.collect::<Vec<_>>().join(", "), request.params.to_json())
}

impl Strategy for Requests {
    type Tree = Shrinking;
    type Value = Drawn;

    fn new_tree(&self, runner: &mut TestRunner) -> NewTree<Self> {
        let number = u64::from(any::<u32>().new_tree(runner)?.current());
        let case = generated_case(&PathBuf::new(), self.op, self.seed, number)
            .map_err(|error| error.to_string())?;
        Ok(Shrinking::new(Drawn { request: case.request, seed: self.seed, number }))
    }
}

/// A request on its way to a smaller one.
///
/// A pass tries every edit once; an edit that was kept is tried again at once, and after a pass
/// that kept something comes another. Each edit lowers the number of elements, or of parameters,
/// or the digits of a number, and raises none of those before it, so that this ends.
#[derive(Debug, Clone)]
pub struct Shrinking {
    /// The smallest request that was kept.
    kept: Drawn,
    /// The candidate, where one is on trial.
    candidate: Option<Drawn>,
    edits: Vec<Edit>,
    next: usize,
    progress: bool,
}

impl Shrinking {
    /// From a request that the reference accepts.
    pub fn new(drawn: Drawn) -> Self {
        let edits = edits(&drawn.request);
        Self { kept: drawn, candidate: None, edits, next: 0, progress: false }
    }

    fn keep(&mut self, candidate: Drawn) {
        self.edits = edits(&candidate.request);
        self.kept = candidate;
        self.next = self.next.saturating_sub(1);
        self.progress = true;
    }
}

impl ValueTree for Shrinking {
    type Value = Drawn;

    fn current(&self) -> Drawn {
        self.candidate.as_ref().unwrap_or(&self.kept).clone()
    }

    fn simplify(&mut self) -> bool {
        if let Some(candidate) = self.candidate.take() {
            self.keep(candidate);
        }
        loop {
            while let Some(edit) = self.edits.get(self.next) {
                self.next += 1;
                if let Some(request) = edit.apply(&self.kept.request)
                    && answered(&request).is_ok()
                {
                    self.candidate = Some(Drawn { request, ..self.kept });
                    return true;
                }
            }
            if !self.progress {
                return false;
            }
            (self.next, self.progress) = (0, false);
            self.edits = edits(&self.kept.request);
        }
    }

    fn complicate(&mut self) -> bool {
        self.candidate.take().is_some()
    }
}

/// The request as a case, with the answer of the f64 reference.
///
/// # Errors
/// Where the registry or the reference refuses the request.
pub fn answered(request: &Request) -> Result<Case, String> {
    let outputs = (request.op.run.f64)(&request.to_precision(Precision::F64))?;
    let case = Case {
        file: PathBuf::new(),
        id: String::new(),
        request: request.clone(),
        expected: Expected::Outputs(outputs),
        origin: Some(ORIGIN.to_owned()),
        flags: Vec::new(),
        note: None,
    };
    case.validate().map(|()| case)
}
