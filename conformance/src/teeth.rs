//! Does the judge have teeth? Deliberate faults, and the campaign that must find them all.
//!
//! A [`Mutant`] is the f32 reference with one fault: in its arithmetic, in what it takes from the
//! request, or in what it answers. The golden cases must kill every one of them, each by a case
//! whose flag names the mistake; a fault that cannot change a result is listed as equivalent, with
//! the argument, and must survive.

pub mod arithmetic;
mod catalogue;
pub mod kernels;

use rayon::prelude::*;
use serde_json::{Value, json};
use std::fmt;

use crate::case::{Case, Expected, Request};
use crate::judge::judge;
use crate::judge::report::{Failure, Status};
use crate::ops::Operation;
use crate::precision::Precision;
use crate::subject::{Subject, SubjectError, Support};
use crate::tensor::Tensors;
use arithmetic::{Slip, with_slip};

pub use catalogue::MUTANTS;

/// A deliberate fault.
#[derive(Debug)]
pub struct Mutant {
    /// Its name on the command line, `mutant:NAME`.
    pub name: &'static str,
    /// The fault in words.
    pub what: &'static str,
    /// Operations that have it.
    pub ops: &'static [&'static str],
    /// Flags of golden cases that name this mistake; one of them must kill it.
    pub flags: &'static [&'static str],
    /// Where it is.
    pub fault: Fault,
    /// Why no result can show it, where none can.
    pub equivalent: Option<&'static str>,
}

/// Where a fault sits.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// In the arithmetic.
    Arithmetic(Slip),
    /// In what is taken from the request.
    Request(fn(&mut Request) -> Result<(), String>),
    /// In what is answered; the request is the one that was asked.
    Answer(fn(&Request, &mut Tensors) -> Result<(), String>),
}

/// The f32 reference with a fault.
#[derive(Debug, Clone, Copy)]
pub struct Faulty(pub &'static Mutant);

impl Faulty {
    /// The mutant of that name.
    pub fn find(name: &str) -> Option<Self> {
        MUTANTS.iter().flat_map(|family| family.iter()).find(|mutant| mutant.name == name).map(Self)
    }
}

impl Subject for Faulty {
    fn name(&self) -> &str {
        self.0.name
    }

    fn precisions(&self) -> &[Precision] {
        &[Precision::F32]
    }

    fn supports(&self, op: &Operation, _: Precision) -> Support {
        if self.0.ops.contains(&op.name) {
            return Support::Yes;
        }
        Support::No(format!("{} is a fault in {}", self.0.name, self.0.ops.join(", ")))
    }

    fn run(&mut self, request: &Request, _: Precision) -> Result<Tensors, SubjectError> {
        let op = request.op;
        // What the reference refuses is refused: a fault sees valid requests alone.
        let mut outputs = (op.run.f32)(request).map_err(SubjectError::Refused)?;
        match self.0.fault {
            Fault::Arithmetic(slip) => with_slip(slip, || (op.run.faulty)(request)),
            Fault::Request(edit) => {
                let mut edited = request.clone();
                edit(&mut edited).and_then(|()| (op.run.f32)(&edited))
            }
            Fault::Answer(edit) => edit(request, &mut outputs).map(|()| outputs),
        }
        .map_err(SubjectError::Refused)
    }
}

/// What became of one mutant.
#[derive(Debug, Clone)]
pub struct Fate {
    /// The mutant.
    pub mutant: &'static Mutant,
    /// Cases that it was run on.
    pub cases: usize,
    /// Cases that rejected a result of it.
    pub killers: usize,
    /// The first of those whose flag names the fault.
    pub named_killer: Option<NamedKiller>,
}

/// A case that rejected a fault and says in a flag that it hunts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedKiller {
    /// The operation.
    pub op: &'static str,
    /// The case.
    pub id: String,
    /// The flag that the case and the mutant share.
    pub flag: &'static str,
}

impl Fate {
    /// Killed by a case that names the fault; or equivalent, and alive.
    pub fn as_it_should_be(&self) -> bool {
        match self.mutant.equivalent {
            None => self.named_killer.is_some(),
            Some(_) => self.cases > 0 && self.killers == 0,
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mutant, cases, killers, named_killer } = self;
        let verdict = match (named_killer, mutant.equivalent, killers) {
            (_, Some(_), 0) => "equivalent",
            (_, Some(_), _) => "KILLED",
            (Some(_), None, _) => "killed",
            (None, None, 0) => "SURVIVED",
            (None, None, _) => "UNNAMED",
        };
        let share = format!("{killers}/{cases}");
        write!(f, "{verdict:<11}{:<42}{:<25}{share:>7}  ", mutant.name, mutant.ops.join(", "))?;
        match (named_killer, mutant.equivalent) {
            (_, Some(why)) => write!(f, "{why}"),
            (Some(killer), None) => write!(f, "{}: {}", killer.flag, killer.id),
            (None, None) => {
                write!(f, "{}; no case with flag {}", mutant.what, mutant.flags.join(" or "))
            }
        }
    }
}

/// Runs every mutant of the catalogue, on all processors.
pub fn campaign(cases: &[Case]) -> Vec<Fate> {
    let mutants: Vec<_> = MUTANTS.iter().flat_map(|family| family.iter()).collect();
    mutants.into_par_iter().map(|mutant| fate(mutant, cases)).collect()
}

/// What a campaign comes to.
#[derive(Debug, Clone)]
pub struct Score {
    fates: Vec<Fate>,
}

impl Score {
    /// The score of these fates.
    pub fn new(fates: Vec<Fate>) -> Self {
        Self { fates }
    }

    /// Whether every fault was killed by a case that names it, and every equivalent lived.
    pub fn is_full(&self) -> bool {
        !self.fates.is_empty() && self.fates.iter().all(Fate::as_it_should_be)
    }

    /// Faults that can be noticed, and those of them that were killed as they should be.
    fn counts(&self) -> (usize, usize) {
        let noticeable = self.fates.iter().filter(|fate| fate.mutant.equivalent.is_none());
        (noticeable.clone().count(), noticeable.filter(|fate| fate.as_it_should_be()).count())
    }

    /// One object: the score, and every mutant with its fate.
    pub fn to_json(&self) -> Value {
        let (all, killed) = self.counts();
        let mutants = self.fates.iter().map(|fate| {
            json!({
                "name": fate.mutant.name,
                "what": fate.mutant.what,
                "ops": fate.mutant.ops,
                "flags": fate.mutant.flags,
                "equivalent": fate.mutant.equivalent,
                "cases": fate.cases,
                "killers": fate.killers,
                "named_killer": fate.named_killer.as_ref().map(|killer| {
                    json!({ "op": killer.op, "case": killer.id, "flag": killer.flag })
                }),
                "as_it_should_be": fate.as_it_should_be(),
            })
        });
        json!({ "mutants": all, "killed": killed, "fates": mutants.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, op, share, by) = ("mutant", "operation", "by", "first killer that names it");
        writeln!(f, "{:<11}{name:<42}{op:<25}{share:>7}  {by}", "fate")?;
        for fate in &self.fates {
            writeln!(f, "{fate}")?;
        }
        let (all, killed) = self.counts();
        let equivalent = self.fates.len() - all;
        write!(f, "{killed} of {all} mutants killed by a case that names them")?;
        write!(f, "; {equivalent} equivalent")
    }
}

/// Runs one mutant on every case of its operations that has an answer.
pub fn fate(mutant: &'static Mutant, cases: &[Case]) -> Fate {
    let mut fate = Fate { mutant, cases: 0, killers: 0, named_killer: None };
    let answerable = |case: &&Case| {
        mutant.ops.contains(&case.request.op.name) && matches!(case.expected, Expected::Outputs(_))
    };
    for case in cases.iter().filter(answerable) {
        fate.cases += 1;
        let report = judge(case, &mut Faulty(mutant), Precision::F32);
        // A refusal or a crash is noticed by anyone; what counts is a result that was rejected.
        let rejected = match &report.status {
            Status::Fail { failures } => {
                failures.iter().any(|failure| !matches!(failure, Failure::Case { .. }))
            }
            _ => false,
        };
        if !rejected {
            continue;
        }
        fate.killers += 1;
        let named = mutant.flags.iter().find(|flag| case.flags.iter().any(|given| given == *flag));
        if let (None, Some(flag)) = (&fate.named_killer, named) {
            let (op, id) = (case.request.op.name, case.id.clone());
            fate.named_killer = Some(NamedKiller { op, id, flag });
        }
    }
    fate
}
