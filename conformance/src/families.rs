//! Adversarial families: cases that are built to be hard, each with what it claims to have.
//!
//! A claim is data, and making a family checks every one of them on the f64 evidence: a tie that
//! is none, or a gradient that is zero, stops the generation. Families are judged in memory, where
//! a claim of exactness demands equality; as files they are ordinary cases, and refusals are
//! written in the text form.

mod claim;
mod degenerate;
mod exact;
mod grid;
mod low_rank;
mod refusals;
mod shapes;
mod softmax;
mod storage;
mod text;

pub use claim::Claim;

use serde_json::Value;
use std::path::{Path, PathBuf};

use crate::case::{Case, Expected, Request, container};
use crate::error::Error;
use crate::generate::ORIGIN;
use crate::judge::bound::Allowance;
use crate::judge::compare;
use crate::judge::report::{CaseReport, Status};
use crate::judge::{judge, run};
use crate::ops;
use crate::params::Params;
use crate::precision::Precision;
use crate::sampler::Sampler;
use crate::subject::Subject;
use crate::tensor::{Tensor, Tensors};
use crate::witness::Witness;

/// A family of cases.
#[derive(Debug)]
pub struct Family {
    /// Its name on the command line and in file names.
    pub name: &'static str,
    /// What is hard about its cases.
    pub what: &'static str,
    /// The mistake that they catch.
    pub catches: &'static str,
    build: fn(&Scope) -> Result<Vec<Draft>, String>,
}

/// How much of a family is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scope {
    /// Everything, where the default is a choice: minutes instead of seconds.
    pub exhaustive: bool,
}

/// A case of a family.
#[derive(Debug, Clone)]
pub struct FamilyCase {
    /// As it is judged and written.
    pub case: Case,
    /// What it has.
    pub claims: Vec<Claim>,
}

/// Every family.
pub static FAMILIES: &[&[Family]] = &[
    storage::FAMILIES,
    grid::FAMILIES,
    degenerate::FAMILIES,
    low_rank::FAMILIES,
    shapes::FAMILIES,
    exact::FAMILIES,
    softmax::FAMILIES,
    refusals::FAMILIES,
];

/// Every family, in order.
pub fn all() -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().flat_map(|families| families.iter())
}

/// The family of that name.
///
/// # Errors
/// For a name that is none.
pub fn find(name: &str) -> Result<&'static Family, String> {
    let unknown = || format!("there is no family {name:?} (conform list --families)");
    all().find(|family| family.name == name).ok_or_else(unknown)
}

/// A request and what it claims, before the claims are checked.
struct Draft {
    request: Request,
    claims: Vec<Claim>,
}

impl Draft {
    fn new<const N: usize, const M: usize>(
        op: &str,
        params: [(&'static str, Value); M],
        inputs: [(&str, Tensor); N],
        claims: &[Claim],
    ) -> Result<Self, String> {
        let request = Request {
            op: ops::find(op)?,
            params: Params::from_iter(params),
            inputs: ops::tensors(inputs),
        };
        Ok(Self { request, claims: claims.to_vec() })
    }

    /// What `op` takes out of everything that a layer may have.
    fn picked<const M: usize>(
        op: &str,
        params: [(&'static str, Value); M],
        tensors: &Tensors,
        claims: &[Claim],
    ) -> Result<Self, String> {
        let op = ops::find(op)?;
        let params = params.into_iter().filter(|(name, _)| op.params.contains(name));
        let mut inputs = tensors.clone();
        inputs.retain(|name, _| op.inputs.iter().any(|spec| *spec.name == **name));
        let request = Request { op, params: params.collect(), inputs };
        Ok(Self { request, claims: claims.to_vec() })
    }

    fn refused(&self) -> Option<&'static str> {
        self.claims.iter().find_map(|claim| match claim {
            Claim::Refused(text) => Some(*text),
            _ => None,
        })
    }
}

impl Family {
    /// Every case, its claims checked.
    ///
    /// # Errors
    /// `Generated` where a case lacks what it claims, or the reference disagrees about a refusal.
    pub fn cases(&self, scope: Scope) -> Result<Vec<FamilyCase>, Error> {
        let failed = |case: String, problem| Error::Generated { case, problem };
        let drafts = (self.build)(&scope).map_err(|e| failed(self.name.to_owned(), e))?;
        if drafts.is_empty() {
            return Err(failed(self.name.to_owned(), "the family has no case".to_owned()));
        }
        let cases = drafts.into_iter().enumerate().map(|(number, draft)| {
            let id = format!("{}-{number:03}-{}", self.name, draft.request.op.name);
            self.case(id.clone(), draft).map_err(|problem| failed(id, problem))
        });
        cases.collect()
    }

    fn case(&self, id: String, draft: Draft) -> Result<FamilyCase, String> {
        let refused = draft.refused();
        let Draft { request, claims } = draft;
        if claims.is_empty() {
            return Err("claims nothing".to_owned());
        }
        let expected = match refused {
            Some(text) => {
                let answer = (request.op.run.f64)(&request.to_precision(Precision::F64));
                let message = answer.err().ok_or("claims a refusal, and is answered")?;
                if !message.contains(text) {
                    return Err(format!("claims a refusal with {text:?}, and has {message:?}"));
                }
                Expected::Refusal(text.to_owned())
            }
            None => {
                let witness = Witness::of(&request)?;
                claims.iter().try_for_each(|claim| claim.check(&witness))?;
                Expected::Outputs(witness.outputs)
            }
        };
        let listed: Vec<String> = claims.iter().map(ToString::to_string).collect();
        let note = format!("{}: catches {}; claims {}", self.name, self.catches, listed.join(", "));
        let case = Case {
            file: PathBuf::from(format!("{id}.safetensors")),
            id,
            request,
            expected,
            origin: Some(ORIGIN.to_owned()),
            flags: vec![self.name.to_owned()],
            note: Some(note),
        };
        case.validate()?;
        Ok(FamilyCase { case, claims })
    }

    /// Writes the cases and returns their files: one safetensors file for each that is answered,
    /// one TOML file per operation for those that are refused.
    ///
    /// # Errors
    /// As [`Family::cases`], and `Io`.
    pub fn write(&self, folder: &Path, scope: Scope) -> Result<Vec<PathBuf>, Error> {
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        let (refused, answered): (Vec<_>, Vec<_>) = self
            .cases(scope)?
            .into_iter()
            .map(|family| family.case)
            .partition(|case| matches!(case.expected, Expected::Refusal(_)));
        let mut files = Vec::new();
        for case in answered {
            let file = folder.join(&case.file);
            container::write(&file, &case.container())?;
            files.push(file);
        }
        for (op, text) in text::files(self, &refused) {
            let file = folder.join(format!("{}-{op}.toml", self.name));
            container::write_bytes(&file, text.as_bytes())?;
            files.push(file);
        }
        Ok(files)
    }
}

impl FamilyCase {
    /// Judges one subject. A case that claims exactness must be answered with equal numbers.
    pub fn judge(&self, subject: &mut dyn Subject, precision: Precision) -> CaseReport {
        let mut report = judge(&self.case, subject, precision);
        if self.claims.contains(&Claim::Exact) && matches!(report.status, Status::Pass) {
            let request = self.case.request.to_precision(precision);
            let Expected::Outputs(expected) = &self.case.expected else { return report };
            if let Ok(actual) = run(subject, &request, precision) {
                demand_equality(&mut report, expected, &actual);
            }
        }
        report
    }
}

fn demand_equality(report: &mut CaseReport, expected: &Tensors, actual: &Tensors) {
    let equal = Allowance::default();
    let verdicts = expected.iter().filter_map(|(name, expected)| {
        Some(compare::chosen(name, &equal, expected, actual.get(name)?))
    });
    let failures: Vec<_> = verdicts.filter_map(|verdict| verdict.failure).collect();
    if !failures.is_empty() {
        report.status = Status::Fail { failures };
    }
}

/// An F32 tensor.
fn floats(shape: &[usize], values: impl IntoIterator<Item = f64>) -> Tensor {
    Tensor::from_f64s(shape.to_vec(), values.into_iter(), Precision::F32)
}

/// An F32 tensor of one number.
fn filled(shape: &[usize], value: f64) -> Tensor {
    floats(shape, std::iter::repeat_n(value, shape.iter().product()))
}

/// An F32 tensor of random integers from `-largest` to `largest`.
fn integers(sampler: &mut Sampler, shape: &[usize], largest: usize) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<f64> =
        (0..count).map(|_| sampler.size(0, 2 * largest) as f64 - largest as f64).collect();
    floats(shape, values)
}

/// The first draws of an operation that `suits` accepts.
fn sampled(
    op: &str,
    count: usize,
    suits: impl Fn(&Request) -> bool,
) -> Result<Vec<Request>, String> {
    let op = ops::find(op)?;
    let mut found = Vec::new();
    for number in 0..1000 {
        let (params, inputs) = (op.sample)(&mut Sampler::new(0, op.name, number))?;
        let request = Request { op, params, inputs };
        if suits(&request) {
            found.push(request);
        }
        if found.len() == count {
            return Ok(found);
        }
    }
    Err(format!("{}: only {} of a thousand draws suit", op.name, found.len()))
}
