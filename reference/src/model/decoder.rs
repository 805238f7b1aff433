//! The way through a model and back, whatever its linear layers are.

use std::collections::BTreeMap;

use ndarray::{Array1, Array2, ArrayD, ArrayView1, ArrayView2, Ix1, Ix2};

use super::block::{self, Block};
use super::layer::Layer;
use super::{EMBEDDING, FINAL_NORM, HEAD, LossAndGradients, block_name, reshape, unflatten};
use crate::cross_entropy::{cross_entropy, cross_entropy_backward};
use crate::embedding::{embedding, embedding_backward};
use crate::linear::{linear, linear_backward};
use crate::rms_norm::{rms_norm, rms_norm_backward};
use crate::spec::{ActivationSpec, LlamaConfig};
use crate::{Error, Real};

/// Marks the last position of a sequence, which has nothing to predict.
const NO_TARGET: i32 = -100;

/// A model whose tensors were checked.
pub(super) struct Decoder<'a, T> {
    pub config: &'a LlamaConfig,
    /// Embedding, norms and output projection, among others.
    pub weights: &'a BTreeMap<String, ArrayD<T>>,
    pub blocks: Vec<Block<'a, T>>,
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

impl<'a, T: Real> Decoder<'a, T> {
    /// A model with the linear layers that `layer` makes, from their names without `.weight`.
    pub fn new(
        config: &'a LlamaConfig,
        weights: &'a BTreeMap<String, ArrayD<T>>,
        layer: impl Fn(&str) -> Result<Layer<'a, T>, Error>,
    ) -> Result<Self, Error> {
        let block = |index| {
            let vector = |part| vector(weights, &format!("{}.weight", block_name(index, part)));
            let layer = |part| layer(&block_name(index, part));
            Ok(Block {
                config,
                activations: None,
                attention_norm: vector(block::ATTENTION_NORM),
                query: layer(block::QUERY)?,
                key: layer(block::KEY)?,
                value: layer(block::VALUE)?,
                attention_output: layer(block::ATTENTION_OUTPUT)?,
                feed_forward_norm: vector(block::FEED_FORWARD_NORM),
                gate: layer(block::GATE)?,
                up: layer(block::UP)?,
                down: layer(block::DOWN)?,
            })
        };
        let blocks = (0..config.num_hidden_layers).map(block).collect::<Result<_, Error>>()?;
        Ok(Self { config, weights, blocks })
    }

    /// The same model with its activations rounded to grids of their own, or not.
    pub fn with_activations(mut self, spec: Option<ActivationSpec>) -> Self {
        self.blocks.iter_mut().for_each(|block| block.activations = spec);
        self
    }

    /// `[batch * length, vocab]`
    pub fn logits(&self, tokens: ArrayView2<i32>) -> Result<Array2<T>, Error> {
        let mut hidden = self.embed(tokens)?;
        for block in &self.blocks {
            hidden = block.forward(hidden, tokens.dim())?.0;
        }
        Ok(self.top(hidden)?.logits)
    }

    pub fn loss_and_gradients(
        &self,
        tokens: ArrayView2<i32>,
    ) -> Result<LossAndGradients<T>, Error> {
        let sequences = tokens.dim();
        let mut hidden = self.embed(tokens)?;
        let mut saved = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (output, block_saved) = block.forward(hidden, sequences)?;
            saved.push(block_saved);
            hidden = output;
        }
        let top = self.top(hidden)?;
        let targets = next_tokens(tokens);
        let loss = cross_entropy(top.logits.view(), targets.view(), NO_TARGET)?;
        let d_logits = cross_entropy_backward(top.logits.view(), targets.view(), NO_TARGET)?;

        let mut gradients = BTreeMap::new();
        let mut d_hidden = self.top_backward(&top, d_logits.view(), &mut gradients)?;
        for (index, (block, saved)) in self.blocks.iter().zip(&saved).enumerate().rev() {
            let backward = block.backward(saved, d_hidden, sequences)?;
            d_hidden = backward.d_hidden;
            for (part, gradient) in backward.gradients {
                gradients.insert(block_name(index, &part), gradient);
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
        self.config.check_length(tokens.ncols())?;
        let embedded = embedding(tokens, matrix(self.weights, EMBEDDING))?;
        Ok(reshape(embedded, (tokens.len(), self.config.hidden_size)))
    }

    fn top(&self, hidden: Array2<T>) -> Result<Top<T>, Error> {
        let norm = vector(self.weights, FINAL_NORM);
        let normed = rms_norm(hidden.view(), norm, self.config.rms_norm_eps)?;
        let logits = linear(normed.view(), matrix(self.weights, self.head_name()))?;
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
        let weight = matrix(self.weights, head);
        let through_head = linear_backward(top.normed.view(), weight, d_logits)?;
        gradients.insert(head.to_owned(), through_head.d_weight.into_dyn());
        let through_norm = rms_norm_backward(
            top.hidden.view(),
            vector(self.weights, FINAL_NORM),
            through_head.d_x.view(),
            self.config.rms_norm_eps,
        )?;
        gradients.insert(FINAL_NORM.to_owned(), through_norm.d_weight.into_dyn());
        Ok(through_norm.d_x)
    }

    fn head_name(&self) -> &'static str {
        if self.config.tie_word_embeddings { EMBEDDING } else { HEAD }
    }
}

pub(super) fn matrix<'a, T>(
    weights: &'a BTreeMap<String, ArrayD<T>>,
    name: &str,
) -> ArrayView2<'a, T> {
    weights[name].view().into_dimensionality::<Ix2>().expect("every shape was checked")
}

fn vector<'a, T>(weights: &'a BTreeMap<String, ArrayD<T>>, name: &str) -> ArrayView1<'a, T> {
    weights[name].view().into_dimensionality::<Ix1>().expect("every shape was checked")
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
