//! A whole checkpoint in one number: the mean loss of given tokens, and what the model would write.
//!
//! The golden cases judge a LLaMA's wiring on small random weights; this looks at a real model,
//! whose numbers somebody else has published.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, ArrayD};
use plumbline::backend::Backend;
use plumbline::checkpoint::{LoadedModel, ModelFolder};
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Gpu, Interpreter};
use plumbline::eval::next_tokens;
use plumbline::methods::LinearMethod;
use plumbline::model::{Batch, Decoder, tensor_shapes};
use plumbline_reference::{Real, cross_entropy, model};

use crate::error::Error;
use crate::precision::Precision;

/// What to ask of a model.
pub struct Question {
    /// Tokens whose next-token loss is wanted; may be empty.
    pub tokens: Vec<i32>,
    /// How many tokens to write greedily from BOS, BOS included.
    pub greedy: usize,
}

/// What a model answered.
#[derive(Debug, serde::Serialize)]
pub struct Answer {
    /// Mean over all tokens but the first, nats; `None` when no tokens were given.
    pub mean_loss: Option<f64>,
    /// BOS and the most likely continuation; empty when none was asked.
    pub greedy_from_bos: Vec<i32>,
}

/// Asks a full-precision checkpoint, through the reference or a backend of the optimized crate.
///
/// # Errors
/// `Usage` for a subject that has no whole model here, a folder that cannot be read, or a token
/// outside the vocabulary.
pub fn ask(
    folder: &Path,
    question: &Question,
    subject: &str,
    precision: Precision,
) -> Result<Answer, Error> {
    let folder = ModelFolder::open(folder).map_err(usage)?;
    let bos = folder.config().bos_token_id.map(|bos| bos as i32);
    if question.greedy > 0 && bos.is_none() {
        let path = folder.path().join("config.json");
        return Err(Error::Usage(format!("{}: bos_token_id is missing", path.display())));
    }
    let start = bos.unwrap_or_default();
    match (subject, precision) {
        ("reference", Precision::F64) => reference::<f64>(&folder, question, start),
        ("reference", Precision::F32) => reference::<f32>(&folder, question, start),
        ("cpu", Precision::F32) => optimized(Cpu, &folder, question, start),
        ("cuda-host", Precision::F32) => {
            optimized(Cuda::new(Interpreter::new()).map_err(usage)?, &folder, question, start)
        }
        ("cuda", Precision::F32) => {
            let gpu = Gpu::new(0).and_then(Cuda::new);
            let missing =
                |e: plumbline::error::Error| Error::Absent { subject: "cuda", why: e.to_string() };
            optimized(gpu.map_err(missing)?, &folder, question, start)
        }
        (subject, precision) => {
            let reason = format!(
                "{subject} at {precision} has no whole model; there are reference \
                 at f64 and f32, and cpu, cuda-host and cuda at f32"
            );
            Err(Error::Usage(reason))
        }
    }
}

/// Token ids from a JSON file: an array, or an object with `input_ids`.
///
/// # Errors
/// `Io`; `Case` naming what is not a token id.
pub fn read_token_ids(path: &Path) -> Result<Vec<i32>, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| Error::case(path, error.to_string()))?;
    let list = value.get("input_ids").unwrap_or(&value).as_array();
    let list = list.ok_or_else(|| Error::case(path, "neither an array nor input_ids"))?;
    list.iter()
        .map(|id| {
            let parsed = id.as_i64().and_then(|id| i32::try_from(id).ok());
            parsed.ok_or_else(|| Error::case(path, format!("{id} is not a token id")))
        })
        .collect()
}

fn usage(error: impl std::fmt::Display) -> Error {
    Error::Usage(error.to_string())
}

fn reference<T: Real>(
    folder: &ModelFolder,
    question: &Question,
    bos: i32,
) -> Result<Answer, Error> {
    let mut weights = BTreeMap::new();
    for (name, shape) in tensor_shapes(folder.config()) {
        let values = folder.tensor(&name, &shape).map_err(usage)?;
        let values = values.into_iter().map(|value| T::of(f64::from(value))).collect();
        weights.insert(name, ArrayD::from_shape_vec(shape, values).map_err(usage)?);
    }
    let activations = folder.quantization().and_then(|quantization| quantization.activations);
    let model = model::Llama::new(folder.config().clone(), weights).map_err(usage)?;
    let model = model.with_activations(activations);
    let logits = |tokens: &[i32]| {
        let tokens = Array2::from_shape_vec((1, tokens.len()), tokens.to_vec()).map_err(usage)?;
        let logits = model.logits(tokens.view()).map_err(usage)?;
        let (length, vocab) = (logits.dim().1, logits.dim().2);
        logits.into_shape_with_order((length, vocab)).map_err(usage)
    };
    let mean_loss = if question.tokens.is_empty() {
        None
    } else {
        let targets = ndarray::Array1::from(next_tokens(&question.tokens, 1));
        let ignore = plumbline::model::IGNORE;
        let loss =
            cross_entropy::cross_entropy(logits(&question.tokens)?.view(), targets.view(), ignore);
        Some(loss.map_err(usage)?.value())
    };
    let mut written = Vec::new();
    if question.greedy > 0 {
        written.push(bos);
    }
    while written.len() < question.greedy {
        let logits = logits(&written)?;
        let last: Vec<f64> =
            logits.row(logits.nrows() - 1).iter().map(|logit| logit.value()).collect();
        written.push(largest(&last));
    }
    Ok(Answer { mean_loss, greedy_from_bos: written })
}

fn optimized<B: Backend>(
    backend: B,
    folder: &ModelFolder,
    question: &Question,
    bos: i32,
) -> Result<Answer, Error> {
    match folder.load(Arc::new(backend)).map_err(usage)? {
        LoadedModel::Dense(model) => answer(&model, question, bos),
        LoadedModel::Merged(model) => answer(&model, question, bos),
        LoadedModel::Affine(model) => answer(&model, question, bos),
    }
}

fn answer<B: Backend, L: LinearMethod<B>>(
    model: &plumbline::model::Llama<B, L>,
    question: &Question,
    bos: i32,
) -> Result<Answer, Error> {
    let mean_loss = if question.tokens.is_empty() {
        None
    } else {
        let tokens = &question.tokens;
        let targets = next_tokens(tokens, 1);
        let mut workspace = model.evaluation_workspace(tokens.len()).map_err(usage)?;
        let batch = Batch { batch: 1, tokens, targets: &targets, documents: None };
        let loss = model.loss(&batch, &mut workspace).map_err(usage)?;
        Some(loss.sum / loss.counted as f64)
    };
    let mut written = Vec::new();
    if question.greedy > 0 {
        written.push(bos);
        let mut decoder = Decoder::new(model, question.greedy).map_err(usage)?;
        while written.len() < question.greedy {
            let last = written[written.len() - 1];
            let logits: Vec<f64> =
                decoder.append(&[last]).map_err(usage)?.into_iter().map(f64::from).collect();
            written.push(largest(&logits));
        }
    }
    Ok(Answer { mean_loss, greedy_from_bos: written })
}

/// The first of the largest logits.
fn largest(logits: &[f64]) -> i32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as i32
}
