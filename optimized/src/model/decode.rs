//! Token by token: keys and values of the past are kept, so a new token costs one row of work.

use super::activations::{Activations, Workspace};
use super::block::{BlockMemory, KeyValueCache, Surroundings};
use super::llama::Llama;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;

/// One growing sequence on a model.
pub struct Decoder<'m, B: Backend, L> {
    model: &'m Llama<B, L>,
    workspace: Workspace<B>,
    /// Keys and values `[capacity, kv_heads * head_dim]` of each block.
    caches: Vec<(B::Floats, B::Floats)>,
    capacity: usize,
    position: usize,
}

impl<'m, B: Backend, L: LinearMethod<B>> Decoder<'m, B, L> {
    /// Room for `capacity` tokens, at most the longest sequence of the model.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(model: &'m Llama<B, L>, capacity: usize) -> Result<Self> {
        let config = &model.config;
        let capacity = capacity.min(config.longest_sequence());
        let len = capacity * config.num_key_value_heads * config.head_dim;
        let backend = &*model.backend;
        let caches = (0..config.num_hidden_layers)
            .map(|_| Ok((backend.zeros(len)?, backend.zeros(len)?)))
            .collect::<Result<_>>()?;
        let workspace = model.evaluation_workspace(capacity)?;
        Ok(Self { model, workspace, caches, capacity, position: 0 })
    }

    /// Tokens the sequence holds.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Tokens the sequence can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the sequence.
    pub fn clear(&mut self) {
        self.position = 0;
    }

    /// Appends tokens and returns the logits `[vocab_size]` after the last of them.
    ///
    /// # Errors
    /// `TokenOutOfRange`; `Invalid` when nothing is appended or the sequence would outgrow its room.
    pub fn append(&mut self, tokens: &[i32]) -> Result<Vec<f32>> {
        let (position, capacity) = (self.position, self.capacity);
        if tokens.is_empty() || position + tokens.len() > capacity {
            let reason =
                format!("cannot append {} tokens to {position} of {capacity}", tokens.len());
            return Err(Error::Invalid(reason));
        }
        let model = self.model;
        let around = Surroundings {
            backend: &*model.backend,
            config: &model.config,
            rope: &model.rope,
            batch: 1,
            length: tokens.len(),
            first_position: position,
            documents: None,
            activations: model.activations,
        };
        let Workspace { activations, ids, scratch, .. } = &mut self.workspace;
        let Activations { hidden, blocks: saved, on_grids, head, .. } = activations;
        model.embed(tokens, &mut ids.tokens, &mut hidden[0])?;
        for (index, (block, (k, v))) in model.blocks.iter().zip(&mut self.caches).enumerate() {
            let (inputs, outputs) = hidden.split_at_mut(index + 1);
            let cache = Some(KeyValueCache { k, v });
            let (input, output) = (&inputs[index], &mut outputs[0]);
            let memory = BlockMemory { saved: &mut saved[0], on_grids, scratch };
            block.forward(&around, input, output, memory, cache)?;
        }
        self.position += tokens.len();
        // Only the last token's logits are wanted.
        let (width, last) = (model.config.hidden_size, tokens.len() - 1);
        let (inputs, outputs) = hidden.split_at_mut(1);
        let states = &outputs[outputs.len() - 1];
        model.backend.copy(states, last * width, &mut inputs[0], 0, width)?;
        model.head_logits(1, &inputs[0], head)
    }
}
