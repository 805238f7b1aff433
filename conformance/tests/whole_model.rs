//! A whole L4Q model: the optimized crate's wiring against the reference's.
//!
//! The operations are judged case by case elsewhere; here a LLaMA with every linear layer inside
//! the quantizer gives one loss and the gradient of every trained tensor.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, ArrayD, ArrayView2, Ix2};
use plumbline::backend::Storage;
use plumbline::checkpoint::{ModelFolder, Precision, dense_tensors, save_dense};
use plumbline::cpu::Cpu;
use plumbline::eval::next_tokens;
use plumbline::finetune::{Start, method_model};
use plumbline::methods::L4q as L4qLayer;
use plumbline::model::{Batch, Llama, Projection, Recompute, tensor_shapes};
use plumbline::recipe::L4qSettings;
use plumbline::train::new_model;
use plumbline_reference::methods::l4q::L4q;
use plumbline_reference::model::Llama as ReferenceLlama;
use plumbline_reference::spec::{Bits, GradScale, LlamaConfig, QuantSpec};

const RANK: usize = 3;
const GROUP_SIZE: usize = 8;
const LORA_SCALING: f32 = 1.5;

fn config(tied: bool) -> LlamaConfig {
    let value = serde_json::json!({
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 30,
        "max_position_embeddings": 32, "tie_word_embeddings": tied,
    });
    LlamaConfig::from_value(&value).unwrap()
}

/// Trained tensors of the optimized model, in f64.
type Tensors = BTreeMap<String, Array2<f64>>;

/// Moves every trained tensor away from its start, so that weights clip and no gradient is zero.
fn disturb(model: &mut Llama<Cpu, L4qLayer<Cpu>>) -> Tensors {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 40) as f32 / (1u64 << 24) as f32) - 0.5
    };
    let mut tensors = Tensors::new();
    for tensor in model.trainable() {
        let mut values = Cpu.download(tensor.value, tensor.len).unwrap();
        for value in &mut values {
            match tensor.name.rsplit('.').next().unwrap() {
                "scale" => *value *= 0.7 + 0.2 * random(),
                "offset" => *value += 0.02 * random(),
                _ => *value += 0.1 * random(),
            }
        }
        Cpu.write(&values, tensor.value).unwrap();
        let values = values.into_iter().map(f64::from).collect();
        let shape = (tensor.shape[0], tensor.shape[1]);
        tensors.insert(tensor.name, Array2::from_shape_vec(shape, values).unwrap());
    }
    tensors
}

fn layer<'a>(
    linear: &Projection,
    weight: ArrayView2<'a, f64>,
    trained: &'a Tensors,
    bits: Bits,
) -> L4q<'a, f64> {
    let tensor = |name: &str| trained[&format!("{}.{name}", linear.name)].view();
    L4q {
        weight,
        lora_a: tensor("lora_a"),
        lora_b: tensor("lora_b"),
        scale: tensor("scale"),
        offset: tensor("offset"),
        lora_scaling: f64::from(LORA_SCALING),
        spec: QuantSpec::new(bits, Some(GROUP_SIZE), linear.in_features).unwrap(),
    }
}

#[test]
fn loss_and_every_gradient_agree_with_the_reference() {
    for (tied, bits, grad_scale, recompute) in
        [(true, 4, GradScale::None, Recompute::None), (false, 2, GradScale::Lsq, Recompute::Blocks)]
    {
        let config = config(tied);
        let bits = Bits::new(bits).unwrap();
        let root = tempfile::tempdir().unwrap();
        let dense = new_model(Arc::new(Cpu), &config, 5).unwrap();
        save_dense(root.path(), &dense, None, Precision::F32).unwrap();
        let folder = ModelFolder::open(root.path()).unwrap();
        let settings = L4qSettings {
            bits,
            group_size: Some(GROUP_SIZE),
            rank: RANK,
            lora_scaling: LORA_SCALING,
            init: "l4q".into(),
            init_p: None,
            init_steps: None,
            grad_scale,
            train_scale: true,
            lora_warmup_steps: 0,
            dropout: 0.0,
            target: None,
        };
        let mut model = method_model(Arc::new(Cpu), &folder, &settings, Start::Fresh(1)).unwrap();
        let trained = disturb(&mut model);

        let (batch, length) = (2, 11);
        let tokens: Vec<i32> = (0..batch * length).map(|i| ((i * i + 3 * i) % 30) as i32).collect();
        let targets = next_tokens(&tokens, batch);
        let predicted = batch * (length - 1);
        let mut workspace = model.training_workspace(tokens.len(), recompute).unwrap();
        let call = Batch { batch, tokens: &tokens, targets: &targets, documents: None };
        let multiplier = 1.0 / predicted as f32;
        let loss = model.loss_and_gradients(&call, multiplier, &mut workspace).unwrap();

        // The reference: a dense model on the fake-quantized weights.
        let shapes = tensor_shapes(&config);
        let mut weights: BTreeMap<String, ArrayD<f64>> = dense_tensors(&dense)
            .unwrap()
            .into_iter()
            .map(|(name, values)| {
                let values = values.into_iter().map(f64::from).collect();
                let array = ArrayD::from_shape_vec(shapes[&name].clone(), values).unwrap();
                (name, array)
            })
            .collect();
        let base = weights.clone();
        let mut clipped = 0;
        for linear in Projection::all(&config) {
            let name = format!("{}.weight", linear.name);
            let weight = base[&name].view().into_dimensionality::<Ix2>().unwrap();
            let nothing = Array2::zeros((1, linear.in_features));
            let forward = layer(&linear, weight, &trained, bits).forward(nothing.view()).unwrap();
            clipped += forward.codes.iter().filter(|c| i32::from(**c) == bits.qmin()).count();
            weights.insert(name, forward.fake_quantized.into_dyn());
        }
        assert!(clipped > 0, "nothing is at the end of the grid: the test is vacuous");
        let reference = ReferenceLlama::new(config.clone(), weights).unwrap();
        let tokens = Array2::from_shape_vec((batch, length), tokens).unwrap();
        let expected = reference.loss_and_gradients(tokens.view()).unwrap();
        let mean = loss.sum / loss.counted as f64;
        assert_eq!(loss.counted, predicted);
        assert!((mean - expected.loss).abs() <= 2e-6 * expected.loss, "{mean} {}", expected.loss);

        let mut gradients = BTreeMap::new();
        for linear in Projection::all(&config) {
            let name = format!("{}.weight", linear.name);
            let weight = base[&name].view().into_dimensionality::<Ix2>().unwrap();
            let d_weight = expected.gradients[&name].view().into_dimensionality::<Ix2>().unwrap();
            let found = layer(&linear, weight, &trained, bits)
                .parameter_gradients(d_weight, grad_scale)
                .unwrap();
            for (tensor, gradient) in [
                ("lora_a", found.d_lora_a),
                ("lora_b", found.d_lora_b),
                ("scale", found.d_scale),
                ("offset", found.d_offset),
            ] {
                gradients.insert(format!("{}.{tensor}", linear.name), gradient);
            }
        }
        let all = model.trainable();
        assert_eq!(all.len(), gradients.len());
        for tensor in all {
            let expected = &gradients[&tensor.name];
            let actual = Cpu.download(tensor.gradient, tensor.len).unwrap();
            let size = expected.iter().map(|v| v * v).sum::<f64>().sqrt();
            let error = expected
                .iter()
                .zip(&actual)
                .map(|(e, a)| (e - f64::from(*a)).powi(2))
                .sum::<f64>()
                .sqrt();
            // Sixteen f32 roundings in a row, twice the deepest path through this model's sums.
            assert!(error <= 16.0 * 2f64.powi(-23) * size, "{}: {error} of {size}", tensor.name);
        }
    }
}
