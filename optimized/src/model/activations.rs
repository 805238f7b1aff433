//! The memory of a forward and backward, allocated once and reused.

use plumbline_reference::spec::{ActivationSpec, LlamaConfig};

use super::on_grids::OnGrids;
use crate::backend::Backend;
use crate::error::Result;
use crate::methods::{Scratch, ScratchNeed};

/// Whether the backward runs each block's forward again instead of keeping its activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Every block keeps its activations: fastest.
    #[default]
    None,
    /// Only the blocks' inputs are kept (activation checkpointing): the same bits, less memory, one
    /// more forward.
    Blocks,
}

/// Tokens whose logits exist at the same time.
pub(super) const LOGIT_TOKENS: usize = 256;

/// What a block keeps between its forward and its backward.
pub(super) struct BlockActivations<F> {
    pub(super) attention_norm: F, // [tokens, hidden]
    pub(super) attention_rms: F,  // [tokens], inverse
    pub(super) q: F,              // [tokens, heads * head_dim], rotated
    pub(super) k: F,              // [tokens, kv_heads * head_dim], rotated unless on grids
    pub(super) v: F,              // [tokens, kv_heads * head_dim]
    pub(super) attended: F,       // [tokens, heads * head_dim]
    pub(super) log_sum_exp: F,    // [batch, heads, length]
    pub(super) middle: F,         // [tokens, hidden], after the attention's residual
    pub(super) mlp_norm: F,       // [tokens, hidden]
    pub(super) mlp_rms: F,        // [tokens], inverse
    pub(super) gate: F,           // [tokens, intermediate]
    pub(super) up: F,             // [tokens, intermediate]
    pub(super) gated: F,          // [tokens, intermediate]
}

impl<F> BlockActivations<F> {
    fn new(
        zeros: &impl Fn(usize) -> Result<F>,
        config: &LlamaConfig,
        tokens: usize,
    ) -> Result<Self> {
        let hidden = tokens * config.hidden_size;
        let intermediate = tokens * config.intermediate_size;
        let queries = tokens * config.num_attention_heads * config.head_dim;
        let keys = tokens * config.num_key_value_heads * config.head_dim;
        Ok(Self {
            attention_norm: zeros(hidden)?,
            attention_rms: zeros(tokens)?,
            q: zeros(queries)?,
            k: zeros(keys)?,
            v: zeros(keys)?,
            attended: zeros(queries)?,
            log_sum_exp: zeros(tokens * config.num_attention_heads)?,
            middle: zeros(hidden)?,
            mlp_norm: zeros(hidden)?,
            mlp_rms: zeros(tokens)?,
            gate: zeros(intermediate)?,
            up: zeros(intermediate)?,
            gated: zeros(intermediate)?,
        })
    }
}

/// Gradients of activations; one set serves every block.
pub(super) struct ActivationGradients<F> {
    pub(super) d_hidden: F,   // [tokens, hidden], of the residual stream
    pub(super) d_norm: F,     // [tokens, hidden]
    pub(super) d_q: F,        // like q
    pub(super) d_k: F,        // like k
    pub(super) d_v: F,        // like v
    pub(super) d_attended: F, // like attended
    pub(super) d_gate: F,     // like gate
    pub(super) d_up: F,       // like up
    pub(super) d_gated: F,    // like gated
}

impl<F> ActivationGradients<F> {
    fn new(
        zeros: &impl Fn(usize) -> Result<F>,
        config: &LlamaConfig,
        tokens: usize,
    ) -> Result<Self> {
        let hidden = tokens * config.hidden_size;
        let intermediate = tokens * config.intermediate_size;
        let queries = tokens * config.num_attention_heads * config.head_dim;
        let keys = tokens * config.num_key_value_heads * config.head_dim;
        Ok(Self {
            d_hidden: zeros(hidden)?,
            d_norm: zeros(hidden)?,
            d_q: zeros(queries)?,
            d_k: zeros(keys)?,
            d_v: zeros(keys)?,
            d_attended: zeros(queries)?,
            d_gate: zeros(intermediate)?,
            d_up: zeros(intermediate)?,
            d_gated: zeros(intermediate)?,
        })
    }
}

/// Buffers of the final normalisation, the output projection and the loss.
pub(super) struct HeadActivations<F> {
    pub(super) norm: F,   // [tokens, hidden]
    pub(super) rms: F,    // [tokens], inverse
    pub(super) rows: F,   // [LOGIT_TOKENS, hidden]
    pub(super) d_rows: F, // [LOGIT_TOKENS, hidden]
    pub(super) logits: F, // [LOGIT_TOKENS, vocab_size], then their gradient
}

impl<F> HeadActivations<F> {
    fn new(
        zeros: &impl Fn(usize) -> Result<F>,
        config: &LlamaConfig,
        tokens: usize,
    ) -> Result<Self> {
        let rows = tokens.min(LOGIT_TOKENS);
        Ok(Self {
            norm: zeros(tokens * config.hidden_size)?,
            rms: zeros(tokens)?,
            rows: zeros(rows * config.hidden_size)?,
            d_rows: zeros(rows * config.hidden_size)?,
            logits: zeros(rows * config.vocab_size)?,
        })
    }
}

/// What depends on the number of tokens.
pub(super) struct Activations<F> {
    /// Input of each block, then the output of the last: `[tokens, hidden]` each. In a workspace
    /// that only evaluates two take turns.
    pub(super) hidden: Vec<F>,
    /// One per block, or a single one when blocks are recomputed.
    pub(super) blocks: Vec<BlockActivations<F>>,
    /// `None` in a workspace that only evaluates.
    pub(super) gradients: Option<ActivationGradients<F>>,
    pub(super) on_grids: OnGrids<F>,
    pub(super) head: HeadActivations<F>,
}

impl<F> Activations<F> {
    /// Makes each buffer with `zeros`; `recompute` is `None` where there is no backward.
    pub(super) fn new(
        zeros: &impl Fn(usize) -> Result<F>,
        (config, spec): (&LlamaConfig, Option<ActivationSpec>),
        tokens: usize,
        recompute: Option<Recompute>,
    ) -> Result<Self> {
        let layers = config.num_hidden_layers;
        let kept = if recompute == Some(Recompute::None) { layers.max(1) } else { 1 };
        let states = if recompute.is_some() { layers + 1 } else { 2.min(layers + 1) };
        let gradients = || ActivationGradients::new(zeros, config, tokens);
        Ok(Self {
            hidden: (0..states)
                .map(|_| zeros(tokens * config.hidden_size))
                .collect::<Result<_>>()?,
            blocks: (0..kept)
                .map(|_| BlockActivations::new(zeros, config, tokens))
                .collect::<Result<_>>()?,
            gradients: recompute.map(|_| gradients()).transpose()?,
            on_grids: OnGrids::new(zeros, config, tokens, spec)?,
            head: HeadActivations::new(zeros, config, tokens)?,
        })
    }
}

/// The hidden states before block `index` and where those behind it go.
pub(super) fn states<F>(hidden: &mut [F], index: usize) -> (&F, &mut F) {
    let (from, to) = (index % hidden.len(), (index + 1) % hidden.len());
    if from < to {
        let (left, right) = hidden.split_at_mut(to);
        (&left[from], &mut right[0])
    } else {
        let (left, right) = hidden.split_at_mut(from);
        (&right[0], &mut left[to])
    }
}

/// The hidden states behind the last of `blocks` blocks.
pub(super) fn last_states<F>(hidden: &[F], blocks: usize) -> &F {
    &hidden[blocks % hidden.len()]
}

/// Token ids of a batch, its documents, and the targets of a chunk of it.
pub(super) struct BatchIds<T> {
    pub(super) tokens: T,    // [tokens]
    pub(super) documents: T, // [tokens], where each one's document begins
    pub(super) targets: T,   // [LOGIT_TOKENS]
}

/// Everything a forward and backward of up to `tokens` tokens writes, other than parameters.
pub struct Workspace<B: Backend> {
    pub(super) tokens: usize,
    pub(super) recompute: Recompute,
    pub(super) ids: BatchIds<B::Tokens>,
    pub(super) activations: Activations<B::Floats>,
    pub(super) scratch: Scratch<B>,
}

impl<B: Backend> Workspace<B> {
    /// What adapters that have dropout draw by from now on; `None`, as in the beginning, drops
    /// nothing.
    pub fn set_dropout_key(&mut self, key: Option<u64>) {
        self.scratch.path.dropout_key = key;
    }

    /// For batches of up to `tokens` tokens; `recompute` is `None` where there is no backward.
    ///
    /// # Errors
    /// When the device has no room.
    pub(super) fn new(
        backend: &B,
        model: (&LlamaConfig, Option<ActivationSpec>),
        need: ScratchNeed,
        tokens: usize,
        recompute: Option<Recompute>,
    ) -> Result<Self> {
        let ids = |count: usize| backend.upload_tokens(&vec![0; count]);
        let zeros = |len: usize| backend.zeros(len);
        Ok(Self {
            tokens,
            recompute: recompute.unwrap_or(Recompute::Blocks),
            ids: BatchIds {
                tokens: ids(tokens)?,
                documents: ids(tokens)?,
                targets: ids(tokens.min(LOGIT_TOKENS))?,
            },
            activations: Activations::new(&zeros, model, tokens, recompute)?,
            scratch: need.allocate(backend, tokens)?,
        })
    }
}
