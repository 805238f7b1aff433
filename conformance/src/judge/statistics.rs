//! What only many cases together can show: a subject that is sloppier than its precision, or
//! leans to one side.
//!
//! Every case has passed or failed before this on its own. Over a run, for each output of each
//! operation:
//!
//! - Ratio. The root mean square of difference over allowance is at most [`SLOPPY`] times that of
//!   the reference, run on the same cases in the subject's own precision.
//! - Sides. Over at least [`ENOUGH`] cases, the mean signed difference, counted upwards and counted
//!   away from zero, is that of the reference within four standard errors, or within [`SLIGHT`] of
//!   its root mean square: truncation leans by nearly all of its own, rounding to nearest by
//!   nothing but what a rounded constant gives to both.
//! - Flips. Of the codes that the precision leaves open no more than half fall on the other side,
//!   and as many upwards as downwards, both within four standard deviations of a fair coin; but
//!   for what the reference, run in the same precision, does too: the largest weight of a
//!   symmetric grid lies on a tie by construction, and its quotient errs to one side.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::compare::Verdict;
use super::report::CaseReport;

/// How much rougher than the reference's own arithmetic: the reference adds term by term and
/// calls exponentials that are good to half an ulp; vector exponentials are promised to two.
pub const SLOPPY: f64 = 2.0;

/// Cases without which a mean says nothing.
pub const ENOUGH: usize = 100;

/// The part of the reference's deviation that a mean may be without anyone being harmed.
pub const SLIGHT: f64 = 0.25;

/// Standard deviations that chance is given.
const SIGMAS: f64 = 4.0;

/// Sums over the cases of one output.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Its operation.
    pub op: String,
    /// Its name.
    pub tensor: String,
    /// Cases that were compared.
    pub cases: usize,
    /// Elements in all of them.
    pub elements: usize,
    /// Cases in which everything was expected to be zero.
    pub empty: usize,
    /// Largest difference over its allowance; none where something had no allowance at all.
    pub worst_ratio: Option<f64>,
    /// Root mean square of difference over allowance.
    pub deviation: f64,
    /// That of the reference in the same precision; none where it was not run.
    pub reference: Option<f64>,
    /// The cases' mean signed differences over allowance, less those of the reference.
    pub upward: Lean,
    /// The same, counted away from zero.
    pub outward: Lean,
    /// Decisions that the precision leaves open.
    pub open: usize,
    /// Those of them that fell on the other side.
    pub flips: usize,
    /// Those that fell upwards.
    pub upwards: usize,
    /// What is wrong with the output as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
}

/// A mean over cases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Lean {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub error: f64,
}

/// What a [`Lean`] is computed from.
#[derive(Debug, Default)]
struct Means {
    sum: f64,
    squares: f64,
}

impl Means {
    fn add(&mut self, mean: f64) {
        self.sum += mean;
        self.squares += mean * mean;
    }

    fn lean(&self, cases: usize) -> Lean {
        let cases = cases.max(1) as f64;
        let mean = self.sum / cases;
        let variance = (self.squares / cases - mean * mean).max(0.0);
        Lean { mean, error: (variance / cases).sqrt() }
    }
}

#[derive(Debug, Default)]
struct Sums {
    cases: usize,
    elements: usize,
    empty: usize,
    worst_ratio: f64,
    squares: f64,
    compared: usize,
    reference_squares: f64,
    referred: usize,
    upward: Means,
    outward: Means,
    open: usize,
    flips: usize,
    upwards: usize,
    reference_flips: usize,
    reference_upwards: usize,
}

/// The sums of a run.
#[derive(Debug, Default)]
pub struct Statistics {
    outputs: BTreeMap<(&'static str, String), Sums>,
}

impl Statistics {
    /// Adds a judged case, and the same case answered by the reference in the same precision.
    pub fn add(&mut self, report: &CaseReport, reference: &CaseReport) {
        for verdict in &report.tensors {
            let sums = self.outputs.entry((report.op, verdict.tensor.clone())).or_default();
            let mut tensors = reference.tensors.iter();
            sums.add(verdict, tensors.find(|beside| beside.tensor == verdict.tensor));
        }
    }

    /// One summary for each output, in the order of their names.
    pub fn summaries(&self) -> Vec<Summary> {
        let outputs = self.outputs.iter();
        outputs.map(|((op, tensor), sums)| sums.summary(op, tensor)).collect()
    }
}

impl Sums {
    fn add(&mut self, verdict: &Verdict, reference: Option<&Verdict>) {
        self.cases += 1;
        self.elements += verdict.elements;
        self.empty += usize::from(verdict.empty);
        self.worst_ratio = self.worst_ratio.max(verdict.worst_ratio);
        self.open += verdict.open;
        self.flips += verdict.flips;
        self.upwards += verdict.upwards;
        if verdict.failure.is_some() || verdict.elements == 0 {
            return;
        }
        if let Some(reference) = reference {
            self.reference_flips += reference.flips;
            self.reference_upwards += reference.upwards;
        }
        // A result of a narrow type carries a rounding that the reference's does not.
        let Some(reference) = reference.filter(|_| !verdict.narrow) else { return };
        self.compared += 1;
        self.upward.add((verdict.signed - reference.signed) / verdict.elements as f64);
        self.outward.add((verdict.outward - reference.outward) / verdict.elements as f64);
        self.squares += verdict.squares;
        self.reference_squares += reference.squares;
        self.referred += verdict.elements;
    }

    fn summary(&self, op: &str, tensor: &str) -> Summary {
        let root = |squares: f64| (squares / self.referred.max(1) as f64).sqrt();
        let mut summary = Summary {
            op: op.to_owned(),
            tensor: tensor.to_owned(),
            cases: self.cases,
            elements: self.elements,
            empty: self.empty,
            worst_ratio: self.worst_ratio.is_finite().then_some(self.worst_ratio),
            deviation: root(self.squares),
            reference: (self.referred > 0).then(|| root(self.reference_squares)),
            upward: self.upward.lean(self.compared),
            outward: self.outward.lean(self.compared),
            open: self.open,
            flips: self.flips,
            upwards: self.upwards,
            findings: Vec::new(),
        };
        summary.findings = self.findings(&summary);
        summary
    }

    fn findings(&self, summary: &Summary) -> Vec<String> {
        let mut findings = Vec::new();
        let Summary { deviation, upward, outward, .. } = *summary;
        if let Some(reference) = summary.reference
            && self.compared >= ENOUGH
        {
            if deviation > SLOPPY * reference {
                findings.push(format!(
                    "differs by {deviation:.2e} of its allowances in the root mean square, more \
                     than {SLOPPY} times the reference's {reference:.2e}"
                ));
            }
            for (Lean { mean, error }, way) in
                [(upward, ["downwards", "upwards"]), (outward, ["towards zero", "away from zero"])]
            {
                if mean.abs() > SIGMAS * error && mean.abs() > SLIGHT * reference {
                    findings.push(format!(
                        "leans {}: mean difference {mean:.2e} of the allowances, standard error \
                         {error:.1e}, the reference's root mean square {reference:.2e}",
                        way[usize::from(mean > 0.0)]
                    ));
                }
            }
        }
        self.coins(&mut findings);
        findings
    }

    /// Whether open decisions fall as a fair coin would.
    fn coins(&self, findings: &mut Vec<String>) {
        let [open, flips, upwards] = [self.open, self.flips, self.upwards].map(|n| n as f64);
        let [own_flips, own_upwards] =
            [self.reference_flips, self.reference_upwards].map(|n| n as f64);
        let half = (open / 2.0).max(own_flips);
        if flips > half + SIGMAS * open.sqrt() / 2.0 {
            findings.push(format!("{flips} of {open} open decisions fell on the other side"));
        }
        let (lean, own_lean) = (2.0 * upwards - flips, 2.0 * own_upwards - own_flips);
        if (lean - own_lean).abs() > SIGMAS * (flips + own_flips).sqrt() {
            findings.push(format!(
                "{upwards} of {flips} flips went upwards; of the reference's own {own_flips}, \
                 {own_upwards}"
            ));
        }
    }
}

/// One line for each operation: its cases, and the worst ratio of each output.
pub struct Table<'a>(pub &'a [Summary]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for outputs in self.0.chunk_by(|one, other| one.op == other.op) {
            let cases = outputs.iter().map(|output| output.cases).max().unwrap_or(0);
            write!(f, "\n{:<26}{cases:>6} cases", outputs[0].op)?;
            // A whole model has an output for every weight.
            let all = outputs.len();
            let shown = if all <= 8 { outputs } else { std::slice::from_ref(worst(outputs)) };
            for output in shown {
                let worst = match output.worst_ratio {
                    Some(0.0) => "exact".to_owned(),
                    Some(worst) => format!("{worst:.2}"),
                    None => "rejected".to_owned(),
                };
                write!(f, "  {} {worst}", output.tensor)?;
                if output.open > 0 {
                    write!(f, " ({} of {} open flipped)", output.flips, output.open)?;
                }
            }
            if all > shown.len() {
                write!(f, ", the worst of {all}")?;
            }
        }
        Ok(())
    }
}

fn worst(outputs: &[Summary]) -> &Summary {
    let ratio = |output: &Summary| output.worst_ratio.unwrap_or(f64::INFINITY);
    let worst = outputs.iter().max_by(|one, other| ratio(one).total_cmp(&ratio(other)));
    worst.unwrap_or(&outputs[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(signed: f64, squares: f64) -> Verdict {
        Verdict { elements: 10, signed, squares, ..Verdict::new("y", 10) }
    }

    fn findings(subject: impl Fn(usize) -> Verdict, reference: &Verdict) -> Vec<String> {
        let mut sums = Sums::default();
        for index in 0..200 {
            sums.add(&subject(index), Some(reference));
        }
        sums.summary("op", "y").findings
    }

    /// Leans now to the one side and now to the other.
    fn fair(index: usize) -> f64 {
        if index.is_multiple_of(2) { 1.0 } else { -1.0 }
    }

    #[test]
    fn one_and_a_half_of_the_reference_is_its_precision_and_three_is_sloppy() {
        let reference = verdict(0.0, 1.0);
        assert!(findings(|index| verdict(fair(index), 2.25), &reference).is_empty());
        let found = findings(|index| verdict(fair(index), 9.0), &reference);
        assert!(found.len() == 1 && found[0].contains("root mean square"), "{found:?}");
    }

    #[test]
    fn a_lean_is_found_and_chance_is_not() {
        let reference = verdict(0.0, 1.0);
        assert!(findings(|index| verdict(fair(index), 1.0), &reference).is_empty());
        let found = findings(|index| verdict(2.0 + fair(index), 1.0), &reference);
        assert!(found.len() == 1 && found[0].contains("leans upwards"), "{found:?}");
        let inwards = |index| Verdict { outward: -2.0 - fair(index), ..verdict(fair(index), 1.0) };
        let found = findings(inwards, &reference);
        assert!(found.len() == 1 && found[0].contains("leans towards zero"), "{found:?}");
    }

    #[test]
    fn flips_are_a_fair_coin() {
        let flipped = |open, flips, upwards, [own_flips, own_upwards]: [usize; 2]| {
            let verdict = |flips, upwards| Verdict { open, flips, upwards, ..verdict(0.0, 0.0) };
            let mut sums = Sums::default();
            sums.add(&verdict(flips, upwards), Some(&verdict(own_flips, own_upwards)));
            sums.summary("op", "codes").findings
        };
        assert!(flipped(1000, 480, 250, [480, 230]).is_empty());
        assert!(flipped(4, 4, 2, [0, 0]).is_empty());
        assert!(flipped(1000, 700, 350, [200, 100])[0].contains("other side"));
        assert!(flipped(1000, 400, 400, [400, 200])[0].contains("upwards"));
        assert!(flipped(1000, 400, 400, [390, 390]).is_empty(), "as the precision itself does");
    }
}
