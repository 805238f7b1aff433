//! Properties of (N8).

use std::collections::BTreeMap;

use ndarray::{Array2, Array3, ArrayD, Axis, IxDyn, arr1, arr2, array, concatenate, s};
use plumbline_reference::cross_entropy::cross_entropy;
use plumbline_reference::model::{Llama, expected_shapes};
use plumbline_reference::spec::LlamaConfig;
use plumbline_reference::{Error, Real};

use crate::differences::assert_gradient;
use crate::inputs::{Random, cast};

const VOCAB: u64 = 7;

/// Two layers whose heads together are wider than the residual stream, so that no two sizes that
/// could be confused are equal. The eps keeps every root mean square above 0.5, where differences
/// of 1/256 stay in the smooth part.
fn config(kv_heads: usize, tied: bool) -> LlamaConfig {
    LlamaConfig::from_value(&serde_json::json!({
        "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": kv_heads, "head_dim": 2,
        "vocab_size": VOCAB, "rms_norm_eps": 0.25, "rope_theta": 100.0,
        "tie_word_embeddings": tied,
    }))
    .unwrap()
}

fn weights(config: &LlamaConfig, seed: u64) -> BTreeMap<String, ArrayD<f64>> {
    let mut random = Random(seed);
    expected_shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let weight = random.array(IxDyn(&shape), 0.8);
            // Norm weights are around 1, as trained ones are.
            let shift = if shape.len() == 1 { 1.0 } else { 0.0 };
            (name, weight + shift)
        })
        .collect()
}

fn model(config: &LlamaConfig, seed: u64) -> Llama<f64> {
    Llama::new(config.clone(), weights(config, seed)).unwrap()
}

/// The loss from the logits, with the targets written out.
fn loss(model: &Llama<f64>, tokens: &Array2<i32>) -> f64 {
    let logits = model.logits(tokens.view()).unwrap();
    let (batch, length, vocab) = logits.dim();
    let predicted = logits.slice(s![.., ..length - 1, ..]).to_owned();
    let predicted = predicted.into_shape_with_order((batch * (length - 1), vocab)).unwrap();
    let targets: Vec<i32> = tokens.slice(s![.., 1..]).iter().copied().collect();
    cross_entropy(predicted.view(), arr1(&targets).view(), -100).unwrap()
}

/// Every gradient against differences of the whole loss. A loss near 2 is the end of fewer than a
/// thousand roundings of numbers of its size.
fn every_gradient_is_a_derivative(tied: bool) {
    let config = config(2, tied);
    let base = weights(&config, 11);
    let tokens = Random(12).tokens((2, 4), VOCAB);
    let result = Llama::new(config.clone(), base.clone())
        .unwrap()
        .loss_and_gradients(tokens.view())
        .unwrap();
    assert!(result.gradients.keys().eq(base.keys()));
    let noise = 1e3 * f64::EPSILON / 2.0 * 2.0;
    for (name, gradient) in &result.gradients {
        assert!(gradient.iter().any(|g| g.abs() > 1e-3), "{name} has no gradient to speak of");
        assert_gradient(name, &base[name], gradient, noise, |moved| {
            let mut weights = base.clone();
            weights.insert(name.clone(), moved.clone());
            loss(&Llama::new(config.clone(), weights).unwrap(), &tokens)
        });
    }
}

/// Property of (N8b).
#[test]
fn every_gradient_of_an_untied_model_is_a_derivative() {
    every_gradient_is_a_derivative(false);
}

/// Property of (N8b) and (N8) C2.
#[test]
fn every_gradient_of_a_tied_model_is_a_derivative() {
    every_gradient_is_a_derivative(true);
}

/// Property of (N8b): loss and logits are those of the parts.
#[test]
fn the_loss_is_the_mean_over_next_tokens() {
    let model = model(&config(2, false), 1);
    let tokens = Random(2).tokens((3, 5), VOCAB);
    let result = model.loss_and_gradients(tokens.view()).unwrap();
    assert_eq!(result.logits, model.logits(tokens.view()).unwrap());
    assert_eq!(result.loss, loss(&model, &tokens));
}

/// Property of (N8) C1.
#[test]
fn a_later_token_changes_no_earlier_logit() {
    let model = model(&config(2, false), 3);
    let tokens = Random(4).tokens((2, 6), VOCAB);
    let before = model.logits(tokens.view()).unwrap();
    for changed in 0..6 {
        let mut other = tokens.clone();
        other[[0, changed]] = (other[[0, changed]] + 1) % VOCAB as i32;
        let after = model.logits(other.view()).unwrap();
        assert_eq!(before.slice(s![0, ..changed, ..]), after.slice(s![0, ..changed, ..]));
        assert_ne!(before.slice(s![0, changed, ..]), after.slice(s![0, changed, ..]));
        assert_eq!(before.slice(s![1, .., ..]), after.slice(s![1, .., ..]));
    }
}

/// Property of (N8) C1.
#[test]
fn a_batch_is_its_sequences() {
    let model = model(&config(2, true), 5);
    let tokens = Random(6).tokens((3, 4), VOCAB);
    let together = model.logits(tokens.view()).unwrap();
    for b in 0..3 {
        let alone = model.logits(tokens.slice(s![b..b + 1, ..])).unwrap();
        assert_eq!(together.slice(s![b..b + 1, .., ..]), alone);
    }
}

/// Each head's rows of a key or value projection, once per query head that shares it.
fn repeat_heads(weight: &ArrayD<f64>, head_dim: usize, shared: usize) -> ArrayD<f64> {
    let heads: Vec<_> = weight
        .axis_chunks_iter(Axis(0), head_dim)
        .flat_map(|head| std::iter::repeat_n(head, shared))
        .collect();
    concatenate(Axis(0), &heads).unwrap()
}

/// Property of (N8c): sharing key heads is repeating them, and a shared head's gradient is the sum
/// over its copies.
#[test]
fn grouped_heads_equal_repeated_heads() {
    let (grouped, spread) = (config(2, false), config(4, false));
    let shared_weights = weights(&grouped, 7);
    let is_shared = |name: &str| name.contains("k_proj") || name.contains("v_proj");
    let spread_weights = shared_weights
        .iter()
        .map(|(name, weight)| {
            let weight = if is_shared(name) { repeat_heads(weight, 2, 2) } else { weight.clone() };
            (name.clone(), weight)
        })
        .collect();
    let tokens = Random(8).tokens((2, 4), VOCAB);
    let run = |config, weights| {
        Llama::new(config, weights).unwrap().loss_and_gradients(tokens.view()).unwrap()
    };
    let (one, other) = (run(grouped, shared_weights), run(spread, spread_weights));
    assert_eq!(one.logits, other.logits);
    for (name, gradient) in &one.gradients {
        let mut expected = other.gradients[name].clone();
        if is_shared(name) {
            let rows: Vec<usize> = (0..gradient.shape()[0]).map(|o| o / 2 * 4 + o % 2).collect();
            let copies: Vec<usize> = rows.iter().map(|row| row + 2).collect();
            expected = expected.select(Axis(0), &rows) + expected.select(Axis(0), &copies);
        }
        // Only the order of the sums over heads differs; every gradient here is below 1.
        let worst = (gradient - &expected).iter().fold(0.0_f64, |worst, d| worst.max(d.abs()));
        assert!(worst <= 1e3 * f64::EPSILON, "{name}: {worst}");
    }
}

/// Property of (N8) C2.
#[test]
fn a_tied_table_gets_the_gradients_of_both_its_uses() {
    let (tied, untied) = (config(2, true), config(2, false));
    let tied_weights = weights(&tied, 9);
    let mut untied_weights = tied_weights.clone();
    let table = tied_weights["model.embed_tokens.weight"].clone();
    untied_weights.insert("lm_head.weight".into(), table);
    let tokens = Random(10).tokens((2, 4), VOCAB);
    let tied = Llama::new(tied, tied_weights).unwrap().loss_and_gradients(tokens.view()).unwrap();
    let untied =
        Llama::new(untied, untied_weights).unwrap().loss_and_gradients(tokens.view()).unwrap();
    assert_eq!(tied.logits, untied.logits);
    for (name, gradient) in &tied.gradients {
        let mut expected = untied.gradients[name].clone();
        if name == "model.embed_tokens.weight" {
            expected += &untied.gradients["lm_head.weight"];
        }
        assert_eq!(gradient, &expected, "{name}");
    }
    assert!(!tied.gradients.contains_key("lm_head.weight"));
}

/// Example of (N8).
#[test]
fn with_identity_blocks_the_logits_are_known() {
    let config = LlamaConfig::from_value(&serde_json::json!({
        "hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 1,
        "num_attention_heads": 1, "head_dim": 2, "vocab_size": 2, "rms_norm_eps": 1e-18,
        "tie_word_embeddings": true,
    }))
    .unwrap();
    let mut weights = weights(&config, 1);
    let half_log = 3.0_f64.ln() / 2.0;
    weights.insert("model.embed_tokens.weight".into(), array![[1.0], [-1.0]].into_dyn());
    weights.insert("model.norm.weight".into(), array![half_log].into_dyn());
    for part in ["self_attn.o_proj", "mlp.down_proj"] {
        weights.get_mut(&format!("model.layers.0.{part}.weight")).unwrap().fill(0.0);
    }
    let model = Llama::new(config, weights).unwrap();
    let result = model.loss_and_gradients(array![[0, 0]].view()).unwrap();
    let expected = array![[[half_log, -half_log], [half_log, -half_log]]];
    approx::assert_relative_eq!(result.logits, expected, epsilon = 1e-15);
    approx::assert_relative_eq!(result.loss, (4.0_f64 / 3.0).ln(), epsilon = 1e-15);
}

/// The two precisions are one model. f32 rounds at 6e-8; a few hundred roundings of numbers around
/// 1 lie between the weights and the logits, and the differences must not vanish either.
#[test]
fn f32_follows_f64() {
    let config = config(2, false);
    let exact = weights(&config, 13);
    let rounded = exact.iter().map(|(name, w)| (name.clone(), cast::<f32, _>(w))).collect();
    let tokens = Random(14).tokens((2, 4), VOCAB);
    let exact = Llama::new(config.clone(), exact).unwrap().loss_and_gradients(tokens.view());
    let rounded = Llama::new(config, rounded).unwrap().loss_and_gradients(tokens.view());
    let (exact, rounded) = (exact.unwrap(), rounded.unwrap());
    let bound = 300.0 * f64::from(f32::EPSILON) / 2.0;
    let error = |a: &ArrayD<f64>, b: &ArrayD<f32>| {
        a.iter().zip(b).fold(0.0_f64, |worst, (a, b)| worst.max((a - b.value()).abs()))
    };
    let logits: (Array3<f64>, Array3<f32>) = (exact.logits, rounded.logits);
    let worst = error(&logits.0.into_dyn(), &logits.1.into_dyn());
    assert!(0.0 < worst && worst <= bound, "logits: {worst}");
    for (name, gradient) in &exact.gradients {
        let worst = error(gradient, &rounded.gradients[name]);
        assert!(0.0 < worst && worst <= bound, "{name}: {worst}");
    }
}

#[test]
fn replacing_a_weight_is_building_with_it() {
    let config = config(2, false);
    let name = "model.layers.1.mlp.up_proj.weight";
    let replacement = Random(20).array((5, 6), 1.0);
    let mut other = weights(&config, 19);
    other.insert(name.into(), replacement.clone().into_dyn());
    let replaced = model(&config, 19).with_weight(name, replacement).unwrap();
    assert_eq!(replaced.weights(), &other);
    let refused = replaced.clone().with_weight("lm_head.bias", arr2(&[[0.0]])).unwrap_err();
    assert_eq!(refused.to_string(), "weights: missing [], unexpected [lm_head.bias]");
    assert!(matches!(replaced.with_weight(name, arr2(&[[0.0]])), Err(Error::Shape { .. })));
}

#[test]
fn incomplete_or_foreign_weights_are_refused_by_name() {
    let config = config(2, true);
    let mut changed = weights(&config, 21);
    let norm = changed.remove("model.norm.weight").unwrap();
    changed.insert("model.norm.bias".into(), norm);
    let refused = Llama::new(config.clone(), changed).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "weights: missing [model.norm.weight], unexpected [model.norm.bias]"
    );

    let mut changed = weights(&config, 21);
    changed.insert("model.norm.weight".into(), ArrayD::zeros(IxDyn(&[7])));
    let refused = Llama::new(config.clone(), changed).unwrap_err();
    assert_eq!(refused.to_string(), "llama: model.norm.weight has shape [7], expected [6]");

    let mut changed = weights(&config, 21);
    changed.get_mut("model.layers.0.mlp.up_proj.weight").unwrap()[[4, 5]] = f64::NAN;
    let refused = Llama::new(config, changed).unwrap_err();
    assert_eq!(refused.to_string(), "llama: model.layers.0.mlp.up_proj.weight[4, 5] is NaN");
}

/// Property of (N8) C2.
#[test]
fn a_separate_head_of_a_tied_model_must_be_the_table() {
    let config = config(2, true);
    let mut weights = weights(&config, 22);
    let table = weights["model.embed_tokens.weight"].clone();
    weights.insert("lm_head.weight".into(), table.clone());
    let model = Llama::new(config.clone(), weights.clone()).unwrap();
    assert!(!model.weights().contains_key("lm_head.weight"));
    weights.insert("lm_head.weight".into(), table * 2.0);
    assert!(matches!(Llama::new(config, weights), Err(Error::NotTied { .. })));
}

/// Property of (N8) C3, and tokens from outside.
#[test]
fn impossible_batches_are_refused() {
    let model = model(&config(2, true), 23);
    let short = model.loss_and_gradients(array![[1], [2]].view()).unwrap_err();
    assert!(matches!(short, Error::Empty { .. }));
    assert!(matches!(
        model.loss_and_gradients(Array2::zeros((0, 4)).view()),
        Err(Error::Empty { .. })
    ));
    assert!(matches!(
        model.loss_and_gradients(Array2::zeros((4, 0)).view()),
        Err(Error::Empty { .. })
    ));
    assert_eq!(model.logits(array![[1]].view()).unwrap().dim(), (1, 1, VOCAB as usize));
    for token in [-1, VOCAB as i32] {
        assert!(matches!(
            model.logits(array![[0, token]].view()),
            Err(Error::TokenOutOfRange { .. })
        ));
    }
}
