//! `attention.forward` and `.backward`.

use ndarray::{Array4, ArrayView1, ArrayViewMut1, Axis};
use plumbline_reference::attention::{attention, attention_backward};
use serde_json::json;

use super::Operation;
use super::row::{KV, Q, SOFTMAX, bounded, given, runs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, TRANSCENDENTAL, named};
use crate::params::{self, Params};
use crate::precision::{Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "attention.forward",
        params: &["heads", "kv_heads"],
        inputs: &[given("q", Q), given("k", KV), given("v", KV)],
        outputs: &[bounded("output", Q, SOFTMAX)],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: None,
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "attention.backward",
        params: &["heads", "kv_heads"],
        inputs: &[given("q", Q), given("k", KV), given("v", KV), given("d_output", Q)],
        outputs: &[
            bounded("d_q", Q, SOFTMAX),
            bounded("d_k", KV, SOFTMAX),
            bounded("d_v", KV, SOFTMAX),
        ],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: backward_bounds,
        sample: sample_backward,
    },
];

pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let params::Attention { heads, kv_heads } = params::Attention::read(&request.params)?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(format!("params.kv_heads is {kv_heads}, expected a divisor of heads {heads}"));
    }
    Ok(vec![("heads", heads), ("kv_heads", kv_heads)])
}

/// The reference takes the head counts from the shapes; a case states them as well.
fn check_heads<T>(request: &Request, q: &Array4<T>, k: &Array4<T>) -> Result<(), String> {
    let params = params::Attention::read(&request.params)?;
    for (name, shape, heads) in [("q", q.shape(), params.heads), ("k", k.shape(), params.kv_heads)]
    {
        if shape[2] != heads {
            return Err(format!("in.{name} has shape {shape:?}, expected {heads} heads"));
        }
    }
    Ok(())
}

pub(super) fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (q, k): (Array4<T>, Array4<T>) = (request.array("q")?, request.array("k")?);
    let v = request.array("v")?;
    check_heads(request, &q, &k)?;
    let output = attention(q.view(), k.view(), v.view()).map_err(|e| e.to_string())?;
    Ok(super::tensors([("output", Tensor::floats(&output))]))
}

pub(super) fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let (q, k): (Array4<T>, Array4<T>) = (request.array("q")?, request.array("k")?);
    let (v, d_output) = (request.array("v")?, request.array("d_output")?);
    check_heads(request, &q, &k)?;
    let gradients = attention_backward(q.view(), k.view(), v.view(), d_output.view())
        .map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("d_q", Tensor::floats(&gradients.d_q)),
        ("d_k", Tensor::floats(&gradients.d_k)),
        ("d_v", Tensor::floats(&gradients.d_v)),
    ]))
}

/// One query: its probabilities and the relative error of each.
///
/// A score is a dot product times `1/sqrt(head_dim)`: `head_dim + 4` roundings over absolute
/// terms. The exponential turns the absolute error of its argument, that of the score, of the
/// largest score and of their difference, into a relative one and adds its own. Sum and division
/// add the weighted mean of those errors and `keys + 1` roundings.
struct Query {
    probability: Vec<f64>,
    relative: Vec<f64>,
    /// Absolute error of a flushed probability; the sum that divides it is at least 1.
    flushed: f64,
}

impl Query {
    fn new(q: ArrayView1<f64>, keys: &[ArrayView1<f64>], unit: Unit) -> Self {
        let root = 1.0 / (q.len() as f64).sqrt();
        let scores: Vec<f64> = keys.iter().map(|k| q.dot(k) * root).collect();
        let magnitudes = keys.iter().map(|k| absolute_dot(q, *k) * root);
        let gamma = unit.gamma(q.len() as f64 + 4.0);
        let errors: Vec<f64> = magnitudes.map(|m| gamma * m + unit.tiny).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let largest_error = errors.iter().copied().fold(0.0, f64::max);
        let exponentials: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        let probability: Vec<f64> = exponentials.iter().map(|e| e / sum).collect();
        let exponents: Vec<f64> = scores
            .iter()
            .zip(&errors)
            .map(|(score, error)| {
                let rounding = unit.roundoff * (score - largest).abs();
                error + largest_error + rounding + unit.gamma(TRANSCENDENTAL)
            })
            .collect();
        let of_sum: f64 = probability.iter().zip(&exponents).map(|(p, e)| p * e).sum();
        let rest = of_sum + unit.gamma(keys.len() as f64 + 1.0);
        let relative = exponents.iter().map(|exponent| (exponent + rest).exp_m1()).collect();
        Self { probability, relative, flushed: unit.flush }
    }
}

/// The vector of one batch, token and head.
fn head(x: &Array4<f64>, [b, t, h]: [usize; 3]) -> ArrayView1<'_, f64> {
    let first = Axis(0);
    x.view().index_axis_move(first, b).index_axis_move(first, t).index_axis_move(first, h)
}

fn head_mut(x: &mut Array4<f64>, [b, t, h]: [usize; 3]) -> ArrayViewMut1<'_, f64> {
    let first = Axis(0);
    x.view_mut().index_axis_move(first, b).index_axis_move(first, t).index_axis_move(first, h)
}

fn absolute_dot(a: ArrayView1<f64>, b: ArrayView1<f64>) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

/// The tensors of a case, and a walk over its queries.
struct Heads {
    q: Array4<f64>,
    k: Array4<f64>,
    v: Array4<f64>,
    heads_per_kv: usize,
    unit: Unit,
}

impl Heads {
    fn read(evidence: &Evidence) -> Result<Self, String> {
        let request = evidence.request;
        let params::Attention { heads, kv_heads } = params::Attention::read(&request.params)?;
        Ok(Self {
            q: request.array("q")?,
            k: request.array("k")?,
            v: request.array("v")?,
            heads_per_kv: heads / kv_heads,
            unit: evidence.unit,
        })
    }

    fn each(&self, mut visit: impl FnMut((usize, usize, usize, usize), &Query)) {
        let (batch, tokens, heads, _) = self.q.dim();
        for b in 0..batch {
            for h in 0..heads {
                let kv = h / self.heads_per_kv;
                for t in 0..tokens {
                    let keys: Vec<_> = (0..=t).map(|u| head(&self.k, [b, u, kv])).collect();
                    let q = head(&self.q, [b, t, h]);
                    visit((b, t, h, kv), &Query::new(q, &keys, self.unit));
                }
            }
        }
    }
}

/// `output = sum p * v`: the error of each probability, and `keys + 1` roundings.
pub(super) fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let heads = Heads::read(evidence)?;
    let unit = evidence.unit;
    let mut bound = Array4::zeros(heads.q.dim());
    heads.each(|(b, t, h, kv), query| {
        let sum = unit.gamma(t as f64 + 2.0);
        let mut row = head_mut(&mut bound, [b, t, h]);
        for (u, (p, relative)) in query.probability.iter().zip(&query.relative).enumerate() {
            row.zip_mut_with(&head(&heads.v, [b, u, kv]), |bound: &mut f64, v| {
                *bound += p * v.abs() * (relative + sum) + query.flushed * v.abs() + unit.tiny;
            });
        }
    });
    Ok(named([("output", Allowance::absolute(bound))]))
}

/// `d_p = d_output . v`, `d_score = p * (d_p - sum p * d_p) / sqrt(head_dim)`, then sums over keys
/// or, for `d_k` and `d_v`, over queries and the heads that share the key. The mean may also be
/// taken as `d_output . output`: the count below covers both.
pub(super) fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let heads = Heads::read(evidence)?;
    let d_output: Array4<f64> = evidence.request.array("d_output")?;
    let unit = evidence.unit;
    let (_, tokens, _, head_dim) = heads.q.dim();
    let root = 1.0 / (head_dim as f64).sqrt();
    let shared = unit.gamma((tokens * heads.heads_per_kv) as f64 + 1.0);
    let mut d_q = Array4::zeros(heads.q.dim());
    let mut d_k = Array4::zeros(heads.k.dim());
    let mut d_v = Array4::zeros(heads.v.dim());
    heads.each(|(b, t, h, kv), Query { probability, relative, flushed }| {
        let keys = t + 1;
        let row = head(&d_output, [b, t, h]);
        let values: Vec<_> = (0..keys).map(|u| head(&heads.v, [b, u, kv])).collect();
        let d_p: Vec<f64> = values.iter().map(|v| row.dot(v)).collect();
        let magnitude: Vec<f64> = values.iter().map(|v| absolute_dot(row, *v)).collect();
        let mean: f64 = probability.iter().zip(&d_p).map(|(p, d)| p * d).sum();
        let dot = unit.gamma((head_dim + keys) as f64 + 1.0);
        let mean_error: f64 =
            (0..keys).map(|u| probability[u] * magnitude[u] * (relative[u] + dot)).sum();
        let q = head(&heads.q, [b, t, h]);
        for u in 0..keys {
            let difference = (d_p[u] - mean).abs();
            let joined = unit.gamma(6.0) * (d_p[u].abs() + mean.abs());
            let error = root
                * probability[u]
                * (relative[u] * difference + dot * magnitude[u] + mean_error + joined)
                + flushed * (difference + magnitude[u])
                + unit.tiny;
            let score = root * probability[u] * difference;
            head_mut(&mut d_q, [b, t, h]).zip_mut_with(
                &head(&heads.k, [b, u, kv]),
                |bound: &mut f64, k| {
                    *bound += (error + unit.gamma(keys as f64 + 1.0) * score) * k.abs() + unit.tiny;
                },
            );
            head_mut(&mut d_k, [b, u, kv]).zip_mut_with(&q, |bound: &mut f64, q| {
                *bound += (error + shared * score) * q.abs() + unit.tiny;
            });
            let p = probability[u];
            head_mut(&mut d_v, [b, u, kv]).zip_mut_with(&row, |bound: &mut f64, d| {
                *bound += p * d.abs() * (relative[u] + shared) + flushed * d.abs() + unit.tiny;
            });
        }
    });
    Ok(named([
        ("d_q", Allowance::absolute(d_q)),
        ("d_k", Allowance::absolute(d_k)),
        ("d_v", Allowance::absolute(d_v)),
    ]))
}

pub(super) fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (batch, tokens, head_dim) = (sampler.size(1, 2), sampler.size(1, 6), sampler.size(1, 8));
    let (kv_heads, heads_per_kv) = (sampler.size(1, 2), sampler.pick(&[1, 2, 3]));
    let heads = kv_heads * heads_per_kv;
    let spread = sampler.pick(&[0.3, 1.0, 4.0]);
    let query = [batch, tokens, heads, head_dim];
    let key = [batch, tokens, kv_heads, head_dim];
    let inputs = [
        ("q".to_owned(), sampler.normal(&query, spread)),
        ("k".to_owned(), sampler.normal(&key, spread)),
        ("v".to_owned(), sampler.normal(&key, 1.0)),
    ];
    let params = Params::from_iter([("heads", json!(heads)), ("kv_heads", json!(kv_heads))]);
    Ok((params, inputs.into()))
}

pub(super) fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = sample_forward(sampler)?;
    let shape = inputs["q"].shape().to_vec();
    inputs.insert("d_output".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}
