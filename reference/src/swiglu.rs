//! The gate of LLaMA's feed-forward layer.

use ndarray::{ArrayD, ArrayViewD, Zip};

use crate::{Error, Real, check};

/// Gradients of a loss through [`swiglu`].
#[derive(Debug, Clone, PartialEq)]
pub struct SwigluGradients<T> {
    /// Like `gate`.
    pub d_gate: ArrayD<T>,
    /// Like `up`.
    pub d_up: ArrayD<T>,
}

/// `1 / (1 + exp(-x))`; the exponential may overflow, and then the quotient is the right 0.
fn sigmoid<T: Real>(x: T) -> T {
    T::one() / (T::one() + (-x).exp())
}

/// Elementwise `silu(gate) * up`. Eq. (N5a).
///
/// ```text
/// sigmoid = 1 / (1 + exp(-gate))
/// output = gate * sigmoid * up
/// ```
///
/// # Shapes
/// `gate`, `up` alike -> the same
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn swiglu<T: Real>(gate: ArrayViewD<T>, up: ArrayViewD<T>) -> Result<ArrayD<T>, Error> {
    const OPERATION: &str = "swiglu";
    check::finite(OPERATION, "gate", &gate)?;
    check::input(OPERATION, "up", &up, gate.shape())?;
    let output = Zip::from(&gate).and(&up).map_collect(|&gate, &up| gate * sigmoid(gate) * up);
    check::result(OPERATION, "output", output)
}

/// Gradients of gate and up. Eq. (N5b).
///
/// ```text
/// d_gate = d_output * up * sigmoid * (1 + gate * (1 - sigmoid))
/// d_up = d_output * gate * sigmoid
/// ```
///
/// # Shapes
/// `gate`, `up`, `d_output` alike -> the same, twice
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn swiglu_backward<T: Real>(
    gate: ArrayViewD<T>,
    up: ArrayViewD<T>,
    d_output: ArrayViewD<T>,
) -> Result<SwigluGradients<T>, Error> {
    const OPERATION: &str = "swiglu_backward";
    check::finite(OPERATION, "gate", &gate)?;
    check::input(OPERATION, "up", &up, gate.shape())?;
    check::input(OPERATION, "d_output", &d_output, gate.shape())?;
    let d_gate = Zip::from(&gate).and(&up).and(&d_output).map_collect(|&gate, &up, &d_output| {
        let sigmoid = sigmoid(gate);
        d_output * up * (sigmoid * (T::one() + gate * (T::one() - sigmoid)))
    });
    let d_up = Zip::from(&gate)
        .and(&d_output)
        .map_collect(|&gate, &d_output| d_output * (gate * sigmoid(gate)));
    Ok(SwigluGradients {
        d_gate: check::result(OPERATION, "d_gate", d_gate)?,
        d_up: check::result(OPERATION, "d_up", d_up)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn example_of_n5() {
        let (gate, up, d_output) = (array![0.0].into_dyn(), array![2.0].into_dyn(), array![1.0]);
        assert_eq!(swiglu(gate.view(), up.view()).unwrap(), array![0.0].into_dyn());
        let gradients =
            swiglu_backward(gate.view(), up.view(), d_output.view().into_dyn()).unwrap();
        assert_eq!(gradients.d_gate, array![1.0].into_dyn());
        assert_eq!(gradients.d_up, array![0.0].into_dyn());
    }

    #[test]
    fn far_gates_are_closed_or_open() {
        let (gate, up) = (array![-1e4_f32, 1e4].into_dyn(), array![3.0_f32, 3.0].into_dyn());
        assert_eq!(swiglu(gate.view(), up.view()).unwrap(), array![0.0, 3e4].into_dyn());
        let gradients = swiglu_backward(gate.view(), up.view(), up.view()).unwrap();
        assert_eq!(gradients.d_gate, array![0.0, 9.0].into_dyn());
        assert_eq!(gradients.d_up, array![0.0, 3e4].into_dyn());
    }
}
