//! A whole LLaMA: logits, loss and the gradient of every weight.
//!
//! Weights have the names and shapes of a Hugging Face checkpoint. Nothing is quantized here: a
//! method hands its effective weight in with [`Llama::with_weight`], and takes the gradient of that
//! weight from [`Llama::loss_and_gradients`] on to its own parameters.

mod block;

use std::collections::BTreeMap;

use ndarray::IntoDimension;
use ndarray::{Array, Array1, Array2, Array3, ArrayD, ArrayView1, ArrayView2, Dimension, Ix1, Ix2};

use crate::cross_entropy::{cross_entropy, cross_entropy_backward};
use crate::embedding::{embedding, embedding_backward};
use crate::linear::{linear, linear_backward};
use crate::rms_norm::{rms_norm, rms_norm_backward};
use crate::spec::LlamaConfig;
use crate::{Error, Real, check};

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Marks the last position of a sequence, which has nothing to predict.
const NO_TARGET: i32 = -100;

/// The name of a tensor of one block.
fn block_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.weight")
}

/// The weights that a configuration asks for, with their shapes.
///
/// With tied embeddings there is no `lm_head.weight`: the output projection is
/// `model.embed_tokens.weight`.
pub fn expected_shapes(config: &LlamaConfig) -> BTreeMap<String, Vec<usize>> {
    let hidden = config.hidden_size;
    let query = config.num_attention_heads * config.head_dim;
    let key = config.num_key_value_heads * config.head_dim;
    let mut shapes = BTreeMap::from([
        (EMBEDDING.to_owned(), vec![config.vocab_size, hidden]),
        (FINAL_NORM.to_owned(), vec![hidden]),
    ]);
    if !config.tie_word_embeddings {
        shapes.insert(HEAD.to_owned(), vec![config.vocab_size, hidden]);
    }
    for layer in 0..config.num_hidden_layers {
        for (part, shape) in [
            (block::ATTENTION_NORM, vec![hidden]),
            (block::QUERY, vec![query, hidden]),
            (block::KEY, vec![key, hidden]),
            (block::VALUE, vec![key, hidden]),
            (block::ATTENTION_OUTPUT, vec![hidden, query]),
            (block::FEED_FORWARD_NORM, vec![hidden]),
            (block::GATE, vec![config.intermediate_size, hidden]),
            (block::UP, vec![config.intermediate_size, hidden]),
            (block::DOWN, vec![hidden, config.intermediate_size]),
        ] {
            shapes.insert(block_name(layer, part), shape);
        }
    }
    shapes
}

/// A LLaMA whose weights are complete, of the right shapes, and finite.
#[derive(Debug, Clone)]
pub struct Llama<T> {
    config: LlamaConfig,
    weights: BTreeMap<String, ArrayD<T>>,
}

/// Result of [`Llama::loss_and_gradients`].
#[derive(Debug, Clone)]
pub struct LossAndGradients<T> {
    /// Mean over `batch * (length - 1)` next-token predictions.
    pub loss: T,
    /// `[batch, length, vocab]`
    pub logits: Array3<T>,
    /// The gradient of every weight, under its name.
    pub gradients: BTreeMap<String, ArrayD<T>>,
}

/// What the backward pass needs from behind the blocks.
struct Top<T> {
    /// `[batch * length, hidden]`, the last block's output.
    hidden: Array2<T>,
    /// `[batch * length, hidden]`, normalised.
    normed: Array2<T>,
    /// `[batch * length, vocab]`
    logits: Array2<T>,
}

impl<T: Real> Llama<T> {
    /// Takes the weights of [`expected_shapes`].
    ///
    /// With tied embeddings a `lm_head.weight` may be present if it equals the embedding table; it
    /// is dropped.
    ///
    /// # Errors
    /// `Weights` for missing or unexpected names, `Shape`, `NonFinite`, `NotTied`.
    pub fn new(
        config: LlamaConfig,
        mut weights: BTreeMap<String, ArrayD<T>>,
    ) -> Result<Self, Error> {
        if config.tie_word_embeddings
            && let Some(head) = weights.remove(HEAD)
            && weights.get(EMBEDDING) != Some(&head)
        {
            return Err(Error::NotTied { name: HEAD, tied_to: EMBEDDING });
        }
        let shapes = expected_shapes(&config);
        let missing: Vec<_> =
            shapes.keys().filter(|&name| !weights.contains_key(name)).cloned().collect();
        let unexpected: Vec<_> =
            weights.keys().filter(|&name| !shapes.contains_key(name)).cloned().collect();
        if !missing.is_empty() || !unexpected.is_empty() {
            return Err(Error::Weights { missing, unexpected });
        }
        for (name, weight) in &weights {
            check::input("llama", name, weight, &shapes[name])?;
        }
        Ok(Self { config, weights })
    }

    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Every weight under its name.
    pub fn weights(&self) -> &BTreeMap<String, ArrayD<T>> {
        &self.weights
    }

    /// The same model with one matrix replaced.
    ///
    /// # Errors
    /// `Weights` for a name that the model does not have, `Shape`, `NonFinite`.
    pub fn with_weight(mut self, name: &str, weight: Array2<T>) -> Result<Self, Error> {
        let Some(old) = self.weights.get_mut(name) else {
            return Err(Error::Weights { missing: vec![], unexpected: vec![name.to_owned()] });
        };
        check::input("llama", name, &weight, old.shape())?;
        *old = weight.into_dyn();
        Ok(self)
    }

    /// Scores of every next token at every position. Eq. (N8a).
    ///
    /// ```text
    /// hidden[0] = embedding(tokens, embed_tokens)
    /// hidden[l+1] = block[l](hidden[l])
    /// logits = linear(rms_norm(hidden[layers], norm), lm_head)
    /// ```
    ///
    /// # Shapes
    /// `tokens [batch, length]` -> `[batch, length, vocab]`
    ///
    /// # Errors
    /// `TokenOutOfRange`; `NonFinite` for an overflow.
    pub fn logits(&self, tokens: ArrayView2<i32>) -> Result<Array3<T>, Error> {
        let mut hidden = self.embed(tokens)?;
        for layer in 0..self.config.num_hidden_layers {
            hidden = self.block(layer).forward(hidden, tokens.dim())?.0;
        }
        Ok(unflatten(self.top(hidden)?.logits, tokens.dim()))
    }

    /// Next-token loss and the gradient of every weight. Eq. (N8b).
    ///
    /// ```text
    /// targets[b,t] = tokens[b,t+1] where t + 1 < length, else ignored
    /// loss = cross_entropy(logits, targets)
    /// ```
    ///
    /// A tied embedding table gets the sum of both its gradients: as table and as projection.
    ///
    /// # Shapes
    /// `tokens [batch, length]` -> a scalar, `[batch, length, vocab]`, like the weights
    ///
    /// # Errors
    /// `TokenOutOfRange`; `Empty` for sequences shorter than two; `NonFinite` for an overflow.
    pub fn loss_and_gradients(
        &self,
        tokens: ArrayView2<i32>,
    ) -> Result<LossAndGradients<T>, Error> {
        let sequences = tokens.dim();
        let mut hidden = self.embed(tokens)?;
        let mut saved = Vec::with_capacity(self.config.num_hidden_layers);
        for layer in 0..self.config.num_hidden_layers {
            let (output, block_saved) = self.block(layer).forward(hidden, sequences)?;
            saved.push(block_saved);
            hidden = output;
        }
        let top = self.top(hidden)?;
        let targets = next_tokens(tokens);
        let loss = cross_entropy(top.logits.view(), targets.view(), NO_TARGET)?;
        let d_logits = cross_entropy_backward(top.logits.view(), targets.view(), NO_TARGET)?;

        let mut gradients = BTreeMap::new();
        let mut d_hidden = self.top_backward(&top, d_logits.view(), &mut gradients)?;
        for (layer, saved) in saved.iter().enumerate().rev() {
            let backward = self.block(layer).backward(saved, d_hidden, sequences)?;
            d_hidden = backward.d_hidden;
            for (part, gradient) in backward.gradients {
                gradients.insert(block_name(layer, part), gradient);
            }
        }
        let d_embedded = unflatten(d_hidden, sequences);
        let d_table = embedding_backward(tokens, d_embedded.view(), self.config.vocab_size)?;
        // A tied projection has already left its part here.
        gradients
            .entry(EMBEDDING.to_owned())
            .and_modify(|d_weight| *d_weight += &d_table)
            .or_insert_with(|| d_table.into_dyn());
        Ok(LossAndGradients { loss, logits: unflatten(top.logits, sequences), gradients })
    }

    /// `[batch * length, hidden]`
    fn embed(&self, tokens: ArrayView2<i32>) -> Result<Array2<T>, Error> {
        let embedded = embedding(tokens, self.matrix(EMBEDDING))?;
        Ok(reshape(embedded, (tokens.len(), self.config.hidden_size)))
    }

    fn top(&self, hidden: Array2<T>) -> Result<Top<T>, Error> {
        let normed = rms_norm(hidden.view(), self.vector(FINAL_NORM), self.config.rms_norm_eps)?;
        let logits = linear(normed.view(), self.matrix(self.head_name()))?;
        Ok(Top { hidden, normed, logits })
    }

    /// `[batch * length, hidden]`, the gradient of the last block's output.
    fn top_backward(
        &self,
        top: &Top<T>,
        d_logits: ArrayView2<T>,
        gradients: &mut BTreeMap<String, ArrayD<T>>,
    ) -> Result<Array2<T>, Error> {
        let head = self.head_name();
        let through_head = linear_backward(top.normed.view(), self.matrix(head), d_logits)?;
        gradients.insert(head.to_owned(), through_head.d_weight.into_dyn());
        let through_norm = rms_norm_backward(
            top.hidden.view(),
            self.vector(FINAL_NORM),
            through_head.d_x.view(),
            self.config.rms_norm_eps,
        )?;
        gradients.insert(FINAL_NORM.to_owned(), through_norm.d_weight.into_dyn());
        Ok(through_norm.d_x)
    }

    fn head_name(&self) -> &'static str {
        if self.config.tie_word_embeddings { EMBEDDING } else { HEAD }
    }

    fn block(&self, layer: usize) -> block::Block<'_, T> {
        block::Block {
            config: &self.config,
            attention_norm: self.vector(&block_name(layer, block::ATTENTION_NORM)),
            query: self.matrix(&block_name(layer, block::QUERY)),
            key: self.matrix(&block_name(layer, block::KEY)),
            value: self.matrix(&block_name(layer, block::VALUE)),
            attention_output: self.matrix(&block_name(layer, block::ATTENTION_OUTPUT)),
            feed_forward_norm: self.vector(&block_name(layer, block::FEED_FORWARD_NORM)),
            gate: self.matrix(&block_name(layer, block::GATE)),
            up: self.matrix(&block_name(layer, block::UP)),
            down: self.matrix(&block_name(layer, block::DOWN)),
        }
    }

    fn matrix(&self, name: &str) -> ArrayView2<'_, T> {
        self.weights[name].view().into_dimensionality::<Ix2>().expect("new checked every shape")
    }

    fn vector(&self, name: &str) -> ArrayView1<'_, T> {
        self.weights[name].view().into_dimensionality::<Ix1>().expect("new checked every shape")
    }
}

/// `[batch * length, width]` -> `[batch, length, width]`
fn unflatten<T: Real>(rows: Array2<T>, (batch, length): (usize, usize)) -> Array3<T> {
    let width = rows.ncols();
    reshape(rows, (batch, length, width))
}

/// The token after each one, in one row; [`NO_TARGET`] behind the end of every sequence.
fn next_tokens(tokens: ArrayView2<i32>) -> Array1<i32> {
    let mut targets = Array2::from_elem(tokens.dim(), NO_TARGET);
    for ((b, t), target) in targets.indexed_iter_mut() {
        if t + 1 < tokens.ncols() {
            *target = tokens[[b, t + 1]];
        }
    }
    reshape(targets, tokens.len())
}

/// The same elements in row-major order; the arrays of this crate are stored so.
fn reshape<T, D: Dimension, E: Dimension>(
    array: Array<T, D>,
    shape: impl IntoDimension<Dim = E>,
) -> Array<T, E> {
    array.into_shape_with_order(shape.into_dimension()).expect("as many elements, row-major")
}
