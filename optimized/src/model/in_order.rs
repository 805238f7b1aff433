//! A model one block at a time: what its linear layers read, and the layers themselves, so that
//! they can be replaced in the order of the forward.

use std::ops::Range;

use plumbline_reference::spec::LlamaConfig;

use super::activations::{Activations, Workspace};
use super::block::{BlockMemory, Surroundings};
use super::llama::Llama;
use super::run::Batch;
use crate::backend::Backend;
use crate::error::Result;
use crate::methods::LinearMethod;

/// What linear layers of a block read, in the order of the forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearInput {
    /// The normalised residual stream before the attention: queries, keys and values.
    AttentionNorm,
    /// What was attended to: the way out of the attention.
    Attended,
    /// The normalised residual stream before the feed-forward layer: gate and value.
    MlpNorm,
    /// The gated value: the way out of the feed-forward layer.
    Gated,
}

impl LinearInput {
    /// All four.
    pub const ALL: [Self; 4] = [Self::AttentionNorm, Self::Attended, Self::MlpNorm, Self::Gated];

    /// Its readers, as places among the layers of a block.
    pub fn places(self) -> Range<usize> {
        match self {
            Self::AttentionNorm => 0..3,
            Self::Attended => 3..4,
            Self::MlpNorm => 4..6,
            Self::Gated => 6..7,
        }
    }

    /// Columns.
    pub fn width(self, config: &LlamaConfig) -> usize {
        match self {
            Self::AttentionNorm | Self::MlpNorm => config.hidden_size,
            Self::Attended => config.num_attention_heads * config.head_dim,
            Self::Gated => config.intermediate_size,
        }
    }
}

impl<B: Backend> Workspace<B> {
    /// What the layers of the last block that was run read, `[tokens, width]`, before it is rounded
    /// to a grid where the model does that.
    pub(crate) fn linear_input(&self, input: LinearInput) -> &B::Floats {
        let last = &self.activations.blocks[0];
        match input {
            LinearInput::AttentionNorm => &last.attention_norm,
            LinearInput::Attended => &last.attended,
            LinearInput::MlpNorm => &last.mlp_norm,
            LinearInput::Gated => &last.gated,
        }
    }
}

impl<B: Backend, L: LinearMethod<B>> Llama<B, L> {
    /// Hidden states `[tokens, hidden]` before the first block.
    pub(crate) fn embed_batch(
        &self,
        batch: &Batch<'_>,
        workspace: &mut Workspace<B>,
        hidden: &mut B::Floats,
    ) -> Result<()> {
        self.check_fits(batch, workspace)?;
        self.embed(batch.tokens, &mut workspace.ids.tokens, hidden)
    }

    /// Hidden states behind a block from those before it; the workspace is one for evaluation.
    pub(crate) fn run_block(
        &self,
        index: usize,
        batch: &Batch<'_>,
        input: &B::Floats,
        output: &mut B::Floats,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        self.check_fits(batch, workspace)?;
        let Workspace { activations, ids, scratch, .. } = workspace;
        let Activations { blocks: saved, on_grids, .. } = activations;
        if let Some(documents) = batch.documents {
            self.backend.write_tokens(documents, &mut ids.documents)?;
        }
        let (backend, config) = (&*self.backend, (&self.config, self.activations));
        let around = Surroundings::of_batch(backend, config, &self.rope, batch, &ids.documents);
        let memory = BlockMemory { saved: &mut saved[0], on_grids, scratch };
        self.blocks[index].forward(&around, input, output, memory, None)
    }

    /// The linear layers of a block, in the order of the forward.
    pub(crate) fn block_linears(&mut self, index: usize) -> [&mut L; 7] {
        let block = &mut self.blocks[index];
        [
            &mut block.q_proj,
            &mut block.k_proj,
            &mut block.v_proj,
            &mut block.o_proj,
            &mut block.gate_proj,
            &mut block.up_proj,
            &mut block.down_proj,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Projection, preset};

    #[test]
    fn every_layer_of_a_block_reads_one_input_of_its_width() {
        let config = preset("llama-3-8b").unwrap();
        let layers = Projection::of_block(&config, 0);
        let mut next = 0;
        for input in LinearInput::ALL {
            assert_eq!(input.places().start, next);
            next = input.places().end;
            for linear in &layers[input.places()] {
                assert_eq!(linear.in_features, input.width(&config), "{}", linear.name);
            }
        }
        assert_eq!(next, layers.len());
    }
}
