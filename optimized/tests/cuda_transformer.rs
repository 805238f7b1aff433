//! The kernels of norm, rotation, attention and loss against f64 and against the cpu backend.
//!
//! A bound counts roundings of 2^-24 over the magnitudes that they fall on, as the comment at each
//! says; the cpu backend has to meet the same bounds, so that they are not made for the kernels.

mod transformer;

use plumbline::backend::Storage;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Interpreter};
use plumbline::error::Error;
use plumbline::ops::Write;
use plumbline::ops::attention::{Attention, AttentionArgs, AttentionInputs};
use plumbline::ops::cross_entropy::{CrossEntropy, CrossEntropyArgs};
use plumbline::ops::rms_norm::{RmsNorm, RmsNormArgs, RmsNormGradients};
use plumbline::ops::rope::{Rope, RopeArgs, RopeTable};
use plumbline_reference::spec::RopeSpec;
use transformer::{BEYOND, Bounded, Case, UNIT, Values, fresh, taken};

fn cuda() -> Cuda<Interpreter> {
    Cuda::new(Interpreter::with_orders(2)).unwrap()
}

#[test]
fn rows_are_normalised() {
    for (tokens, hidden) in [(1, 1), (3, 7), (2, 33), (5, 260), (1, 1030)] {
        let mut draw = Values::new(hidden as u64);
        let (x, weight) = (draw.take(tokens * hidden), draw.take(hidden));
        let (cuda, cpu) = (norm(&cuda(), tokens, &x, &weight), norm(&Cpu, tokens, &x, &weight));
        let mut exact = Bounded::default();
        for row in x.chunks(hidden) {
            let inverse = inverse_rms(row);
            for (x, weight) in row.iter().zip(&weight) {
                let y = f64::from(*x) * inverse * f64::from(*weight);
                // hidden + 3 roundings under the root count half; root, quotient and products: 5.
                exact.push(y, y.abs() * (hidden as f64 / 2.0 + 7.0) * UNIT);
            }
        }
        exact.judge("rms_norm", &[cuda, cpu]);
    }
}

const EPS: f32 = 1e-5;

fn inverse_rms(row: &[f32]) -> f64 {
    let sum: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
    1.0 / (sum / row.len() as f64 + f64::from(EPS)).sqrt()
}

fn norm<S: RmsNorm>(backend: &S, tokens: usize, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let args = RmsNormArgs { tokens, hidden: weight.len(), eps: EPS };
    let (mut output, mut inverse) = (fresh(backend, x.len()), fresh(backend, tokens));
    let (x_on, weight) = (backend.upload(x).unwrap(), backend.upload(weight).unwrap());
    backend.rms_norm(args, &x_on, &weight, &mut output, &mut inverse).unwrap();
    taken(backend, &inverse, tokens);
    taken(backend, &output, x.len())
}

#[test]
fn gradients_of_a_norm_are_exact_to_rounding() {
    for (tokens, hidden) in [(1, 1), (3, 7), (34, 33), (65, 132)] {
        let mut draw = Values::new(1 + hidden as u64);
        let (x, weight) = (draw.take(tokens * hidden), draw.take(hidden));
        let (d_output, old) = (draw.take(tokens * hidden), draw.take(tokens * hidden));
        let inputs = [&x[..], &weight, &d_output, &old];
        let (mut d_x, mut d_weight) = (Bounded::default(), vec![(0.0, 0.0); hidden]);
        let width = hidden as f64;
        for t in 0..tokens {
            let row = &x[t * hidden..][..hidden];
            let inverse = inverse_rms(row);
            let n: Vec<f64> = row.iter().map(|x| f64::from(*x) * inverse).collect();
            let d_y: Vec<f64> = (0..hidden).map(|h| f64::from(d_output[t * hidden + h])).collect();
            let d_n: Vec<f64> = (0..hidden).map(|h| d_y[h] * f64::from(weight[h])).collect();
            let mean: f64 = (0..hidden).map(|h| d_n[h] * n[h]).sum::<f64>() / width;
            let size = (0..hidden).map(|h| (d_n[h] * n[h]).abs()).sum::<f64>() / width;
            for h in 0..hidden {
                let added = f64::from(old[t * hidden + h]);
                let gradient = inverse * (d_n[h] - n[h] * mean);
                let magnitude = inverse * (d_n[h].abs() + n[h].abs() * size);
                // Three times the error of the inverse, hidden + 3 of the mean, 8 that join them.
                let bound = magnitude * (2.5 * width + 32.0) + added.abs() + gradient.abs();
                d_x.push(added + gradient, bound * UNIT);
                d_weight[h].0 += d_y[h] * n[h];
                d_weight[h].1 += (d_y[h] * n[h]).abs();
            }
        }
        let mut of_weight = Bounded::default();
        for (value, magnitude) in d_weight {
            // From 1: the old value's magnitude counts with the terms'.
            let roundings = tokens as f64 + width / 2.0 + 8.0;
            of_weight.push(1.0 + value, (1.0 + magnitude) * roundings * UNIT);
        }
        let results = [norm_backward(&cuda(), tokens, inputs), norm_backward(&Cpu, tokens, inputs)];
        let [(cuda_x, cuda_weight), (cpu_x, cpu_weight)] = results;
        d_x.judge("d_x", &[cuda_x, cpu_x]);
        of_weight.judge("d_weight", &[cuda_weight, cpu_weight]);
    }
}

/// `d_x` added to the old one, and `d_weight` added to ones.
fn norm_backward<S: RmsNorm>(
    backend: &S,
    tokens: usize,
    inputs: [&[f32]; 4],
) -> (Vec<f32>, Vec<f32>) {
    let [x, weight, d_output, mut d_x] = inputs.map(|values| backend.upload(values).unwrap());
    let hidden = inputs[1].len();
    let args = RmsNormArgs { tokens, hidden, eps: EPS };
    let mut output = fresh(backend, tokens * hidden);
    let mut inverse = fresh(backend, tokens);
    backend.rms_norm(args, &x, &weight, &mut output, &mut inverse).unwrap();
    let mut replaced = fresh(backend, tokens * hidden);
    let frozen = RmsNormGradients { d_x: &mut replaced, write_d_x: Write::Replace, d_weight: None };
    backend.rms_norm_backward(args, &x, &weight, &inverse, &d_output, frozen).unwrap();
    let mut d_weight = backend.upload(&vec![1.0; hidden]).unwrap();
    let gradients =
        RmsNormGradients { d_x: &mut d_x, write_d_x: Write::Add, d_weight: Some(&mut d_weight) };
    backend.rms_norm_backward(args, &x, &weight, &inverse, &d_output, gradients).unwrap();
    let d_x = backend.download(&d_x, tokens * hidden).unwrap();
    let replaced = taken(backend, &replaced, tokens * hidden);
    for ((sum, old), new) in d_x.iter().zip(inputs[3]).zip(replaced) {
        assert_eq!(*sum, old + new);
    }
    (d_x, backend.download(&d_weight, hidden).unwrap())
}

#[test]
fn a_rotation_has_the_bits_of_the_cpu_backend() {
    for (batch, length, heads, head_dim, first_position) in
        [(1, 1, 1, 2, 0), (2, 3, 3, 10, 2), (1, 2, 5, 7, 1), (2, 2, 3, 16, 0), (1, 1, 36, 64, 5)]
    {
        let args = RopeArgs { batch, length, heads, head_dim, first_position };
        let x = Values::new(head_dim as u64).take(batch * length * heads * head_dim);
        let [on_cuda, on_cpu] = [rotated(&cuda(), args, &x), rotated(&Cpu, args, &x)];
        assert_eq!(on_cuda, on_cpu, "{args:?}");
    }
}

/// Bits of the rotation, then of its backward.
fn rotated<S: Rope>(backend: &S, args: RopeArgs, x: &[f32]) -> Vec<u32> {
    let table = RopeTable::new(backend, RopeSpec::new(500.0).unwrap(), args.head_dim, 8).unwrap();
    let mut values = x.to_vec();
    values.push(BEYOND);
    let [mut forward, mut backward] = [(); 2].map(|()| backend.upload(&values).unwrap());
    backend.rope(args, &table, None, &mut forward).unwrap();
    backend.rope_backward(args, &table, None, &mut backward).unwrap();
    let far = RopeArgs { first_position: 9 - args.length, ..args };
    assert!(matches!(backend.rope(far, &table, None, &mut forward), Err(Error::Length { .. })));
    let both = [forward, backward].map(|buffer| taken(backend, &buffer, x.len()));
    both.concat().into_iter().map(f32::to_bits).collect()
}

#[test]
fn losses_and_their_gradients_are_exact_to_rounding() {
    for (tokens, vocab_size) in [(1, 1), (5, 7), (3, 132), (300, 3), (2, 4103)] {
        let case = Case { tokens, vocab_size, multiplier: 0.25 };
        let mut draw = Values::new(vocab_size as u64);
        let logits: Vec<f32> =
            draw.take(tokens * vocab_size).iter().map(|logit| 20.0 * logit).collect();
        // Every third is not counted, but for the first.
        let target = |t: usize| if t % 3 == 2 { -7 } else { (t * 7919 % vocab_size) as i32 };
        let targets: Vec<i32> = (0..tokens).map(target).collect();
        let (loss, gradient) = case.exact(&logits, &targets);
        let (on_cuda, on_cpu) =
            (losses(&cuda(), case, &logits, &targets), losses(&Cpu, case, &logits, &targets));
        loss.judge("loss", &[vec![on_cuda.0], vec![on_cpu.0]]);
        gradient.judge("d_logits", &[on_cuda.1, on_cpu.1]);
    }
}

fn losses<S: CrossEntropy>(
    backend: &S,
    case: Case,
    logits: &[f32],
    targets: &[i32],
) -> (f64, Vec<f32>) {
    let Case { tokens, vocab_size, multiplier } = case;
    let args =
        CrossEntropyArgs { tokens, vocab_size, ignore_index: -7, gradient_multiplier: multiplier };
    let mut values = logits.to_vec();
    values.push(BEYOND);
    let mut logits_on = backend.upload(&values).unwrap();
    let on = backend.upload_tokens(targets).unwrap();
    // Both are added to what is there.
    let mut sums = backend.upload_sums(&[2.0, 0.0, 0.0]).unwrap();
    let counted = backend.cross_entropy(args, &logits_on, &on, &mut sums, 1).unwrap();
    backend.cross_entropy_backward(args, &mut logits_on, &on, &mut sums, 2).unwrap();
    let once = backend.read_sums(&mut sums).unwrap();
    assert_eq!((once[0], once[1]), (2.0, once[2]));
    backend.cross_entropy(args, &logits_on, &on, &mut sums, 0).unwrap();
    let (mut alone, again) =
        (backend.upload_sums(&[0.0]).unwrap(), backend.read_sums(&mut sums).unwrap());
    backend.cross_entropy(args, &logits_on, &on, &mut alone, 0).unwrap();
    assert_eq!(again, [2.0 + backend.read_sums(&mut alone).unwrap()[0], once[1], once[2]]);
    assert_eq!(counted, targets.iter().filter(|target| **target != -7).count());
    (once[1], taken(backend, &logits_on, logits.len()))
}

#[test]
fn a_target_outside_the_vocabulary_is_refused_and_an_infinite_logit_shows() {
    let args =
        CrossEntropyArgs { tokens: 2, vocab_size: 3, ignore_index: -100, gradient_multiplier: 1.0 };
    let backend = cuda();
    let logits = backend.upload(&[0.0, 1.0, f32::INFINITY, 0.0, 1.0, 2.0]).unwrap();
    for target in [3, -1] {
        let targets = backend.upload_tokens(&[0, target]).unwrap();
        let mut sums = backend.upload_sums(&[0.0]).unwrap();
        let told = backend.cross_entropy(args, &logits, &targets, &mut sums, 0);
        let told = told.unwrap_err().to_string();
        assert_eq!(told, format!("token {target} at position 1 is outside 0..3"));
    }
    let targets = backend.upload_tokens(&[0, 1]).unwrap();
    let mut sums = backend.upload_sums(&[0.0; 3]).unwrap();
    backend.cross_entropy(args, &logits, &targets, &mut sums, 0).unwrap();
    let masked = backend.upload(&[0.0, f32::NEG_INFINITY, 0.0, 0.0, 1.0, 2.0]).unwrap();
    backend.cross_entropy(args, &masked, &targets, &mut sums, 1).unwrap();
    let empty = CrossEntropyArgs { tokens: 0, ..args };
    assert_eq!(backend.cross_entropy(empty, &logits, &targets, &mut sums, 2).unwrap(), 0);
    let losses = backend.read_sums(&mut sums).unwrap();
    assert!(losses[0].is_nan() && losses[1].is_finite() && losses[2] == 0.0, "{losses:?}");
    let told = backend.cross_entropy(args, &masked, &targets, &mut sums, 3).unwrap_err();
    assert_eq!(told.to_string(), "cross_entropy: sums holds 3 values, expected 4");
}

fn sizes(
    [batch, queries, keys]: [usize; 3],
    [heads, kv_heads, head_dim]: [usize; 3],
) -> AttentionArgs {
    AttentionArgs { batch, queries, keys, heads, kv_heads, head_dim }
}

#[test]
fn attention_and_its_gradients_are_exact_to_rounding() {
    for args in [
        sizes([1, 1, 1], [1, 1, 1]),
        sizes([2, 3, 5], [4, 2, 7]),
        sizes([1, 1, 66], [3, 1, 8]), // one token is generated: 3 rows, two tiles of keys
        sizes([1, 17, 17], [1, 1, 5]), // one row more than a tile of few
        sizes([1, 33, 36], [2, 1, 12]), // 66 rows of two heads, 36 keys: both tiles overflow
        sizes([1, 2, 3], [2, 2, 66]), // two pieces of a head
        sizes([1, 9, 9], [2, 1, 130]),
    ] {
        transformer::judge_attention(&cuda(), &Cpu, args, &[]);
    }
}

#[test]
fn attention_that_cannot_run_is_refused() {
    let backend = cuda();
    let few = |len| backend.zeros(len).unwrap();
    let (q, k, v, mut output, mut saved) = (few(8), few(8), few(8), few(8), few(8));
    for (args, expected) in [
        (sizes([1, 2, 1], [1, 1, 1]), "attention cannot run with"),
        (sizes([1, 1, 1], [3, 2, 1]), "attention cannot run with"),
        (sizes([1, 1, 1], [1, 0, 1]), "attention cannot run with"),
        (sizes([1, 2, 2], [2, 1, 3]), "attention: q holds 8 values, expected 12"),
    ] {
        let inputs = AttentionInputs { q: &q, k: &k, v: &v, documents: None };
        let told = backend.attention(args, inputs, &mut output, &mut saved).unwrap_err();
        assert!(told.to_string().starts_with(expected), "{told}");
    }
    let wide = few(257);
    let mut output = few(257);
    let args = sizes([1, 1, 1], [1, 1, 257]);
    let inputs = AttentionInputs { q: &wide, k: &wide, v: &wide, documents: None };
    let told = backend.attention(args, inputs, &mut output, &mut saved).unwrap_err();
    assert_eq!(
        told.to_string(),
        "attention kernels take heads of up to 256 values, got head_dim 257"
    );
}
