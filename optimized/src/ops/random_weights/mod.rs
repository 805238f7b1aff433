//! `random_weights`: weights for a model that is only to be timed, made where they are used.

mod cpu;
mod cuda;

use crate::backend::Storage;
use crate::error::Result;
use crate::ops::counter::{STRIDE, mix};

/// Which weights.
#[derive(Debug, Clone, Copy)]
pub struct RandomWeightsArgs {
    /// Place of the first weight among those of the seed.
    pub first: u64,
    /// Number of weights.
    pub len: usize,
    /// Standard deviation.
    pub deviation: f32,
    /// Two seeds give numbers that have nothing to do with each other.
    pub seed: u64,
}

/// Fills buffers with bell-shaped numbers.
pub trait RandomWeights: Storage {
    /// `word = mix(mix(seed) + (first + i + 1) * 0x9e3779b97f4a7c15)`, modulo 2^64;
    /// `output[i] = sum * (deviation / 37837.227)`, where `sum` is the sum of the word's four
    /// 16-bit parts less its mean, 131070: an integer of standard deviation sqrt((2^32 - 1) / 3).
    ///
    /// `mix` is the finalizer of SplitMix64: `z ^= z >> 30`, `z *= 0xbf58476d1ce4e5b9`,
    /// `z ^= z >> 27`, `z *= 0x94d049bb133111eb`, `z ^= z >> 31`.
    ///
    /// A sum of four uniform numbers is close to normal, but ends at 3.46 standard deviations. Each
    /// number depends on its place alone, and is one rounding away from exact integers: every
    /// backend gives the same bits.
    ///
    /// # Shapes
    /// -> `output [len]`
    ///
    /// # Errors
    /// `Length`.
    fn random_weights(&self, args: RandomWeightsArgs, output: &mut Self::Floats) -> Result<()>;
}

/// What stands for the number before the first.
fn start(args: &RandomWeightsArgs) -> u64 {
    mix(args.seed).wrapping_add(args.first.wrapping_mul(STRIDE))
}

/// What `sum` is multiplied by.
fn step(deviation: f32) -> f32 {
    (f64::from(deviation) / (f64::from(u32::MAX) / 3.0).sqrt()) as f32
}
