//! The whole model on a batch: logits, loss and gradients.

use plumbline_reference::spec::LlamaConfig;

use super::activations::{Activations, Recompute, Workspace, last_states, states};
use super::block::{BlockMemory, Surroundings};
use super::head::LossSlot;
use super::llama::Llama;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;
use crate::ops::cross_entropy::LossSum;
use crate::ops::embedding::EmbeddingShape;

/// A target that does not count.
pub const IGNORE: i32 = -100;

/// Token ids of equally long sequences, and what each should predict.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Sequences.
    pub batch: usize,
    /// `[batch, length]`.
    pub tokens: &'a [i32],
    /// `[batch, length]`; [`IGNORE`] where nothing is predicted.
    pub targets: &'a [i32],
    /// `[batch, length]`: for each token the place in its sequence where its document begins, which
    /// is where it stops looking back and its positions start. `None`: every sequence is one.
    pub documents: Option<&'a [i32]>,
}

impl<B: Backend, L: LinearMethod<B>> Llama<B, L> {
    /// Memory for training on batches of up to `tokens` tokens in all.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn training_workspace(&self, tokens: usize, recompute: Recompute) -> Result<Workspace<B>> {
        let need = self.scratch_need();
        let model = (&self.config, self.activations);
        Workspace::new(&*self.backend, model, need, tokens, Some(recompute))
    }

    /// Memory for forwards of up to `tokens` tokens in all.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn evaluation_workspace(&self, tokens: usize) -> Result<Workspace<B>> {
        let model = (&self.config, self.activations);
        Workspace::new(&*self.backend, model, self.scratch_need(), tokens, None)
    }

    /// Logits `[batch * length, vocab_size]`, on the host.
    ///
    /// # Errors
    /// `TokenOutOfRange`; `Invalid` for sequences that do not fit the model or the workspace.
    pub fn logits(
        &self,
        batch: usize,
        tokens: &[i32],
        workspace: &mut Workspace<B>,
    ) -> Result<Vec<f32>> {
        self.batch_logits(&Batch { batch, tokens, targets: &[], documents: None }, workspace)
    }

    /// The same of a batch that may have several documents in a sequence; its targets are not read.
    ///
    /// # Errors
    /// As [`Llama::logits`]; `Invalid` where a document begins after its token or before the
    /// document ahead of it.
    pub fn batch_logits(
        &self,
        batch: &Batch<'_>,
        workspace: &mut Workspace<B>,
    ) -> Result<Vec<f32>> {
        self.hidden_states(batch, workspace)?;
        let Activations { hidden, head, .. } = &mut workspace.activations;
        self.head_logits(batch.tokens.len(), last_states(hidden, self.blocks.len()), head)
    }

    /// Sum of the losses over the counted targets. Eq. (N7).
    ///
    /// # Errors
    /// As [`Llama::batch_logits`].
    pub fn loss(&self, batch: &Batch<'_>, workspace: &mut Workspace<B>) -> Result<LossSum> {
        check_targets(batch)?;
        self.hidden_states(batch, workspace)?;
        let Workspace { activations: Activations { hidden, head, .. }, ids, .. } = workspace;
        let mut sums = self.backend.upload_sums(&[0.0])?;
        let loss = LossSlot { sums: &mut sums, slot: 0 };
        let last = last_states(hidden, self.blocks.len());
        let counted = self.head_loss(batch.targets, last, head, &mut ids.targets, loss)?;
        Ok(LossSum { sum: self.backend.read_sums(&mut sums)?[0], counted })
    }

    /// Sum of the losses; adds the gradient of `gradient_multiplier` times that sum to the buffers
    /// of the trained tensors. Eq. (N8).
    ///
    /// # Errors
    /// As [`Llama::batch_logits`], and `Invalid` when the workspace is for evaluation only.
    pub fn loss_and_gradients(
        &mut self,
        batch: &Batch<'_>,
        gradient_multiplier: f32,
        workspace: &mut Workspace<B>,
    ) -> Result<LossSum> {
        let mut sums = self.backend.upload_sums(&[0.0])?;
        let loss = LossSlot { sums: &mut sums, slot: 0 };
        let counted = self.add_gradients(batch, gradient_multiplier, workspace, loss)?;
        Ok(LossSum { sum: self.backend.read_sums(&mut sums)?[0], counted })
    }

    /// The same without waiting for the device: the losses are added to a slot, and the number of
    /// counted targets is returned. Eq. (N8).
    ///
    /// # Errors
    /// As [`Llama::loss_and_gradients`], without what only the device knows.
    pub fn add_gradients(
        &mut self,
        batch: &Batch<'_>,
        gradient_multiplier: f32,
        workspace: &mut Workspace<B>,
        loss: LossSlot<'_, B>,
    ) -> Result<usize> {
        check_targets(batch)?;
        self.hidden_states(batch, workspace)?;
        let Workspace { recompute, activations, ids, scratch, .. } = workspace;
        let Activations { hidden, blocks: saved, gradients, on_grids, head } = activations;
        let Some(gradients) = gradients else {
            return Err(Error::Invalid("the workspace is for evaluation only".into()));
        };
        let last = self.blocks.len();
        let counted = self.head_loss_backward(
            (batch, gradient_multiplier),
            &hidden[last],
            head,
            &mut ids.targets,
            &mut gradients.d_hidden,
            loss,
        )?;
        let (backend, config) = (&*self.backend, (&self.config, self.activations));
        let around = Surroundings::of_batch(backend, config, &self.rope, batch, &ids.documents);
        for (index, block) in self.blocks.iter_mut().enumerate().rev() {
            let (inputs, outputs) = hidden.split_at_mut(index + 1);
            let input = &inputs[index];
            let saved = match recompute {
                Recompute::None => &mut saved[index],
                Recompute::Blocks => {
                    // The last block's activations are still there.
                    if index + 1 < last {
                        let (output, saved) = (&mut outputs[0], &mut saved[0]);
                        let memory = BlockMemory { saved, on_grids, scratch };
                        block.forward(&around, input, output, memory, None)?;
                    }
                    &mut saved[0]
                }
            };
            let memory = BlockMemory { saved, on_grids, scratch };
            block.backward(&around, input, memory, gradients)?;
        }
        if let Some(d_table) = &mut self.embed_tokens.gradient {
            let shape = embedding_shape(&self.config, batch.tokens.len());
            self.backend.embedding_backward(shape, &ids.tokens, &gradients.d_hidden, d_table)?;
        }
        Ok(counted)
    }

    /// Runs the embedding and every block; [`last_states`] has the result.
    fn hidden_states(&self, batch: &Batch<'_>, workspace: &mut Workspace<B>) -> Result<()> {
        self.check_fits(batch, workspace)?;
        let Workspace { activations, ids, scratch, .. } = workspace;
        let Activations { hidden, blocks: saved, on_grids, .. } = activations;
        self.embed(batch.tokens, &mut ids.tokens, &mut hidden[0])?;
        if let Some(documents) = batch.documents {
            self.backend.write_tokens(documents, &mut ids.documents)?;
        }
        let (backend, config) = (&*self.backend, (&self.config, self.activations));
        let around = Surroundings::of_batch(backend, config, &self.rope, batch, &ids.documents);
        for (index, block) in self.blocks.iter().enumerate() {
            let (input, output) = states(hidden, index);
            let saved = if saved.len() == 1 { &mut saved[0] } else { &mut saved[index] };
            let memory = BlockMemory { saved, on_grids, scratch };
            block.forward(&around, input, output, memory, None)?;
        }
        Ok(())
    }

    /// Looks up tokens given by the host, and leaves them in `ids`.
    pub(super) fn embed(
        &self,
        tokens: &[i32],
        ids: &mut B::Tokens,
        output: &mut B::Floats,
    ) -> Result<()> {
        let shape = embedding_shape(&self.config, tokens.len());
        self.backend.write_tokens(tokens, ids)?;
        self.backend.embedding(shape, ids, &self.embed_tokens.value, output)
    }

    pub(super) fn check_fits(&self, batch: &Batch<'_>, workspace: &Workspace<B>) -> Result<()> {
        let Batch { batch, tokens, documents, .. } = *batch;
        let tokens = tokens.len();
        if batch == 0 || tokens == 0 || !tokens.is_multiple_of(batch) {
            let reason = format!("{tokens} tokens are not {batch} sequences of equal length");
            return Err(Error::Invalid(reason));
        }
        self.config.check_length(tokens / batch)?;
        if tokens > workspace.tokens {
            let room = workspace.tokens;
            let reason = format!("{tokens} tokens exceed the workspace's {room}");
            return Err(Error::Invalid(reason));
        }
        if workspace.activations.on_grids.q.is_some() != self.activations.is_some() {
            let reason = "the workspace is of a model whose activations are rounded in another way";
            return Err(Error::Invalid(reason.into()));
        }
        if let Some(documents) = documents.filter(|documents| documents.len() != tokens) {
            let reason = format!("{tokens} tokens with {} documents' places", documents.len());
            return Err(Error::Invalid(reason));
        }
        Ok(())
    }
}

fn check_targets(batch: &Batch<'_>) -> Result<()> {
    if batch.tokens.len() == batch.targets.len() {
        return Ok(());
    }
    let (tokens, targets) = (batch.tokens.len(), batch.targets.len());
    Err(Error::Invalid(format!("{tokens} tokens with {targets} targets")))
}

fn embedding_shape(config: &LlamaConfig, tokens: usize) -> EmbeddingShape {
    EmbeddingShape { tokens, vocab_size: config.vocab_size, hidden: config.hidden_size }
}
