//! Numbers from seeds, and what becomes of their sums.
#![allow(dead_code)] // each test takes some of them

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub fn random(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// `len` values of `-limit..=limit`, in eighths: sums and products of few of them are exact.
pub fn eighths(random: &mut ChaCha8Rng, len: usize, limit: i32) -> Vec<f32> {
    (0..len).map(|_| random.random_range(-limit..=limit) as f32 / 8.0).collect()
}

/// `len` values of `[-limit, limit)`.
pub fn floats(random: &mut ChaCha8Rng, len: usize, limit: f32) -> Vec<f32> {
    (0..len).map(|_| random.random_range(-limit..limit)).collect()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// `sum` of f32 terms plus what the buffer held, and how far any order of adding may lead from it.
pub struct Sum {
    exact: f64,
    magnitude: f64,
    terms: usize,
}

impl Sum {
    pub fn of(start: f32, factor: f32, terms: impl Iterator<Item = f64>) -> Self {
        let mut sum = Self { exact: 0.0, magnitude: 0.0, terms: 0 };
        for term in terms {
            sum.exact += f64::from(factor) * term;
            sum.magnitude += (f64::from(factor) * term).abs();
            sum.terms += 1;
        }
        sum.exact += f64::from(start);
        sum.magnitude += f64::from(start).abs();
        sum
    }

    /// Each term meets at most `terms` additions, the factor and the last sum; a product inside a
    /// term rounds once more. `(1 + u)^n - 1 <= 1.01 n u` here.
    pub fn check(&self, actual: f32, name: &str) {
        let roundings = (self.terms + 3) as f64;
        let bound = 1.01 * roundings * f64::from(f32::EPSILON) / 2.0 * self.magnitude;
        let error = (f64::from(actual) - self.exact).abs();
        assert!(error <= bound, "{name}: {actual} beside {}, bound {bound:e}", self.exact);
    }
}
