//! A weight behind its quantizer, on a trained grid: what QAT and QAT-LoRA share.
//! Eqs. (M11), (M12).

use plumbline_reference::spec::{GradScale, QuantSpec, ScaleRule};

use super::{BackwardCall, MergedTensors, Parameter, ParameterKind, Scratch, TrainedScale};
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::fake_quantize::FakeQuantizeArgs;
use crate::ops::fake_quantize_backward::FakeQuantizeGradients;
use crate::ops::linear::LinearArgs;
use crate::ops::widen::{FrozenWeight, WeightView};

/// `fake_quantize(weight)` and the tensors it is made of.
pub(super) struct QuantizedWeight<B: Backend> {
    pub(super) spec: QuantSpec,
    pub(super) grad_scale: GradScale,
    pub(super) weight: Behind<B>,
    pub(super) scale: TrainedScale<B>,
    pub(super) offset: Parameter<B>,
}

/// What is behind the quantizer.
pub(super) enum Behind<B: Backend> {
    /// A weight that is trained.
    Trained(Parameter<B>),
    /// A weight that stays as it is.
    Frozen(FrozenWeight<B>),
}

/// The tensors on the host, and which of them are trained beside the scale.
pub(super) struct QuantizedTensors<'a> {
    /// `[out, in]`.
    pub(super) weight: HostWeight<'a>,
    /// `[out, groups]`.
    pub(super) scale: &'a [f32],
    /// `[out, groups]`.
    pub(super) offset: &'a [f32],
    pub(super) trains_offset: bool,
    /// The numbers that the scale in use may be, where a target says so.
    pub(super) scale_rule: Option<ScaleRule>,
}

/// The weight on the host, `[out, in]`.
#[derive(Clone, Copy)]
pub(super) enum HostWeight<'a> {
    Trained(&'a [f32]),
    Frozen(&'a FrozenWeight<Cpu>),
}

impl HostWeight<'_> {
    fn upload<B: Backend>(self, backend: &B, shape: [usize; 2]) -> Result<Behind<B>> {
        match self {
            Self::Trained(values) => {
                let kind = ParameterKind::Weight;
                Ok(Behind::Trained(Parameter::new(backend, values, &shape, kind, true)?))
            }
            Self::Frozen(weight) => {
                assert_eq!(weight.len(), shape[0] * shape[1], "weight");
                Ok(Behind::Frozen(weight.upload(backend)?))
            }
        }
    }
}

impl<B: Backend> QuantizedWeight<B> {
    /// # Errors
    /// When the device has no room.
    ///
    /// # Panics
    /// When a tensor's length is not what the sizes say.
    pub(super) fn new(
        backend: &B,
        out_features: usize,
        spec: QuantSpec,
        grad_scale: GradScale,
        tensors: &QuantizedTensors<'_>,
    ) -> Result<Self> {
        let QuantizedTensors { weight, scale, offset, trains_offset, scale_rule } = *tensors;
        let shape = [out_features, spec.in_features()];
        let grid = [out_features, spec.groups()];
        Ok(Self {
            spec,
            grad_scale,
            weight: weight.upload(backend, shape)?,
            scale: TrainedScale::new(backend, scale, grid, scale_rule)?,
            offset: Parameter::new(backend, offset, &grid, ParameterKind::Offset, trains_offset)?,
        })
    }

    /// Keeps scale and offset as they are.
    pub(super) fn freeze_grid(&mut self) {
        self.scale.freeze();
        self.offset.freeze();
    }

    pub(super) fn out_features(&self) -> usize {
        self.scale.parameter.shape[0]
    }

    /// Codes and grid. Eq. (M3), without an update.
    pub(super) fn merged(&self, backend: &B) -> Result<MergedTensors> {
        MergedTensors::quantize(backend, &self.args(&self.scale.rounded(backend)?))
    }

    /// With the scale that was rounded, where it is.
    fn args<'a>(&'a self, rounded_scale: &'a B::Floats) -> FakeQuantizeArgs<'a, B> {
        FakeQuantizeArgs {
            spec: self.spec,
            out_features: self.out_features(),
            weight: match &self.weight {
                Behind::Trained(weight) => WeightView::F32(&weight.value),
                Behind::Frozen(weight) => weight.view(),
            },
            low_rank: None,
            scale: self.scale.used(rounded_scale),
            offset: &self.offset.value,
        }
    }

    fn linear_args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.spec.in_features(), self.out_features())
    }

    /// `y = x @ fake_quantize(weight)^T`.
    pub(super) fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.scale.round(backend, &mut scratch.rounded_scale)?;
        let args = self.args(&scratch.rounded_scale);
        backend.fake_quantize(&args, &mut scratch.effective, None)?;
        backend.linear(self.linear_args(tokens), x, &scratch.effective, y)
    }

    /// `d_x`, and the gradients of scale and offset; `scratch.d_weight` is then the weight's.
    pub(super) fn backward(
        &mut self,
        backend: &B,
        call: &mut BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let args = self.linear_args(call.tokens);
        self.scale.round(backend, &mut scratch.rounded_scale)?;
        let of_weight = self.args(&scratch.rounded_scale);
        backend.fake_quantize(&of_weight, &mut scratch.effective, None)?;
        let to_input = LinearArgs { write: call.write, ..args };
        backend.linear_input_gradient(to_input, call.d_y, &scratch.effective, call.d_x)?;
        // The mask acts on the gradient of this call alone, so it cannot be summed in place.
        backend.linear_weight_gradient(args, call.d_y, call.x, &mut scratch.d_weight)?;
        // The gradient buffers leave their parameters while the values are borrowed.
        let mut taken = [&mut self.scale.parameter, &mut self.offset]
            .map(|parameter| parameter.gradient.take());
        let [d_scale, d_offset] = &mut taken;
        let gradients = FakeQuantizeGradients {
            d_scale: d_scale.as_mut(),
            d_offset: d_offset.as_mut(),
            d_low_rank: None,
        };
        let (args, d_weight) = (self.args(&scratch.rounded_scale), &mut scratch.d_weight);
        let done = backend.fake_quantize_backward(&args, self.grad_scale, d_weight, gradients);
        [self.scale.parameter.gradient, self.offset.gradient] = taken;
        done?;
        self.scale.pass_gradient(backend)
    }
}
