//! Do the cases have what they are for? A test of ties without a tie passes whatever the rounding.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::golden;
use plumbline_conformance::case::{Case, Expected, Request};
use plumbline_conformance::families::{Scope, find};
use plumbline_conformance::judge::judge;
use plumbline_conformance::ops::{OPERATIONS, Operation};
use plumbline_conformance::precision::Precision;
use plumbline_conformance::sampler::Sampler;
use plumbline_conformance::subject::select;
use plumbline_conformance::tensor::{Data, Tensor};
use plumbline_conformance::witness::{Features, Witness, groups, is_zero};
use plumbline_reference::spec::SCALE_FLOOR;

/// Whether a case has what a flag claims; nothing where the evidence is of another kind.
type Proof = fn(&Witness) -> Option<bool>;

/// Flags whose claim can be seen in the numbers.
const PROOFS: &[(&str, Proof)] = &[
    ("tie", |w| w.grid.as_ref().map(|_| w.features().ties > 0)),
    ("combined_tie", |w| w.grid.as_ref().map(|_| w.features().ties > 0)),
    ("zero_point_tie", |w| {
        let estimates = &w.grid.as_ref()?.zero_points.as_ref()?.estimate;
        Some(estimates.iter().any(|z| z.error == 0.0 && (z.value - z.value.floor()) == 0.5))
    }),
    ("range_end", |w| w.grid.as_ref().map(|_| has_end_codes(w))),
    ("saturation", |w| w.grid.as_ref().map(|_| w.features().clipped > 0)),
    ("closed_mask", |w| w.grid.as_ref().map(|_| w.features().on_an_end > 0)),
    ("unmasked", |w| {
        // Of an adapter beside the quantizer it says that nothing is masked at all.
        let quantized = !w.request.op.name.starts_with("qat_lora.");
        w.grid.as_ref().filter(|_| quantized).map(|_| w.features().clipped > 0)
    }),
    ("group_index", |w| w.grid.as_ref().map(|_| w.features().unlike_groups > 0)),
    ("one_group_per_row", |w| {
        w.grid.as_ref().map(|grid| grid.scale.ncols() == 1 && grid.scale.nrows() > 1)
    }),
    ("scale_floor", |w| {
        // Beside scales below the floor there are cases of one just above it.
        let scale = w.grid.as_ref().and(w.request.inputs.get("scale"))?;
        Some(scale.values().any(|scale| scale < 2.0 * SCALE_FLOOR))
    }),
    ("zero_adapter", |w| {
        let lora_b = w.request.inputs.get("lora_b")?;
        Some(is_zero(lora_b) || w.request.params.number("lora_scaling") == Ok(0.0))
    }),
    ("real_offset", |w| between_codes(w, "offset")),
    ("real_zero_point", |w| {
        let zero_point = w.request.inputs.get("zero_point")?;
        Some(zero_point.values().any(|z| z != z.round_ties_even()))
    }),
    ("causal", |w| Some(w.tensor("q")?.shape()[1] > 1)),
    ("odd_size", |w| {
        let shapes = w.request.inputs.values().chain(w.outputs.values());
        Some(shapes.flat_map(Tensor::shape).any(|size| size % 4 != 0))
    }),
    ("ignored", |w| {
        let ignored = w.request.params.number("ignore_index").ok()?;
        Some(w.tensor("targets")?.values().any(|target| target == ignored))
    }),
    ("ignore_index", |w| Some(w.request.params.number("ignore_index").ok()? != -100.0)),
    ("constant", |w| has_constant_group(w)),
    ("degenerate", |w| has_constant_group(w)),
    ("mask_rule", |w| decides(w, "mask", &["pre_round", "rounded", "open"])),
    ("grad_scale", |w| decides(w, "grad_scale", &["none", "lsq", "lit_gpt", "peft"])),
];

fn has_end_codes(witness: &Witness) -> bool {
    let Some(grid) = &witness.grid else { return false };
    grid.elements.iter().any(|e| e.code == grid.ends.low || e.code == grid.ends.high)
}

/// Whether some offset is no whole number of steps.
fn between_codes(witness: &Witness, name: &str) -> Option<bool> {
    let (offset, scale) = (witness.request.inputs.get(name)?, witness.tensor("scale")?);
    let mut steps = offset.values().zip(scale.values()).map(|(offset, scale)| offset / scale);
    Some(steps.any(|steps| steps != steps.round_ties_even()))
}

fn has_constant_group(witness: &Witness) -> Option<bool> {
    let names = ["weight", "x"];
    let tensor = names.iter().find_map(|name| witness.request.inputs.get(*name))?;
    let values: Vec<f64> = tensor.values().collect();
    let mut groups = groups(&witness.request, tensor).into_iter();
    Some(groups.any(|group| values[group.clone()].iter().all(|x| *x == values[group.start])))
}

/// Whether another value of a parameter that is there gives another answer.
fn decides(witness: &Witness, name: &str, values: &[&str]) -> Option<bool> {
    let given = witness.request.params.0.get(name)?.as_str()?;
    let others = values.iter().filter(|value| **value != given);
    let changes = others.filter_map(|value| {
        let mut other: Request = witness.request.clone();
        other.params.0.insert(name.to_owned(), (*value).into());
        // LR-QAT knows two of the three masks.
        Some((other.op.run.f64)(&other).ok()? != witness.outputs)
    });
    changes.reduce(|one, other| one || other)
}

#[test]
fn golden_flags_keep_their_word() {
    let (mut checked, mut vacuous) = (BTreeMap::new(), Vec::new());
    for case in golden() {
        if !matches!(case.expected, Expected::Outputs(_)) {
            continue;
        }
        let witness = Witness::of(&case.request).unwrap();
        for (flag, proof) in PROOFS {
            if !case.flags.iter().any(|own| own == flag) {
                continue;
            }
            match proof(&witness) {
                None => {}
                Some(true) => *checked.entry(*flag).or_insert(0) += 1,
                Some(false) => vacuous.push(format!("{}: {flag}", case.label())),
            }
        }
    }
    println!("{checked:?}");
    assert!(vacuous.is_empty(), "{}\n{}", vacuous.len(), vacuous.join("\n"));
    for (flag, _) in PROOFS {
        assert!(checked.contains_key(flag), "no case was held to {flag}");
    }
}

#[test]
fn golden_refusals_of_non_finite_numbers_hold_one() {
    let flagged = |case: &&Case| case.flags.iter().any(|flag| flag == "non_finite");
    let cases = golden();
    let cases: Vec<_> = cases.iter().filter(flagged).collect();
    assert!(!cases.is_empty());
    for case in cases {
        assert!(matches!(case.expected, Expected::Refusal(_)), "{}", case.label());
        let holds = case.request.inputs.values().any(|x| x.first_non_finite().is_some());
        assert!(holds, "{}", case.label());
    }
}

const DRAWS: u64 = 200;

fn witnesses(op: &'static Operation) -> impl Iterator<Item = Witness> {
    (0..DRAWS).map(move |number| {
        let (params, inputs) = (op.sample)(&mut Sampler::new(1, op.name, number)).unwrap();
        Witness::of(&Request { op, params, inputs }).unwrap()
    })
}

#[test]
fn draws_meet_everything_that_the_quantizer_can_meet() {
    for op in OPERATIONS.iter().copied() {
        let (mut features, mut on_grid) = (Features::default(), 0);
        let mut never_filled: BTreeSet<_> = op.outputs.iter().map(|spec| &*spec.name).collect();
        for witness in witnesses(op) {
            on_grid += u64::from(witness.grid.is_some());
            features += witness.features();
            never_filled.retain(|name| witness.outputs.get(*name).is_none_or(is_zero));
        }
        assert!(never_filled.is_empty(), "{op:?}: {never_filled:?} is zero in every draw");
        // The offset of a symmetric grid is.
        let share = features.zero_outputs as f64 / features.outputs as f64;
        assert!(share < 0.5, "{op:?}: {share} of the outputs are zero throughout");
        if op.name.ends_with(".backward") {
            assert!(features.non_zero_gradients > 0, "{op:?}");
        }
        if on_grid == 0 {
            assert!(op.grid.is_none(), "{op:?} has a grid, and no draw shows it");
            continue;
        }
        println!("{op:?}: {features:?}");
        assert_eq!(on_grid, DRAWS, "{op:?}");
        let counts = [
            ("clipped", features.clipped),
            ("inside", features.inside),
            ("on an end", features.on_an_end),
            ("ties", features.ties),
            ("several groups", features.several_groups),
            ("one group", features.one_group),
            ("unlike groups", features.unlike_groups),
        ];
        for (what, count) in counts {
            assert!(count > 0, "{op:?}: no draw has {what}: {features:?}");
        }
    }
}

/// Codes whose judgement has no uniform grid: at least both ends are met, and what lies between.
#[test]
fn draws_of_other_codes_meet_both_ends_and_the_middle() {
    let mut found = Vec::new();
    for op in OPERATIONS.iter().copied().filter(|op| op.grid.is_none()) {
        if !op.outputs.iter().any(|output| output.name == "codes") || op.name == "unpack" {
            continue;
        }
        let (mut low, mut high, mut between) = (0, 0, 0);
        for witness in witnesses(op) {
            let codes = &witness.outputs["codes"];
            let bits = witness.request.params.required::<u32>("bits").unwrap_or(4);
            let largest = f64::from((1_u32 << bits) - 1);
            let shift =
                if matches!(codes.data(), Data::I8(_)) { (largest + 1.0) / 2.0 } else { 0.0 };
            for code in codes.values().map(|code| code + shift) {
                low += usize::from(code == 0.0);
                high += usize::from(code == largest);
                between += usize::from(0.0 < code && code < largest);
            }
        }
        println!("{op:?}: {low} lowest, {between} between, {high} highest");
        assert!(low > 0 && high > 0 && between > 0, "{op:?}: {low}, {between}, {high}");
        found.push(op.name);
    }
    assert_eq!(found, ["lr_qat.forward", "lr_qat.merge", "nf4.quantize", "gptq.quantize"]);
}

/// A case without what it claims stops the generation of its family.
#[test]
fn a_claim_without_evidence_is_refused() {
    let family = find("ties").unwrap();
    let case = family.cases(Scope::default()).unwrap().remove(0);
    let mut request = case.case.request.clone();
    for claim in &case.claims {
        claim.check(&Witness::of(&request).unwrap()).unwrap();
    }
    let shape = request.inputs["weight"].shape().to_vec();
    let count: usize = shape.iter().product();
    let zeros = Tensor::from_f64s(shape, std::iter::repeat_n(0.0, count), Precision::F32);
    request.inputs.insert("weight".to_owned(), zeros);
    let witness = Witness::of(&request).unwrap();
    for claim in &case.claims {
        let refused = claim.check(&witness).unwrap_err();
        assert!(refused.contains("the f64 evidence shows nothing of it"), "{refused}");
    }
}

#[test]
fn outputs_of_nothing_but_zeros_are_counted() {
    let mut reference = select("reference", std::time::Duration::from_secs(60)).unwrap();
    let verdicts: Vec<_> = golden()
        .iter()
        .filter(|case| case.request.op.name == "l4q.backward")
        .flat_map(|case| judge(case, reference.as_mut(), Precision::F64).tensors)
        .collect();
    let zero = verdicts.iter().filter(|verdict| verdict.empty).count();
    // Masks that close everything, and adapters that are zero.
    assert!(verdicts.len() > 50 && zero > 0 && zero * 4 < verdicts.len(), "{zero}");
}
