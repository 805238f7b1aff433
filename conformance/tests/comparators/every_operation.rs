//! Faults in every output of every operation, and how much of their allowances honest answers use.

use std::collections::BTreeMap;
use std::path::Path;

use plumbline_conformance::case::{Case, Expected};
use plumbline_conformance::generate::generated_case;
use plumbline_conformance::judge::judge_outputs;
use plumbline_conformance::ops::{self, Class, OPERATIONS, TensorSpec};
use plumbline_conformance::precision::Precision;
use plumbline_conformance::tensor::{Data, Kind, Tensor, Tensors};

use super::{failures, verdicts};

/// A mistake that a wrong kernel could make in one output.
type Fault = (&'static str, fn(&[f64]) -> Vec<f64>);

const FAULTS: [Fault; 6] = [
    ("largest element negated", |x| at_largest(x, |value| -value)),
    ("largest element off by 1e-3", |x| at_largest(x, |value| value * 1.001)),
    ("largest element NaN", |x| at_largest(x, |_| f64::NAN)),
    ("everything zero", |x| vec![0.0; x.len()]),
    ("everything doubled", |x| x.iter().map(|value| 2.0 * value).collect()),
    ("everything shifted by the largest", |x| {
        let largest = x[largest(x)];
        x.iter().map(|value| value + largest).collect()
    }),
];

fn largest(x: &[f64]) -> usize {
    (0..x.len()).max_by(|a, b| x[*a].abs().total_cmp(&x[*b].abs())).unwrap()
}

fn at_largest(x: &[f64], change: fn(f64) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    let at = largest(&x);
    x[at] = change(x[at]);
    x
}

/// A model has a hundred outputs of a few kinds: so many answers with one fault in one kind will do.
const ENOUGH: usize = 24;

/// How many faulty answers were judged, and how many of them rejected.
type Tally = BTreeMap<(String, &'static str), (usize, usize)>;

#[test]
fn every_float_output_of_every_operation_rejects_every_fault() {
    for op in OPERATIONS.iter().copied() {
        let mut tally = Tally::new();
        for index in 0..24 {
            let case = generated_case(Path::new(""), op, 11, index).unwrap();
            let honest = (op.run.f32)(&case.request).unwrap();
            assert_eq!(failures(&case.request, &honest), Vec::<String>::new(), "{}", case.id);
            for spec in op.tensors(&case.request.params).unwrap().outputs {
                let answered = honest.contains_key(&*spec.name);
                if spec.kind == Kind::Float && answered {
                    try_faults(&case, &honest, &spec.name, &mut tally);
                }
            }
        }
        for ((name, fault), (tried, rejected)) in tally {
            // A tensor whose terms cancel to almost nothing cannot show a small fault; most do.
            let enough = if fault.ends_with("NaN") { tried } else { tried - tried / 4 };
            assert!(rejected >= enough, "{} {name}: {fault}: {rejected} of {tried}", op.name);
        }
    }
}

fn try_faults(case: &Case, honest: &Tensors, name: &str, tally: &mut Tally) {
    let values: Vec<f64> = honest[name].values().collect();
    if values.is_empty() || values.iter().all(|x| *x == 0.0) {
        return;
    }
    // Layers of a model count as one.
    let place = name.replace(|c: char| c.is_ascii_digit(), "N");
    let place = match (place.find("layers.N"), place.rfind("_proj.")) {
        (Some(start), Some(end)) => format!("{}{}", &place[..start], &place[end..]),
        _ => place,
    };
    for (fault, apply) in FAULTS {
        let (tried, rejected) = tally.entry((place.clone(), fault)).or_default();
        if *tried == ENOUGH {
            continue;
        }
        let shape = honest[name].shape().to_vec();
        let wrong = Tensor::from_f64s(shape, apply(&values).into_iter(), Precision::F32);
        let mut actual = honest.clone();
        actual.insert(name.to_owned(), wrong);
        *tried += 1;
        *rejected += usize::from(!failures(&case.request, &actual).is_empty());
    }
}

#[test]
fn every_code_off_by_one_away_from_a_tie_is_rejected() {
    let is_codes = |spec: &TensorSpec| {
        spec.name == "codes" && matches!(spec.class, Class::Codes | Class::Choices(_))
    };
    for op in OPERATIONS.iter().copied().filter(|op| op.outputs.iter().any(is_codes)) {
        let cases = (1..).map(|index| generated_case(Path::new(""), op, 5, index).unwrap());
        // Under some parameters an operation has no codes.
        let (case, honest) = cases
            .map(|case| ((op.run.f32)(&case.request).unwrap(), case))
            .find_map(|(honest, case)| honest.contains_key("codes").then_some((case, honest)))
            .unwrap();
        let mut rejected = 0;
        for index in 0..honest["codes"].len() {
            let mut actual = honest.clone();
            match actual.get_mut("codes").unwrap().data_mut() {
                Data::I8(codes) => codes[index] = codes[index].wrapping_add(1),
                Data::U8(codes) => codes[index] = codes[index].wrapping_add(1),
                other => panic!("{} answers codes as {other:?}", case.id),
            }
            // Across a tie that binary32 leaves open the other code is legal, and is counted.
            let flips = verdicts(&case.request, &actual).iter().map(|v| v.flips).sum::<usize>();
            rejected += usize::from(!failures(&case.request, &actual).is_empty());
            let legal = flips > 0 || !failures(&case.request, &actual).is_empty();
            assert!(legal, "{} codes {index}", case.id);
        }
        assert!(rejected * 4 >= honest["codes"].len() * 3, "{}: {rejected} rejected", case.id);
    }
}

/// A legal flip changes the arguments of every code behind it: the judge goes along. It does not go
/// along with columns that are rounded on their own.
#[test]
fn gptq_is_judged_along_the_subjects_own_codes() {
    let op = ops::find("gptq.quantize").unwrap();
    let (mut flips, mut moved, mut rejected) = (0, 0, 0);
    for index in 0..60 {
        let case = generated_case(Path::new(""), op, 7, index).unwrap();
        let honest = (op.run.f32)(&case.request).unwrap();
        flips += verdicts(&case.request, &honest).iter().map(|v| v.flips).sum::<usize>();
        let mut alone = case.request.clone();
        let hessian = alone.inputs.get_mut("hessian").unwrap();
        let columns = hessian.shape()[0];
        if let Data::F32(elements) = hessian.data_mut() {
            for (place, element) in elements.iter_mut().enumerate() {
                *element *= f32::from(u8::from(place / columns == place % columns));
            }
        }
        let plain = (op.run.f32)(&alone).unwrap();
        if plain["codes"] != honest["codes"] {
            moved += 1;
            rejected += usize::from(!failures(&case.request, &plain).is_empty());
        }
    }
    println!("{flips} flips; {rejected} of {moved} without updates rejected");
    assert!(flips > 0, "no case went along with a flip");
    assert!(moved > 20 && rejected == moved, "{rejected} of {moved}");
}

/// An element of a tensor of integers with its lowest bit turned.
fn turned(honest: &Tensors, name: &str, index: usize) -> Tensors {
    let mut actual = honest.clone();
    match actual.get_mut(name).unwrap().data_mut() {
        Data::I8(codes) => codes[index] ^= 1,
        Data::U8(codes) => codes[index] ^= 1,
        Data::I32(indices) => indices[index] ^= 1,
        _ => panic!("{name} holds no integers"),
    }
    actual
}

#[test]
fn every_integer_that_is_exact_or_chosen_is_judged() {
    let (mut tried, mut rejected) = (0, 0);
    for op in OPERATIONS.iter().copied() {
        for case in (0..20).map(|index| generated_case(Path::new(""), op, 5, index).unwrap()) {
            let honest = (op.run.f32)(&case.request).unwrap();
            for spec in op.tensors(&case.request.params).unwrap().outputs {
                let own_class = matches!(spec.class, Class::Exact | Class::Chosen);
                if !own_class || spec.kind == Kind::Float {
                    continue;
                }
                for index in 0..honest[&*spec.name].len() {
                    let wrong = turned(&honest, &spec.name, index);
                    let is_rejected = !failures(&case.request, &wrong).is_empty();
                    // A code that is open may turn, but the floats beside it must turn with it; a
                    // merge has none.
                    let is_chosen = matches!(spec.class, Class::Chosen);
                    assert!(is_rejected || is_chosen, "{} {index}", case.id);
                    tried += 1;
                    rejected += usize::from(is_rejected);
                }
            }
        }
    }
    assert!(rejected * 100 > tried * 99, "{rejected} of {tried}");
}

/// An allowance that no honest answer comes near would hide mistakes, one that an honest answer
/// exceeds would reject them: over many cases the f32 reference uses a visible part of it.
#[test]
fn allowances_are_used_but_not_exceeded() {
    for op in OPERATIONS.iter().copied() {
        let mut used: f64 = 0.0;
        let mut exact = true;
        for index in 0..40 {
            let case = generated_case(Path::new(""), op, 23, index).unwrap();
            let Expected::Outputs(expected) = &case.expected else { unreachable!() };
            let honest = (op.run.f32)(&case.request).unwrap();
            let precision = Precision::F32;
            let required = Some(precision);
            let verdicts =
                judge_outputs(&case.request, expected, &honest, required, precision).unwrap();
            for verdict in verdicts {
                assert!(verdict.failure.is_none(), "{} {:?}", case.id, verdict.failure);
                used = used.max(verdict.worst_ratio);
                exact &= verdict.worst_ratio == 0.0;
            }
        }
        println!("{:<28} uses {used:.4} of its allowance", op.name);
        assert!(exact || used > LEAST_USE, "{} uses {used:e} of its allowance", op.name);
    }
}

/// A worst case over many roundings is seldom met; a sixty-fourth shows that the scale is right.
const LEAST_USE: f64 = 1.0 / 64.0;
