//! Full-model quantization-aware training: the weight itself is trained, through its quantizer.
//! With an offset the quantizer is that of LSQ+, without one that of LSQ. Eqs. (M11), (M12).

use plumbline_reference::spec::{GradScale, InitScaleRule, QatQuantizer, QuantSpec};

use super::{
    BackwardCall, LinearMethod, MergedTensors, Parameter, ParameterKind, Scratch, ScratchNeed,
    Trainable, initial_grid,
};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::ops::fake_quantize::FakeQuantizeArgs;
use crate::ops::fake_quantize_backward::FakeQuantizeGradients;
use crate::ops::linear::LinearArgs;

/// What a recipe decides about a QAT layer.
#[derive(Debug, Clone, Copy)]
pub struct QatOptions {
    /// Bits and groups.
    pub spec: QuantSpec,
    /// Whether there is an offset.
    pub quantizer: QatQuantizer,
    /// How scale and offset begin.
    pub init: InitScaleRule,
    /// Factor on the gradients of scale and offset.
    pub grad_scale: GradScale,
}

/// A linear layer whose weight is `fake_quantize(weight)`, with the weight trained.
pub struct Qat<B: Backend> {
    options: QatOptions,
    weight: Parameter<B>,
    scale: Parameter<B>,
    /// Zero and frozen under LSQ.
    offset: Parameter<B>,
}

/// The trained tensors of one layer, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct QatTensors {
    /// `[out, in]`.
    pub weight: Vec<f32>,
    /// `[out, groups]`.
    pub scale: Vec<f32>,
    /// `[out, groups]`; absent under LSQ.
    pub offset: Option<Vec<f32>>,
}

impl<B: Backend> Qat<B> {
    /// Starts from a full-precision `weight [out, in]`, scale and offset by the options' rule.
    ///
    /// # Errors
    /// `Invalid` for LSQ with a rule that gives an offset; `NonFinite` for a bad weight; when the
    /// device has no room.
    pub fn new(
        backend: &B,
        weight: Vec<f32>,
        out_features: usize,
        options: QatOptions,
    ) -> Result<Self> {
        let has_offset = options.quantizer == QatQuantizer::LsqPlus;
        if !has_offset && options.init == InitScaleRule::Asymmetric {
            let reason = "method.init is asymmetric, which has an offset; quantizer lsq has none";
            return Err(Error::Invalid(reason.into()));
        }
        let (scale, offset) =
            initial_grid(backend, options.spec, options.init, out_features, &weight)?;
        let offset = has_offset.then_some(offset);
        Self::from_tensors(backend, out_features, options, &QatTensors { weight, scale, offset })
    }

    /// Continues from saved tensors.
    ///
    /// # Errors
    /// When the device has no room.
    ///
    /// # Panics
    /// When a tensor's length is not what the options say, or an offset is there that they do not
    /// ask for or missing where they do.
    pub fn from_tensors(
        backend: &B,
        out_features: usize,
        options: QatOptions,
        tensors: &QatTensors,
    ) -> Result<Self> {
        let has_offset = options.quantizer == QatQuantizer::LsqPlus;
        assert_eq!(tensors.offset.is_some(), has_offset, "offset under {:?}", options.quantizer);
        let shape = [out_features, options.spec.in_features()];
        let grid = [out_features, options.spec.groups()];
        let zero = vec![0.0; grid[0] * grid[1]];
        let offset = tensors.offset.as_ref().unwrap_or(&zero);
        Ok(Self {
            options,
            weight: Parameter::new(backend, &tensors.weight, &shape, ParameterKind::Weight, true)?,
            scale: Parameter::new(backend, &tensors.scale, &grid, ParameterKind::Scale, true)?,
            offset: Parameter::new(backend, offset, &grid, ParameterKind::Offset, has_offset)?,
        })
    }

    /// Codes and grid of the trained weight, which is gone. Eq. (M3), without an update.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor.
    pub fn merge(self, backend: &B) -> Result<MergedTensors> {
        MergedTensors::quantize(backend, &self.args())
    }

    fn args(&self) -> FakeQuantizeArgs<'_, B::Floats> {
        FakeQuantizeArgs {
            spec: self.options.spec,
            out_features: self.weight.shape[0],
            weight: &self.weight.value,
            low_rank: None,
            scale: &self.scale.value,
            offset: &self.offset.value,
        }
    }

    fn linear_args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.weight.shape[1], self.weight.shape[0])
    }
}

impl<B: Backend> LinearMethod<B> for Qat<B> {
    fn scratch_need(&self) -> ScratchNeed {
        let len = self.weight.len();
        ScratchNeed { effective: len, d_weight: len, ..ScratchNeed::default() }
    }

    fn frozen_bytes(&self) -> usize {
        self.weight.frozen_bytes() + self.offset.frozen_bytes()
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        backend.fake_quantize(&self.args(), &mut scratch.effective, None)?;
        backend.linear(self.linear_args(tokens), x, &scratch.effective, y)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let args = self.linear_args(call.tokens);
        backend.fake_quantize(&self.args(), &mut scratch.effective, None)?;
        let to_input = LinearArgs { write: call.write, ..args };
        backend.linear_input_gradient(to_input, call.d_y, &scratch.effective, call.d_x)?;
        // The mask acts on the gradient of this call alone, so it cannot be summed in place.
        backend.linear_weight_gradient(args, call.d_y, call.x, &mut scratch.d_weight)?;
        let mut d_scale = self.scale.gradient.take();
        let mut d_offset = self.offset.gradient.take();
        let gradients = FakeQuantizeGradients {
            d_scale: d_scale.as_mut(),
            d_offset: d_offset.as_mut(),
            d_low_rank: None,
        };
        let grad_scale = self.options.grad_scale;
        let done = backend.fake_quantize_backward(
            &self.args(),
            grad_scale,
            &mut scratch.d_weight,
            gradients,
        );
        self.scale.gradient = d_scale;
        self.offset.gradient = d_offset;
        done?;
        let len = self.weight.len();
        match &mut self.weight.gradient {
            Some(gradient) => backend.add(&scratch.d_weight, gradient, len),
            None => Ok(()),
        }
    }

    fn trained_scale(&self) -> Option<&Parameter<B>> {
        Some(&self.scale)
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        [
            self.weight.trainable("weight"),
            self.scale.trainable("scale"),
            self.offset.trainable("offset"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
