//! Rotary position embedding, in the half-split pairing of Hugging Face's LLaMA.

use ndarray::{Array3, ArrayView3};

use crate::{Error, Real, check};

/// Rotates every pair of a head by an angle proportional to the position. Eq. (N3a).
///
/// ```text
/// angle[t,j] = (first_position + t) * theta^(-2 * j / head_dim), j in 0..half, half = head_dim / 2
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
/// `NonFinite`, `Spec` for an odd `head_dim` or a `theta` that is not positive.
pub fn rope<T: Real>(
    x: ArrayView3<T>,
    theta: f64,
    first_position: usize,
) -> Result<Array3<T>, Error> {
    check::finite("rope", "x", &x)?;
    rotate("rope", "output", x, theta, first_position, 1.0)
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
    theta: f64,
    first_position: usize,
) -> Result<Array3<T>, Error> {
    check::finite("rope_backward", "d_output", &d_output)?;
    rotate("rope_backward", "d_x", d_output, theta, first_position, -1.0)
}

/// Rotates forwards (`direction` 1) or backwards (-1).
fn rotate<T: Real>(
    operation: &'static str,
    result: &str,
    x: ArrayView3<T>,
    theta: f64,
    first_position: usize,
    direction: f64,
) -> Result<Array3<T>, Error> {
    check::positive::<f64>("theta", theta)?;
    let (tokens, heads, head_dim) = x.dim();
    if head_dim % 2 != 0 {
        return Err(check::out_of_range("head_dim", head_dim, "an even number"));
    }
    let half = head_dim / 2;
    let mut output = Array3::zeros(x.dim());
    for t in 0..tokens {
        for j in 0..half {
            let position = first_position as f64 + t as f64;
            let angle = position * theta.powf(-2.0 * j as f64 / head_dim as f64);
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

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, array};

    #[test]
    fn example_of_n3() {
        let x = array![[[1.0, 0.0]]];
        for theta in [2.0, 10_000.0] {
            let output = rope(x.view(), theta, 1).unwrap();
            assert_eq!(output, array![[[1.0_f64.cos(), 1.0_f64.sin()]]]);
        }
        assert_eq!(rope(x.view(), 10_000.0, 0).unwrap(), x);
    }

    #[test]
    fn a_pair_is_an_element_and_the_one_half_a_head_on() {
        // theta = 16, head_dim = 4: the second pair turns by a quarter of the first's angle.
        let mut x = Array3::zeros((1, 1, 4));
        x[[0, 0, 1]] = 1.0;
        let output = rope(x.view(), 16.0, 1).unwrap();
        assert_eq!(output, array![[[0.0, 0.25_f64.cos(), 0.0, 0.25_f64.sin()]]]);
    }

    #[test]
    fn an_odd_head_is_refused() {
        let refused = rope(Array3::<f64>::zeros((1, 1, 3)).view(), 1e4, 0).unwrap_err();
        assert_eq!(refused.to_string(), "head_dim is 3, expected an even number");
    }
}
