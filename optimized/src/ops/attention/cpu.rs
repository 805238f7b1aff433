use std::ops::Range;

use rayon::prelude::*;

use super::{Attention, AttentionArgs, AttentionGradients, AttentionInputs, AttentionSaved};
use crate::cpu::{
    Cpu,
    gemm::{Matrix, Threads, product},
    simd::{exp, lane_max, lane_sum, vectorized},
};
use crate::error::{Error, Result};
use crate::ops::{check_documents, prefix, prefix_mut};

/// Queries whose scores are held together: `[QUERIES, keys]` is the only score buffer.
const QUERIES: usize = 64;

/// Where the parts of one key head lie, and the factor on its scores.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) args: AttentionArgs,
    /// Query heads of a key head.
    pub(super) group: usize,
    /// 1 / sqrt(head_dim).
    pub(super) factor: f32,
}

impl Layout {
    pub(super) fn new(args: AttentionArgs) -> Result<Self> {
        let grouped = args.kv_heads > 0 && args.heads.is_multiple_of(args.kv_heads);
        if args.queries > args.keys || !grouped || args.head_dim == 0 {
            return Err(Error::Invalid(format!("attention cannot run with {args:?}")));
        }
        let factor = (1.0 / (args.head_dim as f64).sqrt()) as f32;
        Ok(Self { args, group: args.heads / args.kv_heads, factor })
    }

    pub(super) fn query_len(self) -> usize {
        self.args.batch * self.args.queries * self.args.heads * self.args.head_dim
    }

    pub(super) fn key_len(self) -> usize {
        self.args.batch * self.args.keys * self.args.kv_heads * self.args.head_dim
    }

    /// Where the documents of all queries begin.
    pub(super) fn checked<'a>(
        self,
        operation: &'static str,
        documents: &'a [i32],
    ) -> Result<&'a [i32]> {
        let AttentionArgs { batch, queries, keys, .. } = self.args;
        let documents = prefix(operation, "documents", documents, batch * queries)?;
        check_documents(operation, documents, queries, keys - queries)?;
        Ok(documents)
    }

    /// Rows `start..start + rows` of one query head of one sequence.
    fn queries<'a>(
        self,
        x: &'a [f32],
        batch: usize,
        head: usize,
        start: usize,
        rows: usize,
    ) -> Matrix<'a> {
        let width = self.args.heads * self.args.head_dim;
        let first = (batch * self.args.queries + start) * width + head * self.args.head_dim;
        Matrix::strided(&x[first..], rows, self.args.head_dim, width)
    }

    /// The keys (or values) of a block of one key head of one sequence.
    fn keys<'a>(self, x: &'a [f32], batch: usize, kv_head: usize, block: &Block) -> Matrix<'a> {
        let width = self.args.kv_heads * self.args.head_dim;
        let token = batch * self.args.keys + block.first_key;
        let first = token * width + kv_head * self.args.head_dim;
        Matrix::strided(&x[first..], block.seen, self.args.head_dim, width)
    }

    /// Keys up to the one of the query in row `t`.
    fn reached(self, t: usize) -> usize {
        self.args.keys - self.args.queries + t + 1
    }

    /// The blocks of one sequence. None crosses a document, so that each document is computed as it
    /// would be alone.
    fn blocks(self, documents: Option<&[i32]>, batch: usize) -> Vec<Block> {
        let queries = self.args.queries;
        let mut blocks = Vec::new();
        let mut of_document = |first_key: usize, queries: Range<usize>| {
            blocks.extend(queries.clone().step_by(QUERIES).map(|start| {
                let rows = QUERIES.min(queries.end - start);
                Block { start, rows, first_key, seen: self.reached(start + rows - 1) - first_key }
            }));
        };
        match documents {
            None => of_document(0, 0..queries),
            Some(documents) => {
                let mut start = 0;
                for document in documents[batch * queries..][..queries].chunk_by(i32::eq) {
                    of_document(document[0] as usize, start..start + document.len());
                    start += document.len();
                }
            }
        }
        blocks
    }

    /// `(batch, kv_head)` of every task.
    fn tasks(self) -> impl IndexedParallelIterator<Item = (usize, usize)> {
        let kv_heads = self.args.kv_heads;
        (0..self.args.batch * kv_heads).into_par_iter().map(move |i| (i / kv_heads, i % kv_heads))
    }

    /// Scatters `[task][group][queries][head_dim]` results to `[batch, queries, heads, head_dim]`.
    fn scatter_queries(self, results: &[Vec<f32>], out: &mut [f32]) {
        self.scatter(results, out, self.args.queries, self.group)
    }

    /// Scatters `[task][keys][head_dim]` results to `[batch, keys, kv_heads, head_dim]`.
    fn scatter_keys(self, results: &[Vec<f32>], out: &mut [f32]) {
        self.scatter(results, out, self.args.keys, 1)
    }

    fn scatter(self, results: &[Vec<f32>], out: &mut [f32], tokens: usize, group: usize) {
        let (dim, kv_heads) = (self.args.head_dim, self.args.kv_heads);
        let width = kv_heads * group * dim;
        out.par_chunks_mut(width).enumerate().for_each(|(row, out)| {
            let (batch, t) = (row / tokens, row % tokens);
            for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                let result = &results[batch * kv_heads + head / group];
                out.copy_from_slice(&result[(head % group * tokens + t) * dim..][..dim]);
            }
        });
    }
}

/// Neighbouring queries of one document, and the keys that the last of them sees.
struct Block {
    start: usize,
    rows: usize,
    first_key: usize,
    seen: usize,
}

#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    documents: Option<&'a [i32]>,
}

impl<'a> Inputs<'a> {
    fn new(
        operation: &'static str,
        layout: Layout,
        inputs: AttentionInputs<'a, Vec<f32>, Vec<i32>>,
    ) -> Result<Self> {
        let AttentionInputs { q, k, v, documents } = inputs;
        Ok(Self {
            q: prefix(operation, "q", q, layout.query_len())?,
            k: prefix(operation, "k", k, layout.key_len())?,
            v: prefix(operation, "v", v, layout.key_len())?,
            documents: match documents {
                Some(documents) => Some(layout.checked(operation, documents)?),
                None => None,
            },
        })
    }
}

impl Attention for Cpu {
    fn attention(
        &self,
        args: AttentionArgs,
        inputs: AttentionInputs<'_, Vec<f32>, Vec<i32>>,
        output: &mut Vec<f32>,
        log_sum_exp: &mut Vec<f32>,
    ) -> Result<()> {
        let layout = Layout::new(args)?;
        let inputs = Inputs::new("attention", layout, inputs)?;
        let output = prefix_mut("attention", "output", output, layout.query_len())?;
        let saved = args.batch * args.heads * args.queries;
        let log_sum_exp = prefix_mut("attention", "log_sum_exp", log_sum_exp, saved)?;
        let results: Vec<Vec<f32>> = layout
            .tasks()
            .zip(log_sum_exp.par_chunks_mut(layout.group * args.queries))
            .map(|(task, log_sum_exp)| forward_task(layout, task, inputs, log_sum_exp))
            .collect();
        layout.scatter_queries(&results, output);
        Ok(())
    }

    fn attention_backward(
        &self,
        args: AttentionArgs,
        saved: AttentionSaved<'_, Vec<f32>, Vec<i32>>,
        d_output: &Vec<f32>,
        gradients: AttentionGradients<'_, Vec<f32>>,
    ) -> Result<()> {
        const NAME: &str = "attention_backward";
        let layout = Layout::new(args)?;
        let (queries, keys) = (layout.query_len(), layout.key_len());
        let rows = args.batch * args.heads * args.queries;
        let saved = Slices {
            inputs: Inputs::new(NAME, layout, saved.inputs)?,
            output: prefix(NAME, "output", saved.output, queries)?,
            log_sum_exp: prefix(NAME, "log_sum_exp", saved.log_sum_exp, rows)?,
            d_output: prefix(NAME, "d_output", d_output, queries)?,
        };
        let d_q = prefix_mut(NAME, "d_q", gradients.d_q, queries)?;
        let d_k = prefix_mut(NAME, "d_k", gradients.d_k, keys)?;
        let d_v = prefix_mut(NAME, "d_v", gradients.d_v, keys)?;
        let results: Vec<TaskGradients> =
            layout.tasks().map(|task| backward_task(layout, task, saved)).collect();
        let mut parts = (Vec::new(), Vec::new(), Vec::new());
        for result in results {
            parts.0.push(result.d_q);
            parts.1.push(result.d_k);
            parts.2.push(result.d_v);
        }
        layout.scatter_queries(&parts.0, d_q);
        layout.scatter_keys(&parts.1, d_k);
        layout.scatter_keys(&parts.2, d_v);
        Ok(())
    }
}

/// Output `[group, queries, head_dim]` of one key head of one sequence.
fn forward_task(
    layout: Layout,
    (batch, kv_head): (usize, usize),
    inputs: Inputs<'_>,
    log_sum_exp: &mut [f32],
) -> Vec<f32> {
    let AttentionArgs { queries, keys, head_dim, .. } = layout.args;
    let mut output = vec![0.0f32; layout.group * queries * head_dim];
    let mut scores = vec![0.0f32; QUERIES.min(queries) * keys];
    let blocks = layout.blocks(inputs.documents, batch);
    for member in 0..layout.group {
        let head = kv_head * layout.group + member;
        for block in &blocks {
            let Block { start, rows, first_key, seen } = *block;
            let q = layout.queries(inputs.q, batch, head, start, rows);
            let k = layout.keys(inputs.k, batch, kv_head, block);
            product(&mut scores, seen, q, k.t(), layout.factor, false, Threads::One);
            let saved = &mut log_sum_exp[member * queries + start..][..rows];
            vectorized(
                #[inline(always)]
                || {
                    for (row, saved) in saved.iter_mut().enumerate() {
                        let row_scores = &mut scores[row * seen..][..seen];
                        *saved = softmax(row_scores, layout.reached(start + row) - first_key);
                    }
                },
            );
            let v = layout.keys(inputs.v, batch, kv_head, block);
            let output = &mut output[(member * queries + start) * head_dim..];
            let probabilities = Matrix::new(&scores, rows, seen);
            product(output, head_dim, probabilities, v, 1.0, false, Threads::One);
        }
    }
    output
}

/// Softmax of the first `visible` scores; the rest become zero. Returns log(sum(exp(scores))).
#[inline(always)]
fn softmax(scores: &mut [f32], visible: usize) -> f32 {
    let (seen, unseen) = scores.split_at_mut(visible);
    let max = lane_max(seen);
    for score in seen.iter_mut() {
        *score = exp(*score - max);
    }
    let sum = lane_sum(visible, |j| seen[j]);
    for score in seen.iter_mut() {
        *score /= sum;
    }
    unseen.fill(0.0);
    max + sum.ln()
}

#[derive(Clone, Copy)]
struct Slices<'a> {
    inputs: Inputs<'a>,
    output: &'a [f32],
    log_sum_exp: &'a [f32],
    d_output: &'a [f32],
}

/// Gradients of one key head of one sequence.
struct TaskGradients {
    d_q: Vec<f32>, // [group, queries, head_dim]
    d_k: Vec<f32>, // [keys, head_dim]
    d_v: Vec<f32>, // [keys, head_dim]
}

fn backward_task(
    layout: Layout,
    (batch, kv_head): (usize, usize),
    saved: Slices<'_>,
) -> TaskGradients {
    let AttentionArgs { queries, keys, heads, head_dim, .. } = layout.args;
    let mut gradients = TaskGradients {
        d_q: vec![0.0; layout.group * queries * head_dim],
        d_k: vec![0.0; keys * head_dim],
        d_v: vec![0.0; keys * head_dim],
    };
    let mut probabilities = vec![0.0f32; QUERIES.min(queries) * keys];
    let mut d_scores = probabilities.clone();
    let inputs = saved.inputs;
    let blocks = layout.blocks(inputs.documents, batch);
    for member in 0..layout.group {
        let head = kv_head * layout.group + member;
        let log_sum_exp = &saved.log_sum_exp[(batch * heads + head) * queries..][..queries];
        for block in &blocks {
            let Block { start, rows, first_key, seen } = *block;
            let q = layout.queries(inputs.q, batch, head, start, rows);
            let d_output = layout.queries(saved.d_output, batch, head, start, rows);
            let k = layout.keys(inputs.k, batch, kv_head, block);
            let v = layout.keys(inputs.v, batch, kv_head, block);
            product(&mut probabilities, seen, q, k.t(), layout.factor, false, Threads::One);
            product(&mut d_scores, seen, d_output, v.t(), 1.0, false, Threads::One);
            vectorized(
                #[inline(always)]
                || {
                    for row in 0..rows {
                        let t = start + row;
                        let first = ((batch * queries + t) * heads + head) * head_dim;
                        let d_y = &saved.d_output[first..][..head_dim];
                        let y = &saved.output[first..][..head_dim];
                        let delta = lane_sum(head_dim, |i| d_y[i] * y[i]);
                        let p = &mut probabilities[row * seen..][..seen];
                        let d_s = &mut d_scores[row * seen..][..seen];
                        let visible = layout.reached(t) - first_key;
                        for j in 0..visible {
                            p[j] = exp(p[j] - log_sum_exp[t]);
                            d_s[j] = p[j] * (d_s[j] - delta) * layout.factor;
                        }
                        p[visible..].fill(0.0);
                        d_s[visible..].fill(0.0);
                    }
                },
            );
            let p = Matrix::new(&probabilities, rows, seen);
            let d_s = Matrix::new(&d_scores, rows, seen);
            let d_q = &mut gradients.d_q[(member * queries + start) * head_dim..];
            product(d_q, head_dim, d_s, k, 1.0, false, Threads::One);
            let (d_k, d_v) = (&mut gradients.d_k, &mut gradients.d_v);
            let first = first_key * head_dim;
            product(&mut d_k[first..], head_dim, d_s.t(), q, 1.0, true, Threads::One);
            product(&mut d_v[first..], head_dim, p.t(), d_output, 1.0, true, Threads::One);
        }
    }
    gradients
}
