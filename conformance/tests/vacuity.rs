//! Do the cases have what they are for? A test of ties without a tie passes whatever the rounding.

use std::collections::BTreeMap;
use std::path::PathBuf;

use plumbline_conformance::case::{Case, Expected, Request};
use plumbline_conformance::collect::collect;
use plumbline_conformance::families::{Scope, find};
use plumbline_conformance::judge::judge;
use plumbline_conformance::ops::{self, OPERATIONS};
use plumbline_conformance::precision::Precision;
use plumbline_conformance::sampler::Sampler;
use plumbline_conformance::subject::select;
use plumbline_conformance::tensor::Tensor;
use plumbline_conformance::witness::{Features, Witness, Zeros, groups, is_zero};

fn golden() -> Vec<Case> {
    collect(&[PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../golden"))]).cases
}

/// Whether a case has what a flag claims; nothing where the evidence is of another kind.
type Proof = fn(&Witness) -> Option<bool>;

/// Flags whose claim can be seen in the numbers.
const PROOFS: &[(&str, Proof)] = &[
    ("tie", |w| w.grid.as_ref().map(|_| w.features().ties > 0)),
    ("combined_tie", |w| w.grid.as_ref().map(|_| w.features().ties > 0)),
    ("sum_tie", |w| w.grid.as_ref().map(|_| w.features().ties > 0)),
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
        w.request.inputs.contains_key("scale").then(|| w.grid.as_ref())?;
        w.grid.as_ref().map(|_| w.features().raised > 0)
    }),
    ("zero_adapter", |w| Some(is_zero(w.request.inputs.get("lora_b")?))),
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
    ("mask_rule", |w| changes_the_answer(w, "mask", "pre_round")),
    ("grad_scale", |w| changes_the_answer(w, "grad_scale", "none")),
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

/// Whether a parameter that is not at its default makes any difference.
fn changes_the_answer(witness: &Witness, name: &str, default: &str) -> Option<bool> {
    let value = witness.request.params.0.get(name)?.as_str()?;
    if value == default || witness.request.op.name.starts_with("lr_qat.") {
        return None;
    }
    let mut plain: Request = witness.request.clone();
    plain.params.0.remove(name);
    let outputs = (plain.op.run.f64)(&plain).ok()?;
    Some(outputs != witness.outputs)
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

/// What 200 draws of every operation with a grid have, in sum.
fn drawn() -> BTreeMap<&'static str, Features> {
    let mut sums = BTreeMap::new();
    for op in OPERATIONS.iter().copied() {
        let mut sum = Features::default();
        let mut on_grid = 0;
        for number in 0..DRAWS {
            let (params, inputs) = (op.sample)(&mut Sampler::new(1, op.name, number)).unwrap();
            let witness = Witness::of(&Request { op, params, inputs }).unwrap();
            if witness.grid.is_none() {
                break;
            }
            on_grid += 1;
            sum += witness.features();
        }
        if on_grid == DRAWS {
            sums.insert(op.name, sum);
        }
    }
    sums
}

#[test]
fn draws_meet_everything_that_the_quantizer_can_meet() {
    let sums = drawn();
    for (op, features) in &sums {
        println!("{op}: {features:?}");
    }
    let with_codes = OPERATIONS.iter().filter(|op| op.grid.is_some());
    let missing: Vec<_> = with_codes.filter(|op| !sums.contains_key(op.name)).collect();
    assert!(missing.is_empty(), "no grid was drawn for {missing:?}");
    for (op, features) in &sums {
        let Features { clipped, inside, on_an_end, ties, several_groups, one_group, .. } =
            *features;
        let counts = [
            ("clipped", clipped),
            ("inside", inside),
            ("on an end", on_an_end),
            ("ties", ties),
            ("several groups", several_groups),
            ("one group", one_group),
            ("unlike groups", features.unlike_groups),
        ];
        for (what, count) in counts {
            // Round to nearest and AWQ take their range from the data: nothing lies beyond it.
            assert!(count > 0, "{op}: no draw has {what}: {features:?}");
        }
        if op.ends_with(".backward") {
            assert!(features.non_zero_gradients > 0, "{op}");
        }
        let share = features.zero_outputs as f64 / features.outputs as f64;
        assert!(share < 0.25, "{op}: {share} of the outputs are zero throughout");
    }
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
    let mut zeros = Zeros::default();
    for case in golden().iter().filter(|case| case.request.op.name == "l4q.backward") {
        zeros.add(case, &judge(case, reference.as_mut(), Precision::F64));
    }
    assert!(zeros.compared > 100, "{zeros}");
    // Masks that close everything, and adapters that are zero: known, and few.
    assert!(zeros.zero > 0 && zeros.zero * 4 < zeros.compared, "{zeros}");
    assert_eq!(ops::find("l4q.backward").unwrap().outputs.len(), 5);
}
