//! `llama.loss_and_gradients`.
//!
//! The allowances follow the sensitivity of this model to roundings: [`noisy`] runs it again and
//! again, through every block and back.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ndarray::{Array2, ArrayD, arr0};
use plumbline_reference::Real;
use plumbline_reference::model::{Llama, expected_shapes};
use serde_json::json;

use super::Operation;
use super::row::{bounded, ids, runs};
use super::{Class, Shape, TensorSpec, TensorSpecs};
use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::judge::noisy;
use crate::params::{self, Params};
use crate::precision::Scalar;
use crate::sampler::Sampler;
use crate::tensor::{Data, Kind, Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[Operation {
    name: "llama.loss_and_gradients",
    params: &["config"],
    inputs: &[ids("tokens", &["batch", "length"])],
    outputs: &[
        bounded("loss", &[], noisy::RULE),
        bounded("logits", &["batch", "length", "vocab"], noisy::RULE),
    ],
    weights: Some(weights),
    sizes,
    run: runs!(run),
    grid: None,
    bounds,
    sample,
}];

const TOKENS: &str = "tokens";
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let config = params::llama_config(&request.params)?;
    Ok(vec![("vocab", config.vocab_size)])
}

/// Every weight of the configuration, and its gradient.
pub(super) fn weights(params: &Params) -> Result<TensorSpecs, String> {
    let config = params::llama_config(params)?;
    let spec = |name: String, shape: &[usize], class| TensorSpec {
        name: Cow::Owned(name),
        kind: Kind::Float,
        shape: Shape::Exact(shape.to_vec()),
        optional: false,
        factor: false,
        class,
    };
    let mut specs = TensorSpecs::default();
    for (name, shape) in expected_shapes(&config) {
        let class = Class::Bounded(noisy::RULE);
        specs.outputs.push(spec(format!("d_{name}"), &shape, class));
        specs.inputs.push(spec(name, &shape, Class::Given));
    }
    if config.tie_word_embeddings {
        // A checkpoint may carry the tied projection once more.
        let shape = [config.vocab_size, config.hidden_size];
        let head = spec(HEAD.to_owned(), &shape, Class::Given);
        specs.inputs.push(TensorSpec { optional: true, ..head });
    }
    Ok(specs)
}

/// Outputs under their names, over any scalar.
fn output<T: Real>(request: &Request) -> Result<Vec<(String, ArrayD<T>)>, String> {
    let config = params::llama_config(&request.params)?;
    let tokens: Array2<i32> = request.tokens(TOKENS)?;
    let names = request.inputs.keys().filter(|name| *name != TOKENS);
    let weights: BTreeMap<String, ArrayD<T>> = names
        .map(|name| request.array(name).map(|weight| (name.clone(), weight)))
        .collect::<Result<_, String>>()?;
    let result = Llama::new(config, weights)
        .and_then(|model| model.loss_and_gradients(tokens.view()))
        .map_err(|e| e.to_string())?;
    let mut outputs = vec![
        ("loss".to_owned(), arr0(result.loss).into_dyn()),
        ("logits".to_owned(), result.logits.into_dyn()),
    ];
    let gradients = result.gradients.into_iter();
    outputs.extend(gradients.map(|(name, gradient)| (format!("d_{name}"), gradient)));
    Ok(outputs)
}

fn run<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let outputs = output::<T>(request)?.into_iter();
    Ok(outputs.map(|(name, array)| (name, Tensor::floats(&array))).collect())
}

fn bounds(evidence: &Evidence) -> Result<Bounds, String> {
    noisy::bounds(evidence, output, output)
}

pub(super) fn sample(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let kv_heads = sampler.size(1, 2);
    let heads = kv_heads * sampler.size(1, 2);
    let head_dim = 2 * sampler.size(1, 3);
    let tied = sampler.chance(0.3);
    let vocab_size = sampler.size(5, 23);
    let mut config = json!({
        "model_type": "llama",
        "hidden_size": sampler.size(3, 14),
        "intermediate_size": sampler.size(3, 20),
        "num_hidden_layers": sampler.size(1, 2),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "rms_norm_eps": sampler.pick(&[1e-5, 1e-6]),
        "rope_theta": sampler.pick(&[10_000.0, 500.0]),
        "tie_word_embeddings": tied,
    });
    if let Some(scaling) = super::rope::sampled_scaling(sampler) {
        config["rope_scaling"] = scaling;
    }
    let params = Params::from_iter([("config", config)]);
    let config = params::llama_config(&params)?;
    let mut inputs = Tensors::new();
    for (name, shape) in expected_shapes(&config) {
        let weight = match (shape.as_slice(), name.as_str()) {
            // Norm weights lie around one, as trained ones do.
            ([_], _) => sampler.around(&shape, 1.0, 0.2),
            (_, EMBEDDING) => sampler.normal(&shape, 1.0),
            (_, _) => sampler.normal(&shape, 1.0 / (shape[1] as f64).sqrt()),
        };
        inputs.insert(name, weight);
    }
    let (batch, length) = (sampler.size(1, 2), sampler.size(2, 6));
    let ids = (0..batch * length).map(|_| sampler.size(0, vocab_size - 1) as i32).collect();
    inputs.insert(TOKENS.to_owned(), Tensor::new(vec![batch, length], Data::I32(ids))?);
    Ok((params, inputs))
}
