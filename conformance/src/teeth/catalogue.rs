//! The catalogue of faults, by family. The eight faults of public code carry `(public: a)` to
//! `(public: h)` in their words; docs/teeth.md says what they are.

mod awq;
mod edits;
mod gptq;
mod gradients;
mod grid;
mod llama;
mod lr_qat;
mod methods;
mod nf4;
mod quantizer;
mod ranges;
mod rope;
mod storage;
mod training;
mod transformer;

use super::{Fault, Mutant};

/// Every fault, by family.
pub static MUTANTS: &[&[Mutant]] = &[
    quantizer::ROUNDING,
    quantizer::GRID,
    gradients::MUTANTS,
    storage::MUTANTS,
    ranges::DYNAMIC_MUTANTS,
    ranges::LWC_MUTANTS,
    ranges::RTN_MUTANTS,
    lr_qat::MUTANTS,
    methods::FROZEN,
    methods::TRAINED,
    awq::MUTANTS,
    nf4::MUTANTS,
    gptq::MUTANTS,
    gptq::DECOMPOSITIONS,
    llama::MUTANTS,
    transformer::MUTANTS,
    rope::MUTANTS,
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

/// A change that no result can show, for the reason given.
const fn equivalent(
    name: &'static str,
    what: &'static str,
    ops: &'static [&'static str],
    why: &'static str,
    fault: Fault,
) -> Mutant {
    Mutant { name, what, ops, flags: &[], fault, equivalent: Some(why) }
}
