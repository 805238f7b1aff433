//! From a model folder to a model in training, and from a trained model to codes.

use std::collections::BTreeMap;
use std::sync::Arc;

use plumbline_reference::spec::{InitScaleRule, QuantSpec};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::backend::Backend;
use crate::checkpoint::{Adapter, ModelFolder};
use crate::error::{Error, Result};
use crate::methods::{
    L4q, L4qOptions, L4qTensors, LinearMethod, Lora, LoraOptions, Merged, MergedTensors,
};
use crate::model::{Llama, Projection};
use crate::ops::fake_quantize::FakeQuantizeArgs;
use crate::recipe::{L4qSettings, LoraSettings};

/// Where the trained tensors start.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// From the method's initialisation with this seed.
    Fresh(u64),
    /// From a checkpoint.
    Adapter(&'a Adapter),
}

/// An L4Q model on a full-precision checkpoint; embeddings, norms and output projection stay as
/// they are.
///
/// # Errors
/// `Invalid` listing the layers that the group size does not divide; `File`.
pub fn l4q_model<B: Backend>(
    backend: Arc<B>,
    base: &ModelFolder,
    settings: &L4qSettings,
    start: Start<'_>,
) -> Result<Llama<B, L4q<B>>> {
    let specs = base.specs(settings.bits, settings.group_size)?;
    let init = settings.rule()?;
    let (rank, lora_scaling, grad_scale) =
        (settings.rank, settings.lora_scaling, settings.grad_scale);
    let device = backend.clone();
    build(backend, base, |index, linear, weight| {
        let spec = specs[index];
        let options = L4qOptions { spec, rank, lora_scaling, init, grad_scale };
        let (out, width) = (linear.out_features, linear.in_features);
        match start {
            Start::Fresh(seed) => {
                L4q::new(&*device, weight, out, options, &mut layer_random(seed, index))
            }
            Start::Adapter(adapter) => {
                let name = |tensor: &str| format!("{}.{tensor}", linear.name);
                let grid = [out, spec.groups()];
                let tensors = L4qTensors {
                    lora_a: adapter.tensor(&name("lora_a"), &[rank, width])?,
                    lora_b: adapter.tensor(&name("lora_b"), &[out, rank])?,
                    scale: adapter.tensor(&name("scale"), &grid)?,
                    offset: adapter.tensor(&name("offset"), &grid)?,
                };
                L4q::from_tensors(&*device, weight, out, options, &tensors)
            }
        }
    })
}

/// A LoRA model on a full-precision checkpoint.
///
/// # Errors
/// `File` naming the tensor that cannot be used.
pub fn lora_model<B: Backend>(
    backend: Arc<B>,
    base: &ModelFolder,
    settings: &LoraSettings,
    seed: u64,
) -> Result<Llama<B, Lora<B>>> {
    let options = LoraOptions { rank: settings.rank, lora_scaling: settings.lora_scaling };
    let device = backend.clone();
    build(backend, base, |index, linear, weight| {
        let shape = (linear.out_features, linear.in_features);
        Lora::new(&*device, weight, shape, options, &mut layer_random(seed, index))
    })
}

/// Round-to-nearest: every linear layer on the grid of a rule, nothing trained.
///
/// # Errors
/// As [`l4q_model`].
pub fn round_to_nearest<B: Backend>(
    backend: Arc<B>,
    base: &ModelFolder,
    specs: &[QuantSpec],
    rule: InitScaleRule,
) -> Result<Llama<B, Merged<B>>>
where
    B::Codes: Send,
{
    let device = backend.clone();
    build(backend, base, |index, linear, weight| {
        let (spec, out) = (specs[index], linear.out_features);
        let groups = out * spec.groups();
        let weight = device.upload(weight)?;
        let (mut scale, mut offset) = (device.zeros(groups)?, device.zeros(groups)?);
        device.init_scale(spec, rule, out, &weight, &mut scale, &mut offset)?;
        let args = FakeQuantizeArgs {
            spec,
            out_features: out,
            weight: &weight,
            low_rank: None,
            scale: &scale,
            offset: &offset,
        };
        Merged::new(&*device, &MergedTensors::quantize(&*device, &args)?)
    })
}

/// A merged model and what it is made of.
pub struct MergedModel<B: Backend> {
    /// Runs on the codes.
    pub model: Llama<B, Merged<B>>,
    /// Codes and grid of every linear layer by name, on the host.
    pub linears: BTreeMap<String, MergedTensors>,
}

/// Turns every layer into codes. The adapters are gone.
///
/// # Errors
/// `NonFinite` naming the tensor.
pub fn merge<B: Backend>(model: Llama<B, L4q<B>>) -> Result<MergedModel<B>>
where
    B::Codes: Send,
{
    let backend = model.shared_backend();
    let mut linears = BTreeMap::new();
    let model = model.map_linears(|linear, layer| {
        let tensors = layer.merge(&*backend)?;
        let merged = Merged::new(&*backend, &tensors)?;
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
    if left.len() != right.len() {
        let (left, right) = (left.len(), right.len());
        return Err(Error::Invalid(format!("{left} logits against {right}")));
    }
    let vocab = model.config().vocab_size;
    let differs = left.iter().zip(&right).position(|(a, b)| a.to_bits() != b.to_bits());
    Ok(differs.map(|at| Difference {
        position: at / vocab,
        token: at % vocab,
        left: left[at],
        right: right[at],
    }))
}

/// Every layer draws from its own stream, so its start does not depend on the others.
fn layer_random(seed: u64, index: usize) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(index as u64);
    random
}

fn build<B: Backend, L: LinearMethod<B>>(
    backend: Arc<B>,
    base: &ModelFolder,
    mut layer: impl FnMut(usize, &Projection, &[f32]) -> Result<L>,
) -> Result<Llama<B, L>> {
    let mut index = 0;
    Llama::build(
        backend,
        base.config().clone(),
        false,
        |name, shape| base.tensor(name, shape),
        |linear| {
            let made = layer(index, linear, &base.weight(linear)?);
            index += 1;
            made
        },
    )
}
