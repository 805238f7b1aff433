//! The quantizer's kernels beside the cpu backend: equal bits where the traits promise them, and
//! bounds from the data where sums have another order.

mod host;
#[path = "../common/numbers.rs"]
mod numbers;

use host::{Gradients, Host, SHAPES};
use numbers::{Sum, bits, eighths, floats, random};
use plumbline::backend::Storage;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Compute, Cuda, Interpreter};
use plumbline::ops::fake_quantize::FakeQuantize;
use plumbline::ops::widen::{FrozenWeight, WeightType, Widen};
use plumbline_reference::spec::GradScale;

/// A fresh one each time, so that no buffer is larger than its shape asks for.
fn cuda() -> Cuda<Interpreter> {
    Cuda::new(Interpreter::with_orders(3)).unwrap()
}

#[test]
fn outputs_and_codes_have_the_bits_of_the_cpu() {
    for (seed, shape) in SHAPES.iter().enumerate() {
        for host in [Host::rough(*shape, seed as u64), Host::dyadic(*shape, seed as u64)] {
            let (expected, expected_codes) = host.fake_quantize(&Cpu).unwrap();
            let (output, codes) = host.fake_quantize(&cuda()).unwrap();
            assert_eq!(codes, expected_codes, "{shape:?}");
            assert_eq!(bits(&output), bits(&expected), "{shape:?}");
        }
    }
}

#[test]
fn a_weight_in_16_bits_gives_the_bits_of_the_floats_that_it_stands_for() {
    for (seed, shape) in SHAPES.iter().enumerate() {
        for stored in [WeightType::Bf16, WeightType::F16] {
            let narrow = Host::rough(*shape, seed as u64).stored_as(stored);
            let wide = Host { stored: WeightType::F32, ..narrow.clone() };
            let (expected, expected_codes) = wide.fake_quantize(&Cpu).unwrap();
            for answer in [narrow.fake_quantize(&Cpu), narrow.fake_quantize(&cuda())] {
                let (output, codes) = answer.unwrap();
                assert_eq!(codes, expected_codes, "{shape:?} {stored:?}");
                assert_eq!(bits(&output), bits(&expected), "{shape:?} {stored:?}");
            }
            let start = narrow.start(|k, len| floats(&mut random(k), len, 1.0));
            let cpu = |host: &Host| host.backward(&Cpu, GradScale::None, &start);
            let device = |host: &Host| host.backward(&cuda(), GradScale::None, &start);
            assert_eq!(cpu(&narrow).unwrap(), cpu(&wide).unwrap(), "{shape:?} {stored:?}");
            assert_eq!(device(&narrow).unwrap(), device(&wide).unwrap(), "{shape:?} {stored:?}");
        }
    }
}

#[test]
fn an_infinity_in_16_bits_is_told_as_on_the_cpu() {
    for stored in [WeightType::Bf16, WeightType::F16] {
        for shape in [SHAPES[4], SHAPES[6]] {
            let mut host = Host::rough(shape, 3);
            host.weight[31] = f32::NEG_INFINITY;
            let host = host.stored_as(stored);
            let expected = "fake_quantize: weight is not finite: -inf at flat index 31";
            assert_eq!(host.fake_quantize(&Cpu).unwrap_err(), expected);
            assert_eq!(host.fake_quantize(&cuda()).unwrap_err(), expected);
        }
    }
}

/// Every half but the NaNs, from the n-th on, so that the last pack is not a whole one.
fn halves(stored: WeightType, first: u16) -> FrozenWeight<Cpu> {
    let is_nan = |half: &u16| match stored {
        WeightType::Bf16 => half & 0x7fff > 0x7f80,
        _ => half & 0x7fff > 0x7c00,
    };
    let halves = (first..=u16::MAX).filter(|half| !is_nan(half)).collect();
    match stored {
        WeightType::Bf16 => FrozenWeight::Bf16(halves),
        _ => FrozenWeight::F16(halves),
    }
}

#[test]
fn every_half_is_widened_to_the_float_that_it_stands_for() {
    for stored in [WeightType::Bf16, WeightType::F16] {
        for first in 0..4 {
            let weight = halves(stored, first);
            let expected = weight.to_floats();
            let len = expected.len();
            let widened = |cuda: &Cuda<Interpreter>| {
                let device = weight.upload(cuda).unwrap();
                let mut output = cuda.operand(len).unwrap();
                cuda.widen(len, device.view(), &mut output).unwrap();
                bits(&cuda.download(&output, len).unwrap())
            };
            assert_eq!(widened(&cuda()), bits(&expected), "{stored:?} {first}");
            let rounded = Cuda::with_compute(Interpreter::new(), Compute::Bf16).unwrap();
            let nearest = FrozenWeight::rounded(expected.to_vec(), WeightType::Bf16);
            assert_eq!(widened(&rounded), bits(&nearest.to_floats()), "{stored:?} {first}");
            let mut output = Cpu.zeros(len).unwrap();
            Cpu.widen(len, weight.view(), &mut output).unwrap();
            assert_eq!(bits(&output), bits(&expected));
        }
    }
}

#[test]
fn the_inputs_reach_ties_both_ends_and_the_floor() {
    let host = Host::dyadic(SHAPES[4], 4);
    let (qmin, qmax) = (host.spec.qmin() as f32, host.spec.qmax() as f32);
    let v = host.arguments();
    let count = |holds: &dyn Fn(f32) -> bool| v.iter().filter(|v| holds(**v)).count();
    assert!(count(&|v| v.abs() < qmax && v.fract().abs() == 0.5) > 10, "ties");
    assert!(count(&|v| v == qmin || v == qmax) > 0, "ends");
    assert!(count(&|v| v < qmin) > 10 && count(&|v| v > qmax) > 10, "beyond");
    assert!(Host::rough(SHAPES[4], 4).scale.iter().any(|scale| *scale < 1e-8), "floor");
}

#[test]
fn codes_become_the_weights_that_they_were_taken_from() {
    for (seed, shape) in SHAPES.iter().enumerate() {
        let host = Host::dyadic(*shape, seed as u64);
        let (output, codes) = host.fake_quantize(&Cpu).unwrap();
        let cuda = cuda();
        let codes = cuda.upload_codes(&codes).unwrap();
        let scale = cuda.upload(&host.scale).unwrap();
        let offset = cuda.upload(&host.offset).unwrap();
        let mut restored = cuda.zeros(host.len()).unwrap();
        cuda.dequantize(host.spec, host.out, &codes, &scale, &offset, &mut restored).unwrap();
        assert_eq!(bits(&cuda.download(&restored, host.len()).unwrap()), bits(&output));
    }
}

#[test]
fn gradients_whose_sums_are_exact_have_the_bits_of_the_cpu() {
    for (seed, shape) in SHAPES.iter().enumerate() {
        let host = Host::dyadic(*shape, seed as u64);
        let start = host.start(|k, len| eighths(&mut random(k), len, 16));
        for grad_scale in [GradScale::None, GradScale::Lsq] {
            let expected = host.backward(&Cpu, grad_scale, &start).unwrap();
            let actual = host.backward(&cuda(), grad_scale, &start).unwrap();
            for (actual, expected) in actual.all().into_iter().zip(expected.all()) {
                assert_eq!(bits(actual), bits(expected), "{shape:?}");
            }
        }
    }
}

#[test]
fn gradients_lie_within_the_rounding_of_their_sums() {
    for (seed, shape) in SHAPES.iter().enumerate() {
        let host = Host::rough(*shape, seed as u64);
        let start = host.start(|k, len| floats(&mut random(k), len, 1.0));
        let actual = host.backward(&cuda(), GradScale::None, &start).unwrap();
        let again = host.backward(&cuda(), GradScale::None, &start).unwrap();
        assert_eq!(actual, again, "{shape:?}");
        let expected = host.backward(&Cpu, GradScale::None, &start).unwrap();
        assert_eq!(bits(&actual.d_weight), bits(&expected.d_weight), "{shape:?}");
        check_groups(&host, &start, &actual);
        check_factors(&host, &start, &actual);
    }
}

/// `d_scale` and `d_offset` beside sums in f64 of the terms as f32 has them.
fn check_groups(host: &Host, start: &Gradients, actual: &Gradients) {
    let (qmin, qmax) = (host.spec.qmin() as f32, host.spec.qmax() as f32);
    let size = host.spec.group_size();
    let arguments = host.arguments();
    for g in 0..host.groups() {
        let (v, d) = (&arguments[g * size..][..size], &start.d_weight[g * size..][..size]);
        let in_range = |v: f32| v >= qmin && v <= qmax;
        let of_scale = v.iter().zip(d).map(|(v, d)| {
            let code = v.clamp(qmin, qmax).round_ties_even();
            f64::from(d * (code - if in_range(*v) { *v } else { 0.0 }))
        });
        let of_offset =
            v.iter().zip(d).map(|(v, d)| if in_range(*v) { 0.0 } else { f64::from(*d) });
        if host.scale[g] < 1e-8 {
            assert_eq!(actual.d_scale[g], start.d_scale[g], "a floored scale does not move");
        } else {
            Sum::of(start.d_scale[g], 1.0, of_scale).check(actual.d_scale[g], "d_scale");
        }
        Sum::of(start.d_offset[g], 1.0, of_offset).check(actual.d_offset[g], "d_offset");
    }
}

fn check_factors(host: &Host, start: &Gradients, actual: &Gradients) {
    let (width, rank) = (host.spec.in_features(), host.rank.unwrap_or(0));
    let product = |x: f32, y: f32| f64::from(x) * f64::from(y);
    for (e, d_a) in actual.d_lora_a.iter().enumerate() {
        let (r, i) = (e / width, e % width);
        let terms = (0..host.out)
            .map(|o| product(host.lora_b[o * rank + r], actual.d_weight[o * width + i]));
        Sum::of(start.d_lora_a[e], host.lora_scaling, terms).check(*d_a, "d_lora_a");
    }
    for (e, d_b) in actual.d_lora_b.iter().enumerate() {
        let (o, r) = (e / rank, e % rank);
        let terms =
            (0..width).map(|i| product(host.lora_a[r * width + i], actual.d_weight[o * width + i]));
        Sum::of(start.d_lora_b[e], host.lora_scaling, terms).check(*d_b, "d_lora_b");
    }
}

/// Both operations, on both backends, must refuse with the same words.
fn refused_alike(host: &Host, expected: &str) {
    let start = host.start(|k, len| floats(&mut random(k), len, 1.0));
    let cuda = cuda();
    let forward = host.fake_quantize(&Cpu).map(|_| ()).unwrap_err();
    assert!(forward.contains(expected), "{forward}");
    assert_eq!(host.fake_quantize(&cuda).map(|_| ()).unwrap_err(), forward);
    let backward = host.backward(&Cpu, GradScale::None, &start).map(|_| ());
    assert_eq!(host.backward(&cuda, GradScale::None, &start).map(|_| ()), backward);
    // The complaint is told once; the next call starts clean.
    let sound = Host::rough(SHAPES[3], 3);
    assert!(sound.fake_quantize(&cuda).is_ok());
}

#[test]
fn what_is_not_finite_is_named_as_on_the_cpu() {
    type Field = fn(&mut Host) -> &mut Vec<f32>;
    let fields: [(&str, Field); 5] = [
        ("scale", |host| &mut host.scale),
        ("offset", |host| &mut host.offset),
        ("weight", |host| &mut host.weight),
        ("lora_a", |host| &mut host.lora_a),
        ("lora_b", |host| &mut host.lora_b),
    ];
    for shape in [SHAPES[3], SHAPES[7]] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (name, field) in fields {
                let mut host = Host::rough(shape, 1);
                let values = field(&mut host);
                let last = values.len() - 1;
                (values[last], values[last / 2]) = (value, value);
                refused_alike(&host, &format!("{name} is not finite: {value}"));
            }
        }
    }
    let mut host = Host::rough(SHAPES[3], 1);
    (host.weight[2], host.lora_a[5], host.scale[30]) = (f32::NAN, f32::NAN, f32::INFINITY);
    refused_alike(&host, "scale is not finite: inf at flat index 30");
}

#[test]
fn overflow_saturates_except_where_nothing_is_meant() {
    let mut host = Host::rough((2, 8, 4, Some(4), Some(2)), 2);
    (host.weight[3], host.scale[0]) = (3e38, 1e-8);
    assert_eq!(host.arguments()[3], f32::INFINITY);
    let (output, codes) = host.fake_quantize(&cuda()).unwrap();
    assert_eq!((bits(&output), codes), {
        let (output, codes) = host.fake_quantize(&Cpu).unwrap();
        (bits(&output), codes)
    });
    let mut opposite = host.clone();
    (opposite.lora_a[0], opposite.lora_a[8]) = (3e38, -3e38);
    (opposite.lora_b[0], opposite.lora_b[1]) = (3e38, 3e38);
    refused_alike(&opposite, "quantizer argument is not finite: NaN at flat index 0");
    (host.weight[13], host.scale[3]) = (3.4e38, 2e38);
    let output = host.fake_quantize(&Cpu).unwrap_err();
    assert!(output.contains("output is not finite: inf at flat index 13"), "{output}");
    assert_eq!(host.fake_quantize(&cuda()).unwrap_err(), output);
}

#[test]
fn buffers_that_are_too_short_are_refused_as_on_the_cpu() {
    let whole = Host::rough(SHAPES[3], 3);
    type Shorten = fn(&mut Host);
    let shortened: [Shorten; 5] = [
        |host| host.weight.truncate(host.weight.len() - 1),
        |host| host.lora_a.truncate(host.lora_a.len() - 1),
        |host| host.lora_b.truncate(host.lora_b.len() - 1),
        |host| host.scale.truncate(host.scale.len() - 1),
        |host| host.offset.truncate(host.offset.len() - 1),
    ];
    let start = whole.start(|k, len| floats(&mut random(k), len, 1.0));
    for shorten in shortened {
        let mut host = whole.clone();
        shorten(&mut host);
        let expected = host.fake_quantize(&Cpu).unwrap_err();
        assert!(expected.contains("expected"), "{expected}");
        assert_eq!(host.fake_quantize(&cuda()).unwrap_err(), expected);
        let expected = host.backward(&Cpu, GradScale::None, &start).unwrap_err();
        assert_eq!(host.backward(&cuda(), GradScale::None, &start).unwrap_err(), expected);
    }
    for k in 0..5 {
        let mut start = start.clone();
        let fields = [
            &mut start.d_weight,
            &mut start.d_scale,
            &mut start.d_offset,
            &mut start.d_lora_a,
            &mut start.d_lora_b,
        ];
        let field = fields.into_iter().nth(k).unwrap();
        field.truncate(field.len() - 1);
        let expected = whole.backward(&Cpu, GradScale::None, &start).unwrap_err();
        assert_eq!(whole.backward(&cuda(), GradScale::None, &start).unwrap_err(), expected);
    }
}
