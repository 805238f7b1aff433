//! Exact values with bounds, for `cuda_transformer.rs`, `packing.rs` and `cuda_bf16`.
#![allow(dead_code)] // each test takes some of them

use plumbline::backend::Storage;
use plumbline::ops::attention::{
    Attention, AttentionArgs, AttentionGradients, AttentionInputs, AttentionSaved,
};

/// What a workspace that is longer than the call holds at its end, before and after.
pub const BEYOND: f32 = 12345.0;

/// A buffer of `len` NaNs and one value that no operation may touch.
pub fn fresh<S: Storage>(backend: &S, len: usize) -> S::Floats {
    let mut values = vec![f32::NAN; len];
    values.push(BEYOND);
    backend.upload(&values).unwrap()
}

/// The values of a [`fresh`] buffer, once its end is found untouched.
pub fn taken<S: Storage>(backend: &S, buffer: &S::Floats, len: usize) -> Vec<f32> {
    let mut values = backend.download(buffer, len + 1).unwrap();
    assert_eq!(values.pop(), Some(BEYOND), "written beyond {len} values");
    values
}

/// The most that one rounding to f32 adds, relatively.
pub const UNIT: f64 = 1.0 / (1u32 << 24) as f64;

/// An exponential or a logarithm is within this many roundings, here and there.
const TRANSCENDENTAL: f64 = 6.0;

/// Values between -1 and 1, the same on every run.
pub struct Values(u64);

impl Values {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn take(&mut self, len: usize) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (self.0 >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }
}

/// Exact values, each with the error that it allows.
#[derive(Default)]
pub struct Bounded(Vec<(f64, f64)>);

impl Bounded {
    pub fn push(&mut self, exact: f64, bound: f64) {
        self.0.push((exact, bound));
    }

    /// # Panics
    /// When a result, of the kernels or of the cpu backend, is further away than its bound.
    pub fn judge<T: Copy + Into<f64>>(&self, what: &str, results: &[Vec<T>; 2]) {
        for (backend, result) in ["cuda", "cpu"].into_iter().zip(results) {
            assert_eq!(result.len(), self.0.len(), "{what} of {backend}");
            for (i, (actual, (exact, bound))) in result.iter().zip(&self.0).enumerate() {
                let actual: f64 = (*actual).into();
                let error = (actual - exact).abs();
                assert!(
                    error <= *bound,
                    "{what}[{i}] of {backend}: {actual} for {exact}, {error:e} > {bound:e}"
                );
            }
        }
    }
}

/// Sizes of a loss.
#[derive(Clone, Copy)]
pub struct Case {
    pub tokens: usize,
    pub vocab_size: usize,
    pub multiplier: f32,
}

impl Case {
    /// The sum of the losses, and the gradient of the logits.
    pub fn exact(self, logits: &[f32], targets: &[i32]) -> (Bounded, Bounded) {
        let (mut loss, mut allowed, mut gradient) = (0.0, 0.0, Bounded::default());
        for (row, target) in logits.chunks(self.vocab_size).zip(targets) {
            let Ok(target) = usize::try_from(*target) else {
                row.iter().for_each(|_| gradient.push(0.0, 0.0));
                continue;
            };
            let row: Vec<f64> = row.iter().copied().map(f64::from).collect();
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
            loss += largest - row[target] + sum.ln();
            // Of a term: its argument's rounding, the exponential, one addition per term; a thread
            // of the kernel may rescale its sum as often as it adds four.
            let of_sum: f64 = row
                .iter()
                .map(|logit| {
                    let p = (logit - largest).exp() / sum;
                    p * ((largest - logit) + TRANSCENDENTAL)
                })
                .sum::<f64>()
                + 3.0 * self.vocab_size as f64
                + TRANSCENDENTAL;
            allowed += of_sum * UNIT;
            let multiplier = f64::from(self.multiplier);
            for (v, logit) in row.iter().enumerate() {
                let p = (logit - largest).exp() / sum;
                let hit = f64::from(u8::from(v == target));
                let error = p * ((largest - logit) + TRANSCENDENTAL + of_sum + 3.0) + hit;
                gradient.push(multiplier * (p - hit), multiplier * error * UNIT);
            }
        }
        let mut of_loss = Bounded::default();
        of_loss.push(loss, allowed);
        (of_loss, gradient)
    }
}

/// `output`, `log_sum_exp`, `d_q`, `d_k`, `d_v`.
type Results<T> = [T; 5];

/// Runs both backends and compares them with f64; `documents` are where those of every sequence
/// begin among its queries.
///
/// # Panics
/// When a bound is not met.
pub fn judge_attention<A: Attention, B: Attention>(
    cuda: &A,
    cpu: &B,
    args: AttentionArgs,
    documents: &[usize],
) {
    let AttentionArgs { batch, queries, keys, heads, kv_heads, head_dim } = args;
    let mut draw = Values::new((queries * keys * head_dim) as u64);
    let mut wider = |len: usize| draw.take(len).iter().map(|x| 2.0 * x).collect::<Vec<f32>>();
    let (query, key) = (batch * queries * heads * head_dim, batch * keys * kv_heads * head_dim);
    let inputs = [wider(query), wider(key), wider(key), wider(query)];
    let firsts = first_keys(args, documents);
    let given = (!documents.is_empty()).then_some(&firsts[..]);
    let on_cuda = run_attention(cuda, args, given, &inputs);
    let on_cpu = run_attention(cpu, args, given, &inputs);
    let names = ["output", "log_sum_exp", "d_q", "d_k", "d_v"];
    let exact = exact(args, &firsts, &inputs, 0.0);
    for (((name, exact), cuda), cpu) in names.into_iter().zip(exact).zip(on_cuda).zip(on_cpu) {
        exact.judge(&format!("{name}, {args:?}"), &[cuda, cpu]);
    }
}

/// The most that one rounding to bf16, which has 8 bits, adds, relatively.
const NARROW: f64 = 1.0 / 256.0;

/// Compares a backend that rounds what it multiplies to bf16 with f64 on rounded inputs; one that
/// does not round must meet the same bounds on them, and differ.
///
/// # Panics
/// When a bound is not met.
pub fn judge_rounded_attention<A: Attention, B: Attention>(
    rounding: &A,
    plain: &B,
    args: AttentionArgs,
    documents: &[usize],
) {
    let AttentionArgs { batch, queries, keys, heads, kv_heads, head_dim } = args;
    let (query, key) = (batch * queries * heads * head_dim, batch * keys * kv_heads * head_dim);
    let mut draw = Values::new((queries * keys * head_dim) as u64);
    let inputs = [query, key, key, query].map(|len| draw.take(len));
    let narrow = |value: &f32| half::bf16::from_f32(*value).to_f32();
    let rounded = inputs.each_ref().map(|values| values.iter().map(narrow).collect::<Vec<_>>());
    let firsts = first_keys(args, documents);
    let given = (!documents.is_empty()).then_some(&firsts[..]);
    let of_rounding = run_attention(rounding, args, given, &inputs);
    let of_plain = run_attention(plain, args, given, &rounded);
    let names = ["output", "log_sum_exp", "d_q", "d_k", "d_v"];
    let exact = exact(args, &firsts, &rounded, NARROW);
    for (((name, exact), own), plain) in names.into_iter().zip(exact).zip(of_rounding).zip(of_plain)
    {
        assert!(own != plain, "{name} is not of rounded operands");
        exact.judge(&format!("{name}, {args:?}"), &[own, plain]);
    }
}

/// The first key that each query sees, `[batch, queries]`: the queries ahead of the first of
/// `documents` see all keys up to their own, as those of a later one see its own keys.
pub fn first_keys(args: AttentionArgs, documents: &[usize]) -> Vec<i32> {
    let before = args.keys - args.queries;
    let first = |query: usize| {
        let start = documents.iter().rev().find(|start| **start <= query);
        start.map_or(0, |start| (before + start) as i32)
    };
    (0..args.batch * args.queries).map(|i| first(i % args.queries)).collect()
}

/// `output`, `log_sum_exp`, `d_q`, `d_k` and `d_v` of `q`, `k`, `v` and `d_output`.
pub fn run_attention<S: Attention>(
    backend: &S,
    args: AttentionArgs,
    documents: Option<&[i32]>,
    inputs: &[Vec<f32>; 4],
) -> Results<Vec<f32>> {
    let (query, key) = (inputs[0].len(), inputs[1].len());
    let rows = args.batch * args.heads * args.queries;
    let lengths = [query, rows, query, key, key];
    let [q, k, v, d_output] = inputs.each_ref().map(|values| backend.upload(values).unwrap());
    let [mut output, mut log_sum_exp, mut d_q, mut d_k, mut d_v] =
        lengths.map(|len| super::fresh(backend, len));
    let documents = documents.map(|documents| backend.upload_tokens(documents).unwrap());
    let inputs = || AttentionInputs { q: &q, k: &k, v: &v, documents: documents.as_ref() };
    backend.attention(args, inputs(), &mut output, &mut log_sum_exp).unwrap();
    let saved = AttentionSaved { inputs: inputs(), output: &output, log_sum_exp: &log_sum_exp };
    let gradients = AttentionGradients { d_q: &mut d_q, d_k: &mut d_k, d_v: &mut d_v };
    backend.attention_backward(args, saved, &d_output, gradients).unwrap();
    let results = [output, log_sum_exp, d_q, d_k, d_v];
    std::array::from_fn(|i| super::taken(backend, &results[i], lengths[i]))
}

fn dot(a: &[f32], b: &[f32]) -> (f64, f64) {
    let terms = || a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    (terms().sum(), terms().map(f64::abs).sum())
}

fn add(to: &mut [(f64, f64)], x: &[f32], factor: f64, error: f64) {
    for ((value, bound), x) in to.iter_mut().zip(x) {
        *value += factor * f64::from(*x);
        *bound += error * f64::from(x.abs());
    }
}

/// One query: its probabilities, and what rounding does to each of them, relatively.
///
/// A score is `head_dim + 2` roundings over absolute terms, and so is the maximum or the saved
/// logarithm that is subtracted from it; the difference and the exponential add theirs. Sum,
/// quotient and the rescaling from tile to tile add `2 keys`. That is counted twice: once for the
/// exponential, once for the sum that divides it.
fn probabilities(q: &[f32], keys: &[&[f32]]) -> (Vec<f64>, f64, f64) {
    let root = 1.0 / (q.len() as f64).sqrt();
    let scores: Vec<f64> = keys.iter().map(|k| dot(q, k).0 * root).collect();
    let magnitude = keys.iter().map(|k| dot(q, k).1 * root).fold(0.0, f64::max);
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
    let log_sum_exp = largest + sum.ln();
    let of_score = (q.len() as f64 + 2.0) * magnitude + 2.0 * magnitude + log_sum_exp.abs();
    let relative = 2.0 * (2.0 * of_score + TRANSCENDENTAL + 2.0 * keys.len() as f64);
    let p = scores.iter().map(|score| (score - log_sum_exp).exp()).collect();
    (p, log_sum_exp, relative * UNIT)
}

/// `narrow` bounds the relative rounding of each probability and of each gradient of a score before
/// it is multiplied.
fn exact(
    args: AttentionArgs,
    firsts: &[i32],
    inputs: &[Vec<f32>; 4],
    narrow: f64,
) -> Results<Bounded> {
    let AttentionArgs { batch, queries, keys, heads, kv_heads, head_dim } = args;
    let [q, k, v, d_output] = inputs;
    let query_zeros = || vec![(0.0, 0.0); q.len()];
    let key_zeros = || vec![(0.0, 0.0); k.len()];
    let (mut output, mut d_q) = (query_zeros(), query_zeros());
    let (mut d_k, mut d_v) = (key_zeros(), key_zeros());
    let mut saved = Vec::new();
    let (group, root) = (heads / kv_heads, 1.0 / (head_dim as f64).sqrt());
    let joins = (keys + queries * group + head_dim + 8) as f64 * UNIT;
    for (b, h, t) in (0..batch * heads * queries)
        .map(|i| (i / queries / heads, i / queries % heads, i % queries))
    {
        let row = ((b * queries + t) * heads + h) * head_dim..;
        let (q, d_y) = (&q[row.clone()][..head_dim], &d_output[row.clone()][..head_dim]);
        let first = firsts[b * queries + t] as usize;
        let seen = keys - queries + t + 1 - first;
        let at = |j: usize| ((b * keys + first + j) * kv_heads + h / group) * head_dim;
        let vector = |x: &'_ [f32], j: usize| x[at(j)..][..head_dim].to_vec();
        let rows: Vec<Vec<f32>> = (0..seen).map(|j| vector(k, j)).collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let (p, log_sum_exp, relative) = probabilities(q, &rows);
        saved.push((log_sum_exp, relative + log_sum_exp.abs() * UNIT));
        let d_p: Vec<(f64, f64)> = (0..seen).map(|j| dot(d_y, &vector(v, j))).collect();
        let mean: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d.0).sum();
        let magnitude: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d.1).sum();
        // Rounded probabilities are in the output, so they are in its product with d_output.
        let of_mean = relative + narrow * (1.0 + relative + joins).powi(2);
        for j in 0..seen {
            let d_score = root * p[j] * (d_p[j].0 - mean);
            let error = root
                * p[j]
                * (relative * (d_p[j].0 - mean).abs()
                    + of_mean * magnitude
                    + joins * (d_p[j].1 + magnitude));
            let error = error * (1.0 + narrow) + (joins + narrow) * d_score.abs();
            let of_p = p[j] * ((relative + joins) * (1.0 + narrow) + narrow);
            add(&mut output[row.start..], &vector(v, j), p[j], of_p);
            add(&mut d_q[row.start..], rows[j], d_score, error);
            add(&mut d_k[at(j)..], q, d_score, error);
            add(&mut d_v[at(j)..], d_y, p[j], of_p);
        }
    }
    [output, saved, d_q, d_k, d_v].map(Bounded)
}
