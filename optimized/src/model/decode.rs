//! Token by token: keys and values of the past are kept, so a new token costs one row of work.

use super::activations::{Activations, Workspace, states};
use super::block::{BlockMemory, KeyValueCache, Surroundings};
use super::head::LossSlot;
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

    /// Forgets all but the first `position` tokens; nothing where there are no more.
    pub fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    /// Appends tokens and returns the logits `[vocab_size]` after the last of them.
    ///
    /// # Errors
    /// `TokenOutOfRange`; `Invalid` when nothing is appended or the sequence would outgrow its room.
    pub fn append(&mut self, tokens: &[i32]) -> Result<Vec<f32>> {
        self.extend(tokens)?;
        let place = self.take_last_states(tokens.len(), 1)?;
        let Activations { hidden, head, .. } = &mut self.workspace.activations;
        self.model.head_logits(1, &hidden[place], head)
    }

    /// Appends tokens and returns the log-likelihood of `targets`, nats: the sum over the last
    /// `targets.len()` of these tokens, each followed by its target.
    ///
    /// # Errors
    /// As [`Decoder::append`]; `Invalid` for more targets than tokens.
    pub fn append_judged(&mut self, tokens: &[i32], targets: &[i32]) -> Result<f64> {
        if targets.len() > tokens.len() {
            let (targets, tokens) = (targets.len(), tokens.len());
            return Err(Error::Invalid(format!("cannot judge {targets} of {tokens} tokens")));
        }
        self.extend(tokens)?;
        let place = self.take_last_states(tokens.len(), targets.len())?;
        let backend = &*self.model.backend;
        let mut sums = backend.upload_sums(&[0.0])?;
        let loss = LossSlot { sums: &mut sums, slot: 0 };
        let Workspace { activations: Activations { hidden, head, .. }, ids, .. } =
            &mut self.workspace;
        self.model.head_loss(targets, &hidden[place], head, &mut ids.targets, loss)?;
        Ok(-backend.read_sums(&mut sums)?[0])
    }

    /// Appends tokens without asking what follows.
    ///
    /// # Errors
    /// As [`Decoder::append`].
    pub fn extend(&mut self, tokens: &[i32]) -> Result<()> {
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
        let Activations { hidden, blocks: saved, on_grids, .. } = activations;
        model.embed(tokens, &mut ids.tokens, &mut hidden[0])?;
        for (index, (block, (k, v))) in model.blocks.iter().zip(&mut self.caches).enumerate() {
            let cache = Some(KeyValueCache { k, v });
            let (input, output) = states(hidden, index);
            let memory = BlockMemory { saved: &mut saved[0], on_grids, scratch };
            block.forward(&around, input, output, memory, cache)?;
        }
        self.position += tokens.len();
        Ok(())
    }

    /// Copies the final states of the last `rows` of the `appended` tokens to the buffer of states
    /// that is free, and says which that is.
    fn take_last_states(&mut self, appended: usize, rows: usize) -> Result<usize> {
        let (width, blocks) = (self.model.config.hidden_size, self.model.blocks.len());
        let hidden = &mut self.workspace.activations.hidden;
        let place = (blocks + 1) % hidden.len();
        let (last, free) = states(hidden, blocks);
        let start = (appended - rows) * width;
        self.model.backend.copy(last, start, free, 0, rows * width)?;
        Ok(place)
    }
}
