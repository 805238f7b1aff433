//! The memory of a forward and backward, allocated once and reused.

use plumbline_reference::spec::LlamaConfig;

use crate::backend::{Backend, Storage};
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
pub(super) struct BlockActivations<B: Storage> {
    pub(super) attention_norm: B::Floats, // [tokens, hidden]
    pub(super) attention_rms: B::Floats,  // [tokens], inverse
    pub(super) q: B::Floats,              // [tokens, heads * head_dim], rotated
    pub(super) k: B::Floats,              // [tokens, kv_heads * head_dim], rotated
    pub(super) v: B::Floats,              // [tokens, kv_heads * head_dim]
    pub(super) attended: B::Floats,       // [tokens, heads * head_dim]
    pub(super) log_sum_exp: B::Floats,    // [batch, heads, length]
    pub(super) middle: B::Floats,         // [tokens, hidden], after the attention's residual
    pub(super) mlp_norm: B::Floats,       // [tokens, hidden]
    pub(super) mlp_rms: B::Floats,        // [tokens], inverse
    pub(super) gate: B::Floats,           // [tokens, intermediate]
    pub(super) up: B::Floats,             // [tokens, intermediate]
    pub(super) gated: B::Floats,          // [tokens, intermediate]
}

impl<B: Backend> BlockActivations<B> {
    fn new(backend: &B, config: &LlamaConfig, tokens: usize) -> Result<Self> {
        let hidden = tokens * config.hidden_size;
        let intermediate = tokens * config.intermediate_size;
        let queries = tokens * config.num_attention_heads * config.head_dim;
        let keys = tokens * config.num_key_value_heads * config.head_dim;
        Ok(Self {
            attention_norm: backend.zeros(hidden)?,
            attention_rms: backend.zeros(tokens)?,
            q: backend.zeros(queries)?,
            k: backend.zeros(keys)?,
            v: backend.zeros(keys)?,
            attended: backend.zeros(queries)?,
            log_sum_exp: backend.zeros(tokens * config.num_attention_heads)?,
            middle: backend.zeros(hidden)?,
            mlp_norm: backend.zeros(hidden)?,
            mlp_rms: backend.zeros(tokens)?,
            gate: backend.zeros(intermediate)?,
            up: backend.zeros(intermediate)?,
            gated: backend.zeros(intermediate)?,
        })
    }
}

/// Gradients of activations; one set serves every block.
pub(super) struct ActivationGradients<B: Storage> {
    pub(super) d_hidden: B::Floats, // [tokens, hidden], of the residual stream
    pub(super) d_norm: B::Floats,   // [tokens, hidden]
    pub(super) d_q: B::Floats,      // like q
    pub(super) d_k: B::Floats,      // like k
    pub(super) d_v: B::Floats,      // like v
    pub(super) d_attended: B::Floats, // like attended
    pub(super) d_gate: B::Floats,   // like gate
    pub(super) d_up: B::Floats,     // like up
    pub(super) d_gated: B::Floats,  // like gated
}

impl<B: Backend> ActivationGradients<B> {
    fn new(backend: &B, config: &LlamaConfig, tokens: usize) -> Result<Self> {
        let hidden = tokens * config.hidden_size;
        let intermediate = tokens * config.intermediate_size;
        let queries = tokens * config.num_attention_heads * config.head_dim;
        let keys = tokens * config.num_key_value_heads * config.head_dim;
        Ok(Self {
            d_hidden: backend.zeros(hidden)?,
            d_norm: backend.zeros(hidden)?,
            d_q: backend.zeros(queries)?,
            d_k: backend.zeros(keys)?,
            d_v: backend.zeros(keys)?,
            d_attended: backend.zeros(queries)?,
            d_gate: backend.zeros(intermediate)?,
            d_up: backend.zeros(intermediate)?,
            d_gated: backend.zeros(intermediate)?,
        })
    }
}

/// Buffers of the final normalisation, the output projection and the loss.
pub(super) struct HeadActivations<B: Storage> {
    pub(super) norm: B::Floats,   // [tokens, hidden]
    pub(super) rms: B::Floats,    // [tokens], inverse
    pub(super) rows: B::Floats,   // [LOGIT_TOKENS, hidden]
    pub(super) d_rows: B::Floats, // [LOGIT_TOKENS, hidden]
    pub(super) logits: B::Floats, // [LOGIT_TOKENS, vocab_size], then their gradient
}

impl<B: Backend> HeadActivations<B> {
    fn new(backend: &B, config: &LlamaConfig, tokens: usize) -> Result<Self> {
        let rows = tokens.min(LOGIT_TOKENS);
        Ok(Self {
            norm: backend.zeros(tokens * config.hidden_size)?,
            rms: backend.zeros(tokens)?,
            rows: backend.zeros(rows * config.hidden_size)?,
            d_rows: backend.zeros(rows * config.hidden_size)?,
            logits: backend.zeros(rows * config.vocab_size)?,
        })
    }
}

/// Everything a forward and backward of up to `tokens` tokens writes, other than parameters.
pub struct Workspace<B: Backend> {
    pub(super) tokens: usize,
    pub(super) recompute: Recompute,
    /// Input of each block, then the output of the last: `[tokens, hidden]` each.
    pub(super) hidden: Vec<B::Floats>,
    /// One per block, or a single one when blocks are recomputed.
    pub(super) blocks: Vec<BlockActivations<B>>,
    /// `None` in a workspace that only evaluates.
    pub(super) gradients: Option<ActivationGradients<B>>,
    pub(super) head: HeadActivations<B>,
    pub(super) scratch: Scratch<B>,
}

impl<B: Backend> Workspace<B> {
    /// For training on batches of up to `tokens` tokens.
    ///
    /// # Errors
    /// When the device has no room.
    pub(super) fn training(
        backend: &B,
        config: &LlamaConfig,
        need: ScratchNeed,
        tokens: usize,
        recompute: Recompute,
    ) -> Result<Self> {
        let mut workspace = Self::evaluation(backend, config, need, tokens)?;
        workspace.recompute = recompute;
        if recompute == Recompute::None {
            for _ in 1..config.num_hidden_layers {
                workspace.blocks.push(BlockActivations::new(backend, config, tokens)?);
            }
        }
        workspace.gradients = Some(ActivationGradients::new(backend, config, tokens)?);
        Ok(workspace)
    }

    /// For forwards alone.
    ///
    /// # Errors
    /// When the device has no room.
    pub(super) fn evaluation(
        backend: &B,
        config: &LlamaConfig,
        need: ScratchNeed,
        tokens: usize,
    ) -> Result<Self> {
        let hidden = (0..=config.num_hidden_layers)
            .map(|_| backend.zeros(tokens * config.hidden_size))
            .collect::<Result<_>>()?;
        Ok(Self {
            tokens,
            recompute: Recompute::Blocks,
            hidden,
            blocks: vec![BlockActivations::new(backend, config, tokens)?],
            gradients: None,
            head: HeadActivations::new(backend, config, tokens)?,
            scratch: need.allocate(backend, tokens)?,
        })
    }
}
