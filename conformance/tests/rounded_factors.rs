//! A subject that rounds the factors of its products is allowed what that costs, if it says so, and
//! nothing else.

mod common;
#[path = "common/slipping.rs"]
mod slipping;

use common::golden_operations;
use plumbline_conformance::judge::judge;
use plumbline_conformance::judge::report::Status;
use plumbline_conformance::precision::{Precision, Products};
use plumbline_conformance::teeth::arithmetic::Slip;
use slipping::Slipping;

/// Operations whose results are products.
const PRODUCTS: &[&str] = &[
    "l4q.forward",
    "l4q.backward",
    "lr_qat.forward",
    "lr_qat.backward",
    "qa_lora.forward",
    "qa_lora.backward",
    "qat.forward",
    "qat.backward",
    "attention.forward",
    "attention.backward",
    "llama.loss_and_gradients",
];

/// Of these operations, those of which a golden case rejects the subject.
fn rejected<'a>(subject: &mut Slipping, ops: &[&'a str]) -> Vec<&'a str> {
    let cases = golden_operations();
    let mut fails = |op: &&str| {
        cases.iter().filter(|case| case.request.op.name == *op).any(|case| {
            let report = judge(case, subject, Precision::F32);
            matches!(report.status, Status::Fail { .. })
        })
    };
    ops.iter().copied().filter(|op| fails(op)).collect()
}

#[test]
fn roundings_that_nobody_announced_are_rejected() {
    let mut silent = Slipping(Slip::Bf16Factors, Products::AsStored);
    assert_eq!(rejected(&mut silent, PRODUCTS), PRODUCTS);
}

#[test]
fn announced_roundings_pass() {
    let mut honest = Slipping(Slip::Bf16Factors, Products::Bf16);
    assert!(rejected(&mut honest, PRODUCTS).is_empty());
}

/// Sums of bf16 are beyond it, and so is everything that is no product. Only a whole model hides
/// them, whose sums are short: what its factors lost in every layer before is more.
#[test]
fn other_roundings_are_rejected_all_the_same() {
    let mut adding = Slipping(Slip::Bf16Sum, Products::Bf16);
    let ops = ["rms_norm.forward", "swiglu.forward", "cross_entropy.forward", "adamw.step"];
    assert_eq!(rejected(&mut adding, &ops), ops);
    let layers = &PRODUCTS[..PRODUCTS.len() - 1];
    assert_eq!(rejected(&mut adding, layers), layers);
}
