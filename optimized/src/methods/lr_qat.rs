//! LR-QAT: the low-rank update is in units of the grid and is rounded together with a frozen weight
//! that is kept in a cheap type. Eqs. (M4) to (M7).
//!
//! The full-precision weight is not kept, except under a live inner scale, which divides it in
//! every step.

use plumbline_reference::spec::{InitScaleRule, InnerScale, LrQatSpec, ScaleRule};
use rand::Rng;

use super::{
    BackwardCall, CodeUse, LayerCost, LinearMethod, MergedTensors, Parameter, ParameterKind,
    Scratch, ScratchNeed, Trainable, TrainedScale, Update, initial_grid, kaiming_uniform,
    refuse_offset, trained_scale,
};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::ops::fake_quantize::LowRank;
use crate::ops::linear::LinearArgs;
use crate::ops::lr_qat_quantize::{LrQatArgs, LrQatGradients, StoredWeight, stored_row_bytes};
use crate::ops::refuse_non_finite;

/// What a recipe decides about an LR-QAT layer.
#[derive(Debug, Clone, Copy)]
pub struct LrQatOptions {
    /// Bits, groups, how the frozen weight is kept, mask and dialect.
    pub spec: LrQatSpec,
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, alpha / rank.
    pub lora_scaling: f32,
    /// How the scale begins.
    pub init: InitScaleRule,
    /// The numbers that the scale in use may be, where a target says so.
    pub scale_rule: Option<ScaleRule>,
}

/// A linear layer whose weight is `clamp(round(stored + update)) * scale`.
pub struct LrQat<B: Backend> {
    options: LrQatOptions,
    out_features: usize,
    weight: StoredWeight<B>,
    /// `[out, groups]`.
    zero_point: Option<B::Floats>,
    lora_a: Parameter<B>,
    lora_b: Parameter<B>,
    scale: TrainedScale<B>,
}

/// The tensors of one layer beside its weight, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct LrQatTensors {
    /// `[out, groups]`, frozen; absent under a live inner scale.
    pub initial_scale: Option<Vec<f32>>,
    /// `[out, groups]`, frozen integers; absent on the signed grid.
    pub zero_point: Option<Vec<f32>>,
    /// `[rank, in]`, trained.
    pub lora_a: Vec<f32>,
    /// `[out, rank]`, trained.
    pub lora_b: Vec<f32>,
    /// `[out, groups]`, trained.
    pub scale: Vec<f32>,
}

impl LrQatOptions {
    /// What a layer of so many rows costs on the signed grid.
    pub fn cost(&self, out_features: usize) -> LayerCost {
        let (grid, rank) = (self.spec.grid(), self.rank);
        let shape = (out_features, grid.in_features());
        LayerCost {
            shape,
            frozen_bytes: out_features * stored_row_bytes(self.spec.inner_scale(), shape.1),
            trained: vec![rank * shape.1, out_features * rank, out_features * grid.groups()],
            scratch: ScratchNeed::of_weight(shape),
            weight_gradient: true,
            update: Update::Inside { rank },
        }
        .rounding(self.scale_rule, out_features * grid.groups())
    }

    /// The scale that a layer begins with. Eq. (Q8).
    ///
    /// # Errors
    /// `Invalid` for a rule that gives an offset; `NonFinite` for a bad weight.
    pub fn initial_scale<B: Backend>(
        &self,
        backend: &B,
        weight: &[f32],
        out_features: usize,
    ) -> Result<Vec<f32>> {
        refuse_offset(self.init, "lr_qat")?;
        Ok(initial_grid(backend, *self.spec.grid(), self.init, out_features, weight)?.0)
    }

    /// What a frozen inner scale keeps of it: the scale that the first weight is made with, rounded
    /// where a target rounds it. Eq. (Q23), (C5). `None` where the inner scale is live.
    ///
    /// # Errors
    /// When the device failed.
    pub fn inner_scale<B: Backend>(
        &self,
        backend: &B,
        begun: Vec<f32>,
    ) -> Result<Option<Vec<f32>>> {
        match self.spec.inner_scale() {
            InnerScale::Live => Ok(None),
            InnerScale::Frozen(_) => {
                trained_scale::round_on_host(backend, self.scale_rule, begun).map(Some)
            }
        }
    }
}

impl<B: Backend> LrQat<B> {
    /// Starts from a full-precision `weight [out, in]` on the signed grid: `lora_a`
    /// Kaiming-uniform, `lora_b` zero, both scales by the options' rule.
    ///
    /// # Errors
    /// As [`LrQatOptions::initial_scale`]; when the device has no room.
    pub fn new(
        backend: &B,
        weight: &[f32],
        out_features: usize,
        options: LrQatOptions,
        random: &mut impl Rng,
    ) -> Result<Self> {
        let width = options.spec.grid().in_features();
        let scale = options.initial_scale(backend, weight, out_features)?;
        let start = LrQatTensors {
            initial_scale: options.inner_scale(backend, scale.clone())?,
            zero_point: None,
            lora_a: kaiming_uniform(options.rank * width, width, random),
            lora_b: vec![0.0; out_features * options.rank],
            scale,
        };
        Self::from_tensors(backend, weight, out_features, options, &start)
    }

    /// Continues from saved tensors; the weight is stored again as it was at the start.
    ///
    /// # Errors
    /// `Invalid` for an initial scale that the inner scale does not go with, or a zero point that
    /// is no code; `NonFinite` naming the tensor; when the device has no room.
    ///
    /// # Panics
    /// When a tensor's length is not what the options say.
    pub fn from_tensors(
        backend: &B,
        weight: &[f32],
        out_features: usize,
        options: LrQatOptions,
        tensors: &LrQatTensors,
    ) -> Result<Self> {
        let (grid, rank) = (*options.spec.grid(), options.rank);
        let LrQatTensors { initial_scale, zero_point, lora_a, lora_b, scale } = tensors;
        assert_eq!(weight.len(), out_features * grid.in_features(), "weight");
        let stored = match (options.spec.inner_scale(), initial_scale) {
            (InnerScale::Frozen(kind), Some(initial_scale)) => {
                let zero_point = zero_point.as_deref();
                StoredWeight::downcast(weight, initial_scale, zero_point, grid, kind)?
            }
            (InnerScale::Live, None) => {
                refuse_non_finite("lr_qat", "weight", weight)?;
                StoredWeight::F32(weight.to_vec())
            }
            (InnerScale::Frozen(_), None) => {
                return Err(Error::Invalid(
                    "initial_scale is absent, expected given with a frozen inner scale".into(),
                ));
            }
            (InnerScale::Live, Some(_)) => {
                return Err(Error::Invalid(
                    "initial_scale is given, expected absent with a live inner scale".into(),
                ));
            }
        };
        let trained = |values: &[f32], shape: [usize; 2], kind| {
            Parameter::new(backend, values, &shape, kind, true)
        };
        Ok(Self {
            options,
            out_features,
            weight: stored.upload(backend)?,
            zero_point: zero_point.as_ref().map(|values| backend.upload(values)).transpose()?,
            lora_a: trained(lora_a, [rank, grid.in_features()], ParameterKind::LoraA)?,
            lora_b: trained(lora_b, [out_features, rank], ParameterKind::LoraB)?,
            scale: TrainedScale::new(
                backend,
                scale,
                [out_features, grid.groups()],
                options.scale_rule,
            )?,
        })
    }

    /// Keeps the scale as it is.
    #[must_use]
    pub fn freeze_scale(mut self) -> Self {
        self.scale.freeze();
        self
    }

    /// Codes and grid of the trained weight; the adapter is gone. Eq. (M7). Codes keep their sign
    /// and have no offset; with zero points they reach from `-zero_point` up.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor.
    pub fn merge(self, backend: &B) -> Result<MergedTensors> {
        self.merged(backend)
    }

    fn merged(&self, backend: &B) -> Result<MergedTensors> {
        let spec = *self.options.spec.grid();
        let (len, groups) =
            (self.out_features * spec.in_features(), self.out_features * spec.groups());
        let (mut effective, mut codes) = (backend.zeros(len)?, backend.zero_codes(len)?);
        let rounded = self.scale.rounded(backend)?;
        backend.lr_qat_quantize(&self.args(&rounded), &mut effective, Some(&mut codes))?;
        Ok(MergedTensors {
            spec,
            out_features: self.out_features,
            codes: backend.download_codes(&codes)?,
            scale: self.scale.merged(backend)?,
            offset: vec![0.0; groups],
        })
    }

    /// With the scale that was rounded, where it is.
    fn args<'a>(&'a self, rounded_scale: &'a B::Floats) -> LrQatArgs<'a, B> {
        LrQatArgs {
            spec: self.options.spec,
            out_features: self.out_features,
            weight: &self.weight,
            zero_point: self.zero_point.as_ref(),
            low_rank: LowRank {
                lora_a: &self.lora_a.value,
                lora_b: &self.lora_b.value,
                rank: self.options.rank,
                lora_scaling: self.options.lora_scaling,
            },
            scale: self.scale.used(rounded_scale),
        }
    }

    fn linear_args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.options.spec.grid().in_features(), self.out_features)
    }
}

impl<B: Backend> LinearMethod<B> for LrQat<B> {
    fn cost(&self) -> LayerCost {
        let mut cost = self.options.cost(self.out_features);
        if !self.scale.is_trained() {
            cost = cost.freezing(1);
        }
        if self.zero_point.is_some() {
            cost.frozen_bytes += 4 * self.scale.parameter.len();
        }
        cost
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
        let args = self.args(&scratch.rounded_scale);
        backend.lr_qat_quantize(&args, &mut scratch.effective, None)?;
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
        let of_weight = self.args(&scratch.rounded_scale);
        backend.lr_qat_quantize(&of_weight, &mut scratch.effective, None)?;
        let to_input = LinearArgs { write: call.write, ..args };
        backend.linear_input_gradient(to_input, call.d_y, &scratch.effective, call.d_x)?;
        backend.linear_weight_gradient(args, call.d_y, call.x, &mut scratch.d_weight)?;
        // The gradient buffers leave their parameters while the values are borrowed.
        let mut taken = [&mut self.scale.parameter, &mut self.lora_a, &mut self.lora_b]
            .map(|parameter| parameter.gradient.take());
        let [d_scale, d_lora_a, d_lora_b] = &mut taken;
        let gradients = LrQatGradients {
            d_scale: d_scale.as_mut(),
            d_low_rank: d_lora_a.as_mut().zip(d_lora_b.as_mut()),
        };
        let args = self.args(&scratch.rounded_scale);
        let done = backend.lr_qat_quantize_backward(&args, &mut scratch.d_weight, gradients);
        let [d_scale, d_lora_a, d_lora_b] = taken;
        self.scale.parameter.gradient = d_scale;
        self.lora_a.gradient = d_lora_a;
        self.lora_b.gradient = d_lora_b;
        done?;
        self.scale.pass_gradient(backend)
    }

    fn trained_scale(&self) -> Option<&TrainedScale<B>> {
        self.scale.if_trained()
    }

    fn code_use(&self, backend: &B) -> Result<Option<CodeUse>> {
        Ok(Some(self.merged(backend)?.code_use()))
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        [self.lora_a.trainable("lora_a"), self.lora_b.trainable("lora_b"), self.scale.trainable()]
            .into_iter()
            .flatten()
            .collect()
    }
}
