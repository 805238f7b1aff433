//! The comparators are code under test: what they must reject, and the little they may forgive.

mod codes;
mod every_operation;

use std::path::Path;

use plumbline_conformance::case::Request;
use plumbline_conformance::generate::generated_case;
use plumbline_conformance::judge::compare::Verdict;
use plumbline_conformance::judge::report::Failure;
use plumbline_conformance::judge::{judge, judge_outputs};
use plumbline_conformance::ops::{self, Operation};
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
    let honest = (request.op.run.f32)(&request).unwrap();
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

#[test]
fn the_type_of_an_answer_excuses_nothing_of_an_exact_one() {
    let inputs = [("input", floats(&[1], &[1.75]))];
    let request = request("cast", r#"{"dtype": "bf16"}"#, &inputs);
    let judge_bf16 = |value: half::bf16| {
        let output = Tensor::new(vec![1], Data::Bf16(vec![value])).unwrap();
        let actual = Tensors::from([("output".to_owned(), output)]);
        let precision = Precision::F32;
        judge_outputs(&request, &Tensors::new(), &actual, None, precision).unwrap()[0].clone()
    };
    let honest = half::bf16::from_f32(1.75);
    assert!(judge_bf16(honest).failure.is_none());
    let beside = half::bf16::from_bits(honest.to_bits() + 1);
    assert!(judge_bf16(beside).failure.is_some());
}

#[test]
fn swapped_gradients_are_rejected() {
    let matrix = |from: f32| floats(&[3, 3], &std::array::from_fn::<_, 9, _>(|i| from + i as f32));
    let names = ["x", "weight", "lora_a", "lora_b", "d_y"];
    let starts = [1.0, -2.0, 0.5, 3.0, -7.0];
    let inputs: Vec<_> = names.into_iter().zip(starts.map(matrix)).collect();
    let request = request("lora.backward", r#"{"lora_scaling": 2.0}"#, &inputs);
    let honest = (request.op.run.f32)(&request).unwrap();
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
