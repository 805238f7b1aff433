//! Codes beside a tie and inside their interval, and the grids that subjects answer themselves.

use plumbline_conformance::case::Request;
use plumbline_conformance::tensor::{Data, Tensor, Tensors};

use super::{changed, codes, failures, floats, request, verdicts};

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
fn codes_are_bytes_and_not_floats() {
    let request = fake_quantize(0.24, 0.1);
    let mut floating = answer(2, 0.1);
    floating.insert("codes".to_owned(), floats(&[1, 2], &[2.0, 3.0]));
    assert_eq!(failures(&request, &floating), ["out.codes has dtype F32, expected I8"]);
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
