//! Perplexity: how surprised a model is by a text, or by the answers of samples.

use serde::Serialize;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;
use crate::model::{Batch, IGNORE, Llama};
use crate::ops::cross_entropy::LossSum;
use crate::train::samples::Samples;

/// What a model makes of a text or of samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp(mean_nll)`.
    pub perplexity: f64,
    /// Mean negative log-likelihood of the predicted tokens, nats.
    pub mean_nll: f64,
    /// Tokens predicted: of a text all of a window but its first, of samples those that are learnt.
    pub predicted_tokens: usize,
    /// Windows, the shorter last one included.
    pub windows: usize,
}

impl Perplexity {
    fn new(loss: LossSum, windows: usize) -> Self {
        let mean_nll = loss.sum / loss.counted as f64;
        Self { perplexity: mean_nll.exp(), mean_nll, predicted_tokens: loss.counted, windows }
    }
}

/// Tokens evaluated together.
const BATCH_TOKENS: usize = 2048;

/// Splits tokens into consecutive windows of `context`, predicts every token but each window's
/// first, and averages over tokens. A last window shorter than `context` counts when it has at
/// least two tokens. `progress` is told the tokens done.
///
/// # Errors
/// `Invalid` for fewer than two tokens or a context outside 2..=the model's; `TokenOutOfRange`.
pub fn perplexity<B: Backend, L: LinearMethod<B>>(
    model: &Llama<B, L>,
    tokens: &[i32],
    context: usize,
    mut progress: impl FnMut(usize),
) -> Result<Perplexity> {
    if context < 2 {
        return Err(Error::Invalid(format!("context is {context}, expected at least 2")));
    }
    model.config().check_length(context)?;
    if tokens.len() < 2 {
        let reason = format!("the text has {} tokens, perplexity needs at least 2", tokens.len());
        return Err(Error::Invalid(reason));
    }
    let together = (BATCH_TOKENS / context).max(1);
    let longest_batch = (together * context).min(tokens.len().next_multiple_of(context));
    let mut workspace = model.evaluation_workspace(longest_batch)?;
    let mut loss = LossSum::default();
    let (mut windows, mut done) = (0, 0);
    let whole = tokens.len() - tokens.len() % context;
    let (full, tail) = tokens.split_at(whole);
    let batches = full.chunks(together * context).map(|tokens| (tokens, tokens.len() / context));
    let tail = (tail.len() >= 2).then_some((tail, 1));
    for (tokens, batch) in batches.chain(tail) {
        let targets = next_tokens(tokens, batch);
        loss += model
            .loss(&Batch { batch, tokens, targets: &targets, documents: None }, &mut workspace)?;
        windows += batch;
        done += tokens.len();
        progress(done);
    }
    Ok(Perplexity::new(loss, windows))
}

/// Averages over the counted targets of all samples. They stand in their windows as in training, and
/// each is read without what stands beside it, so its loss is the one that it has alone.
///
/// # Errors
/// `Invalid` for a context beyond the model's; `Io`; `File` for a file that is no longer what it
/// was.
pub fn samples_perplexity<B: Backend, L: LinearMethod<B>>(
    model: &Llama<B, L>,
    samples: &mut Samples,
) -> Result<Perplexity> {
    let (context, windows) = (samples.context(), samples.windows_per_epoch());
    model.config().check_length(context)?;
    let together = (BATCH_TOKENS / context).clamp(1, windows);
    let mut workspace = model.evaluation_workspace(together * context)?;
    let mut loss = LossSum::default();
    for first in (0..windows).step_by(together) {
        let sequences = samples.in_order(first..windows.min(first + together))?;
        loss += model.loss(&sequences.batch(), &mut workspace)?;
    }
    Ok(Perplexity::new(loss, windows))
}

/// Each position's target is the next token of its sequence; the last has none.
pub fn next_tokens(tokens: &[i32], batch: usize) -> Vec<i32> {
    let length = tokens.len() / batch;
    let next =
        |sequence: &[i32]| -> Vec<i32> { sequence[1..].iter().copied().chain([IGNORE]).collect() };
    tokens.chunks_exact(length).flat_map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_never_cross_a_sequence() {
        assert_eq!(next_tokens(&[1, 2, 3, 4, 5, 6], 2), [2, 3, IGNORE, 5, 6, IGNORE]);
    }
}
