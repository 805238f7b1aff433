//! `attention`: causal grouped-query attention without a tokens x tokens buffer. Eq. (N4).

mod cpu;
mod cuda;

use crate::backend::Storage;
use crate::error::Result;

/// Sizes of an attention; query `t` stands at position `keys - queries + t` and sees the keys up to
/// its own.
#[derive(Debug, Clone, Copy)]
pub struct AttentionArgs {
    /// Independent sequences.
    pub batch: usize,
    /// Query tokens of each sequence.
    pub queries: usize,
    /// Key and value tokens of each sequence, at least `queries`.
    pub keys: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// What attention reads.
#[derive(Debug)]
pub struct AttentionInputs<'a, F, T> {
    /// `[batch, queries, heads, head_dim]`.
    pub q: &'a F,
    /// `[batch, keys, kv_heads, head_dim]`.
    pub k: &'a F,
    /// `[batch, keys, kv_heads, head_dim]`.
    pub v: &'a F,
    /// `[batch, queries]`, the first key that each query sees: where its document begins among the
    /// keys of its sequence. Ascending in a sequence, never after the query's own position; `None`
    /// where every query sees its sequence from the beginning.
    pub documents: Option<&'a T>,
}

/// What the forward read and made, as the backward needs it.
#[derive(Debug)]
pub struct AttentionSaved<'a, F, T> {
    /// What the forward read.
    pub inputs: AttentionInputs<'a, F, T>,
    /// `[batch, queries, heads, head_dim]`.
    pub output: &'a F,
    /// `[batch, heads, queries]`.
    pub log_sum_exp: &'a F,
}

/// Gradient buffers, replaced.
pub struct AttentionGradients<'a, F> {
    /// Like `q`.
    pub d_q: &'a mut F,
    /// Like `k`.
    pub d_k: &'a mut F,
    /// Like `v`.
    pub d_v: &'a mut F,
}

/// Lets tokens look back.
pub trait Attention: Storage {
    /// `output[t,h,:] = sum_j softmax_j(q[t,h,:] . k[j,g,:] / sqrt(head_dim)) * v[j,g,:]` over the
    /// keys `j` that query `t` sees, `g = h / (heads / kv_heads)`: those of its document up to its
    /// own position. Eq. (N4).
    ///
    /// # Shapes
    /// `q [batch, queries, heads, head_dim]`, `k, v [batch, keys, kv_heads, head_dim]` ->
    /// `output` like `q`, `log_sum_exp [batch, heads, queries]` (saved for the backward)
    ///
    /// # Errors
    /// `Length`; `Invalid` when there are more queries than keys, when `kv_heads` does not divide
    /// `heads`, when a head is wider than the device takes, or when a document begins after its
    /// token or before the document ahead of it.
    fn attention(
        &self,
        args: AttentionArgs,
        inputs: AttentionInputs<'_, Self::Floats, Self::Tokens>,
        output: &mut Self::Floats,
        log_sum_exp: &mut Self::Floats,
    ) -> Result<()>;

    /// With `P` the softmax, recomputed, and `delta[t] = d_output[t] . output[t]`:
    /// `d_v = P^T d_output`, `d_s = P * (d_output v^T - delta) / sqrt(head_dim)`, `d_q = d_s k`,
    /// `d_k = d_s^T q`, summed over the query heads of a key head. Eq. (N4b).
    ///
    /// # Errors
    /// As [`Attention::attention`].
    fn attention_backward(
        &self,
        args: AttentionArgs,
        saved: AttentionSaved<'_, Self::Floats, Self::Tokens>,
        d_output: &Self::Floats,
        gradients: AttentionGradients<'_, Self::Floats>,
    ) -> Result<()>;
}
