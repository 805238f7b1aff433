//! The comparators are code under test: what they must reject, and the little they may forgive.

use std::collections::BTreeMap;
use std::path::Path;

use plumbline_conformance::case::{Case, Expected, Request};
use plumbline_conformance::generate::generated_case;
use plumbline_conformance::judge::compare::Verdict;
use plumbline_conformance::judge::report::Failure;
use plumbline_conformance::judge::{judge, judge_outputs};
use plumbline_conformance::ops::{self, Class, OPERATIONS, Operation, TensorSpec};
use plumbline_conformance::params::Params;
use plumbline_conformance::precision::Precision;
use plumbline_conformance::subject::{Subject, SubjectError, Support};
use plumbline_conformance::tensor::{Data, Tensor, Tensors};

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape.to_vec(), Data::F32(values.to_vec())).unwrap()
}

fn codes(shape: &[usize], values: &[i8]) -> Tensor {
    Tensor::new(shape.to_vec(), Data::I8(values.to_vec())).unwrap()
}

fn request(op: &str, params: &str, inputs: &[(&str, Tensor)]) -> Request {
    Request {
        op: ops::find(op).unwrap(),
        params: Params::from_json(params).unwrap(),
        inputs: inputs.iter().map(|(name, x)| ((*name).to_owned(), x.clone())).collect(),
    }
}

/// Judges an f32 answer against the f64 reference.
fn verdicts(request: &Request, actual: &Tensors) -> Vec<Verdict> {
    let precision = Precision::F32;
    judge_outputs(request, &Tensors::new(), actual, Some(precision), precision).unwrap()
}

fn failures(request: &Request, actual: &Tensors) -> Vec<String> {
    verdicts(request, actual)
        .iter()
        .filter_map(|verdict| verdict.failure.as_ref().map(ToString::to_string))
        .collect()
}

fn swiglu(count: usize) -> (Request, Tensors) {
    let gate: Vec<f32> = (0..count).map(|i| (i % 977) as f32 / 300.0 - 1.5).collect();
    let up: Vec<f32> = (0..count).map(|i| (i % 89) as f32 / 40.0 + 0.1).collect();
    let inputs = [("gate", floats(&[count], &gate)), ("up", floats(&[count], &up))];
    let request = request("swiglu.forward", "{}", &inputs);
    let honest = (request.op.f32)(&request).unwrap();
    assert_eq!(failures(&request, &honest), Vec::<String>::new());
    (request, honest)
}

/// The answer with one element of an output changed.
fn changed(honest: &Tensors, name: &str, index: usize, change: impl Fn(f32) -> f32) -> Tensors {
    let mut actual = honest.clone();
    match actual.get_mut(name).unwrap().data_mut() {
        Data::F32(values) => values[index] = change(values[index]),
        _ => panic!("{name} is no F32"),
    }
    actual
}

#[test]
fn one_bad_element_in_a_million_is_found() {
    let (request, honest) = swiglu(1_000_000);
    let index = 654_321;
    let rejected = failures(&request, &changed(&honest, "output", index, |x| x * 1.000_01));
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].contains("1 of 1000000 elements"), "{}", rejected[0]);
    assert!(rejected[0].contains("out.output[654321]: expected"), "{}", rejected[0]);
}

#[test]
fn nan_infinity_and_a_wrong_sign_are_rejected() {
    let (request, honest) = swiglu(50);
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let rejected = failures(&request, &changed(&honest, "output", 7, |_| wrong));
        assert_eq!(rejected.len(), 1, "{wrong}");
    }
    assert_eq!(failures(&request, &changed(&honest, "output", 7, |x| -x)).len(), 1);
}

#[test]
fn all_zeros_of_another_shape_are_not_zeros() {
    let zeros = floats(&[2, 3], &[0.0; 6]);
    let inputs = [("gate", zeros.clone()), ("up", zeros.clone())];
    let request = request("swiglu.forward", "{}", &inputs);
    let answer = |tensor| Tensors::from([("output".to_owned(), tensor)]);
    assert_eq!(failures(&request, &answer(zeros)), Vec::<String>::new());
    let rejected = failures(&request, &answer(floats(&[3, 2], &[0.0; 6])));
    assert_eq!(rejected, ["out.output has shape [3, 2], expected [2, 3]"]);
}

#[test]
fn missing_extra_and_wrongly_typed_tensors_are_rejected() {
    let (request, honest) = swiglu(4);
    assert_eq!(failures(&request, &Tensors::new()), ["out.output is missing"]);
    let mut extra = honest.clone();
    extra.insert("output2".to_owned(), honest["output"].clone());
    assert_eq!(failures(&request, &extra), ["out.output2 is no output of the operation"]);
    let wide =
        Tensors::from([("output".to_owned(), honest["output"].to_precision(Precision::F64))]);
    assert_eq!(failures(&request, &wide), ["out.output has dtype F64, expected f32"]);
    let whole = Tensors::from([("output".to_owned(), codes(&[4], &[0; 4]))]);
    assert_eq!(failures(&request, &whole), ["out.output has dtype I8, expected f32"]);
}

#[test]
fn codes_are_bytes_and_not_floats() {
    let request = fake_quantize(0.24, 0.1);
    let mut floating = answer(2, 0.1);
    floating.insert("codes".to_owned(), floats(&[1, 2], &[2.0, 3.0]));
    assert_eq!(failures(&request, &floating), ["out.codes has dtype F32, expected I8"]);
}

#[test]
fn an_outside_answer_is_judged_by_its_own_type() {
    let (request, honest) = swiglu(64);
    let judge_any = |output: Tensor| {
        let actual = Tensors::from([("output".to_owned(), output)]);
        judge_outputs(&request, &Tensors::new(), &actual, None, Precision::F32).unwrap()[0].clone()
    };
    let as_bf16 = |factor: f32| {
        let values = honest["output"].values();
        let values = values.map(|x| half::bf16::from_f32(x as f32 * factor)).collect();
        Tensor::new(vec![64], Data::Bf16(values)).unwrap()
    };
    assert!(judge_any(as_bf16(1.0)).failure.is_none());
    assert!(judge_any(as_bf16(1.02)).failure.is_some());
    // f32 numbers stored as F64 are not binary64 results.
    assert!(judge_any(honest["output"].to_precision(Precision::F64)).failure.is_some());
}

fn fake_quantize(weight: f32, scale: f32) -> Request {
    let inputs = [
        ("weight", floats(&[1, 2], &[weight, 3.0 * scale])),
        ("scale", floats(&[1, 1], &[scale])),
        ("offset", floats(&[1, 1], &[0.0])),
    ];
    request("fake_quantize.forward", r#"{"bits": 4}"#, &inputs)
}

fn answer(first: i8, scale: f32) -> Tensors {
    let output = floats(&[1, 2], &[f32::from(first) * scale, 3.0 * scale]);
    [("codes".to_owned(), codes(&[1, 2], &[first, 3])), ("output".to_owned(), output)].into()
}

#[test]
fn an_exact_tie_must_go_to_the_even_code() {
    let request = fake_quantize(1.25, 0.5);
    assert_eq!(failures(&request, &answer(2, 0.5)), Vec::<String>::new());
    let rejected = failures(&request, &answer(3, 0.5));
    assert_eq!(rejected.len(), 2, "{rejected:?}");
    assert!(rejected[0].contains("out.codes[0, 0]: expected 2 (0x02), actual 3 (0x03)"));
    assert!(rejected[0].contains("argument 2.5 lies 0e0 from its nearest tie"), "{}", rejected[0]);
}

#[test]
fn a_code_beside_an_inexact_tie_may_flip_and_is_counted() {
    // 0.1 is not dyadic: the quotient is rounded, and binary64 puts it within that rounding of 2.5.
    let scale = 0.1_f32;
    let request = fake_quantize((2.5 * f64::from(scale)) as f32, scale);
    for first in [2, 3] {
        let verdicts = verdicts(&request, &answer(first, scale));
        assert!(verdicts.iter().all(|verdict| verdict.failure.is_none()), "{first}");
        assert_eq!(verdicts[0].open, 1);
    }
    let flips: usize = [2, 3].iter().map(|c| verdicts(&request, &answer(*c, scale))[0].flips).sum();
    assert_eq!(flips, 1);
    // The neighbour only, and the rest of the answer must go with it.
    assert!(!failures(&request, &answer(4, scale)).is_empty());
    assert!(!failures(&request, &answer(1, scale)).is_empty());
    let mut torn = answer(2, scale);
    torn.insert("output".to_owned(), answer(3, scale)["output"].clone());
    assert_eq!(failures(&request, &torn).len(), 1);
}

#[test]
fn a_code_inside_its_interval_must_match() {
    let request = fake_quantize(0.24, 0.1);
    assert_eq!(failures(&request, &answer(2, 0.1)), Vec::<String>::new());
    assert_eq!(failures(&request, &answer(3, 0.1)).len(), 2);
}

struct Panics;

impl Subject for Panics {
    fn name(&self) -> &str {
        "panics"
    }
    fn precisions(&self) -> &[Precision] {
        &[Precision::F32]
    }
    fn supports(&self, _: &Operation, _: Precision) -> Support {
        Support::Yes
    }
    fn run(&mut self, request: &Request, _: Precision) -> Result<Tensors, SubjectError> {
        panic!("no idea what {} is", request.op.name)
    }
}

#[test]
fn a_panic_is_the_failure_of_one_case() {
    let op = ops::find("swiglu.forward").unwrap();
    let case = generated_case(Path::new(""), op, 1, 0).unwrap();
    let report = judge(&case, &mut Panics, Precision::F32).to_string();
    assert!(report.starts_with("FAIL"), "{report}");
    assert!(report.contains("panicked: no idea what swiglu.forward is"), "{report}");
}

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

/// How many faulty answers were judged, and how many of them rejected.
type Tally = BTreeMap<(String, &'static str), (usize, usize)>;

#[test]
fn every_float_output_of_every_operation_rejects_every_fault() {
    for op in OPERATIONS.iter().copied() {
        let mut tally = Tally::new();
        for index in 0..24 {
            let case = generated_case(Path::new(""), op, 11, index).unwrap();
            let honest = (op.f32)(&case.request).unwrap();
            assert_eq!(failures(&case.request, &honest), Vec::<String>::new(), "{}", case.id);
            for spec in op.tensors(&case.request.params).unwrap().outputs {
                if !matches!(spec.class, Class::Codes) {
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
    for (fault, apply) in FAULTS {
        let shape = honest[name].shape().to_vec();
        let wrong = Tensor::from_f64s(shape, apply(&values).into_iter(), Precision::F32);
        let mut actual = honest.clone();
        actual.insert(name.to_owned(), wrong);
        let (tried, rejected) = tally.entry((place.clone(), fault)).or_default();
        *tried += 1;
        *rejected += usize::from(!failures(&case.request, &actual).is_empty());
    }
}

#[test]
fn every_code_off_by_one_away_from_a_tie_is_rejected() {
    let is_codes = |spec: &TensorSpec| matches!(spec.class, Class::Codes | Class::Choices(_));
    for op in OPERATIONS.iter().copied().filter(|op| op.outputs.iter().any(is_codes)) {
        let case = generated_case(Path::new(""), op, 5, 1).unwrap();
        let honest = (op.f32)(&case.request).unwrap();
        let mut rejected = 0;
        for index in 0..honest["codes"].len() {
            let mut actual = honest.clone();
            match actual.get_mut("codes").unwrap().data_mut() {
                Data::I8(codes) => codes[index] = codes[index].wrapping_add(1),
                Data::U8(codes) => codes[index] = codes[index].wrapping_add(1),
                _ => panic!("{} codes are no codes", case.id),
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
        let honest = (op.f32)(&case.request).unwrap();
        flips += verdicts(&case.request, &honest).iter().map(|v| v.flips).sum::<usize>();
        let mut alone = case.request.clone();
        let hessian = alone.inputs.get_mut("hessian").unwrap();
        let columns = hessian.shape()[0];
        if let Data::F32(elements) = hessian.data_mut() {
            for (place, element) in elements.iter_mut().enumerate() {
                *element *= f32::from(u8::from(place / columns == place % columns));
            }
        }
        let plain = (op.f32)(&alone).unwrap();
        if plain["codes"] != honest["codes"] {
            moved += 1;
            rejected += usize::from(!failures(&case.request, &plain).is_empty());
        }
    }
    println!("{flips} flips; {rejected} of {moved} without updates rejected");
    assert!(flips > 0, "no case went along with a flip");
    assert!(moved > 20 && rejected == moved, "{rejected} of {moved}");
}

#[test]
fn swapped_gradients_are_rejected() {
    let matrix = |from: f32| floats(&[3, 3], &std::array::from_fn::<_, 9, _>(|i| from + i as f32));
    let names = ["x", "weight", "lora_a", "lora_b", "d_y"];
    let starts = [1.0, -2.0, 0.5, 3.0, -7.0];
    let inputs: Vec<_> = names.into_iter().zip(starts.map(matrix)).collect();
    let request = request("lora.backward", r#"{"lora_scaling": 2.0}"#, &inputs);
    let honest = (request.op.f32)(&request).unwrap();
    assert_eq!(failures(&request, &honest), Vec::<String>::new());
    let mut swapped = honest.clone();
    swapped.insert("d_lora_a".to_owned(), honest["d_lora_b"].clone());
    swapped.insert("d_lora_b".to_owned(), honest["d_lora_a"].clone());
    assert_eq!(failures(&request, &swapped).len(), 2);
}

#[test]
fn golden_values_stand_above_the_reference() {
    let (request, honest) = swiglu(3);
    let mut golden = honest.clone();
    golden.insert("output".to_owned(), honest["output"].to_precision(Precision::F64));
    let precision = Precision::F32;
    let judged = judge_outputs(&request, &golden, &honest, Some(precision), precision).unwrap();
    assert!(judged[0].failure.is_none());
    golden
        .insert("output".to_owned(), Tensor::new(vec![3], Data::F64(vec![1.0, 2.0, 3.0])).unwrap());
    let judged = judge_outputs(&request, &golden, &honest, Some(precision), precision).unwrap();
    assert!(matches!(judged[0].failure, Some(Failure::Elements { count: 3, .. })));
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
            let honest = (op.f32)(&case.request).unwrap();
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
