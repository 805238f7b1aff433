//! Faults in compiled kernels, and the campaign that must find them on a machine without a GPU.
//!
//! A [`Slip`] is a small edit of PTX: a barrier dropped, a neighbouring lane read, a bound off by
//! one. It is tried at every place of every kernel where it can be made, one at a time, and the
//! golden cases of the operations that run the kernel must reject the result, by its numbers or
//! because the interpreter saw a rule broken.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use plumbline::cuda::{Compute, Cuda, Interpreter, Module};

use crate::case::{Case, Expected};
use crate::judge::judge;
use crate::judge::report::{Failure, Status};
use crate::precision::Precision;
use crate::subjects::cuda::interpreted;

/// A kind of mistake in compiled kernels.
#[derive(Debug)]
pub struct Slip {
    /// Its name.
    pub name: &'static str,
    /// The mistake in words.
    pub what: &'static str,
    /// Modules whose numbers forbid it; empty for all.
    pub modules: &'static [&'static str],
    /// What a line becomes, where the mistake can be made there.
    edit: fn(&str) -> Option<String>,
}

/// Modules whose results are equal to the reference's in every bit.
const EXACT: &[&str] = &[
    "fake_quantize",
    "fake_quantize_backward",
    "init_scale",
    "lr_qat_quantize",
    "affine",
    "dynamic_quantize",
    "round_scale",
];

/// Every kind.
pub const SLIPS: &[Slip] = &[
    Slip {
        name: "no_barrier",
        what: "the threads of a block do not wait for each other",
        modules: &[],
        edit: |line| is(line, "bar.sync").then(String::new),
    },
    Slip {
        name: "nothing_staged",
        what: "shared memory keeps what was there before",
        modules: &[],
        edit: |line| is(line, "st.shared").then(String::new),
    },
    Slip {
        name: "wrong_lane",
        what: "a lane reads from itself",
        modules: &[],
        edit: |line| {
            let (head, _, tail) = operand(is(line, "shfl.sync").then_some(line)?, 2)?;
            Some(format!("{head} 0{tail}"))
        },
    },
    Slip {
        name: "bound_off_by_one",
        what: "a bound is reached, or not quite",
        modules: &[],
        edit: |line| {
            let compared = is(line, "setp.") && !line.contains(".f32") && !line.contains(".f64");
            let swaps = [(".lt.", ".le."), (".le.", ".lt."), (".gt.", ".ge."), (".ge.", ".gt.")];
            let (from, to) = swaps.iter().find(|(from, _)| compared && line.contains(from))?;
            Some(line.replacen(from, to, 1))
        },
    },
    Slip {
        name: "no_guard",
        what: "a condition is not asked: a tail is not masked, a loop runs once",
        modules: &[],
        edit: |line| (line.trim_start().starts_with('@') && line.contains("bra")).then(String::new),
    },
    Slip {
        name: "truncated_codes",
        what: "codes are rounded towards zero",
        modules: &[],
        edit: |line| line.contains("cvt.rni.").then(|| line.replace("cvt.rni.", "cvt.rzi.")),
    },
    Slip {
        name: "reciprocal",
        what: "a quotient is a product with a reciprocal",
        modules: EXACT,
        edit: |line| {
            let [to, from, by] = operands(is(line, "div.rn.f32").then_some(line)?)?;
            (to != from).then(|| format!("rcp.rn.f32 {to}, {by}; mul.rn.f32 {to}, {from}, {to};"))
        },
    },
    Slip {
        name: "narrow_sum",
        what: "a sum keeps eight bits of fraction",
        modules: &[],
        edit: |line| {
            // The library's exponential reduces its argument by fused steps with constants, the
            // first of which only has to come near: ex2 makes up for what it loses.
            let fused = is(line, "fma.rn.f32") && !line.contains(", 0f");
            let sums = is(line, "add.rn.f32") || fused;
            let to = line.split_whitespace().nth(1).filter(|_| sums)?.trim_end_matches(',');
            Some(format!("{line} and.b32 {to}, {to}, 0xffff0000;"))
        },
    },
];

/// Whether a line holds this instruction, with or without a guard.
fn is(line: &str, instruction: &str) -> bool {
    let line = line.trim_start();
    let line = if line.starts_with('@') {
        line.split_once(char::is_whitespace).map_or("", |l| l.1)
    } else {
        line
    };
    line.trim_start().starts_with(instruction)
}

/// The three operands of an instruction without a guard.
fn operands(line: &str) -> Option<[String; 3]> {
    let (_, operands) = line.trim().trim_end_matches(';').split_once(char::is_whitespace)?;
    let operands: Vec<_> = operands.split(',').map(|operand| operand.trim().to_owned()).collect();
    operands.try_into().ok()
}

/// What stands before an operand, the operand, and what stands after.
fn operand(line: &str, place: usize) -> Option<(&str, &str, &str)> {
    let start = line.match_indices(',').nth(place - 1)?.0 + 1;
    let end = start + line[start..].find([',', ';'])?;
    Some((&line[..start], line[start..end].trim(), &line[end..]))
}

/// One mistake at one place.
#[derive(Debug)]
pub struct Mutant {
    /// The mistake.
    pub slip: &'static Slip,
    /// The module that has it.
    pub module: &'static Module,
    /// The kernel.
    pub entry: &'static str,
    /// Line of the `.ptx` file, from 1.
    pub ptx_line: usize,
    /// Line of the `.cu` file or header that the compiler made it from.
    pub source: String,
    /// The instruction as it was.
    pub instruction: &'static str,
    edited: String,
}

impl Mutant {
    /// Text of the module with another line at this place, without the module's other kernels.
    fn ptx(&self, other: &str) -> String {
        let (mut text, mut entry) = (String::new(), None);
        for (place, line) in self.module.ptx.lines().enumerate() {
            if line.starts_with("\t.file") {
                entry = None;
            } else if let Some(name) = entry_of(line) {
                entry = Some(name);
            }
            if entry.is_none_or(|entry| entry == self.entry) {
                text += if place + 1 == self.ptx_line { other } else { line };
                text.push('\n');
            }
        }
        text
    }
}

/// The kernel that begins with this line.
fn entry_of(line: &'static str) -> Option<&'static str> {
    line.split_once(".entry ").map(|(_, name)| name.trim_end_matches('('))
}

/// Every mistake at every place of a module.
pub fn mutants(module: &'static Module) -> Vec<Mutant> {
    let lines: Vec<&'static str> = module.ptx.lines().collect();
    let files = files(&lines);
    let (mut entry, mut source, mut found) = ("", String::new(), Vec::new());
    for (place, line) in lines.iter().copied().enumerate() {
        entry = entry_of(line).unwrap_or(entry);
        if let Some(location) = line.trim().strip_prefix(".loc") {
            let mut words = location.split_whitespace();
            let file = words.next().and_then(|file| files.get(file)).map_or("", String::as_str);
            source = format!("{file}:{}", words.next().unwrap_or_default());
        }
        for slip in SLIPS {
            if !slip.modules.is_empty() && !slip.modules.contains(&module.name) {
                continue;
            }
            let Some(edited) = (slip.edit)(line) else { continue };
            let (source, instruction, ptx_line) = (source.clone(), line.trim(), place + 1);
            found.push(Mutant { slip, module, entry, ptx_line, source, instruction, edited });
        }
    }
    found
}

/// The names of `.file` directives by their numbers.
fn files<'a>(lines: &[&'a str]) -> BTreeMap<&'a str, String> {
    let directives = lines.iter().filter_map(|line| line.trim().strip_prefix(".file"));
    let named = directives.filter_map(|directive| {
        let (number, name) = directive.trim().split_once(char::is_whitespace)?;
        let name = name.trim().trim_matches('"').rsplit('/').next()?;
        Some((number, name.to_owned()))
    });
    named.collect()
}

/// What became of a mistake.
#[derive(Debug)]
pub struct Fate {
    /// The mistake.
    pub mutant: Mutant,
    /// Cases that it was run on, up to the one that rejected it.
    pub cases: usize,
    /// The case that rejected it, and why.
    pub killer: Option<String>,
    /// Whether any of the cases comes by the place at all.
    pub is_reached: bool,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mutant, cases, killer, is_reached } = self;
        let Mutant { slip, module, entry, ptx_line, source, instruction, .. } = mutant;
        let verdict = match (killer, is_reached) {
            (Some(_), _) => "killed",
            (None, true) => "SURVIVED",
            (None, false) => "NOT REACHED",
        };
        let killer = killer.as_deref().unwrap_or(instruction);
        let name = slip.name;
        write!(
            f,
            "{verdict} {name} {}.ptx:{ptx_line} {entry} {source} {cases} {killer}",
            module.name
        )
    }
}

/// The golden cases that run a kernel, and what the products are computed in when they do.
struct Judges<'a> {
    compute: Compute,
    cases: Vec<&'a Case>,
}

/// The judges of each kernel, by module and entry.
pub struct Reach<'a> {
    judges: BTreeMap<(&'static str, &'static str), Judges<'a>>,
}

impl<'a> Reach<'a> {
    /// Runs every case on the kernels as they are, with products in f32 and, for the kernels that this
    /// leaves out, in bf16; the cases that pass count.
    ///
    /// # Errors
    /// When the host has no room.
    pub fn of(cases: &'a [Case]) -> Result<Self, String> {
        let mut judges = BTreeMap::new();
        for compute in [Compute::F32, Compute::Bf16] {
            for (kernel, cases) in reached(cases, compute)? {
                judges.entry(kernel).or_insert(Judges { compute, cases });
            }
        }
        // Whole models take long: they judge the kernels that nothing smaller runs.
        for Judges { cases, .. } in judges.values_mut() {
            let size = |case: &&Case| match case.request.op.name {
                "llama.train" => 2,
                "llama.loss_and_gradients" => 1,
                _ => 0,
            };
            let smallest = cases.iter().map(size).min();
            cases.retain(|case| Some(size(case)) == smallest);
        }
        Ok(Self { judges })
    }

    /// Tries a mistake on the cases of its kernel until one rejects it. Where none does, a kernel that
    /// gives up at this place tells whether any comes by.
    ///
    /// # Errors
    /// When the host has no room.
    pub fn fate(&self, mutant: Mutant) -> Result<Fate, String> {
        let (cases, killer) = self.judged(&mutant, &mutant.edited)?;
        let is_reached = killer.is_some() || self.judged(&mutant, "trap;")?.1.is_some();
        Ok(Fate { mutant, cases, killer, is_reached })
    }

    /// With another line at the place of a mistake: cases that were run, and why the last rejects it.
    fn judged(&self, mutant: &Mutant, line: &str) -> Result<(usize, Option<String>), String> {
        let Module { name, source, .. } = *mutant.module;
        let Some(judges) = self.judges.get(&(name, mutant.entry)) else { return Ok((0, None)) };
        // Kernels are named by what lives as long as the program.
        let edited = Module { name, source, ptx: mutant.ptx(line).leak() };
        let interpreter = Interpreter::new().budget(BUDGET).replacing(Box::leak(Box::new(edited)));
        let mut subject = interpreted(backend(interpreter, judges.compute)?);
        for (place, case) in judges.cases.iter().enumerate() {
            if let Status::Fail { failures } = judge(case, &mut subject, Precision::F32).status {
                let why = failures.first().map(in_words).unwrap_or_default();
                return Ok((place + 1, Some(format!("{}: {why}", case.id))));
            }
        }
        Ok((judges.cases.len(), None))
    }
}

/// The cases that pass, by the kernels that they run.
fn reached(
    cases: &[Case],
    compute: Compute,
) -> Result<BTreeMap<(&'static str, &'static str), Vec<&Case>>, String> {
    let mut reached: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for case in cases.iter().filter(|case| matches!(case.expected, Expected::Outputs(_))) {
        let backend = backend(Interpreter::new(), compute)?;
        let report = judge(case, &mut interpreted(Arc::clone(&backend)), Precision::F32);
        if matches!(report.status, Status::Pass) {
            for kernel in backend.launcher().launched() {
                reached.entry(kernel).or_default().push(case);
            }
        }
    }
    Ok(reached)
}

fn in_words(failure: &Failure) -> String {
    match failure {
        Failure::Elements { tensor, elements, count, .. } => {
            format!("{count} of {elements} elements of {tensor} differ")
        }
        Failure::Tensor { tensor, what } => format!("{tensor}: {what}"),
        Failure::Case { what } => what.clone(),
    }
}

/// Instructions after which a loop is taken to have lost its end.
const BUDGET: u64 = 1 << 22;

fn backend(interpreter: Interpreter, compute: Compute) -> Result<Arc<Cuda<Interpreter>>, String> {
    Cuda::with_compute(interpreter, compute).map(Arc::new).map_err(|e| e.to_string())
}
