//! `dropout`: some of a tensor's values, chosen by chance, are zero; the others make up for them.

mod cpu;
mod cuda;

use super::Write;
use crate::backend::Storage;
use crate::error::Result;

/// Which values, and how many.
#[derive(Debug, Clone, Copy)]
pub struct DropoutArgs {
    /// Values.
    pub len: usize,
    /// Of the random words.
    pub key: u64,
    /// Probability of a zero, at least 0 and below 1.
    pub probability: f32,
    /// Replace the output or add to it.
    pub write: Write,
}

impl DropoutArgs {
    /// A value whose random number is below this is zero.
    fn threshold(&self) -> u32 {
        (f64::from(self.probability) * 4_294_967_296.0) as u32
    }

    /// The factor on the others.
    fn factor(&self) -> f32 {
        (1.0 / (1.0 - f64::from(self.probability))) as f32
    }
}

/// Drops values by chance.
pub trait Dropout: Storage {
    /// `output[i] = x[i] / (1 - probability)`, the quotient as a product with the factor rounded
    /// once, or zero where the upper 32 bits of `random_word(key, i)` are below
    /// `probability * 2^32`; or that added to `output`. With the same arguments it is its own
    /// gradient, from that of the output to that of `x`.
    ///
    /// # Shapes
    /// `x [len]` -> `output [len]`
    ///
    /// # Errors
    /// `Length`.
    fn dropout(&self, args: DropoutArgs, x: &Self::Floats, output: &mut Self::Floats)
    -> Result<()>;
}
