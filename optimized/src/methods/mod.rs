//! How a linear layer is represented and trained: one type per method, one file per type.
//!
//! A layer keeps its parameters and, where it trains, their gradients. Weight-sized temporaries
//! are not its own: all layers share one [`Scratch`], because only one layer runs at a time.

mod affine;
mod codes;
mod cost;
mod dense;
mod frozen;
mod l4q;
mod lora;
mod low_rank_path;
mod lr_qat;
mod merged;
mod peqa;
mod qa_lora;
mod qat;
mod qat_lora;
mod qlora;
mod quantized_weight;
mod targeted;
mod trained_scale;

pub use affine::{Affine, AffineTensors};
pub use codes::{CodeTensors, CodeUse, IntoCodes};
use cost::codes_cost;
pub use cost::{LayerCost, Update};
pub use dense::Dense;
pub use frozen::{Frozen, frozen_cost};
pub use l4q::{L4q, L4qOptions, L4qTensors};
pub use lora::{Lora, LoraOptions};
pub use low_rank_path::AdapterDropout;
pub use lr_qat::{LrQat, LrQatOptions, LrQatTensors};
pub use merged::Merged;
pub use peqa::{Peqa, peqa_cost};
pub use qa_lora::{QaLora, QaLoraOptions};
pub use qat::{Qat, QatOptions, QatTensors};
pub use qat_lora::QatLora;
pub use qlora::{Qlora, QloraOptions};
pub use targeted::{Targeted, TargetedTensors};
pub use trained_scale::TrainedScale;

use plumbline_reference::spec::{InitScaleRule, QuantSpec, SCALE_FLOOR};
use rand::Rng;

use crate::backend::{Backend, Storage};
use crate::error::{Error, Result};
use crate::ops::Write;
use crate::ops::fake_quantize::FakeQuantizeArgs;

/// What a tensor is for; a recipe sets learning rate and weight decay by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParameterKind {
    /// A matrix of a linear layer or the output projection.
    Weight,
    /// The embedding table.
    Embedding,
    /// The weight of a normalisation.
    Norm,
    /// Input-side factor of a low-rank update.
    LoraA,
    /// Output-side factor of a low-rank update.
    LoraB,
    /// Quantization step of a group.
    Scale,
    /// Offset of a group, in weight units.
    Offset,
}

/// A tensor and, where it is trained, its gradient.
pub struct Parameter<B: Storage> {
    /// The values.
    pub value: B::Floats,
    /// Sums of gradients since they were last cleared; `None` for a frozen tensor.
    pub gradient: Option<B::Floats>,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// What it is for.
    pub kind: ParameterKind,
}

impl<B: Storage> Parameter<B> {
    /// Uploads values; `trained` says whether a gradient is kept.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        backend: &B,
        values: &[f32],
        shape: &[usize],
        kind: ParameterKind,
        trained: bool,
    ) -> Result<Self> {
        let value = backend.upload(values)?;
        Self::with(backend, (value, values.len()), shape, kind, trained)
    }

    /// The same of values that the host has no more use for.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn taking(
        backend: &B,
        values: Vec<f32>,
        shape: &[usize],
        kind: ParameterKind,
        trained: bool,
    ) -> Result<Self> {
        let len = values.len();
        Self::with(backend, (backend.take(values)?, len), shape, kind, trained)
    }

    fn with(
        backend: &B,
        (value, len): (B::Floats, usize),
        shape: &[usize],
        kind: ParameterKind,
        trained: bool,
    ) -> Result<Self> {
        assert_eq!(len, shape.iter().product::<usize>(), "{kind:?} {shape:?}");
        let gradient = trained.then(|| backend.zeros(len)).transpose()?;
        Ok(Self { value, gradient, shape: shape.to_vec(), kind })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The parameter as the optimizer sees it; `None` when frozen.
    pub fn trainable(&mut self, name: impl Into<String>) -> Option<Trainable<'_, B>> {
        let len = self.len();
        let gradient = self.gradient.as_mut()?;
        Some(Trainable {
            name: name.into(),
            kind: self.kind,
            shape: &self.shape,
            len,
            since: 0,
            value: &mut self.value,
            gradient,
        })
    }

    /// Bytes of the values where they are frozen; those of a trained tensor its `trainable` tells.
    pub fn frozen_bytes(&self) -> usize {
        if self.gradient.is_none() { 4 * self.len() } else { 0 }
    }

    /// Keeps no gradient any more.
    pub(crate) fn freeze(&mut self) {
        self.gradient = None;
    }

    /// Values on the host.
    ///
    /// # Errors
    /// When the device failed.
    pub fn to_host(&self, backend: &B) -> Result<Vec<f32>> {
        backend.download(&self.value, self.len())
    }
}

/// A trained tensor, borrowed for one optimizer step.
pub struct Trainable<'a, B: Storage> {
    /// Name in the checkpoint, unique in the model.
    pub name: String,
    /// What it is for.
    pub kind: ParameterKind,
    /// Row-major shape.
    pub shape: &'a [usize],
    /// Number of values.
    pub len: usize,
    /// Updates of the model after which its own begin.
    pub since: u64,
    /// Updated by the optimizer.
    pub value: &'a mut B::Floats,
    /// Sum of gradients since it was last cleared.
    pub gradient: &'a mut B::Floats,
}

/// Temporaries that all layers share.
pub struct Scratch<B: Storage> {
    /// The weight that a layer multiplies with, `[out, in]`.
    pub effective: B::Floats,
    /// The gradient of that weight, `[out, in]`.
    pub d_weight: B::Floats,
    /// What a low-rank update beside a weight needs.
    pub path: PathScratch<B>,
    /// One number of each group of inputs, `[tokens, groups]`.
    pub pooled: B::Floats,
    /// Their gradient.
    pub d_pooled: B::Floats,
    /// The scale that a layer's weight is made with where it is rounded, `[out, groups]`.
    pub rounded_scale: B::Floats,
}

/// Temporaries of a low-rank update beside a weight.
pub struct PathScratch<B: Storage> {
    /// Activations between the two factors, `[tokens, rank]`.
    pub low_rank: B::Floats,
    /// Their gradient.
    pub d_low_rank: B::Floats,
    /// What is left of the inputs after dropout, `[tokens, inputs]`, then its gradient.
    pub dropped: B::Floats,
    /// What dropout draws by: of the run, the step and the micro-batch. `None`: nothing is dropped.
    pub dropout_key: Option<u64>,
}

/// Sizes a layer asks of the shared temporaries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScratchNeed {
    /// Values of the effective weight.
    pub effective: usize,
    /// Values of the weight gradient.
    pub d_weight: usize,
    /// Columns of the low-rank activations.
    pub rank: usize,
    /// Columns of the pooled inputs.
    pub groups: usize,
    /// Columns of the inputs that are left after dropout.
    pub dropped: usize,
    /// Values of the rounded scale.
    pub rounded_scale: usize,
}

impl ScratchNeed {
    /// A weight of that shape, made of other tensors in every pass, and with it its gradient.
    pub(crate) fn of_weight((out_features, in_features): (usize, usize)) -> Self {
        let len = out_features * in_features;
        Self { effective: len, d_weight: len, ..Self::default() }
    }

    /// Room for either.
    pub fn max(self, other: Self) -> Self {
        Self {
            effective: self.effective.max(other.effective),
            d_weight: self.d_weight.max(other.d_weight),
            rank: self.rank.max(other.rank),
            groups: self.groups.max(other.groups),
            dropped: self.dropped.max(other.dropped),
            rounded_scale: self.rounded_scale.max(other.rounded_scale),
        }
    }

    /// Bytes for sequences of up to `tokens` tokens in all, `operand_bytes` for each value of the
    /// effective weight.
    pub fn bytes(self, tokens: usize, operand_bytes: usize) -> usize {
        let Self { effective, d_weight, rank, groups, dropped, rounded_scale } = self;
        let floats = d_weight + (2 * (rank + groups) + dropped) * tokens + rounded_scale;
        operand_bytes * effective + 4 * floats
    }

    /// Allocates for sequences of up to `tokens` tokens in all.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn allocate<B: Storage>(self, backend: &B, tokens: usize) -> Result<Scratch<B>> {
        Ok(Scratch {
            effective: backend.operand(self.effective)?,
            d_weight: backend.zeros(self.d_weight)?,
            path: PathScratch {
                low_rank: backend.zeros(self.rank * tokens)?,
                d_low_rank: backend.zeros(self.rank * tokens)?,
                dropped: backend.zeros(self.dropped * tokens)?,
                dropout_key: None,
            },
            pooled: backend.zeros(self.groups * tokens)?,
            d_pooled: backend.zeros(self.groups * tokens)?,
            rounded_scale: backend.zeros(self.rounded_scale)?,
        })
    }
}

/// A linear layer as one method represents it.
pub trait LinearMethod<B: Backend>: Sized + Send {
    /// What the layer costs. A method's settings tell the same of a layer that does not exist yet.
    fn cost(&self) -> LayerCost;

    /// What the layer needs of the shared temporaries.
    fn scratch_need(&self) -> ScratchNeed {
        self.cost().scratch
    }

    /// `y [tokens, out]` from `x [tokens, in]`.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor; `Length`.
    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()>;

    /// `d_x [tokens, in]` from `d_y [tokens, out]`, written as `write` says; adds the gradients of
    /// the layer's own parameters to their buffers.
    ///
    /// # Errors
    /// As [`LinearMethod::forward`].
    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()>;

    /// The scale that is trained, where one is: a group that falls below its floor stands still.
    fn trained_scale(&self) -> Option<&TrainedScale<B>> {
        None
    }

    /// How the codes that merging would give now use their grid; `None` where there are none.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor; when the device failed.
    fn code_use(&self, _backend: &B) -> Result<Option<CodeUse>> {
        Ok(None)
    }

    /// Told when so many updates of the model are done, and before tensors are read back that
    /// belong to a model after so many.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor; when the device failed.
    fn at_update(&mut self, _backend: &B, _updates: u64) -> Result<()> {
        Ok(())
    }

    /// The trained tensors; names are relative to the layer.
    fn trainable(&mut self) -> Vec<Trainable<'_, B>>;
}

/// Arguments of [`LinearMethod::backward`].
pub struct BackwardCall<'a, B: Storage> {
    /// Rows of `x`, `d_y` and `d_x`.
    pub tokens: usize,
    /// Input of the forward, `[tokens, in]`.
    pub x: &'a B::Floats,
    /// Gradient of the output, `[tokens, out]`.
    pub d_y: &'a B::Floats,
    /// Gradient of the input, `[tokens, in]`.
    pub d_x: &'a mut B::Floats,
    /// Replace `d_x` or add to it.
    pub write: Write,
}

impl<'a, B: Storage> BackwardCall<'a, B> {
    /// All five.
    pub fn new(
        tokens: usize,
        x: &'a B::Floats,
        d_y: &'a B::Floats,
        d_x: &'a mut B::Floats,
        write: Write,
    ) -> Self {
        Self { tokens, x, d_y, d_x, write }
    }
}

/// Codes and grid of one merged layer, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedTensors {
    /// Bits and groups.
    pub spec: QuantSpec,
    /// Rows of the weight.
    pub out_features: usize,
    /// `[out, in]`.
    pub codes: Vec<i8>,
    /// `[out, groups]`, at or above the floor.
    pub scale: Vec<f32>,
    /// `[out, groups]`.
    pub offset: Vec<f32>,
}

impl MergedTensors {
    /// Codes and grid of a weight, with its update where there is one. Eq. (M3).
    ///
    /// # Errors
    /// `NonFinite` naming the tensor.
    pub fn quantize<B: Backend>(backend: &B, args: &FakeQuantizeArgs<'_, B>) -> Result<Self> {
        let FakeQuantizeArgs { spec, out_features, .. } = *args;
        let len = out_features * spec.in_features();
        let groups = out_features * spec.groups();
        let mut effective = backend.zeros(len)?;
        let mut codes = backend.zero_codes(len)?;
        backend.fake_quantize(args, &mut effective, Some(&mut codes))?;
        let floor = SCALE_FLOOR as f32;
        let scale = backend.download(args.scale, groups)?.into_iter().map(|s| s.max(floor));
        Ok(Self {
            spec,
            out_features,
            codes: backend.download_codes(&codes)?,
            scale: scale.collect(),
            offset: backend.download(args.offset, groups)?,
        })
    }
}

/// Scale and offset `[out, groups]` of a weight before training, on the host. Eq. (Q8).
pub(crate) fn initial_grid<B: Backend>(
    backend: &B,
    spec: QuantSpec,
    rule: InitScaleRule,
    out_features: usize,
    weight: &[f32],
) -> Result<(Vec<f32>, Vec<f32>)> {
    let len = out_features * spec.groups();
    let (mut scale, mut offset) = (backend.zeros(len)?, backend.zeros(len)?);
    let weight = backend.upload(weight)?;
    backend.init_scale(spec, rule, out_features, &weight, &mut scale, &mut offset)?;
    Ok((backend.download(&scale, len)?, backend.download(&offset, len)?))
}

/// That a rule gives no offset, for `what` that has none.
pub(crate) fn refuse_offset(rule: InitScaleRule, what: &str) -> Result<()> {
    if rule == InitScaleRule::Asymmetric {
        let reason = format!("method.init is asymmetric, which has an offset; {what} has none");
        return Err(Error::Invalid(reason));
    }
    Ok(())
}

/// Kaiming-uniform with slope sqrt(5): uniform in `+-1 / sqrt(in_features)`.
pub(crate) fn kaiming_uniform(len: usize, in_features: usize, random: &mut impl Rng) -> Vec<f32> {
    let bound = 1.0 / (in_features as f32).sqrt();
    (0..len).map(|_| random.random_range(-bound..bound)).collect()
}
