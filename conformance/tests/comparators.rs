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
use plumbline_conformance::tensor::{Data, Kind, Tensor, Tensors};

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

fn unsigned(shape: &[usize], values: &[u8]) -> Tensor {
    Tensor::new(shape.to_vec(), Data::U8(values.to_vec())).unwrap()
}

/// Round to nearest of one row, and the answer of the f32 reference.
fn rtn(weight: &[f32], params: &str) -> (Request, Tensors) {
    let inputs = [("weight", floats(&[1, weight.len()], weight))];
    let request = request("rtn.quantize", params, &inputs);
    let honest = (request.op.run.f32)(&request).unwrap();
    assert_eq!(failures(&request, &honest), Vec::<String>::new());
    (request, honest)
}

#[test]
fn codes_are_judged_on_the_grid_that_the_subject_answered() {
    let tenth = 0.1_f32;
    let (request, honest) =
        rtn(&[-tenth, 2.0 * tenth, 0.149_999_99], r#"{"bits": 2, "symmetric": false}"#);
    let scale = match honest["scale"].data() {
        Data::F32(scale) => scale[0],
        _ => unreachable!(),
    };
    // The neighbouring scale is legal; output and codes must be those of that scale.
    let own = scale.next_up();
    let mut moved = honest.clone();
    moved.insert("scale".to_owned(), floats(&[1, 1], &[own]));
    let with_codes = |middle: u8| {
        let mut answer = moved.clone();
        answer.insert("codes".to_owned(), unsigned(&[1, 3], &[0, 3, middle]));
        let output = [-own, 2.0 * own, (f32::from(middle) - 1.0) * own];
        answer.insert("output".to_owned(), floats(&[1, 3], &output));
        answer
    };
    assert_eq!(failures(&request, &with_codes(2)), Vec::<String>::new());
    assert!(!failures(&request, &with_codes(1)).is_empty());
    // An output that is not that of the codes, and a scale that is too far off, are not excused.
    let mut torn = with_codes(2);
    torn.insert("output".to_owned(), floats(&[1, 3], &[-scale * 1.001, 2.0 * scale, scale]));
    assert_eq!(failures(&request, &torn).len(), 1);
    let mut wide = with_codes(2);
    wide.insert("scale".to_owned(), floats(&[1, 1], &[scale * 1.001]));
    assert!(failures(&request, &wide)[0].contains("out.scale"));
}

#[test]
fn a_zero_point_is_an_integer_and_moves_across_a_tie_alone() {
    let params = r#"{"bits": 2, "symmetric": false}"#;
    for (weight, open) in [([-1.0, 2.0], false), ([-0.5, 2.5], false), ([-0.05, 0.25], true)] {
        let (request, honest) = rtn(&weight, params);
        let honest_point = honest["zero_point"].value(0) as f32;
        for zero_point in [0.0, 0.5, 1.0, 2.0] {
            let actual = changed(&honest, "zero_point", 0, |_| zero_point);
            let judged = verdicts(&request, &actual);
            let verdict = judged.iter().find(|v| v.tensor == "zero_point").unwrap();
            let neighbour = open && zero_point <= 1.0 && zero_point.fract() == 0.0;
            let legal = zero_point == honest_point || neighbour;
            assert_eq!(verdict.failure.is_none(), legal, "{weight:?} {zero_point}");
        }
    }
}

/// Two bits between -0.1 and 0.1: the scale, a fifteenth, is rounded, and binary64 puts the zero
/// point within that rounding of 1.5.
fn dynamic_quantize() -> Request {
    let x = floats(&[1, 3], &[-0.1, 0.02, 0.1]);
    request("dynamic_quantize.forward", r#"{"bits": 2}"#, &[("x", x)])
}

/// The answer of a subject that rounds the zero point to this integer.
fn with_zero_point(zero_point: f32, codes: [u8; 3]) -> Tensors {
    let scale = 0.2_f32 / 3.0;
    let output = codes.map(|code| scale * (f32::from(code) - zero_point));
    let codes = Tensor::new(vec![1, 3], Data::U8(codes.to_vec())).unwrap();
    [
        ("codes".to_owned(), codes),
        ("scale".to_owned(), floats(&[1, 1], &[scale])),
        ("zero_point".to_owned(), floats(&[1, 1], &[zero_point])),
        ("output".to_owned(), floats(&[1, 3], &output)),
    ]
    .into()
}

#[test]
fn a_zero_point_beside_a_tie_may_flip_and_takes_its_codes_along() {
    let request = dynamic_quantize();
    // The arguments are -1.5, 0.3 and 1.5, of which the outer two are open too.
    for (zero_point, codes) in [(1.0, [0, 1, 3]), (2.0, [0, 2, 3])] {
        let answer = with_zero_point(zero_point, codes);
        assert_eq!(failures(&request, &answer), Vec::<String>::new(), "{zero_point}");
    }
    let moved = [1.0, 2.0].map(|zero_point| {
        let codes = if zero_point == 1.0 { [0, 1, 3] } else { [0, 2, 3] };
        let verdicts = verdicts(&request, &with_zero_point(zero_point, codes));
        verdicts.iter().find(|verdict| verdict.tensor == "codes").unwrap().flips
    });
    assert!(moved[0] + moved[1] > 0, "one of the two is not what binary64 chose");
    // The codes of the other zero point, and a zero point that is no neighbour.
    for (zero_point, codes) in [(1.0, [0, 2, 3]), (2.0, [0, 1, 3]), (3.0, [1, 3, 3])] {
        assert!(!failures(&request, &with_zero_point(zero_point, codes)).is_empty());
    }
}

#[test]
fn an_exact_zero_point_leaves_no_choice() {
    let request = |values: &[f32]| {
        let x = floats(&[1, values.len()], values);
        request("dynamic_quantize.forward", r#"{"bits": 2}"#, &[("x", x)])
    };
    // -low / scale = 1.5 / 1, nothing rounded: 2, the even one.
    let request = request(&[-1.5, 0.25, 1.5]);
    let honest = (request.op.run.f32)(&request).unwrap();
    assert_eq!(honest["zero_point"].value(0), 2.0);
    assert_eq!(failures(&request, &honest), Vec::<String>::new());
    let mut odd = honest.clone();
    odd.insert("zero_point".to_owned(), floats(&[1, 1], &[1.0]));
    assert!(!failures(&request, &odd).is_empty());
}

#[test]
fn codes_where_there_are_none_are_rejected() {
    let x = floats(&[1, 2], &[-1.0, 2.0]);
    let params = r#"{"bits": 2, "zero_point": "float"}"#;
    let request = request("dynamic_quantize.forward", params, &[("x", x)]);
    let honest = (request.op.run.f32)(&request).unwrap();
    assert_eq!(failures(&request, &honest), Vec::<String>::new());
    let mut more = honest.clone();
    more.insert("codes".to_owned(), Tensor::new(vec![1, 2], Data::U8(vec![0, 3])).unwrap());
    assert_eq!(failures(&request, &more), ["out.codes is no output of the operation"]);
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

fn lr_qat(weight: f32, kind: &str) -> Request {
    let one = |value| floats(&[1, 1], &[value]);
    let inputs = [
        ("weight", one(weight)),
        ("initial_scale", one(0.1)),
        ("lora_a", one(0.75)),
        ("lora_b", one(1.0)),
        ("scale", one(0.5)),
        ("x", one(1.0)),
    ];
    let params = format!(r#"{{"bits": 4, "downcast": "{kind}", "lora_scaling": 1.0}}"#);
    request("lr_qat.forward", &params, &inputs)
}

/// 0.1 is not dyadic: the quotient is rounded, within that of 2.5, and 2 or 3 may be stored. The
/// sum with 0.75 is then 2.75 or 3.75.
#[test]
fn a_stored_weight_beside_a_tie_opens_the_code_that_it_leads_to() {
    let request = lr_qat((2.5 * f64::from(0.1_f32)) as f32, "int");
    let answer = |code: i8, weight: f32| {
        Tensors::from([
            ("codes".to_owned(), codes(&[1, 1], &[code])),
            ("fake_quantized".to_owned(), floats(&[1, 1], &[weight])),
            ("y".to_owned(), floats(&[1, 1], &[weight])),
        ])
    };
    for code in [3, 4] {
        let verdicts = verdicts(&request, &answer(code, 0.5 * f32::from(code)));
        assert!(verdicts.iter().all(|verdict| verdict.failure.is_none()), "{verdicts:?}");
        assert_eq!(verdicts[0].open, 1);
    }
    assert_eq!(failures(&request, &answer(2, 1.0)).len(), 3);
    assert_eq!(failures(&request, &answer(5, 2.5)).len(), 3);
    // One of the two is the code of binary64, and the other's weight does not go with it.
    let torn = [answer(3, 2.0), answer(4, 1.5)];
    assert!(torn.iter().all(|torn| failures(&request, torn).len() == 2));
    let message = &failures(&request, &answer(2, 1.0))[0];
    assert!(message.contains("open are [3.0, 4.0]"), "{message}");
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
