//! A whole LLaMA: logits, loss and the gradient of every weight; and its training.
//!
//! Weights have the names and shapes of a Hugging Face checkpoint. In [`Llama`] nothing is
//! quantized: a method hands its effective weight in with [`Llama::with_weight`], and takes the
//! gradient of that weight from [`Llama::loss_and_gradients`] on to its own parameters. In
//! [`train::Training`] every linear layer is a method's own, forward and backward.

mod activations;
mod block;
mod decoder;
mod layer;
pub mod train;

use std::collections::BTreeMap;

use ndarray::{Array, Array2, Array3, ArrayD, ArrayView2, Dimension, IntoDimension};

use crate::spec::{ActivationSpec, LlamaConfig};
use crate::{Error, Real, check};
use decoder::{Decoder, matrix};
use layer::Layer;

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// The name of a part of one block.
fn block_name(block: usize, part: &str) -> String {
    format!("model.layers.{block}.{part}")
}

/// The linear layers of every block, by name without `.weight`: `[out, in]`.
pub fn linear_shapes(config: &LlamaConfig) -> BTreeMap<String, [usize; 2]> {
    let hidden = config.hidden_size;
    let query = config.num_attention_heads * config.head_dim;
    let key = config.num_key_value_heads * config.head_dim;
    let parts = [
        (block::QUERY, [query, hidden]),
        (block::KEY, [key, hidden]),
        (block::VALUE, [key, hidden]),
        (block::ATTENTION_OUTPUT, [hidden, query]),
        (block::GATE, [config.intermediate_size, hidden]),
        (block::UP, [config.intermediate_size, hidden]),
        (block::DOWN, [hidden, config.intermediate_size]),
    ];
    (0..config.num_hidden_layers)
        .flat_map(|index| parts.map(|(part, shape)| (block_name(index, part), shape)))
        .collect()
}

/// Embedding, norms and output projection, with their shapes.
///
/// With tied embeddings there is no `lm_head.weight`: the output projection is
/// `model.embed_tokens.weight`.
fn base_shapes(config: &LlamaConfig) -> BTreeMap<String, Vec<usize>> {
    let hidden = config.hidden_size;
    let mut shapes = BTreeMap::from([
        (EMBEDDING.to_owned(), vec![config.vocab_size, hidden]),
        (FINAL_NORM.to_owned(), vec![hidden]),
    ]);
    if !config.tie_word_embeddings {
        shapes.insert(HEAD.to_owned(), vec![config.vocab_size, hidden]);
    }
    for index in 0..config.num_hidden_layers {
        for norm in [block::ATTENTION_NORM, block::FEED_FORWARD_NORM] {
            shapes.insert(format!("{}.weight", block_name(index, norm)), vec![hidden]);
        }
    }
    shapes
}

/// The weights that a configuration asks for, with their shapes.
///
/// With tied embeddings there is no `lm_head.weight`: the output projection is
/// `model.embed_tokens.weight`.
pub fn expected_shapes(config: &LlamaConfig) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = base_shapes(config);
    let linears = linear_shapes(config).into_iter();
    shapes.extend(linears.map(|(name, shape)| (format!("{name}.weight"), shape.to_vec())));
    shapes
}

/// A LLaMA whose weights are complete, of the right shapes, and finite.
#[derive(Debug, Clone)]
pub struct Llama<T> {
    config: LlamaConfig,
    weights: BTreeMap<String, ArrayD<T>>,
    activations: Option<ActivationSpec>,
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
        same_names(&shapes, weights.keys())?;
        for (name, weight) in &weights {
            check::input("llama", name, weight, &shapes[name])?;
        }
        Ok(Self { config, weights, activations: None })
    }

    /// The same model with its activations rounded to grids of their own, or not. Eq. (N8d).
    #[must_use]
    pub fn with_activations(mut self, spec: Option<ActivationSpec>) -> Self {
        self.activations = spec;
        self
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
        Ok(unflatten(self.decoder()?.logits(tokens)?, tokens.dim()))
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
        self.decoder()?.loss_and_gradients(tokens)
    }

    fn decoder(&self) -> Result<Decoder<'_, T>, Error> {
        let decoder = Decoder::new(&self.config, &self.weights, |name| {
            Ok(Layer::Dense(matrix(&self.weights, &format!("{name}.weight"))))
        })?;
        Ok(decoder.with_activations(self.activations))
    }
}

/// Refuses tensors that are missing, and those that nothing asks for.
fn same_names<'a, V>(
    expected: &BTreeMap<String, V>,
    given: impl Iterator<Item = &'a String> + Clone,
) -> Result<(), Error> {
    let missing: Vec<_> =
        expected.keys().filter(|&name| !given.clone().any(|g| g == name)).cloned().collect();
    let unexpected: Vec<_> = given.filter(|&name| !expected.contains_key(name)).cloned().collect();
    if missing.is_empty() && unexpected.is_empty() {
        return Ok(());
    }
    Err(Error::Weights { missing, unexpected })
}

/// `[batch * length, width]` -> `[batch, length, width]`
fn unflatten<T: Real>(rows: Array2<T>, (batch, length): (usize, usize)) -> Array3<T> {
    let width = rows.ncols();
    reshape(rows, (batch, length, width))
}

/// The same elements in row-major order; the arrays of this crate are stored so.
fn reshape<T, D: Dimension, E: Dimension>(
    array: Array<T, D>,
    shape: impl IntoDimension<Dim = E>,
) -> Array<T, E> {
    array.into_shape_with_order(shape.into_dimension()).expect("as many elements, row-major")
}
