//! L4Q: the low-rank update is added to the weight before it is quantized. Eqs. (M1) to (M3).
//!
//! What the backward needs is `x` and the parameters; the combined weight, the quantizer argument,
//! the mask and the quantized weight are recomputed.

use plumbline_reference::spec::{GradScale, InitScaleRule, QuantSpec, ScaleRule};
use rand::Rng;

use super::low_rank_path::LowRankPath;
use super::{
    BackwardCall, CodeUse, Frozen, LayerCost, LinearMethod, LoraOptions, MergedTensors, Parameter,
    ParameterKind, Scratch, ScratchNeed, Trainable, TrainedScale, Update, initial_grid,
    kaiming_uniform, refuse_offset,
};
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::fake_quantize::{FakeQuantizeArgs, LowRank};
use crate::ops::fake_quantize_backward::FakeQuantizeGradients;
use crate::ops::linear::LinearArgs;
use crate::ops::weight_gradient::WeightGradientArgs;
use crate::ops::widen::{FrozenWeight, WeightType};

/// What a recipe decides about an L4Q layer.
#[derive(Debug, Clone, Copy)]
pub struct L4qOptions {
    /// Bits and groups.
    pub spec: QuantSpec,
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, alpha / rank.
    pub lora_scaling: f32,
    /// How scale and offset begin.
    pub init: InitScaleRule,
    /// Factor on the gradients of scale and offset.
    pub grad_scale: GradScale,
    /// The numbers that the scale in use may be, where a target says so; there is no offset then,
    /// which stays 0.
    pub scale_rule: Option<ScaleRule>,
}

impl L4qOptions {
    /// What a layer of so many rows costs.
    pub fn cost(&self, out_features: usize, stored: WeightType) -> LayerCost {
        let (rank, width, groups) = (self.rank, self.spec.in_features(), self.spec.groups());
        let grid = out_features * groups;
        LayerCost {
            shape: (out_features, width),
            frozen_bytes: stored.bytes() * out_features * width,
            trained: vec![rank * width, out_features * rank, grid, grid],
            scratch: ScratchNeed::of_weight((out_features, width)),
            weight_gradient: true,
            update: Update::Inside { rank },
        }
        .rounding(self.scale_rule, grid)
        .freezing(usize::from(self.scale_rule.is_some()))
    }

    /// Tensors of the grid that are trained, where it is: the last ones of a layer.
    pub(crate) fn grid_tensors(&self) -> usize {
        if self.scale_rule.is_some() { 1 } else { 2 }
    }
}

/// A linear layer whose weight is `fake_quantize(weight + lora_scaling * (lora_b @ lora_a))`.
pub struct L4q<B: Backend> {
    options: L4qOptions,
    out_features: usize,
    base: Frozen<B>,
    /// The factors; a path of their own only while the layer warms up.
    path: LowRankPath<B>,
    scale: TrainedScale<B>,
    offset: Parameter<B>,
    warm_up: WarmUp,
}

/// Updates at the start in which the update is trained beside the full-precision weight, as LoRA
/// is; scale and offset begin after them, on the weight with its update.
#[derive(Debug, Clone, Copy, Default)]
struct WarmUp {
    updates: u64,
    is_on: bool,
}

impl<B: Backend> L4q<B> {
    /// Starts from a full-precision `weight [out, in]`: `lora_a` Kaiming-uniform, `lora_b` zero,
    /// scale and offset by the options' rule (of the weight alone, since the update is zero).
    ///
    /// # Errors
    /// `Invalid` for a rule of a start that has an offset, with a rule for the scale; `NonFinite` for
    /// a bad weight; when the device has no room.
    pub fn new(
        backend: &B,
        weight: &FrozenWeight<Cpu>,
        out_features: usize,
        options: L4qOptions,
        random: &mut impl Rng,
    ) -> Result<Self> {
        let start = L4qTensors::initial(backend, weight, out_features, options, random)?;
        Self::from_tensors(backend, weight, out_features, options, &start)
    }

    /// A layer that begins with so many updates as LoRA; 0 for none.
    #[must_use]
    pub fn warming_up(mut self, updates: u64) -> Self {
        self.warm_up = WarmUp { updates, is_on: updates > 0 };
        self
    }

    /// Keeps scale and offset as they are.
    #[must_use]
    pub fn freeze_grid(mut self) -> Self {
        self.scale.freeze();
        self.offset.freeze();
        self
    }

    /// Continues from saved tensors.
    ///
    /// # Errors
    /// When the device has no room.
    ///
    /// # Panics
    /// When a tensor's length is not what the options say, or there is an offset with a rule for the
    /// scale.
    pub fn from_tensors(
        backend: &B,
        weight: &FrozenWeight<Cpu>,
        out_features: usize,
        options: L4qOptions,
        tensors: &L4qTensors,
    ) -> Result<Self> {
        let L4qOptions { spec, rank, lora_scaling, scale_rule, .. } = options;
        let (shape, groups) = ((out_features, spec.in_features()), spec.groups());
        let L4qTensors { lora_a, lora_b, scale, offset } = tensors;
        let grid = [out_features, groups];
        let trains_offset = scale_rule.is_none();
        let has_offset = offset.iter().any(|offset| *offset != 0.0);
        assert!(trains_offset || !has_offset, "offset with a rule for the scale");
        let path = LoraOptions { rank, lora_scaling };
        Ok(Self {
            options,
            out_features,
            base: Frozen::new(backend, weight, shape)?,
            path: LowRankPath::new(backend, shape, path, lora_a, lora_b)?,
            scale: TrainedScale::new(backend, scale, grid, scale_rule)?,
            offset: Parameter::new(backend, offset, &grid, ParameterKind::Offset, trains_offset)?,
            warm_up: WarmUp::default(),
        })
    }

    /// Codes and grid of the trained weight; the adapter is gone. Eq. (M3).
    ///
    /// # Errors
    /// `NonFinite` naming the tensor.
    pub fn merge(self, backend: &B) -> Result<MergedTensors> {
        self.merged(backend)
    }

    fn merged(&self, backend: &B) -> Result<MergedTensors> {
        MergedTensors::quantize(backend, &self.args(&self.scale.rounded(backend)?))
    }

    /// With the scale that was rounded, where it is.
    fn args<'a>(&'a self, rounded_scale: &'a B::Floats) -> FakeQuantizeArgs<'a, B> {
        FakeQuantizeArgs {
            spec: self.options.spec,
            out_features: self.out_features,
            weight: self.base.view(),
            low_rank: Some(LowRank {
                lora_a: &self.path.lora_a.value,
                lora_b: &self.path.lora_b.value,
                rank: self.options.rank,
                lora_scaling: self.options.lora_scaling,
            }),
            scale: self.scale.used(rounded_scale),
            offset: &self.offset.value,
        }
    }

    fn linear_args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.options.spec.in_features(), self.out_features)
    }
}

/// The trained tensors of one layer, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct L4qTensors {
    /// `[rank, in]`.
    pub lora_a: Vec<f32>,
    /// `[out, rank]`.
    pub lora_b: Vec<f32>,
    /// `[out, groups]`.
    pub scale: Vec<f32>,
    /// `[out, groups]`.
    pub offset: Vec<f32>,
}

impl L4qTensors {
    /// `lora_a` Kaiming-uniform, `lora_b` zero, scale and offset by the options' rule.
    ///
    /// # Errors
    /// `NonFinite` for a bad weight; when the device has no room.
    pub(super) fn initial<B: Backend>(
        backend: &B,
        weight: &FrozenWeight<Cpu>,
        out_features: usize,
        options: L4qOptions,
        random: &mut impl Rng,
    ) -> Result<Self> {
        let L4qOptions { spec, rank, init, scale_rule, .. } = options;
        if scale_rule.is_some() {
            refuse_offset(init, "a layer with a target")?;
        }
        let lora_a = kaiming_uniform(rank * spec.in_features(), spec.in_features(), random);
        let (scale, offset) = initial_grid(backend, spec, init, out_features, &weight.to_floats())?;
        Ok(Self { lora_a, lora_b: vec![0.0; out_features * rank], scale, offset })
    }
}

impl<B: Backend> LinearMethod<B> for L4q<B> {
    fn cost(&self) -> LayerCost {
        let cost = self.options.cost(self.out_features, self.base.stored());
        let cost = if self.warm_up.updates > 0 { cost.warming_up() } else { cost };
        if self.scale.is_trained() { cost } else { cost.freezing(self.options.grid_tensors()) }
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        if self.warm_up.is_on {
            self.base.forward(backend, tokens, x, y, scratch)?;
            return self.path.add_forward(backend, tokens, x, y, &mut scratch.path);
        }
        self.scale.round(backend, &mut scratch.rounded_scale)?;
        let args = self.args(&scratch.rounded_scale);
        backend.fake_quantize(&args, &mut scratch.effective, None)?;
        backend.linear(self.linear_args(tokens), x, &scratch.effective, y)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        if self.warm_up.is_on {
            let BackwardCall { tokens, x, d_y, d_x, write } = call;
            self.base.backward(backend, BackwardCall::new(tokens, x, d_y, d_x, write), scratch)?;
            let beside = BackwardCall::new(tokens, x, d_y, d_x, Write::Add);
            return self.path.backward(backend, beside, &mut scratch.path);
        }
        let args = self.linear_args(call.tokens);
        self.scale.round(backend, &mut scratch.rounded_scale)?;
        let of_weight = self.args(&scratch.rounded_scale);
        backend.fake_quantize(&of_weight, &mut scratch.effective, None)?;
        let to_input = LinearArgs { write: call.write, ..args };
        backend.linear_input_gradient(to_input, call.d_y, &scratch.effective, call.d_x)?;
        // The gradient buffers leave their parameters while the values are borrowed.
        let LowRankPath { lora_a, lora_b, .. } = &mut self.path;
        let mut taken = [&mut self.scale.parameter, &mut self.offset, lora_a, lora_b]
            .map(|parameter| parameter.gradient.take());
        let [d_scale, d_offset, d_lora_a, d_lora_b] = &mut taken;
        let gradients = FakeQuantizeGradients {
            d_scale: d_scale.as_mut(),
            d_offset: d_offset.as_mut(),
            d_low_rank: d_lora_a.as_mut().zip(d_lora_b.as_mut()),
        };
        let BackwardCall { tokens, x, d_y, .. } = call;
        let from = WeightGradientArgs { tokens, d_y, x, grad_scale: self.options.grad_scale };
        let args = self.args(&scratch.rounded_scale);
        let done = backend.weight_gradient(&args, &from, &mut scratch.d_weight, gradients);
        let [d_scale, d_offset, d_lora_a, d_lora_b] = taken;
        self.scale.parameter.gradient = d_scale;
        self.offset.gradient = d_offset;
        self.path.lora_a.gradient = d_lora_a;
        self.path.lora_b.gradient = d_lora_b;
        done?;
        self.scale.pass_gradient(backend)
    }

    fn trained_scale(&self) -> Option<&TrainedScale<B>> {
        self.scale.if_trained().filter(|_| !self.warm_up.is_on)
    }

    fn code_use(&self, backend: &B) -> Result<Option<CodeUse>> {
        if self.warm_up.is_on {
            return Ok(None);
        }
        Ok(Some(self.merged(backend)?.code_use()))
    }

    fn at_update(&mut self, backend: &B, updates: u64) -> Result<()> {
        if !self.warm_up.is_on || updates < self.warm_up.updates {
            return Ok(());
        }
        let mut weight = self.base.download(backend)?.into_floats();
        for (weight, delta) in weight.iter_mut().zip(self.path.delta(backend)?) {
            *weight += delta;
        }
        let L4qOptions { spec, init, .. } = self.options;
        let (scale, offset) = initial_grid(backend, spec, init, self.out_features, &weight)?;
        backend.write(&scale, &mut self.scale.parameter.value)?;
        backend.write(&offset, &mut self.offset.value)?;
        self.warm_up.is_on = false;
        Ok(())
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        let since = self.warm_up.updates;
        let grid = [self.scale.trainable(), self.offset.trainable("offset")];
        let grid = grid.into_iter().flatten().map(|tensor| Trainable { since, ..tensor });
        self.path.trainable().chain(grid).collect()
    }
}
