//! `weight_gradient`: the gradients behind a quantized weight, from those of a linear layer.
//! Eqs. (N1b), (Q5) to (Q7), (M2).

mod cpu;
mod cuda;

use plumbline_reference::spec::GradScale;

use super::fake_quantize::FakeQuantizeArgs;
use super::fake_quantize_backward::{FakeQuantizeBackward, FakeQuantizeGradients};
use super::linear::{Linear, LinearArgs};
use crate::error::Result;

/// What a linear layer knows of its weight's gradient `d_y^T @ x`.
#[derive(Debug)]
pub struct WeightGradientArgs<'a, F> {
    /// Rows of `x` and `d_y`.
    pub tokens: usize,
    /// Gradient of the output, `[tokens, out]`.
    pub d_y: &'a F,
    /// Input of the forward, `[tokens, in]`.
    pub x: &'a F,
    /// Factor on the gradients of scale and offset.
    pub grad_scale: GradScale,
}

/// Sends the gradient of a linear layer's output through its quantized weight.
pub trait WeightGradient: Linear + FakeQuantizeBackward {
    /// `d_weight = d_y^T @ x`, then [`FakeQuantizeBackward::fake_quantize_backward`] of it.
    ///
    /// A backend may do both in one: what `d_weight` holds afterwards is nothing to rely on.
    ///
    /// # Shapes
    /// `d_weight [out, in]`, overwritten; the rest as in the arguments
    ///
    /// # Errors
    /// Those of the two.
    fn weight_gradient(
        &self,
        args: &FakeQuantizeArgs<'_, Self>,
        from: &WeightGradientArgs<'_, Self::Floats>,
        d_weight: &mut Self::Floats,
        gradients: FakeQuantizeGradients<'_, Self::Floats>,
    ) -> Result<()> {
        in_two_steps(self, args, from, d_weight, gradients)
    }
}

/// The meaning of [`WeightGradient::weight_gradient`].
fn in_two_steps<B: Linear + FakeQuantizeBackward + ?Sized>(
    backend: &B,
    args: &FakeQuantizeArgs<'_, B>,
    from: &WeightGradientArgs<'_, B::Floats>,
    d_weight: &mut B::Floats,
    gradients: FakeQuantizeGradients<'_, B::Floats>,
) -> Result<()> {
    let linear = LinearArgs::new(from.tokens, args.spec.in_features(), args.out_features);
    backend.linear_weight_gradient(linear, from.d_y, from.x, d_weight)?;
    backend.fake_quantize_backward(args, from.grad_scale, d_weight, gradients)
}
