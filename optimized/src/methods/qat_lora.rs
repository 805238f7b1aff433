//! QAT-LoRA: the frozen weight is quantized on a trained grid, and the low-rank update is a path
//! beside it in full precision. A merge would have to round the update, so there is none.
//! Eqs. (M13), (M14).

use rand::Rng;

use super::low_rank_path::LowRankPath;
use super::{
    BackwardCall, L4qOptions, L4qTensors, LinearMethod, LoraOptions, Parameter, ParameterKind,
    Scratch, ScratchNeed, Trainable, initial_grid, kaiming_uniform,
};
use crate::backend::Backend;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::fake_quantize::FakeQuantizeArgs;
use crate::ops::fake_quantize_backward::FakeQuantizeGradients;
use crate::ops::linear::LinearArgs;

/// `y = x @ fake_quantize(weight)^T + lora_scaling * (x @ lora_a^T) @ lora_b^T`.
///
/// Options and tensors are those of L4Q, which is this method with the update inside the quantizer.
pub struct QatLora<B: Backend> {
    options: L4qOptions,
    weight: Parameter<B>,
    path: LowRankPath<B>,
    scale: Parameter<B>,
    offset: Parameter<B>,
}

impl<B: Backend> QatLora<B> {
    /// Starts from a full-precision `weight [out, in]`: `lora_a` Kaiming-uniform, `lora_b` zero,
    /// scale and offset by the options' rule.
    ///
    /// # Errors
    /// `NonFinite` for a bad weight; when the device has no room.
    pub fn new(
        backend: &B,
        weight: &[f32],
        out_features: usize,
        options: L4qOptions,
        random: &mut impl Rng,
    ) -> Result<Self> {
        let (rank, spec) = (options.rank, options.spec);
        let lora_a = kaiming_uniform(rank * spec.in_features(), spec.in_features(), random);
        let lora_b = vec![0.0; out_features * rank];
        let (scale, offset) = initial_grid(backend, spec, options.init, out_features, weight)?;
        let start = L4qTensors { lora_a, lora_b, scale, offset };
        Self::from_tensors(backend, weight, out_features, options, &start)
    }

    /// Continues from saved tensors.
    ///
    /// # Errors
    /// When the device has no room.
    ///
    /// # Panics
    /// When a tensor's length is not what the options say.
    pub fn from_tensors(
        backend: &B,
        weight: &[f32],
        out_features: usize,
        options: L4qOptions,
        tensors: &L4qTensors,
    ) -> Result<Self> {
        let L4qTensors { lora_a, lora_b, scale, offset } = tensors;
        let (width, groups) = (options.spec.in_features(), options.spec.groups());
        let (shape, grid) = ([out_features, width], [out_features, groups]);
        let path = LoraOptions { rank: options.rank, lora_scaling: options.lora_scaling };
        Ok(Self {
            options,
            weight: Parameter::new(backend, weight, &shape, ParameterKind::Weight, false)?,
            path: LowRankPath::new(backend, (out_features, width), path, lora_a, lora_b)?,
            scale: Parameter::new(backend, scale, &grid, ParameterKind::Scale, true)?,
            offset: Parameter::new(backend, offset, &grid, ParameterKind::Offset, true)?,
        })
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

impl<B: Backend> LinearMethod<B> for QatLora<B> {
    fn scratch_need(&self) -> ScratchNeed {
        let len = self.weight.len();
        let rank = self.path.rank();
        ScratchNeed { effective: len, d_weight: len, rank, ..ScratchNeed::default() }
    }

    fn frozen_bytes(&self) -> usize {
        self.weight.frozen_bytes()
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
        backend.linear(self.linear_args(tokens), x, &scratch.effective, y)?;
        self.path.add_forward(backend, tokens, x, y, &mut scratch.low_rank)
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
        let call = BackwardCall { write: Write::Add, ..call };
        self.path.backward(backend, call, &mut scratch.low_rank, &mut scratch.d_low_rank)
    }

    fn trained_scale(&self) -> Option<&Parameter<B>> {
        Some(&self.scale)
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        let grid = [self.scale.trainable("scale"), self.offset.trainable("offset")];
        self.path.trainable().chain(grid.into_iter().flatten()).collect()
    }
}
