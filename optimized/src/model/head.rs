//! The final normalisation, the output projection and the loss, in chunks of tokens, so that the
//! logits of a long batch never exist at once.

use std::ops::Range;

use super::activations::{HeadActivations, LOGIT_TOKENS};
use super::llama::Llama;
use super::run::{Batch, IGNORE};
use crate::backend::{Backend, Storage};
use crate::error::Result;
use crate::methods::{LinearMethod, Parameter};
use crate::ops::Write;
use crate::ops::cross_entropy::CrossEntropyArgs;
use crate::ops::linear::LinearArgs;
use crate::ops::rms_norm::{RmsNormArgs, RmsNormGradients};

/// Chunks that cover `tokens` rows.
fn chunks(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    (0..tokens).step_by(LOGIT_TOKENS).map(move |start| start..tokens.min(start + LOGIT_TOKENS))
}

/// Where the losses of a batch are added up.
pub struct LossSlot<'a, B: Storage> {
    /// Zero before, or the sum that is added to.
    pub sums: &'a mut B::Sums,
    /// Which of them.
    pub slot: usize,
}

impl<B: Backend, L: LinearMethod<B>> Llama<B, L> {
    fn final_norm_args(&self, tokens: usize) -> RmsNormArgs {
        let eps = self.config.rms_norm_eps as f32;
        RmsNormArgs { tokens, hidden: self.config.hidden_size, eps }
    }

    fn projection_args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.config.hidden_size, self.config.vocab_size)
    }

    /// The table of the output projection, `[vocab_size, hidden]`.
    fn output_table(&mut self) -> &mut Parameter<B> {
        self.lm_head.as_mut().unwrap_or(&mut self.embed_tokens)
    }

    /// Logits of the rows in `range` of the normalised hidden states.
    fn chunk_logits(
        &self,
        range: &Range<usize>,
        head: &mut HeadActivations<B::Floats>,
    ) -> Result<()> {
        let (hidden, rows) = (self.config.hidden_size, range.len());
        let backend = &self.backend;
        backend.copy(&head.norm, range.start * hidden, &mut head.rows, 0, rows * hidden)?;
        let table = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        backend.linear(self.projection_args(rows), &head.rows, &table.value, &mut head.logits)
    }

    /// Logits `[tokens, vocab_size]` of hidden states `[tokens, hidden]`, on the host.
    pub(super) fn head_logits(
        &self,
        tokens: usize,
        hidden: &B::Floats,
        head: &mut HeadActivations<B::Floats>,
    ) -> Result<Vec<f32>> {
        let args = self.final_norm_args(tokens);
        self.backend.rms_norm(args, hidden, &self.norm.value, &mut head.norm, &mut head.rms)?;
        let mut logits = Vec::with_capacity(tokens * self.config.vocab_size);
        for range in chunks(tokens) {
            self.chunk_logits(&range, head)?;
            let len = range.len() * self.config.vocab_size;
            logits.extend(self.backend.download(&head.logits, len)?);
        }
        Ok(logits)
    }

    /// Adds the losses of `targets`, one for each row of `hidden`, to a sum, and returns how many
    /// count; `ids` takes the targets of a chunk.
    pub(super) fn head_loss(
        &self,
        targets: &[i32],
        hidden: &B::Floats,
        head: &mut HeadActivations<B::Floats>,
        ids: &mut B::Tokens,
        loss: LossSlot<'_, B>,
    ) -> Result<usize> {
        let tokens = targets.len();
        let args = self.final_norm_args(tokens);
        let backend = &self.backend;
        backend.rms_norm(args, hidden, &self.norm.value, &mut head.norm, &mut head.rms)?;
        let mut counted = 0;
        for range in chunks(tokens) {
            self.chunk_logits(&range, head)?;
            let args = self.loss_args(range.len(), 0.0);
            backend.write_tokens(&targets[range], ids)?;
            counted += backend.cross_entropy(args, &head.logits, ids, loss.sums, loss.slot)?;
        }
        Ok(counted)
    }

    /// The same, and `d_hidden`, the gradient of `gradient_multiplier` times the sum.
    pub(super) fn head_loss_backward(
        &mut self,
        (batch, gradient_multiplier): (&Batch<'_>, f32),
        hidden: &B::Floats,
        head: &mut HeadActivations<B::Floats>,
        targets: &mut B::Tokens,
        d_hidden: &mut B::Floats,
        loss: LossSlot<'_, B>,
    ) -> Result<usize> {
        let tokens = batch.targets.len();
        let norm = self.final_norm_args(tokens);
        let backend = self.backend.clone();
        backend.rms_norm(norm, hidden, &self.norm.value, &mut head.norm, &mut head.rms)?;
        let mut counted = 0;
        for range in chunks(tokens) {
            self.chunk_logits(&range, head)?;
            let args = self.loss_args(range.len(), gradient_multiplier);
            backend.write_tokens(&batch.targets[range.clone()], targets)?;
            let (sums, slot) = (&mut *loss.sums, loss.slot);
            counted +=
                backend.cross_entropy_backward(args, &mut head.logits, targets, sums, slot)?;
            let args = self.projection_args(range.len());
            let table = self.output_table();
            backend.linear_input_gradient(args, &head.logits, &table.value, &mut head.d_rows)?;
            if let Some(gradient) = &mut table.gradient {
                let args = args.adding();
                backend.linear_weight_gradient(args, &head.logits, &head.rows, gradient)?;
            }
            // The normalised rows of this chunk are not read again: their gradient takes the place.
            let width = self.config.hidden_size;
            let (start, len) = (range.start * width, range.len() * width);
            backend.copy(&head.d_rows, 0, &mut head.norm, start, len)?;
        }
        let gradients = RmsNormGradients {
            d_x: d_hidden,
            write_d_x: Write::Replace,
            d_weight: self.norm.gradient.as_mut(),
        };
        let weight = &self.norm.value;
        backend.rms_norm_backward(norm, hidden, weight, &head.rms, &head.norm, gradients)?;
        Ok(counted)
    }

    fn loss_args(&self, tokens: usize, gradient_multiplier: f32) -> CrossEntropyArgs {
        CrossEntropyArgs {
            tokens,
            vocab_size: self.config.vocab_size,
            ignore_index: IGNORE,
            gradient_multiplier,
        }
    }
}
