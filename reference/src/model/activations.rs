//! Activations on grids that are taken from each token, at their places in a block. Eq. (N8d).

use ndarray::Array2;

use super::block::Block;
use crate::dynamic_quantize::{dynamic_quantize, dynamic_quantize_backward};
use crate::spec::QuantSpec;
use crate::{Error, Real};

/// Where a block rounds activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Behind a norm: what its projections read.
    NormOutput,
    /// Behind the projection to keys or to values, before any rotation; a grid for each head.
    KeyOrValue,
    /// Queries and keys behind the rotation; a grid for each head.
    Rotated,
    /// What was attended to, or the gated product: what the way out reads.
    WayOut,
}

/// An activation on both sides of such a place; the same on both where nothing is rounded.
pub(super) struct Passed<T> {
    pub before: Array2<T>,
    pub after: Array2<T>,
}

impl<T: Real> Block<'_, T> {
    /// Bits, and how many neighbouring columns share a grid.
    fn grid(&self, place: Place, columns: usize) -> Result<Option<QuantSpec>, Error> {
        let Some(spec) = self.activations else { return Ok(None) };
        let head = Some(self.config.head_dim);
        let (bits, group_size) = match place {
            Place::NormOutput if !spec.norm_outputs => return Ok(None),
            Place::NormOutput | Place::WayOut => (spec.bits, None),
            Place::KeyOrValue => (spec.kv_bits, head),
            Place::Rotated => (spec.bits, head),
        };
        Ok(Some(QuantSpec::new(bits, group_size, columns)?))
    }

    /// What is behind a place: Eq. (Q14) where it has a grid. The places are those of Eq. (N8d):
    ///
    /// ```text
    /// attention_input = on_grid(rms_norm(hidden, input_layernorm), bits)
    /// q = on_grid(rope(linear(attention_input, q_proj)), bits, head_dim)
    /// k = on_grid(linear(attention_input, k_proj), kv_bits, head_dim)
    /// rotated_k = on_grid(rope(k), bits, head_dim)
    /// v = on_grid(linear(attention_input, v_proj), kv_bits, head_dim)
    /// middle = hidden + linear(on_grid(attention(q, rotated_k, v), bits), o_proj)
    /// feed_forward_input = on_grid(rms_norm(middle, post_attention_layernorm), bits)
    /// gated = swiglu(linear(feed_forward_input, gate_proj), linear(feed_forward_input, up_proj))
    /// output = middle + linear(on_grid(gated, bits), down_proj)
    /// ```
    pub(super) fn pass(&self, place: Place, before: Array2<T>) -> Result<Passed<T>, Error> {
        let after = match (self.grid(place, before.ncols())?, self.activations) {
            (Some(grid), Some(spec)) => {
                dynamic_quantize(before.view(), &grid, spec.zero_point)?.output
            }
            _ => before.clone(),
        };
        Ok(Passed { before, after })
    }

    /// From the gradient behind the place to that before it: Eq. (Q15) where it has a grid.
    pub(super) fn pass_backward(
        &self,
        place: Place,
        passed: &Passed<T>,
        d_after: Array2<T>,
    ) -> Result<Array2<T>, Error> {
        match (self.grid(place, d_after.ncols())?, self.activations) {
            (Some(grid), Some(spec)) => dynamic_quantize_backward(
                passed.before.view(),
                d_after.view(),
                &grid,
                spec.zero_point,
            ),
            _ => Ok(d_after),
        }
    }
}
