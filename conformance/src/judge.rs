//! The judgement: what came out against what must come out.

pub mod bound;
pub mod compare;
pub mod noisy;
pub mod report;
pub mod statistics;
pub mod tracked;

use safetensors::Dtype;
use std::cell::{OnceCell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::case::{Case, Expected, Request};
use crate::ops::{ChoicesOf, Class, TensorSpec, TensorSpecs};
use crate::precision::{Precision, Products, Unit};
use crate::subject::{Subject, SubjectError, Support};
use crate::subjects::reference::multiplies;
use crate::tensor::{Data, Kind, Tensor, Tensors};
use bound::{Allowance, Bounds, Evidence};
use compare::Verdict;
use report::{CaseReport, Failure, Status};

/// Runs one case on one subject and judges the answer.
pub fn judge(case: &Case, subject: &mut dyn Subject, precision: Precision) -> CaseReport {
    let started = Instant::now();
    let (status, tensors) = match run_and_judge(case, subject, precision) {
        Ok(verdicts) => {
            let failures: Vec<_> =
                verdicts.iter().filter_map(|verdict| verdict.failure.clone()).collect();
            let status = if failures.is_empty() { Status::Pass } else { Status::Fail { failures } };
            (status, verdicts)
        }
        Err(Stop::Skip(why)) => (Status::Skip { why }, Vec::new()),
        Err(Stop::Fail(what)) => {
            (Status::Fail { failures: vec![Failure::Case { what }] }, Vec::new())
        }
    };
    CaseReport {
        file: case.file.clone(),
        id: case.id.clone(),
        op: case.request.op.name,
        params: case.request.params.clone(),
        subject: subject.name().to_owned(),
        precision,
        note: case.note.clone(),
        seconds: started.elapsed().as_secs_f64(),
        status,
        tensors,
    }
}

enum Stop {
    Skip(String),
    Fail(String),
}

fn run_and_judge(
    case: &Case,
    subject: &mut dyn Subject,
    precision: Precision,
) -> Result<Vec<Verdict>, Stop> {
    if let Support::No(why) = subject.supports(case.request.op, precision) {
        return Err(Stop::Skip(why));
    }
    let request = case.request.to_precision(precision);
    let answer = run(subject, &request, precision);
    match (&case.expected, answer) {
        (_, Err(SubjectError::Skip(why))) => Err(Stop::Skip(why)),
        (_, Err(SubjectError::Broken(what))) => Err(Stop::Fail(what)),
        (Expected::Refusal(text), Err(SubjectError::Refused(message))) => {
            if message.contains(text.as_str()) {
                Ok(Vec::new())
            } else {
                Err(Stop::Fail(format!("refused with {message:?}, expected {text:?} in it")))
            }
        }
        (Expected::Refusal(text), Ok(_)) => {
            Err(Stop::Fail(format!("answered, expected a refusal with {text:?} in it")))
        }
        (Expected::Outputs(_), Err(SubjectError::Refused(message))) => {
            Err(Stop::Fail(format!("refused a valid case: {message}")))
        }
        (Expected::Outputs(outputs), Ok(actual)) => {
            let own_type = !subject.answers_in_any_type();
            let required = own_type.then_some(precision);
            let answered = Answered { required, precision, products: subject.products() };
            judge_answer(&request, outputs, &actual, answered).map_err(Stop::Fail)
        }
    }
}

/// A panic of a subject inside this process is the failure of one case.
pub fn run(
    subject: &mut dyn Subject,
    request: &Request,
    precision: Precision,
) -> Result<Tensors, SubjectError> {
    catch_unwind(AssertUnwindSafe(|| subject.run(request, precision))).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(SubjectError::Broken(format!("panicked: {message}")))
    })
}

/// Judges outputs without running anything.
///
/// `required` is the type that floats must have; without it any float type is accepted and judged
/// by its own rounding errors.
///
/// # Errors
/// Where the reference cannot say what must come out.
pub fn judge_outputs(
    request: &Request,
    golden: &Tensors,
    actual: &Tensors,
    required: Option<Precision>,
    precision: Precision,
) -> Result<Vec<Verdict>, String> {
    let answered = Answered { required, precision, products: Products::AsStored };
    judge_answer(request, golden, actual, answered)
}

/// In what arithmetic a subject answered.
#[derive(Clone, Copy)]
struct Answered {
    required: Option<Precision>,
    precision: Precision,
    products: Products,
}

fn judge_answer(
    request: &Request,
    golden: &Tensors,
    actual: &Tensors,
    answered: Answered,
) -> Result<Vec<Verdict>, String> {
    let request = request.to_precision(Precision::F64);
    let specs = request.op.tensors(&request.params)?;
    let expected = complete(&request, golden, &specs)?;
    // An optional output is one of this case where the reference answers it.
    let is_expected = |spec: &&TensorSpec| !spec.optional || expected.contains_key(&*spec.name);
    let outputs: Vec<TensorSpec> = specs.outputs.iter().filter(is_expected).cloned().collect();
    let mut judgement = Judgement {
        request,
        expected,
        actual,
        answered,
        own_grid: false,
        codes: None,
        derived: RefCell::default(),
        of_factors: OnceCell::new(),
    };
    let mut verdicts = Vec::new();
    // The grid that the subject chose, then the codes on it: everything downstream is judged with
    // what was accepted.
    let is_grid = |spec: &&TensorSpec| matches!(spec.class, Class::Grid(_));
    let is_codes =
        |spec: &&TensorSpec| matches!(spec.class, Class::Codes | Class::Chosen | Class::Choices(_));
    for spec in outputs.iter().filter(is_grid) {
        verdicts.push(judgement.floats(spec)?);
    }
    let accepted = verdicts.iter().all(|verdict| verdict.failure.is_none());
    judgement.settle_grid(outputs.iter().filter(is_grid), accepted);
    for spec in outputs.iter().filter(is_codes) {
        verdicts.push(match spec.class {
            Class::Codes => judgement.codes(spec)?,
            Class::Choices(choices) => judgement.choices(spec, choices)?,
            _ => judgement.chosen(spec)?,
        });
    }
    for spec in outputs.iter().filter(|spec| !is_codes(spec) && !is_grid(spec)) {
        verdicts.push(judgement.floats(spec)?);
    }
    for name in actual.keys() {
        if !outputs.iter().any(|spec| *spec.name == **name) {
            verdicts.push(Verdict::rejected(name, "is no output of the operation".to_owned()));
        }
    }
    Ok(verdicts)
}

/// Golden values where the case has them, the f64 reference for the rest.
fn complete(request: &Request, golden: &Tensors, specs: &TensorSpecs) -> Result<Tensors, String> {
    if specs.outputs.iter().all(|spec| golden.contains_key(&*spec.name)) {
        return Ok(golden.clone());
    }
    let mut expected = (request.op.run.f64)(request)
        .map_err(|message| format!("the f64 reference refuses this case: {message}"))?;
    expected.extend(golden.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
    Ok(expected)
}

struct Judgement<'a> {
    request: Request,
    expected: Tensors,
    actual: &'a Tensors,
    answered: Answered,
    /// Whether the accepted grid differs from the expected one.
    own_grid: bool,
    codes: Option<Vec<i16>>,
    /// Allowances of the last derivation that no output has used yet.
    derived: RefCell<Option<(Unit, Bounds)>>,
    /// What roundings of factors are allowed to add.
    of_factors: OnceCell<Result<Bounds, String>>,
}

impl Judgement<'_> {
    /// The tensor, if it is there with the right shape and type; otherwise the verdict.
    fn present(&self, spec: &TensorSpec) -> Result<(&Tensor, &Tensor), Box<Verdict>> {
        let expected = &self.expected[&*spec.name];
        let Some(actual) = self.actual.get(&*spec.name) else {
            return Err(Box::new(Verdict::rejected(&spec.name, "is missing".to_owned())));
        };
        if actual.shape() != expected.shape() {
            let (is, should) = (actual.shape(), expected.shape());
            let what = format!("has shape {is:?}, expected {should:?}");
            return Err(Box::new(Verdict::rejected(&spec.name, what)));
        }
        let own_type = match (self.answered.required, spec.kind) {
            (Some(Precision::F64), Kind::Float) => actual.dtype() == Dtype::F64,
            (Some(Precision::F32), Kind::Float) => actual.dtype() == Dtype::F32,
            _ => spec.kind.accepts(actual.dtype()),
        };
        if own_type {
            return Ok((expected, actual));
        }
        let should = match (self.answered.required, spec.kind) {
            (Some(precision), Kind::Float) => precision.to_string(),
            _ => spec.kind.expected().to_owned(),
        };
        let what = format!("has dtype {}, expected {should}", actual.dtype());
        Err(Box::new(Verdict::rejected(&spec.name, what)))
    }

    /// The precision whose rounding errors the floats of an answer carry.
    fn coarsest(&self) -> Precision {
        let floats = self.actual.values().filter_map(computed_in);
        floats.min().unwrap_or(self.answered.precision)
    }

    /// From here on the grid is an input: the subject's where all of it was accepted, or else the
    /// expected one.
    fn settle_grid<'a>(&mut self, specs: impl Iterator<Item = &'a TensorSpec>, accepted: bool) {
        for spec in specs {
            let expected = &self.expected[&*spec.name];
            let settled = if accepted { &self.actual[&*spec.name] } else { expected };
            self.own_grid |= !settled.values().eq(expected.values());
            let settled = settled.to_precision(Precision::F64);
            self.request.inputs.insert(spec.name.to_string(), settled);
        }
        self.derived.take();
    }

    fn codes(&mut self, spec: &TensorSpec) -> Result<Verdict, String> {
        let (expected, actual) = match self.present(spec) {
            Ok(pair) => pair,
            Err(verdict) => return Ok(*verdict),
        };
        let grid = self.request.op.grid.ok_or("an operation with codes has a grid")?;
        let mut grid = grid(&self.request, Unit::of(self.coarsest()))?;
        grid.adopt_zero_points(self.actual);
        let on_own_grid = self.own_grid.then(|| grid.codes());
        let expected = on_own_grid.as_ref().unwrap_or(expected);
        let verdict = compare::codes(&spec.name, &grid, expected, actual);
        if verdict.failure.is_none() && (verdict.flips > 0 || self.own_grid) {
            self.codes = actual.small_integers();
            self.derived.take();
        }
        Ok(verdict)
    }

    /// Integers whose arguments the operation replays with the subject's earlier choices.
    fn choices(&mut self, spec: &TensorSpec, choices: ChoicesOf) -> Result<Verdict, String> {
        let (expected, actual) = match self.present(spec) {
            Ok(pair) => pair,
            Err(verdict) => return Ok(*verdict),
        };
        let choices = choices(&self.evidence(Unit::of(self.coarsest())))?;
        let verdict = compare::choices(&spec.name, &choices, expected, actual);
        let differs = || expected.values().ne(actual.values());
        if spec.name == "codes" && verdict.failure.is_none() && differs() {
            self.codes = actual.small_integers();
            self.derived.take();
        }
        Ok(verdict)
    }

    /// Codes whose legal values the operation lists itself.
    fn chosen(&mut self, spec: &TensorSpec) -> Result<Verdict, String> {
        let (expected, actual) = match self.present(spec) {
            Ok(pair) => pair,
            Err(verdict) => return Ok(*verdict),
        };
        let allowance = self.allowance(spec, Unit::of(self.coarsest()))?;
        let verdict = compare::chosen(&spec.name, &allowance, expected, actual);
        if verdict.failure.is_none() && verdict.flips > 0 {
            self.codes = actual.small_integers();
            self.derived.take();
        }
        Ok(verdict)
    }

    fn evidence(&self, unit: Unit) -> Evidence<'_> {
        Evidence {
            request: &self.request,
            expected: &self.expected,
            actual: self.actual,
            codes: self.codes.as_deref(),
            unit,
        }
    }

    fn allowance(&self, spec: &TensorSpec, unit: Unit) -> Result<Allowance, String> {
        // One derivation serves every output, until another choice of the subject is accepted.
        let mut derived = self.derived.borrow_mut();
        if derived.as_ref().is_none_or(|(of, _)| *of != unit) {
            *derived = Some((unit, (self.request.op.bounds)(&self.evidence(unit))?));
        }
        let allowance = derived.as_mut().and_then(|(_, bounds)| bounds.remove(&*spec.name));
        let allowance =
            allowance.ok_or_else(|| format!("no allowance is derived for out.{}", spec.name))?;
        // An infinite allowance would accept everything.
        match allowance.bound.iter().position(|bound| !bound.is_finite()) {
            None => Ok(allowance),
            Some(index) => Err(format!(
                "out.{} cannot be judged: the allowance of element {index} is not finite",
                spec.name
            )),
        }
    }

    fn floats(&self, spec: &TensorSpec) -> Result<Verdict, String> {
        let (expected, actual) = match self.present(spec) {
            Ok(pair) => pair,
            Err(verdict) => return Ok(*verdict),
        };
        if matches!(spec.class, Class::Exact) {
            return Ok(compare::chosen(&spec.name, &Allowance::default(), expected, actual));
        }
        let unit = Unit::of(computed_in(actual).unwrap_or(self.answered.precision));
        let mut allowance = self.allowance(spec, unit)?;
        if self.answered.products == Products::Bf16 && multiplies(self.request.op) {
            let of_factors =
                self.of_factors.get_or_init(|| noisy::of_factors(&self.request, &self.expected));
            let of_factors = of_factors.as_ref().map_err(String::clone)?;
            let extra = of_factors.get(&*spec.name).ok_or("an output without floats")?;
            for ((bound, extra), value) in
                allowance.bound.iter_mut().zip(&extra.bound).zip(expected.values())
            {
                *bound += extra;
                if spec.factor {
                    *bound += BF16_ROUNDOFF * (value.abs() + *bound) + BF16_TINY;
                }
            }
        }
        Ok(compare::floats(&spec.name, &allowance, expected, actual))
    }
}

/// Half the distance of neighbours of bf16, relative and below its normal range.
const BF16_ROUNDOFF: f64 = 1.0 / 256.0;
const BF16_TINY: f64 = 4.6e-41;

/// Results in a narrow type come from f32 arithmetic and one more rounding.
fn computed_in(tensor: &Tensor) -> Option<Precision> {
    match tensor.data() {
        Data::F64(_) => Some(Precision::F64),
        Data::F32(_) | Data::F16(_) | Data::Bf16(_) => Some(Precision::F32),
        Data::I8(_) | Data::U8(_) | Data::I32(_) => None,
    }
}
