//! The catalogue of faults, by family. The eight faults of public code carry `(public: a)` to
//! `(public: h)` in their words; docs/judge_your_own.md says where they were found.

mod edits;
mod quantizer;
mod training;
mod transformer;

use super::{Fault, Mutant};

/// Every fault, by family.
pub static MUTANTS: &[&[Mutant]] = &[
    quantizer::ROUNDING,
    quantizer::GRID,
    quantizer::GRADIENTS,
    transformer::MUTANTS,
    training::MUTANTS,
];

/// A fault that some case must kill.
const fn fault(
    name: &'static str,
    what: &'static str,
    ops: &'static [&'static str],
    flags: &'static [&'static str],
    fault: Fault,
) -> Mutant {
    Mutant { name, what, ops, flags, fault, equivalent: None }
}
