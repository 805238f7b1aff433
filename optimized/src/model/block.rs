//! One transformer block: attention and a gated feed-forward layer, each behind a normalisation
//! and added to the residual stream. Eq. (N8).

use plumbline_reference::spec::{ActivationSpec, LlamaConfig};

use super::activations::{ActivationGradients, BlockActivations};
use super::on_grids::{OnGrids, Place};
use super::run::Batch;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::{BackwardCall, LinearMethod, Parameter, Scratch};
use crate::ops::Write;
use crate::ops::attention::{AttentionArgs, AttentionGradients, AttentionInputs, AttentionSaved};
use crate::ops::rms_norm::{RmsNormArgs, RmsNormGradients};
use crate::ops::rope::{RopeArgs, RopeTable};

/// The parameters of a block.
pub struct Block<B: Backend, L> {
    /// Before the attention.
    pub input_layernorm: Parameter<B>,
    /// Queries, `[heads * head_dim, hidden]`.
    pub q_proj: L,
    /// Keys, `[kv_heads * head_dim, hidden]`.
    pub k_proj: L,
    /// Values, `[kv_heads * head_dim, hidden]`.
    pub v_proj: L,
    /// Out of the attention, `[hidden, heads * head_dim]`.
    pub o_proj: L,
    /// Before the feed-forward layer.
    pub post_attention_layernorm: Parameter<B>,
    /// Gate, `[intermediate, hidden]`.
    pub gate_proj: L,
    /// Value that is gated, `[intermediate, hidden]`.
    pub up_proj: L,
    /// Out of the feed-forward layer, `[hidden, intermediate]`.
    pub down_proj: L,
}

/// What a block needs to know beside its parameters.
pub(super) struct Surroundings<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) config: &'a LlamaConfig,
    pub(super) rope: &'a RopeTable<B::Floats>,
    pub(super) batch: usize,
    pub(super) length: usize,
    /// Position of each sequence's first token.
    pub(super) first_position: usize,
    /// For each token the place in its sequence where its document begins, `[batch, length]`.
    pub(super) documents: Option<&'a B::Tokens>,
    /// How activations are rounded, if they are.
    pub(super) activations: Option<ActivationSpec>,
}

impl<'a, B: Backend> Surroundings<'a, B> {
    /// `documents` holds what the batch says of them, if it does.
    pub(super) fn of_batch(
        backend: &'a B,
        (config, activations): (&'a LlamaConfig, Option<ActivationSpec>),
        rope: &'a RopeTable<B::Floats>,
        batch: &Batch<'_>,
        documents: &'a B::Tokens,
    ) -> Self {
        let documents = batch.documents.map(|_| documents);
        let (length, batch) = (batch.tokens.len() / batch.batch, batch.batch);
        Self { backend, config, rope, batch, length, first_position: 0, documents, activations }
    }

    pub(super) fn tokens(&self) -> usize {
        self.batch * self.length
    }

    fn norm(&self) -> RmsNormArgs {
        let eps = self.config.rms_norm_eps as f32;
        RmsNormArgs { tokens: self.tokens(), hidden: self.config.hidden_size, eps }
    }

    pub(super) fn rope(&self, heads: usize) -> RopeArgs {
        RopeArgs {
            batch: self.batch,
            length: self.length,
            heads,
            head_dim: self.config.head_dim,
            first_position: self.first_position,
        }
    }

    fn attention(&self, keys: usize) -> AttentionArgs {
        AttentionArgs {
            batch: self.batch,
            queries: self.length,
            keys,
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
        }
    }
}

/// Keys and values of earlier tokens of one sequence.
pub(super) struct KeyValueCache<'a, B: Backend> {
    pub(super) k: &'a mut B::Floats, // [capacity, kv_heads * head_dim]
    pub(super) v: &'a mut B::Floats, // [capacity, kv_heads * head_dim]
}

/// What a forward writes beside its output.
pub(super) struct BlockMemory<'a, B: Backend> {
    pub(super) saved: &'a mut BlockActivations<B::Floats>,
    pub(super) on_grids: &'a mut OnGrids<B::Floats>,
    pub(super) scratch: &'a mut Scratch<B>,
}

impl<B: Backend, L: LinearMethod<B>> Block<B, L> {
    /// `output` from `input`, both `[tokens, hidden]`; what the backward needs stays in `saved`.
    /// With a cache, the new keys and values are appended to it and queries see all of it.
    pub(super) fn forward(
        &self,
        around: &Surroundings<'_, B>,
        input: &B::Floats,
        output: &mut B::Floats,
        memory: BlockMemory<'_, B>,
        cache: Option<KeyValueCache<'_, B>>,
    ) -> Result<()> {
        let (backend, config, tokens) = (around.backend, around.config, around.tokens());
        let hidden = tokens * config.hidden_size;
        let BlockMemory { saved, on_grids, scratch } = memory;
        let BlockActivations { attention_norm, attention_rms, q, k, v, attended, .. } = saved;
        let weight = &self.input_layernorm.value;
        backend.rms_norm(around.norm(), input, weight, attention_norm, attention_rms)?;
        let read = around.rounded(Place::NormOutput, attention_norm, &mut on_grids.linear_input)?;
        self.q_proj.forward(backend, tokens, read, q, scratch)?;
        self.k_proj.forward(backend, tokens, read, k, scratch)?;
        self.v_proj.forward(backend, tokens, read, v, scratch)?;
        let documents = around.documents;
        let (of_q, of_k) = (config.num_attention_heads, config.num_key_value_heads);
        backend.rope(around.rope(of_q), around.rope, documents, q)?;
        if around.activations.is_none() {
            backend.rope(around.rope(of_k), around.rope, documents, k)?;
        }
        let [q, k, v] = around.attention_inputs([&*q, &*k, &*v], on_grids)?;
        match cache {
            None => {
                let args = around.attention(around.length);
                let inputs = AttentionInputs { q, k, v, documents };
                backend.attention(args, inputs, attended, &mut saved.log_sum_exp)?;
            }
            Some(cache) => {
                let width = config.num_key_value_heads * config.head_dim;
                let start = around.first_position * width;
                backend.copy(k, 0, cache.k, start, tokens * width)?;
                backend.copy(v, 0, cache.v, start, tokens * width)?;
                let args = around.attention(around.first_position + around.length);
                let inputs = AttentionInputs { q, k: cache.k, v: cache.v, documents };
                backend.attention(args, inputs, attended, &mut saved.log_sum_exp)?;
            }
        }
        let BlockActivations { attended, middle, mlp_norm, mlp_rms, gate, up, gated, .. } = saved;
        let copy = &mut on_grids.linear_input;
        let read = around.rounded(Place::Attended, attended, copy)?;
        self.o_proj.forward(backend, tokens, read, middle, scratch)?;
        backend.add(input, middle, hidden)?;
        let weight = &self.post_attention_layernorm.value;
        backend.rms_norm(around.norm(), middle, weight, mlp_norm, mlp_rms)?;
        let read = around.rounded(Place::NormOutput, mlp_norm, copy)?;
        self.gate_proj.forward(backend, tokens, read, gate, scratch)?;
        self.up_proj.forward(backend, tokens, read, up, scratch)?;
        backend.swiglu(tokens * config.intermediate_size, gate, up, gated)?;
        let read = around.rounded(Place::Gated, gated, copy)?;
        self.down_proj.forward(backend, tokens, read, output, scratch)?;
        backend.add(middle, output, hidden)
    }

    /// Turns `d_hidden`, the gradient of the block's output, into the gradient of its `input`, and
    /// adds the gradients of its parameters to their buffers.
    pub(super) fn backward(
        &mut self,
        around: &Surroundings<'_, B>,
        input: &B::Floats,
        memory: BlockMemory<'_, B>,
        gradients: &mut ActivationGradients<B::Floats>,
    ) -> Result<()> {
        let BlockMemory { saved, on_grids, scratch } = memory;
        self.feed_forward_backward(around, saved, on_grids, gradients, scratch)?;
        let (backend, tokens) = (around.backend, around.tokens());
        let ActivationGradients { d_hidden, d_norm, d_q, d_k, d_v, d_attended, .. } = gradients;
        let read = around.rounded(Place::Attended, &saved.attended, &mut on_grids.linear_input)?;
        let out = BackwardCall::new(tokens, read, d_hidden, d_attended, Write::Replace);
        self.o_proj.backward(backend, out, scratch)?;
        around.mask(Place::Attended, &saved.attended, d_attended)?;
        let BlockActivations { q, k, v, .. } = &*saved;
        let [q_read, k_read, v_read] = around.attention_inputs([q, k, v], on_grids)?;
        let documents = around.documents;
        let kept = AttentionSaved {
            inputs: AttentionInputs { q: q_read, k: k_read, v: v_read, documents },
            output: &saved.attended,
            log_sum_exp: &saved.log_sum_exp,
        };
        let to = AttentionGradients { d_q, d_k, d_v };
        backend.attention_backward(around.attention(around.length), kept, d_attended, to)?;
        around.projected_gradients([q, k, v], on_grids, [d_q, d_k, d_v])?;
        let norm = &saved.attention_norm;
        let read = around.rounded(Place::NormOutput, norm, &mut on_grids.linear_input)?;
        let inputs = [
            (&mut self.q_proj, &*d_q, Write::Replace),
            (&mut self.k_proj, &*d_k, Write::Add),
            (&mut self.v_proj, &*d_v, Write::Add),
        ];
        for (linear, d_y, write) in inputs {
            let input = BackwardCall::new(tokens, read, d_y, d_norm, write);
            linear.backward(backend, input, scratch)?;
        }
        around.mask(Place::NormOutput, norm, d_norm)?;
        let residual = Residual { x: input, rms: &saved.attention_rms, d_norm };
        residual.backward(around, &mut self.input_layernorm, d_hidden)
    }

    /// From the gradient of the block's output to that of `middle`, both `d_hidden`.
    fn feed_forward_backward(
        &mut self,
        around: &Surroundings<'_, B>,
        saved: &BlockActivations<B::Floats>,
        on_grids: &mut OnGrids<B::Floats>,
        gradients: &mut ActivationGradients<B::Floats>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let (backend, config, tokens) = (around.backend, around.config, around.tokens());
        let ActivationGradients { d_hidden, d_norm, d_gate, d_up, d_gated, .. } = gradients;
        let copy = &mut on_grids.linear_input;
        let read = around.rounded(Place::Gated, &saved.gated, copy)?;
        let down = BackwardCall::new(tokens, read, d_hidden, d_gated, Write::Replace);
        self.down_proj.backward(backend, down, scratch)?;
        around.mask(Place::Gated, &saved.gated, d_gated)?;
        let len = tokens * config.intermediate_size;
        backend.swiglu_backward(len, &saved.gate, &saved.up, d_gated, d_gate, d_up)?;
        let read = around.rounded(Place::NormOutput, &saved.mlp_norm, copy)?;
        let gate = BackwardCall::new(tokens, read, d_gate, d_norm, Write::Replace);
        self.gate_proj.backward(backend, gate, scratch)?;
        let up = BackwardCall::new(tokens, read, d_up, d_norm, Write::Add);
        self.up_proj.backward(backend, up, scratch)?;
        around.mask(Place::NormOutput, &saved.mlp_norm, d_norm)?;
        let residual = Residual { x: &saved.middle, rms: &saved.mlp_rms, d_norm };
        residual.backward(around, &mut self.post_attention_layernorm, d_hidden)
    }

    /// Names and layers, in the order of the forward.
    pub fn linears(&self) -> [(&'static str, &L); 7] {
        [
            ("self_attn.q_proj", &self.q_proj),
            ("self_attn.k_proj", &self.k_proj),
            ("self_attn.v_proj", &self.v_proj),
            ("self_attn.o_proj", &self.o_proj),
            ("mlp.gate_proj", &self.gate_proj),
            ("mlp.up_proj", &self.up_proj),
            ("mlp.down_proj", &self.down_proj),
        ]
    }
}

/// The branch that a normalisation opens: its gradient joins the residual stream's.
struct Residual<'a, B: Backend> {
    x: &'a B::Floats,
    rms: &'a B::Floats,
    d_norm: &'a B::Floats,
}

impl<B: Backend> Residual<'_, B> {
    fn backward(
        self,
        around: &Surroundings<'_, B>,
        norm: &mut Parameter<B>,
        d_hidden: &mut B::Floats,
    ) -> Result<(), Error> {
        let gradients = RmsNormGradients {
            d_x: d_hidden,
            write_d_x: Write::Add,
            d_weight: norm.gradient.as_mut(),
        };
        let args = around.norm();
        around.backend.rms_norm_backward(
            args,
            self.x,
            &norm.value,
            self.rms,
            self.d_norm,
            gradients,
        )
    }
}
