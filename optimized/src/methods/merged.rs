//! A merged layer: integer codes, scale and offset, and nothing else. Eq. (M3).

use super::{BackwardCall, LayerCost, LinearMethod, MergedTensors, Scratch, Trainable, codes_cost};
use crate::backend::Backend;
use crate::error::Result;
use crate::ops::linear::LinearArgs;

use plumbline_reference::spec::QuantSpec;

/// `y = x @ (codes * scale + offset)^T`: the same weight and the same product as the trained
/// layer's forward, so the same bits.
pub struct Merged<B: Backend> {
    spec: QuantSpec,
    out_features: usize,
    codes: B::Codes,
    scale: B::Floats,
    offset: B::Floats,
}

impl<B: Backend> Merged<B> {
    /// Uploads a merged layer.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(backend: &B, tensors: &MergedTensors) -> Result<Self> {
        Ok(Self {
            spec: tensors.spec,
            out_features: tensors.out_features,
            codes: backend.upload_codes(&tensors.codes)?,
            scale: backend.upload(&tensors.scale)?,
            offset: backend.upload(&tensors.offset)?,
        })
    }

    fn dequantize(&self, backend: &B, output: &mut B::Floats) -> Result<()> {
        let Self { spec, out_features, codes, scale, offset } = self;
        backend.dequantize(*spec, *out_features, codes, scale, offset, output)
    }

    fn args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.spec.in_features(), self.out_features)
    }
}

impl<B: Backend> LinearMethod<B> for Merged<B> {
    fn cost(&self) -> LayerCost {
        // A byte each.
        codes_cost(self.spec, self.out_features, self.spec.in_features())
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.dequantize(backend, &mut scratch.effective)?;
        backend.linear(self.args(tokens), x, &scratch.effective, y)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.dequantize(backend, &mut scratch.effective)?;
        let args = LinearArgs { write: call.write, ..self.args(call.tokens) };
        backend.linear_input_gradient(args, call.d_y, &scratch.effective, call.d_x)
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        Vec::new()
    }
}
