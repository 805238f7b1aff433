//! Activations on grids that are taken from each token, at their places in a block. Eq. (N8d).
//!
//! What a block keeps for its backward are the activations before they are rounded; the rounded
//! ones are made again there, in buffers that all blocks share. So a workspace grows by one set of
//! them, whatever the number of blocks.

use plumbline_reference::spec::{ActivationSpec, LlamaConfig, QuantSpec};

use super::block::Surroundings;
use crate::backend::Backend;
use crate::error::Result;
use crate::ops::dynamic_quantize::DynamicQuantizeArgs;

/// Where a block rounds activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Behind a normalisation.
    NormOutput,
    /// Queries behind their rotation; a grid for each head.
    Query,
    /// Keys as their projection gives them, and values; a grid for each head.
    KeyOrValue,
    /// Keys behind their rotation; a grid for each head.
    RotatedKey,
    /// What was attended to.
    Attended,
    /// The gated value.
    Gated,
}

/// Rounded copies of what one block reads; all are `None` where activations stay as they are.
pub(super) struct OnGrids<F> {
    pub(super) linear_input: Option<F>, // [tokens, widest input], of the linear layers at hand
    pub(super) q: Option<F>,            // like q
    pub(super) k: Option<F>,            // like k, rotated
    pub(super) v: Option<F>,            // like v
    pub(super) rotated_k: Option<F>,    // like k, rounded ahead of the rotation only
}

impl<F> OnGrids<F> {
    pub(super) fn new(
        zeros: &impl Fn(usize) -> Result<F>,
        config: &LlamaConfig,
        tokens: usize,
        spec: Option<ActivationSpec>,
    ) -> Result<Self> {
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let widest = config.hidden_size.max(queries).max(config.intermediate_size);
        let room = |columns: usize| spec.map(|_| zeros(tokens * columns)).transpose();
        Ok(Self {
            linear_input: room(widest)?,
            q: room(queries)?,
            k: room(keys)?,
            v: room(keys)?,
            rotated_k: room(keys)?,
        })
    }
}

impl<B: Backend> Surroundings<'_, B> {
    /// The grids of a place, where it has some.
    fn grids(&self, place: Place) -> Result<Option<DynamicQuantizeArgs>> {
        let (Some(spec), config) = (self.activations, self.config) else { return Ok(None) };
        let head = Some(config.head_dim);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let (bits, group_size, columns) = match place {
            Place::NormOutput if !spec.norm_outputs => return Ok(None),
            Place::NormOutput => (spec.bits, None, config.hidden_size),
            Place::Query => (spec.bits, head, queries),
            Place::KeyOrValue => (spec.kv_bits, head, keys),
            Place::RotatedKey => (spec.bits, head, keys),
            Place::Attended => (spec.bits, None, queries),
            Place::Gated => (spec.bits, None, config.intermediate_size),
        };
        let grid = QuantSpec::new(bits, group_size, columns)?;
        let (tokens, zero_point) = (self.tokens(), spec.zero_point);
        Ok(Some(DynamicQuantizeArgs { tokens, spec: grid, zero_point }))
    }

    /// `x` rounded into `copy` where the place has grids, and `x` itself elsewhere.
    pub(super) fn rounded<'x>(
        &self,
        place: Place,
        x: &'x B::Floats,
        copy: &'x mut Option<B::Floats>,
    ) -> Result<&'x B::Floats> {
        match (self.grids(place)?, copy) {
            (Some(grids), Some(copy)) => {
                self.backend.dynamic_quantize(grids, x, copy, None)?;
                Ok(copy)
            }
            _ => Ok(x),
        }
    }

    /// Turns the gradient of what is behind the place into that of `x` before it.
    pub(super) fn mask(&self, place: Place, x: &B::Floats, d: &mut B::Floats) -> Result<()> {
        match self.grids(place)? {
            Some(grids) => self.backend.dynamic_quantize_backward(grids, x, d),
            None => Ok(()),
        }
    }

    /// Queries, keys and values as attention reads them. What is kept of queries is rotated; of
    /// keys it is rotated only where activations stay as they are.
    pub(super) fn attention_inputs<'x>(
        &self,
        [q, k, v]: [&'x B::Floats; 3],
        on_grids: &'x mut OnGrids<B::Floats>,
    ) -> Result<[&'x B::Floats; 3]> {
        let OnGrids { q: of_q, k: of_k, v: of_v, rotated_k, .. } = on_grids;
        let q = self.rounded(Place::Query, q, of_q)?;
        let v = self.rounded(Place::KeyOrValue, v, of_v)?;
        let (Some(grids), Some(rotated)) = (self.grids(Place::KeyOrValue)?, rotated_k) else {
            return Ok([q, k, v]);
        };
        self.backend.dynamic_quantize(grids, k, rotated, None)?;
        let heads = self.rope(self.config.num_key_value_heads);
        self.backend.rope(heads, self.rope, self.documents, rotated)?;
        Ok([q, self.rounded(Place::RotatedKey, rotated, of_k)?, v])
    }

    /// Turns the gradients of what attention read into those of the projections.
    pub(super) fn projected_gradients(
        &self,
        [q, k, v]: [&B::Floats; 3],
        on_grids: &OnGrids<B::Floats>,
        [d_q, d_k, d_v]: [&mut B::Floats; 3],
    ) -> Result<()> {
        let (backend, config, documents) = (self.backend, self.config, self.documents);
        self.mask(Place::Query, q, d_q)?;
        backend.rope_backward(self.rope(config.num_attention_heads), self.rope, documents, d_q)?;
        if let Some(rotated) = &on_grids.rotated_k {
            self.mask(Place::RotatedKey, rotated, d_k)?;
        }
        backend.rope_backward(self.rope(config.num_key_value_heads), self.rope, documents, d_k)?;
        self.mask(Place::KeyOrValue, k, d_k)?;
        self.mask(Place::KeyOrValue, v, d_v)
    }
}
