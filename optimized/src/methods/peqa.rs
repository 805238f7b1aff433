//! PEQA: codes and zero points are frozen, and only the scales are trained. The trained layer is a
//! quantized layer already. Eqs. (M15), (M16).
//!
//! Of the frozen weight the packed codes are kept, and not the floats.

use plumbline_reference::spec::{QuantSpec, ScaleRule};

use super::{
    AffineTensors, BackwardCall, CodeUse, LayerCost, LinearMethod, Scratch, ScratchNeed, Trainable,
    TrainedScale, Update,
};
use crate::backend::Backend;
use crate::error::Result;
use crate::ops::affine::{AffineGrid, PackedCodes, packed_row_bytes};
use crate::ops::linear::LinearArgs;

/// A linear layer whose weight is `scale * (codes - zero_point)`, with the scale trained.
pub struct Peqa<B: Backend> {
    spec: QuantSpec,
    out_features: usize,
    codes: PackedCodes<B>,
    zero_point: B::Floats,
    scale: TrainedScale<B>,
}

/// What a layer of so many rows costs under PEQA.
pub fn peqa_cost(spec: QuantSpec, out_features: usize, scale_rule: Option<ScaleRule>) -> LayerCost {
    let (shape, grid) = ((out_features, spec.in_features()), out_features * spec.groups());
    LayerCost {
        shape,
        frozen_bytes: shape.0 * packed_row_bytes(spec) + 4 * grid,
        trained: vec![grid],
        scratch: ScratchNeed::of_weight(shape),
        weight_gradient: true,
        update: Update::None,
    }
    .rounding(scale_rule, grid)
}

impl<B: Backend> Peqa<B> {
    /// Starts from codes, scales and zero points, fresh or as training left them; `scale_rule` is
    /// the numbers that the scale in use may be, where a target says so.
    ///
    /// # Errors
    /// `Invalid` for a code that the grid does not have; `NonFinite`; when the device has no room.
    pub fn new(
        backend: &B,
        tensors: &AffineTensors,
        scale_rule: Option<ScaleRule>,
    ) -> Result<Self> {
        tensors.check()?;
        let AffineTensors { spec, out_features, scale, zero_point, .. } = tensors;
        let grid = [*out_features, spec.groups()];
        Ok(Self {
            spec: *spec,
            out_features: *out_features,
            codes: tensors.upload_codes(backend)?,
            zero_point: backend.upload(zero_point)?,
            scale: TrainedScale::new(backend, scale, grid, scale_rule)?,
        })
    }

    /// Codes, scales and zero points; scales are raised to the floor, and rounded where there is a
    /// rule, as in the forward.
    ///
    /// # Errors
    /// When the device failed.
    pub fn merge(self, backend: &B) -> Result<AffineTensors> {
        self.merged(backend)
    }

    fn merged(&self, backend: &B) -> Result<AffineTensors> {
        let groups = self.scale.parameter.len();
        Ok(AffineTensors {
            spec: self.spec,
            out_features: self.out_features,
            codes: self.codes.download(backend)?.unpack(),
            scale: self.scale.merged(backend)?,
            zero_point: backend.download(&self.zero_point, groups)?,
        })
    }

    /// With the scale that was rounded, where it is.
    fn grid<'a>(&'a self, rounded_scale: &'a B::Floats) -> AffineGrid<'a, B> {
        AffineGrid {
            spec: self.spec,
            out_features: self.out_features,
            scale: self.scale.used(rounded_scale),
            zero_point: &self.zero_point,
        }
    }

    fn linear_args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.spec.in_features(), self.out_features)
    }
}

impl<B: Backend> LinearMethod<B> for Peqa<B> {
    fn cost(&self) -> LayerCost {
        peqa_cost(self.spec, self.out_features, self.scale.rule())
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.scale.round(backend, &mut scratch.rounded_scale)?;
        let grid = self.grid(&scratch.rounded_scale);
        backend.affine_dequantize(&grid, &self.codes, &mut scratch.effective)?;
        backend.linear(self.linear_args(tokens), x, &scratch.effective, y)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let args = self.linear_args(call.tokens);
        self.scale.round(backend, &mut scratch.rounded_scale)?;
        let grid = self.grid(&scratch.rounded_scale);
        backend.affine_dequantize(&grid, &self.codes, &mut scratch.effective)?;
        let to_input = LinearArgs { write: call.write, ..args };
        backend.linear_input_gradient(to_input, call.d_y, &scratch.effective, call.d_x)?;
        // The gradient buffer leaves its parameter while the value is borrowed.
        let Some(mut d_scale) = self.scale.parameter.gradient.take() else { return Ok(()) };
        let d_weight = &mut scratch.d_weight;
        let done =
            backend.linear_weight_gradient(args, call.d_y, call.x, d_weight).and_then(|()| {
                let (grid, codes) = (self.grid(&scratch.rounded_scale), &self.codes);
                backend.affine_dequantize_backward(&grid, codes, d_weight, &mut d_scale)
            });
        self.scale.parameter.gradient = Some(d_scale);
        done?;
        self.scale.pass_gradient(backend)
    }

    fn trained_scale(&self) -> Option<&TrainedScale<B>> {
        Some(&self.scale)
    }

    fn code_use(&self, backend: &B) -> Result<Option<CodeUse>> {
        Ok(Some(self.merged(backend)?.code_use()))
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        self.scale.trainable().into_iter().collect()
    }
}
