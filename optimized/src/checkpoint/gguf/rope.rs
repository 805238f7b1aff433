//! LLaMA 3.1's scaling of rotary frequencies, which a GGUF file has as one divisor for each pair in the
//! tensor `rope_freqs.weight` and a `config.json` as four numbers.

use std::f64::consts::TAU;

use serde_json::{Value, json};

/// Name of the tensor.
pub(super) const TENSOR: &str = "rope_freqs.weight";

/// What the published models with this scaling have in common.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const ORIGINAL_MAX_POSITION_EMBEDDINGS: f64 = 8192.0;

/// Converters compute in f32, where the divisor of a mixed pair is good to about 1e-5; another range
/// of mixed pairs moves it by a tenth and more.
const AGREEMENT: f64 = 1e-4;

/// `rope_scaling` of a `config.json` that has these divisors.
pub(super) fn scaling(divisors: &[f32], theta: f64, head_dim: usize) -> Result<Value, String> {
    if divisors.len() != head_dim / 2 {
        let count = divisors.len();
        return Err(format!("tensor {TENSOR} has {count} values for heads of {head_dim}"));
    }
    if divisors.iter().all(|divisor| *divisor == 1.0) {
        return Ok(Value::Null);
    }
    let kept: Vec<f64> = (0..divisors.len())
        .map(|pair| {
            let frequency = theta.powf(-2.0 * pair as f64 / head_dim as f64);
            let turns = ORIGINAL_MAX_POSITION_EMBEDDINGS * frequency / TAU;
            let part = (turns - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
            part.clamp(0.0, 1.0)
        })
        .collect();
    // The slowest pair tells the factor: its divisor is 1 / ((1 - kept) / factor + kept).
    let (slowest, last) = (divisors.len() - 1, f64::from(divisors[divisors.len() - 1]));
    let factor = (1.0 - kept[slowest]) / (1.0 / last - kept[slowest]);
    for (pair, (divisor, kept)) in divisors.iter().zip(kept).enumerate() {
        let expected = 1.0 / ((1.0 - kept) / factor + kept);
        // Not a number is as far off as it can be.
        let agrees = (f64::from(*divisor) - expected).abs() <= AGREEMENT * expected;
        if !(agrees && factor >= 1.0 && factor.is_finite()) {
            return Err(format!(
                "tensor {TENSOR} divides the frequency of pair {pair} by {divisor}; supported: llama3 \
                 scaling with low_freq_factor 1, high_freq_factor 4 and \
                 original_max_position_embeddings 8192"
            ));
        }
    }
    // What was computed in f32 was a short decimal number before.
    let factor = (factor * 1000.0).round_ties_even() / 1000.0;
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW_FREQ_FACTOR,
        "high_freq_factor": HIGH_FREQ_FACTOR,
        "original_max_position_embeddings": ORIGINAL_MAX_POSITION_EMBEDDINGS as usize,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published definition, by wavelengths, in f32 as converters compute it.
    fn divisors(theta: f32, head_dim: usize, factor: f32, original: f32) -> Vec<f32> {
        let wavelength = |pair: usize| {
            2.0 * std::f32::consts::PI * theta.powf(2.0 * pair as f32 / head_dim as f32)
        };
        let divisor = |wavelength: f32| {
            if wavelength < original / 4.0 {
                return 1.0;
            }
            if wavelength > original {
                return factor;
            }
            let smooth = (original / wavelength - 1.0) / (4.0 - 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        (0..head_dim / 2).map(wavelength).map(divisor).collect()
    }

    #[test]
    fn the_factor_of_the_published_models_is_found() {
        for (head_dim, factor) in [(128, 8.0), (64, 32.0), (128, 8.0)] {
            let found = scaling(&divisors(5e5, head_dim, factor, 8192.0), 5e5, head_dim).unwrap();
            assert_eq!(found["factor"], f64::from(factor));
            assert_eq!(found["original_max_position_embeddings"], 8192);
        }
        // Its slowest pair is a mixed one.
        let found = scaling(&divisors(1e4, 8, 8.0, 8192.0), 1e4, 8).unwrap();
        assert_eq!(found["factor"], 8.0);
        assert_eq!(scaling(&[1.0; 4], 1e4, 8), Ok(Value::Null));
    }

    #[test]
    fn other_divisors_are_refused() {
        let mut one_off = divisors(5e5, 64, 32.0, 8192.0);
        one_off[3] = 1.01;
        let mut none = one_off.clone();
        none[31] = f32::NAN;
        let other_context = divisors(5e5, 64, 32.0, 4096.0);
        let smaller = vec![0.5; 32];
        for refused in [one_off, none, other_context, smaller] {
            let message = scaling(&refused, 5e5, 64).unwrap_err();
            assert!(message.contains("rope_freqs.weight divides"), "{message}");
        }
        assert!(scaling(&[1.0; 3], 1e4, 8).unwrap_err().contains("3 values for heads of 8"));
    }
}
