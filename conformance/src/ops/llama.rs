//! `llama.loss_and_gradients`.
//!
//! Per-element bounds through a whole model would have to follow every sensitivity; they are not
//! derived here. What stands instead is one relative bound per tensor, in this one place:
//!
//! | tensor | relative to | bound |
//! |---|---|---|
//! | `logits` | largest logit | `gamma(path)` |
//! | `loss` | largest logit, or the loss | `gamma(path)` |
//! | `d_` of one block's q, k, v, o projections | largest of the four | `gamma(3 * path)` |
//! | `d_` of a norm's weight `w` | largest `sum_o abs(W[o,h] * d_W[o,h] / w[h])` | `gamma(3 * path)` |
//! | `d_` of anything else | largest of the tensor | `gamma(3 * path)` |
//!
//! - `path` counts the roundings on the longest way from the tokens to a logit. The loss moves by
//!   at most the largest logit's error. The way back is as long for the activations, and as long
//!   again for the weights.
//! - The gradients of q and k are differences of terms as large as those of v, and vanish where a
//!   query sees one token or equal ones.
//! - The sum for a norm runs over the matrices `W` that read it. Without the absolute values it is
//!   the norm's gradient itself, so it is what the tokens' terms cancel from.
//!
//! The count is of a worst case in which no two errors cancel, while those of a long sum grow like
//! the root of their number: that margin is what sensitivities greater than one may use. A
//! formula that is wrong anywhere is far outside it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ndarray::{Array2, ArrayD};
use plumbline_reference::model::{Llama, expected_shapes};
use plumbline_reference::spec::LlamaConfig;
use serde_json::json;

use super::Operation;
use super::row::{bounded, ids, runs};
use super::{Class, Shape, TensorSpec, TensorSpecs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence};
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
        bounded("loss", &[], BOUND),
        bounded("logits", &["batch", "length", "vocab"], BOUND),
    ],
    weights: Some(weights),
    sizes,
    run: runs!(run),
    grid: None,
    bounds,
    sample,
}];

/// How a tensor of the model is judged.
pub const BOUND: &str =
    "gamma(roundings on the longest path) * largest element of the tensor, or its largest terms";

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
        class,
    };
    let mut specs = TensorSpecs::default();
    for (name, shape) in expected_shapes(&config) {
        let class = Class::Bounded(BOUND);
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

pub(super) fn run<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let config = params::llama_config(&request.params)?;
    let tokens: Array2<i32> = request.tokens(TOKENS)?;
    let names = request.inputs.keys().filter(|name| *name != TOKENS);
    let weights: BTreeMap<String, ArrayD<T>> = names
        .map(|name| request.array(name).map(|weight| (name.clone(), weight)))
        .collect::<Result<_, String>>()?;
    let result = Llama::new(config, weights)
        .and_then(|model| model.loss_and_gradients(tokens.view()))
        .map_err(|e| e.to_string())?;
    let loss = Tensor::from_f64s(Vec::new(), std::iter::once(result.loss.value()), T::PRECISION);
    let mut outputs = super::tensors([("loss", loss), ("logits", Tensor::floats(&result.logits))]);
    for (name, gradient) in &result.gradients {
        outputs.insert(format!("d_{name}"), Tensor::floats(gradient));
    }
    Ok(outputs)
}

/// Roundings on the longest way from a token to a logit.
///
/// One block: two norms, a query or key, its rotation, score, softmax and weighted sum, the
/// output projection, gate, activation, down projection, two residual sums.
pub(super) fn path(config: &LlamaConfig, length: usize) -> f64 {
    let hidden = config.hidden_size as f64;
    let norm = hidden / 2.0 + 5.0;
    let heads = (config.num_attention_heads * config.head_dim) as f64;
    let softmax = config.head_dim as f64 + 2.0 * length as f64 + 10.0;
    let attention = norm + hidden + 3.0 + softmax + heads + 1.0;
    let feed_forward = norm + hidden + 8.0 + config.intermediate_size as f64 + 1.0;
    config.num_hidden_layers as f64 * (attention + feed_forward) + norm + hidden
}

pub(super) fn bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, expected, .. } = *evidence;
    let config = params::llama_config(&request.params)?;
    let tokens: Array2<i32> = request.tokens(TOKENS)?;
    let path = path(&config, tokens.ncols());
    let scales = Scales::new(request, expected, &config);
    let allowances = expected.iter().map(|(name, tensor)| {
        let roundings = if name.starts_with("d_") { 3.0 * path } else { path };
        let condition = std::iter::repeat_n(scales.of(name), tensor.len());
        (name.clone(), Allowance::new(condition, roundings, unit))
    });
    Ok(allowances.collect())
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.values().fold(0.0, |max, x| max.max(x.abs()))
}

/// What the error of each output is relative to: the middle column of the table above.
struct Scales<'a> {
    request: &'a Request,
    expected: &'a Tensors,
    tied: bool,
}

impl<'a> Scales<'a> {
    fn new(request: &'a Request, expected: &'a Tensors, config: &LlamaConfig) -> Self {
        Self { request, expected, tied: config.tie_word_embeddings }
    }

    fn of(&self, output: &str) -> f64 {
        let own = self.largest(output);
        if output == "loss" {
            return own.max(self.largest("logits"));
        }
        if let Some((block, _)) = output.split_once(".self_attn.") {
            let names = ["q", "k", "v", "o"].map(|p| format!("{block}.self_attn.{p}_proj.weight"));
            return names.iter().fold(own, |max, name| max.max(self.largest(name)));
        }
        match output.strip_prefix("d_") {
            Some(norm) if norm.ends_with("norm.weight") => own.max(self.before_cancelling(norm)),
            _ => own,
        }
    }

    fn largest(&self, output: &str) -> f64 {
        self.expected.get(output).map_or(0.0, largest)
    }

    /// `max_h sum_o |W[o,h] * d_W[o,h] / w[h]|` over the matrices that read the norm of weight `w`.
    fn before_cancelling(&self, norm: &str) -> f64 {
        let block = |parts: &[&str], end| {
            let block = norm.strip_suffix(end).unwrap_or_default();
            parts.iter().map(|part| format!("{block}{part}.weight")).collect()
        };
        let readers: Vec<String> = if norm.ends_with("input_layernorm.weight") {
            let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
            block(&parts, "input_layernorm.weight")
        } else if norm.ends_with("post_attention_layernorm.weight") {
            block(&["mlp.gate_proj", "mlp.up_proj"], "post_attention_layernorm.weight")
        } else {
            vec![if self.tied { EMBEDDING } else { HEAD }.to_owned()]
        };
        let Some(weight) = self.request.inputs.get(norm) else { return 0.0 };
        let mut terms = vec![0.0; weight.len()];
        for reader in readers {
            let matrix = self.request.inputs.get(&reader);
            let gradient = self.expected.get(&format!("d_{reader}"));
            let Some((matrix, gradient)) = matrix.zip(gradient) else { continue };
            for (index, (w, d)) in matrix.values().zip(gradient.values()).enumerate() {
                let h = index % weight.len();
                // A norm weight of zero says nothing about what stood before it.
                let divisor = weight.value(h);
                terms[h] += if divisor == 0.0 { 0.0 } else { (w * d / divisor).abs() };
            }
        }
        terms.into_iter().fold(0.0, f64::max)
    }
}

pub(super) fn sample(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let kv_heads = sampler.size(1, 2);
    let heads = kv_heads * sampler.size(1, 2);
    let head_dim = 2 * sampler.size(1, 3);
    let tied = sampler.chance(0.3);
    let vocab_size = sampler.size(5, 23);
    let config = json!({
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
