//! Rotary position embedding, in the half-split pairing of Hugging Face's LLaMA.

use ndarray::{Array3, ArrayView3};

use crate::spec::{RopeScaling, RopeSpec};
use crate::{Error, Real, check};

/// Rotates every pair of a head by an angle proportional to the position. Eq. (N3a).
///
/// ```text
/// angle[t,j] = (first_position + t) * frequency[j], j in 0..half, half = head_dim / 2
/// output[t,h,j] = x[t,h,j] * cos(angle[t,j]) - x[t,h,j+half] * sin(angle[t,j])
/// output[t,h,j+half] = x[t,h,j+half] * cos(angle[t,j]) + x[t,h,j] * sin(angle[t,j])
/// ```
///
/// Cosine and sine are computed in f64 and rounded once: an f32 angle at position 1000 is already
/// wrong by 3e-5.
///
/// # Shapes
/// `x [tokens, heads, head_dim]` -> the same
///
/// # Errors
/// `NonFinite`, `Spec` for an odd `head_dim`.
pub fn rope<T: Real>(
    x: ArrayView3<T>,
    spec: RopeSpec,
    first_position: usize,
) -> Result<Array3<T>, Error> {
    check::finite("rope", "x", &x)?;
    rotate("rope", "output", x, spec, first_position, 1.0)
}

/// Gradient of the input: the rotation back. Eq. (N3b).
///
/// ```text
/// d_x[t,h,j] = d_output[t,h,j] * cos(angle[t,j]) + d_output[t,h,j+half] * sin(angle[t,j])
/// d_x[t,h,j+half] = d_output[t,h,j+half] * cos(angle[t,j]) - d_output[t,h,j] * sin(angle[t,j])
/// ```
///
/// # Shapes
/// `d_output [tokens, heads, head_dim]` -> the same
///
/// # Errors
/// As [`rope`].
pub fn rope_backward<T: Real>(
    d_output: ArrayView3<T>,
    spec: RopeSpec,
    first_position: usize,
) -> Result<Array3<T>, Error> {
    check::finite("rope_backward", "d_output", &d_output)?;
    rotate("rope_backward", "d_x", d_output, spec, first_position, -1.0)
}

/// Rotates forwards (`direction` 1) or backwards (-1).
fn rotate<T: Real>(
    operation: &'static str,
    result: &str,
    x: ArrayView3<T>,
    spec: RopeSpec,
    first_position: usize,
    direction: f64,
) -> Result<Array3<T>, Error> {
    let (tokens, heads, head_dim) = x.dim();
    if head_dim % 2 != 0 {
        return Err(check::out_of_range("head_dim", head_dim, "an even number"));
    }
    let half = head_dim / 2;
    let mut output = Array3::zeros(x.dim());
    for t in 0..tokens {
        for j in 0..half {
            let position = first_position as f64 + t as f64;
            let angle = position * frequency(spec, j, head_dim);
            let (cos, sin) = (T::of(angle.cos()), T::of(direction * angle.sin()));
            for h in 0..heads {
                let (first, second) = (x[[t, h, j]], x[[t, h, j + half]]);
                output[[t, h, j]] = first * cos - second * sin;
                output[[t, h, j + half]] = second * cos + first * sin;
            }
        }
    }
    check::result(operation, result, output)
}

/// By how much pair `j` turns from one position to the next. Eq. (N3c).
///
/// ```text
/// base[j] = theta^(-2 * j / head_dim)
/// default: frequency[j] = base[j]
/// linear: frequency[j] = base[j] / factor
/// llama3: turns[j] = original_max_position_embeddings * base[j] / (2 * pi)
/// llama3: part[j] = (turns[j] - low_freq_factor) / (high_freq_factor - low_freq_factor)
/// llama3: kept[j] = min(max(part[j], 0), 1)
/// llama3: frequency[j] = (1 - kept[j]) * base[j] / factor + kept[j] * base[j]
/// ```
fn frequency(spec: RopeSpec, j: usize, head_dim: usize) -> f64 {
    let base = spec.theta().powf(-2.0 * j as f64 / head_dim as f64);
    match spec.scaling() {
        RopeScaling::Default => base,
        RopeScaling::Linear { factor } => base / factor,
        RopeScaling::Llama3(llama3) => {
            let original = llama3.original_max_position_embeddings as f64;
            let turns = original * base / (2.0 * std::f64::consts::PI);
            let (low, high) = (llama3.low_freq_factor, llama3.high_freq_factor);
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - kept) * base / llama3.factor + kept * base
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Llama3Scaling;
    use ndarray::{Array3, array};

    fn unscaled(theta: f64) -> RopeSpec {
        RopeSpec::new(theta).unwrap()
    }

    #[test]
    fn example_of_n3() {
        let x = array![[[1.0, 0.0]]];
        for theta in [2.0, 10_000.0] {
            let output = rope(x.view(), unscaled(theta), 1).unwrap();
            assert_eq!(output, array![[[1.0_f64.cos(), 1.0_f64.sin()]]]);
        }
        assert_eq!(rope(x.view(), unscaled(10_000.0), 0).unwrap(), x);
    }

    #[test]
    fn a_pair_is_an_element_and_the_one_half_a_head_on() {
        // theta = 16, head_dim = 4: the second pair turns by a quarter of the first's angle.
        let mut x = Array3::zeros((1, 1, 4));
        x[[0, 0, 1]] = 1.0;
        let output = rope(x.view(), unscaled(16.0), 1).unwrap();
        assert_eq!(output, array![[[0.0, 0.25_f64.cos(), 0.0, 0.25_f64.sin()]]]);
    }

    #[test]
    fn an_odd_head_is_refused() {
        let refused = rope(Array3::<f64>::zeros((1, 1, 3)).view(), unscaled(1e4), 0).unwrap_err();
        assert_eq!(refused.to_string(), "head_dim is 3, expected an even number");
    }

    #[test]
    fn fast_pairs_keep_their_frequency_and_slow_ones_lose_the_factor() {
        // Turns in 2 pi * 64 positions: 64, 16, 4, 1; between 2 and 32 they are mixed.
        let llama3 = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 2.0,
            high_freq_factor: 32.0,
            original_max_position_embeddings: 402,
        };
        let spec = unscaled(256.0).with_scaling(RopeScaling::Llama3(llama3)).unwrap();
        let frequencies = [0, 1, 2, 3].map(|j| frequency(spec, j, 8));
        assert_eq!((frequencies[0], frequencies[3]), (1.0, 1.0 / 512.0));
        let turns = 402.0 / (8.0 * std::f64::consts::PI);
        let kept = (turns - 2.0) / 30.0;
        assert!((frequencies[1] - 0.25 * (kept + (1.0 - kept) / 8.0)).abs() < 1e-16);
        let linear = unscaled(256.0).with_scaling(RopeScaling::Linear { factor: 4.0 }).unwrap();
        assert_eq!([0, 1, 2].map(|j| frequency(linear, j, 8)), [0.25, 1.0 / 16.0, 1.0 / 64.0]);
    }
}
