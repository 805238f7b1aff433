//! `rope`: rotary positions, half-split pairing as in Hugging Face LLaMA. Eq. (N3).

mod cpu;
mod cuda;

use crate::backend::Storage;
use crate::error::{Error, Result};

/// Sizes of a rotation and the place of its first token.
#[derive(Debug, Clone, Copy)]
pub struct RopeArgs {
    /// Independent sequences.
    pub batch: usize,
    /// Tokens of each sequence.
    pub length: usize,
    /// Heads of each token.
    pub heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Position of each sequence's first token.
    pub first_position: usize,
}

impl RopeArgs {
    /// Whether a table of `positions` reaches the last token.
    fn reached_by(&self, positions: usize) -> Result<()> {
        let expected = self.first_position + self.length;
        if expected > positions {
            return Err(Error::Length {
                operation: "rope",
                tensor: "table positions",
                expected,
                actual: positions,
            });
        }
        Ok(())
    }
}

/// Cosines and sines `[positions, head_dim / 2]`, one buffer each.
///
/// `angle[position, i] = position * theta^(-2 i / head_dim)` is computed in f64 and rounded once,
/// so that far positions keep their precision.
pub struct RopeTable<F> {
    /// `cos(angle)`.
    pub cosine: F,
    /// `sin(angle)`.
    pub sine: F,
    /// Positions covered.
    pub positions: usize,
}

impl<F> RopeTable<F> {
    /// The table for positions `0..positions`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new<S: Storage<Floats = F>>(
        storage: &S,
        theta: f64,
        head_dim: usize,
        positions: usize,
    ) -> Result<Self> {
        let angles: Vec<f64> = (0..positions)
            .flat_map(|position| {
                (0..head_dim / 2)
                    .map(move |i| position as f64 * theta.powf(-2.0 * i as f64 / head_dim as f64))
            })
            .collect();
        let table = |function: fn(f64) -> f64| -> Vec<f32> {
            angles.iter().map(|angle| function(*angle) as f32).collect()
        };
        Ok(Self {
            cosine: storage.upload(&table(f64::cos))?,
            sine: storage.upload(&table(f64::sin))?,
            positions,
        })
    }
}

/// Rotates queries and keys.
pub trait Rope: Storage {
    /// In place: with `c, s` the cosine and sine at `first_position + t` and pair `i`,
    /// `x[i], x[i + head_dim/2] = x[i] * c - x[i + head_dim/2] * s, x[i + head_dim/2] * c + x[i] * s`.
    /// Eq. (N3).
    ///
    /// # Shapes
    /// `x [batch, length, heads, head_dim]`
    ///
    /// # Errors
    /// `Length` when a buffer is too short or the table does not reach the last position.
    fn rope(
        &self,
        args: RopeArgs,
        table: &RopeTable<Self::Floats>,
        x: &mut Self::Floats,
    ) -> Result<()>;

    /// In place: the gradient with respect to the input, which is the rotation by the negative
    /// angle. Eq. (N3b).
    ///
    /// # Errors
    /// As [`Rope::rope`].
    fn rope_backward(
        &self,
        args: RopeArgs,
        table: &RopeTable<Self::Floats>,
        d_x: &mut Self::Floats,
    ) -> Result<()>;
}
