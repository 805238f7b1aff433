//! A model that rounds its activations: the optimized crate's wiring against the reference's.
//!
//! The operation is judged case by case elsewhere; here the places of (N8d) in a LLaMA give one loss
//! and the gradient of every weight, on both backends.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, ArrayD};
use plumbline::backend::Backend;
use plumbline::checkpoint::dense_tensors;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Interpreter};
use plumbline::eval::next_tokens;
use plumbline::methods::Dense;
use plumbline::model::{Batch, Llama, Recompute, tensor_shapes};
use plumbline::train::new_model;
use plumbline_reference::Real;
use plumbline_reference::model::{Llama as ReferenceLlama, LossAndGradients};
use plumbline_reference::spec::{ActivationSpec, Bits, LlamaConfig, ZeroPointRule};

const BATCH: usize = 2;
const LENGTH: usize = 7;

fn config() -> LlamaConfig {
    let value = serde_json::json!({
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 30,
        "max_position_embeddings": 32, "tie_word_embeddings": false,
    });
    LlamaConfig::from_value(&value).unwrap()
}

type Weights = BTreeMap<String, Vec<f32>>;

/// Those of a fresh model, some times as large, so that no place is almost zero.
fn weights(config: &LlamaConfig) -> Weights {
    let mut weights = dense_tensors(&new_model(Arc::new(Cpu), config, 5).unwrap()).unwrap();
    for (name, values) in &mut weights {
        let factor = if name.contains("norm") { 1.0 } else { 8.0 };
        values.iter_mut().for_each(|value| *value *= factor);
    }
    weights
}

fn tokens() -> Vec<i32> {
    (0..BATCH * LENGTH).map(|i| ((i * i + 3 * i) % 30) as i32).collect()
}

fn reference<T: Real>(
    config: &LlamaConfig,
    weights: &Weights,
    spec: ActivationSpec,
) -> LossAndGradients<T> {
    let shapes = tensor_shapes(config);
    let arrays = weights.iter().map(|(name, values)| {
        let values = values.iter().map(|value| T::of(f64::from(*value))).collect();
        let array = ArrayD::from_shape_vec(shapes[name].clone(), values).unwrap();
        (name.clone(), array)
    });
    let model = ReferenceLlama::new(config.clone(), arrays.collect()).unwrap();
    let tokens = Array2::from_shape_vec((BATCH, LENGTH), tokens()).unwrap();
    model.with_activations(Some(spec)).loss_and_gradients(tokens.view()).unwrap()
}

/// Loss and gradients of every weight.
fn optimized<B: Backend>(
    backend: Arc<B>,
    config: &LlamaConfig,
    weights: &Weights,
    spec: Option<ActivationSpec>,
    recompute: Recompute,
) -> (f64, Weights) {
    let mut model: Llama<B, Dense<B>> = Llama::build(
        backend.clone(),
        config.clone(),
        true,
        |name, _| Ok(weights[name].clone()),
        |linear| {
            let shape = (linear.out_features, linear.in_features);
            Dense::new(&*backend, &weights[&format!("{}.weight", linear.name)], shape, true)
        },
    )
    .unwrap()
    .with_activations(spec);
    let tokens = tokens();
    let targets = next_tokens(&tokens, BATCH);
    let counted = BATCH * (LENGTH - 1);
    let mut workspace = model.training_workspace(tokens.len(), recompute).unwrap();
    let batch = Batch { batch: BATCH, tokens: &tokens, targets: &targets, documents: None };
    let loss = model.loss_and_gradients(&batch, 1.0 / counted as f32, &mut workspace).unwrap();
    assert_eq!(loss.counted, counted);
    let mut gradients = Weights::new();
    for tensor in model.trainable() {
        let gradient = backend.download(tensor.gradient, tensor.len).unwrap();
        gradients.insert(tensor.name, gradient);
    }
    (loss.sum / counted as f64, gradients)
}

/// How far apart, as a part of the size of `expected`.
fn apart(expected: &ArrayD<f64>, actual: impl Iterator<Item = f64>) -> f64 {
    let size: f64 = expected.iter().map(|v| v * v).sum();
    let error: f64 = expected.iter().zip(actual).map(|(e, a)| (e - a).powi(2)).sum();
    (error / size).sqrt()
}

/// Twice what `whole_model.rs` allows: a place divides by a step of a few percent of its range and
/// gives the rounding of its range back.
const BOUND: f64 = 32.0 / 8_388_608.0;

#[test]
fn loss_and_every_gradient_agree_with_the_reference() {
    let config = config();
    let weights = weights(&config);
    let width = |count| Bits::new(count).unwrap();
    let narrow = ActivationSpec { kv_bits: width(3), ..ActivationSpec::new(width(4)) };
    for (spec, recompute) in [
        (narrow, Recompute::None),
        (ActivationSpec { norm_outputs: false, ..narrow }, Recompute::Blocks),
        (ActivationSpec { zero_point: ZeroPointRule::Float, ..narrow }, Recompute::None),
    ] {
        let expected = reference::<f64>(&config, &weights, spec);
        // The comparison holds where no activation lies so near to a tie that f32 rounds it to the
        // other side: another code is a whole step. The reference itself must agree in f32.
        let single = reference::<f32>(&config, &weights, spec);
        for (name, gradient) in &expected.gradients {
            let single = single.gradients[name].iter().map(|v| f64::from(*v));
            assert!(apart(gradient, single) <= BOUND, "{name}: a code hangs on the precision");
        }
        let cuda = Arc::new(Cuda::new(Interpreter::new()).unwrap());
        let answers = [
            optimized(Arc::new(Cpu), &config, &weights, Some(spec), recompute),
            optimized(cuda, &config, &weights, Some(spec), recompute),
        ];
        for (loss, gradients) in answers {
            assert!((loss / expected.loss - 1.0).abs() <= BOUND, "{loss} {}", expected.loss);
            assert_eq!(gradients.len(), expected.gradients.len());
            for (name, gradient) in &expected.gradients {
                let actual = gradients[name].iter().map(|v| f64::from(*v));
                let apart = apart(gradient, actual);
                assert!(apart <= BOUND, "{name}: {apart:e}, {spec:?}");
            }
        }
        let (plain, _) = optimized(Arc::new(Cpu), &config, &weights, None, recompute);
        assert!((plain / expected.loss - 1.0).abs() > 100.0 * BOUND, "rounding changes nothing");
    }
}
