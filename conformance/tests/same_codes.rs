//! The cpu chooses the codes of the f32 reference, bit for bit: both keep the order of operations
//! that the specification gives, so that no tie is decided by rounding.

use std::time::Duration;

use plumbline_conformance::case::Request;
use plumbline_conformance::ops;
use plumbline_conformance::precision::Precision;
use plumbline_conformance::sampler::Sampler;
use plumbline_conformance::subject::{SubjectError, select};
use plumbline_conformance::tensor::Tensor;

/// Operations whose answer holds what a quantizer chose, and those of its outputs that follow from
/// elementwise operations alone.
const CHOICES: &[(&str, &[&str])] = &[
    // Not zero_point, where the reference may say -0.
    ("dynamic_quantize.forward", &["codes", "scale", "output"]),
    ("dynamic_quantize.backward", &["d_x"]),
    ("fake_quantize.forward", &["codes", "output"]),
    ("l4q.forward", &["codes", "fake_quantized"]),
    ("l4q.merge", &["codes", "scale", "offset"]),
    ("lr_qat.downcast", &["phi", "stored"]),
    ("lr_qat.forward", &["codes", "fake_quantized"]),
    ("lr_qat.merge", &["codes", "scale"]),
    ("affine.quantize", &["codes"]),
    ("affine.dequantize", &["output"]),
    (
        "nf4.quantize",
        &["codes", "absmax", "output", "absmax_codes", "absmax_scale", "absmax_offset"],
    ),
];

/// Every element as its bits, so that zeros of either sign differ.
fn bits(tensor: &Tensor) -> Vec<u64> {
    tensor.values().map(f64::to_bits).collect()
}

#[test]
fn every_choice_is_the_reference_s() {
    let [mut cpu, mut reference] =
        ["cpu", "reference"].map(|name| select(name, Duration::from_secs(60)).unwrap());
    for (name, outputs) in CHOICES {
        let op = ops::find(name).unwrap();
        let mut compared = 0;
        for number in 0..200 {
            let (params, inputs) = (op.sample)(&mut Sampler::new(11, op.name, number)).unwrap();
            let request = Request { op, params, inputs }.to_precision(Precision::F32);
            let expected = reference.run(&request, Precision::F32);
            let actual = match cpu.run(&request, Precision::F32) {
                Err(SubjectError::Skip(_)) => continue,
                actual => actual,
            };
            let (Ok(expected), Ok(actual)) = (&expected, &actual) else {
                assert!(expected.is_err() && actual.is_err(), "{name} {number}: one refused");
                continue;
            };
            for output in outputs.iter().filter(|output| expected.contains_key(**output)) {
                compared += expected[*output].len();
                assert_eq!(
                    bits(&actual[*output]),
                    bits(&expected[*output]),
                    "{name} {number} {output}"
                );
            }
        }
        assert!(compared > 1000, "{name}: {compared} elements were compared");
    }
}
