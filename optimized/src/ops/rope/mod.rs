//! `rope`: rotary positions, half-split pairing as in Hugging Face LLaMA. Eq. (N3).

mod cpu;
mod cuda;

use plumbline_reference::spec::{Llama3Scaling, RopeScaling, RopeSpec};

use crate::backend::Storage;
use crate::error::{Error, Result};
use crate::ops::{check_documents, prefix};

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

    /// Where the documents of all tokens begin.
    fn checked(self, documents: &[i32]) -> Result<&[i32]> {
        let documents = prefix("rope", "documents", documents, self.batch * self.length)?;
        check_documents("rope", documents, self.length, 0)?;
        Ok(documents)
    }
}

/// Cosines and sines `[positions, head_dim / 2]`, one buffer each.
///
/// `angle[position, i] = position * frequency[i]` is computed in f64 and its cosine and sine are
/// rounded once, so that far positions keep their precision.
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
        spec: RopeSpec,
        head_dim: usize,
        positions: usize,
    ) -> Result<Self> {
        let frequencies = frequencies(spec, head_dim);
        let table = |function: fn(f64) -> f64| -> Vec<f32> {
            let positions = (0..positions).map(|position| position as f64);
            positions
                .flat_map(|position| frequencies.iter().map(move |rate| position * rate))
                .map(|angle| function(angle) as f32)
                .collect()
        };
        Ok(Self {
            cosine: storage.upload(&table(f64::cos))?,
            sine: storage.upload(&table(f64::sin))?,
            positions,
        })
    }
}

/// Radians by which each pair of a head turns from one position to the next. Eq. (N3c).
fn frequencies(spec: RopeSpec, head_dim: usize) -> Vec<f64> {
    let base = |pair: usize| spec.theta().powf(-2.0 * pair as f64 / head_dim as f64);
    let scaled = |frequency: f64| match spec.scaling() {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3(scaling) => lengthened(scaling, frequency),
    };
    (0..head_dim / 2).map(base).map(scaled).collect()
}

/// A pair that comes round `high_freq_factor` times in the original context keeps its frequency;
/// one that comes round `low_freq_factor` times, or fewer, has it divided by the factor.
fn lengthened(scaling: Llama3Scaling, frequency: f64) -> f64 {
    let Llama3Scaling { factor, low_freq_factor, high_freq_factor, .. } = scaling;
    let original = scaling.original_max_position_embeddings as f64;
    let turns = original * frequency / std::f64::consts::TAU;
    if turns >= high_freq_factor {
        return frequency;
    }
    if turns <= low_freq_factor {
        return frequency / factor;
    }
    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
    (1.0 - kept) * frequency / factor + kept * frequency
}

/// Rotates queries and keys.
pub trait Rope: Storage {
    /// In place: with `c, s` the cosine and sine of pair `i` at `first_position + t`, counted from
    /// the beginning of the token's document where `documents` says where in its sequence that is,
    /// `x[i], x[i + head_dim/2] = x[i] * c - x[i + head_dim/2] * s, x[i + head_dim/2] * c + x[i] * s`.
    /// Eq. (N3).
    ///
    /// # Shapes
    /// `x [batch, length, heads, head_dim]`, `documents [batch, length]`, ascending in a sequence
    ///
    /// # Errors
    /// `Length` when a buffer is too short or the table does not reach the last position; `Invalid`
    /// when a document begins after its token or before the document ahead of it.
    fn rope(
        &self,
        args: RopeArgs,
        table: &RopeTable<Self::Floats>,
        documents: Option<&Self::Tokens>,
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
        documents: Option<&Self::Tokens>,
        d_x: &mut Self::Floats,
    ) -> Result<()>;
}
