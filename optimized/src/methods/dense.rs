//! An ordinary linear layer, frozen or trained: full-precision baseline and pretraining.

use super::{
    BackwardCall, LayerCost, LinearMethod, Parameter, ParameterKind, Scratch, ScratchNeed,
    Trainable, Update,
};
use crate::backend::Backend;
use crate::error::Result;
use crate::ops::linear::LinearArgs;

/// `y = x @ weight^T`. Eq. (N1).
pub struct Dense<B: Backend> {
    /// `[out, in]`.
    pub weight: Parameter<B>,
}

impl<B: Backend> Dense<B> {
    /// Uploads `weight [out, in]`; `trained` says whether it keeps a gradient.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        backend: &B,
        weight: &[f32],
        (out_features, in_features): (usize, usize),
        trained: bool,
    ) -> Result<Self> {
        let shape = [out_features, in_features];
        let weight = Parameter::new(backend, weight, &shape, ParameterKind::Weight, trained)?;
        Ok(Self { weight })
    }

    fn args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.weight.shape[1], self.weight.shape[0])
    }
}

impl<B: Backend> LinearMethod<B> for Dense<B> {
    fn cost(&self) -> LayerCost {
        let is_trained = self.weight.gradient.is_some();
        LayerCost {
            shape: (self.weight.shape[0], self.weight.shape[1]),
            frozen_bytes: self.weight.frozen_bytes(),
            trained: if is_trained { vec![self.weight.len()] } else { Vec::new() },
            scratch: ScratchNeed::default(),
            weight_gradient: is_trained,
            update: Update::None,
        }
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        _scratch: &mut Scratch<B>,
    ) -> Result<()> {
        backend.linear(self.args(tokens), x, &self.weight.value, y)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        _scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let args = self.args(call.tokens);
        let to_input = LinearArgs { write: call.write, ..args };
        backend.linear_input_gradient(to_input, call.d_y, &self.weight.value, call.d_x)?;
        match &mut self.weight.gradient {
            Some(gradient) => {
                backend.linear_weight_gradient(args.adding(), call.d_y, call.x, gradient)
            }
            None => Ok(()),
        }
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        self.weight.trainable("weight").into_iter().collect()
    }
}
