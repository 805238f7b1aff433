//! From a model folder to a model in training, and from a trained model to codes.

mod layers;
mod targets;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use plumbline_reference::spec::{InitScaleRule, LlamaConfig, QuantSpec};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, ModelFolder, specs_of};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::methods::{AffineTensors, CodeTensors, IntoCodes, LinearMethod, Merged, MergedTensors};
use crate::model::{Llama, Projection};
use crate::ops::fake_quantize::FakeQuantizeArgs;
use crate::ops::random_weights::RandomWeightsArgs;
use crate::ops::widen::{FrozenWeight, WeightType, WeightView};

pub use layers::Method;
pub use targets::{OnGrid, Targets};

/// Where the trained tensors start.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// From the method's initialisation with this seed.
    Fresh(u64),
    /// From a checkpoint.
    Checkpoint(&'a Checkpoint),
}

/// What a layer begins with.
pub struct LayerStart<'a> {
    /// Which layer, and its sizes.
    pub linear: &'a Projection,
    /// Its place among the linear layers of the model.
    pub index: usize,
    /// Weight of the base model, `[out, in]`, in the type that it is stored in.
    pub weight: FrozenWeight<Cpu>,
    /// Codes that were made of the whole model, where the method does not make them here.
    pub codes: Option<&'a AffineTensors>,
    /// Fresh or from a checkpoint.
    pub start: Start<'a>,
}

impl LayerStart<'_> {
    /// Every layer draws from its own stream, so its start does not depend on the others.
    pub fn random(&self) -> ChaCha8Rng {
        let seed = match self.start {
            Start::Fresh(seed) => seed,
            Start::Checkpoint(_) => 0,
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(self.index as u64);
        random
    }
}

/// A model on a full-precision checkpoint, its linear layers under a method; embeddings, norms and
/// output projection stay as they are.
///
/// # Errors
/// `Invalid` listing the layers that the group size does not divide; `File`.
pub fn method_model<B: Backend, M: Method>(
    backend: Arc<B>,
    base: &ModelFolder,
    method: &M,
    start: Start<'_>,
) -> Result<Llama<B, M::Layer<B>>> {
    method_model_on(backend, base, None, method, start)
}

/// Codes of the linear layers of a model, by name, that a method freezes.
pub type FrozenCodes = BTreeMap<String, AffineTensors>;

/// The same on codes that were made beforehand, for a method that freezes such codes.
///
/// # Errors
/// As [`method_model`]; `Invalid` naming a layer whose codes are missing or of another grid.
pub fn method_model_on<B: Backend, M: Method>(
    backend: Arc<B>,
    base: &ModelFolder,
    codes: Option<&FrozenCodes>,
    method: &M,
    start: Start<'_>,
) -> Result<Llama<B, M::Layer<B>>> {
    specs_of(base.config(), |linear| method.grid_of(linear))?;
    let device = backend.clone();
    let model = build(backend, base, |index, linear, weight| {
        let codes = codes.and_then(|codes| codes.get(&linear.name));
        method.layer(&*device, LayerStart { linear, index, weight, codes, start })
    })?;
    Ok(model.with_activations(method.activations()))
}

/// The same of weights that are drawn where they are used: for timing, not for training. Tables and
/// matrices are bell-shaped with standard deviation 0.02, as models are initialised; the matrices
/// that write to the residual stream are divided by `sqrt(2 * num_hidden_layers)`; norms are 1. The
/// weights of linear layers are rounded once to the type that a checkpoint would have.
///
/// No more than one tensor at a time is on the host.
///
/// # Errors
/// `Invalid` naming a layer that the group size does not divide; when the device has no room.
pub fn random_model<B: Backend, M: Method>(
    backend: Arc<B>,
    config: &LlamaConfig,
    method: &M,
    stored: WeightType,
    seed: u64,
) -> Result<Llama<B, M::Layer<B>>> {
    const DEVIATION: f32 = 0.02;
    /// Weights that are drawn at once, so that a table is not there twice.
    const PART: usize = 1 << 22;
    for linear in Projection::all(config) {
        method.cost(&linear, stored)?;
    }
    let device = backend.clone();
    let draws = Cell::new(0);
    let random = |len: usize, deviation: f32| -> Result<Vec<f32>> {
        let seed = seed ^ draws.get() << 32;
        draws.set(draws.get() + 1);
        let mut part = device.zeros(PART.min(len))?;
        let mut values = Vec::with_capacity(len);
        while values.len() < len {
            let (first, count) = (values.len() as u64, PART.min(len - values.len()));
            let args = RandomWeightsArgs { first, len: count, deviation, seed };
            device.random_weights(args, &mut part)?;
            values.extend(device.download(&part, count)?);
        }
        Ok(values)
    };
    let residual = 1.0 / (2.0 * config.num_hidden_layers as f32).sqrt();
    let mut index = 0;
    let model = Llama::build(
        backend,
        config.clone(),
        false,
        |_, shape| {
            let len = shape.iter().product();
            if shape.len() == 1 { Ok(vec![1.0; len]) } else { random(len, DEVIATION) }
        },
        |linear| {
            let writes = linear.name.ends_with("o_proj") || linear.name.ends_with("down_proj");
            let deviation = if writes { DEVIATION * residual } else { DEVIATION };
            let weight = random(linear.out_features * linear.in_features, deviation)?;
            let weight = FrozenWeight::rounded(weight, stored);
            let start = Start::Fresh(seed);
            let at = LayerStart { linear, index, weight, codes: None, start };
            let made = method.layer(&*device, at);
            index += 1;
            made
        },
    )?;
    Ok(model.with_activations(method.activations()))
}

/// Round-to-nearest: every linear layer on the grid of a rule, nothing trained.
///
/// # Errors
/// `NonFinite` for a bad weight; `File`.
pub fn round_to_nearest<B: Backend>(
    backend: Arc<B>,
    base: &ModelFolder,
    specs: &[QuantSpec],
    rule: InitScaleRule,
) -> Result<Llama<B, Merged<B>>> {
    let device = backend.clone();
    build(backend, base, |index, linear, weight| {
        let (spec, out) = (specs[index], linear.out_features);
        let groups = out * spec.groups();
        let weight = device.upload(&weight.into_floats())?;
        let (mut scale, mut offset) = (device.zeros(groups)?, device.zeros(groups)?);
        device.init_scale(spec, rule, out, &weight, &mut scale, &mut offset)?;
        let args = FakeQuantizeArgs {
            spec,
            out_features: out,
            weight: WeightView::F32(&weight),
            low_rank: None,
            scale: &scale,
            offset: &offset,
        };
        Merged::new(&*device, &MergedTensors::quantize(&*device, &args)?)
    })
}

/// A merged model and what it is made of.
pub struct MergedModel<B: Backend, T: CodeTensors> {
    /// Runs on the codes.
    pub model: Llama<B, T::Layer<B>>,
    /// Codes and grid of every linear layer by name, on the host.
    pub linears: BTreeMap<String, T>,
}

/// Turns every layer into codes. The adapters are gone.
///
/// # Errors
/// `NonFinite` naming the tensor.
pub fn merge<B: Backend, L: IntoCodes<B>>(
    model: Llama<B, L>,
) -> Result<MergedModel<B, L::Tensors>> {
    let backend = model.shared_backend();
    let mut linears = BTreeMap::new();
    let model = model.map_linears(|linear, layer| {
        let tensors = layer.into_codes(&*backend)?;
        let merged = tensors.layer(&*backend)?;
        linears.insert(linear.name.clone(), tensors);
        Ok(merged)
    })?;
    Ok(MergedModel { model, linears })
}

/// Where two models' logits first differ in their bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Position in the sequence.
    pub position: usize,
    /// Token id of the logit.
    pub token: usize,
    /// The first model's logit.
    pub left: f32,
    /// The second model's.
    pub right: f32,
}

/// Compares `left`, logits `[tokens, vocab_size]` of one model, with those of another bit by bit.
///
/// # Errors
/// As [`Llama::logits`].
pub fn first_difference<B: Backend, L: LinearMethod<B>>(
    left: &[f32],
    model: &Llama<B, L>,
    tokens: &[i32],
) -> Result<Option<Difference>> {
    let mut workspace = model.evaluation_workspace(tokens.len())?;
    let right = model.logits(1, tokens, &mut workspace)?;
    logit_difference(left, &right, model.config().vocab_size)
}

/// Compares two models' logits `[tokens, vocab_size]` bit by bit.
///
/// # Errors
/// `Invalid` where there are not as many of one as of the other.
pub fn logit_difference(
    left: &[f32],
    right: &[f32],
    vocab_size: usize,
) -> Result<Option<Difference>> {
    if left.len() != right.len() {
        let (left, right) = (left.len(), right.len());
        return Err(Error::Invalid(format!("{left} logits against {right}")));
    }
    let differs = left.iter().zip(right).position(|(a, b)| a.to_bits() != b.to_bits());
    Ok(differs.map(|at| Difference {
        position: at / vocab_size,
        token: at % vocab_size,
        left: left[at],
        right: right[at],
    }))
}

/// A model whose linear layers are made of the weights of a full-precision one, in its order.
pub(crate) fn build<B: Backend, L: LinearMethod<B>>(
    backend: Arc<B>,
    base: &ModelFolder,
    mut layer: impl FnMut(usize, &Projection, FrozenWeight<Cpu>) -> Result<L>,
) -> Result<Llama<B, L>> {
    let mut index = 0;
    Llama::build(
        backend,
        base.config().clone(),
        false,
        |name, shape| base.tensor(name, shape),
        |linear| {
            let made = layer(index, linear, base.weight(linear)?);
            index += 1;
            made
        },
    )
}
