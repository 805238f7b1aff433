//! A linear layer that stays as it is, in the type of its checkpoint.

use super::{BackwardCall, LayerCost, LinearMethod, Scratch, ScratchNeed, Trainable, Update};
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::linear::LinearArgs;
use crate::ops::widen::{FrozenWeight, WeightType, WeightView};

/// `y = x @ weight^T`, nothing of it trained. Eq. (N1).
pub struct Frozen<B: Backend> {
    shape: (usize, usize),
    weight: FrozenWeight<B>,
}

/// What a layer `[out, in]` costs.
pub fn frozen_cost(shape: (usize, usize), stored: WeightType) -> LayerCost {
    let effective = if stored == WeightType::F32 { 0 } else { shape.0 * shape.1 };
    LayerCost {
        shape,
        frozen_bytes: stored.bytes() * shape.0 * shape.1,
        trained: Vec::new(),
        scratch: ScratchNeed { effective, ..ScratchNeed::default() },
        weight_gradient: false,
        update: Update::None,
    }
}

impl<B: Backend> Frozen<B> {
    /// Uploads `weight`, which is `[out, in]`.
    ///
    /// # Errors
    /// When the device has no room.
    ///
    /// # Panics
    /// When the weight's length is not that of the shape.
    pub fn new(backend: &B, weight: &FrozenWeight<Cpu>, shape: (usize, usize)) -> Result<Self> {
        assert_eq!(weight.len(), shape.0 * shape.1, "weight");
        Ok(Self { shape, weight: weight.upload(backend)? })
    }

    /// `[out, in]`.
    pub(super) fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// What the weight is stored in.
    pub(super) fn stored(&self) -> WeightType {
        self.weight.stored()
    }

    /// For the operations that read it.
    pub(super) fn view(&self) -> WeightView<'_, B> {
        self.weight.view()
    }

    /// The weight on the host.
    ///
    /// # Errors
    /// When the device failed.
    pub(super) fn download(&self, backend: &B) -> Result<FrozenWeight<Cpu>> {
        self.weight.download(backend, self.shape.0 * self.shape.1)
    }

    fn args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.shape.1, self.shape.0)
    }

    /// The weight that is multiplied with: itself, or the floats that it stands for.
    fn effective<'a>(&'a self, backend: &B, room: &'a mut B::Floats) -> Result<&'a B::Floats> {
        if let FrozenWeight::F32(weight) = &self.weight {
            return Ok(weight);
        }
        backend.widen(self.shape.0 * self.shape.1, self.weight.view(), room)?;
        Ok(room)
    }
}

impl<B: Backend> LinearMethod<B> for Frozen<B> {
    fn cost(&self) -> LayerCost {
        frozen_cost(self.shape, self.stored())
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let weight = self.effective(backend, &mut scratch.effective)?;
        backend.linear(self.args(tokens), x, weight, y)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let args = LinearArgs { write: call.write, ..self.args(call.tokens) };
        let weight = self.effective(backend, &mut scratch.effective)?;
        backend.linear_input_gradient(args, call.d_y, weight, call.d_x)
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        Vec::new()
    }
}
