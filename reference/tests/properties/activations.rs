//! Properties of (N8d).

use std::cell::RefCell;

use ndarray::{Array1, Array2, ArrayD, ArrayView2, IxDyn, s};
use plumbline_reference::Real;
use plumbline_reference::attention::attention;
use plumbline_reference::cross_entropy::cross_entropy;
use plumbline_reference::linear::linear;
use plumbline_reference::model::{Llama, LossAndGradients, expected_shapes};
use plumbline_reference::rms_norm::rms_norm;
use plumbline_reference::rope::rope;
use plumbline_reference::spec::{ActivationSpec, Bits, LlamaConfig, ZeroPointRule};
use plumbline_reference::swiglu::swiglu;

use crate::inputs::Random;
use crate::proof::{Definition, assert_gradients, matrix, with_gradient};

const VOCAB: usize = 5;

/// No two sizes that could be confused are equal.
fn config() -> LlamaConfig {
    LlamaConfig::from_value(&serde_json::json!({
        "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2,
        "vocab_size": VOCAB, "rms_norm_eps": 0.25, "rope_theta": 100.0,
        "tie_word_embeddings": false,
    }))
    .unwrap()
}

fn bits(count: u32) -> Bits {
    Bits::new(count).unwrap()
}

fn specs() -> [ActivationSpec; 3] {
    let plain = ActivationSpec { kv_bits: bits(2), ..ActivationSpec::new(bits(3)) };
    let float = ActivationSpec { zero_point: ZeroPointRule::Float, ..plain };
    [plain, float, ActivationSpec { norm_outputs: false, ..plain }]
}

/// What an activation's place took from the data at the point, in the order of the forward.
#[derive(Default)]
struct Grids {
    is_recording: bool,
    found: Vec<(f64, f64)>,
    next: usize,
    clipped: usize,
}

/// The loss of one sequence through one block, over any scalar. What is taken from the data is a
/// constant: it comes from the point, whatever is moved.
struct Loss {
    config: LlamaConfig,
    spec: ActivationSpec,
    names: Vec<String>,
    tokens: Vec<i32>,
    grids: RefCell<Grids>,
}

impl Loss {
    fn new(spec: ActivationSpec, tokens: &[i32], tensors: &[(String, ArrayD<f64>)]) -> Self {
        let grids = RefCell::new(Grids { is_recording: true, ..Grids::default() });
        let names = tensors.iter().map(|(name, _)| name.clone()).collect();
        let this = Self { config: config(), spec, names, tokens: tokens.to_vec(), grids };
        let values: Vec<_> = tensors.iter().map(|(_, values)| values.clone()).collect();
        this.loss(&values);
        this.grids.borrow_mut().is_recording = false;
        this
    }

    /// (Q14) in groups of neighbouring columns.
    fn round<T: Real>(&self, x: &Array2<T>, bits: Bits, group: usize) -> Array2<T> {
        let last = f64::from(bits.unsigned_max());
        let mut rounded = x.clone();
        for mut row in rounded.rows_mut() {
            for mut values in row.exact_chunks_mut(group) {
                let (scale, zero_point) = self.grid(values.iter().map(|x| x.value()), last);
                for x in &mut values {
                    let place = (*x / T::of(scale)).round_half_even() + T::of(zero_point);
                    let outside = !(0.0..=last).contains(&place.value());
                    self.grids.borrow_mut().clipped += usize::from(outside);
                    let level = place.max(T::of(0.0)).min(T::of(last));
                    *x = (level - T::of(zero_point)) * T::of(scale);
                }
            }
        }
        rounded
    }

    fn grid(&self, values: impl Iterator<Item = f64> + Clone, last: f64) -> (f64, f64) {
        let mut grids = self.grids.borrow_mut();
        if grids.is_recording {
            let low = values.clone().fold(f64::INFINITY, f64::min);
            let high = values.fold(f64::NEG_INFINITY, f64::max);
            assert!(high > low, "a constant group");
            let scale = (high - low) / last;
            let zero_point = match self.spec.zero_point {
                ZeroPointRule::Integer => (-low / scale).round_ties_even(),
                ZeroPointRule::Float => -low / scale,
            };
            grids.found.push((scale, zero_point));
        }
        grids.next += 1;
        grids.found[grids.next - 1]
    }
}

fn split<T: Real>(rows: &Array2<T>, head_dim: usize) -> ndarray::Array3<T> {
    let shape = (rows.nrows(), rows.ncols() / head_dim, head_dim);
    rows.clone().into_shape_with_order(shape).unwrap()
}

fn join<T: Real>(heads: ndarray::Array3<T>) -> Array2<T> {
    let (rows, count, width) = heads.dim();
    heads.into_shape_with_order((rows, count * width)).unwrap()
}

impl Definition for Loss {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        self.grids.borrow_mut().next = 0;
        let Self { config, spec, .. } = self;
        let find = |part: &str| {
            let of_block = format!("model.layers.0.{part}.weight");
            let is_it = |name: &String| *name == of_block || *name == format!("{part}.weight");
            tensors[self.names.iter().position(is_it).expect(part)].clone()
        };
        let project = |x: ArrayView2<T>, part: &str| linear(x, matrix(&find(part)).view()).unwrap();
        let norm = |x: &Array2<T>, part: &str| {
            let weight: Array1<T> = find(part).into_dimensionality().unwrap();
            rms_norm(x.view(), weight.view(), config.rms_norm_eps).unwrap()
        };
        let behind_norm = |x: Array2<T>| match spec.norm_outputs {
            true => self.round(&x, spec.bits, config.hidden_size),
            false => x,
        };
        let head = config.head_dim;
        let turn = |x: &Array2<T>| join(rope(split(x, head).view(), config.rope, 0).unwrap());
        let table = matrix(&find("model.embed_tokens"));
        let hidden = Array2::from_shape_fn((self.tokens.len(), config.hidden_size), |(t, i)| {
            table[[self.tokens[t] as usize, i]]
        });

        let a = behind_norm(norm(&hidden, "input_layernorm"));
        let q = self.round(&turn(&project(a.view(), "self_attn.q_proj")), spec.bits, head);
        let k = self.round(&project(a.view(), "self_attn.k_proj"), spec.kv_bits, head);
        let k = self.round(&turn(&k), spec.bits, head);
        let v = self.round(&project(a.view(), "self_attn.v_proj"), spec.kv_bits, head);
        let one = |x: &Array2<T>| split(x, head).insert_axis(ndarray::Axis(0));
        let attended = attention(one(&q).view(), one(&k).view(), one(&v).view()).unwrap();
        let attended = join(attended.index_axis_move(ndarray::Axis(0), 0));
        let attended = self.round(&attended, spec.bits, attended.ncols());
        let middle = &hidden + &project(attended.view(), "self_attn.o_proj");
        let f = behind_norm(norm(&middle, "post_attention_layernorm"));
        let gate = project(f.view(), "mlp.gate_proj").into_dyn();
        let up = project(f.view(), "mlp.up_proj").into_dyn();
        let gated = matrix(&swiglu(gate.view(), up.view()).unwrap());
        let gated = self.round(&gated, spec.bits, config.intermediate_size);
        let output = &middle + &project(gated.view(), "mlp.down_proj");

        let logits = project(norm(&output, "model.norm").view(), "lm_head");
        let predicted = logits.slice(s![..self.tokens.len() - 1, ..]);
        let targets = Array1::from(self.tokens[1..].to_vec());
        cross_entropy(predicted, targets.view(), -100).unwrap()
    }
}

fn weights(seed: u64) -> Vec<(String, ArrayD<f64>)> {
    let mut random = Random(seed);
    expected_shapes(&config())
        .into_iter()
        .map(|(name, shape)| {
            let shift = if shape.len() == 1 { 1.0 } else { 0.0 };
            (name, random.array(IxDyn(&shape), 0.8) + shift)
        })
        .collect()
}

fn run(spec: Option<ActivationSpec>, seed: u64, tokens: &[i32]) -> LossAndGradients<f64> {
    let model = Llama::new(config(), weights(seed).into_iter().collect()).unwrap();
    let tokens = Array2::from_shape_vec((1, tokens.len()), tokens.to_vec()).unwrap();
    model.with_activations(spec).loss_and_gradients(tokens.view()).unwrap()
}

/// Property of (N8d): the loss is that of the formula, and every gradient that of its derivative
/// where scale, zero point and the residuals of rounding are constants.
#[test]
fn every_gradient_is_that_of_the_definition() {
    let tokens = [3, 0, 4, 1];
    let mut clipped = 0;
    for (spec, seed) in specs().into_iter().zip(21..) {
        let tensors = weights(seed);
        let definition = Loss::new(spec, &tokens, &tensors);
        clipped += definition.grids.borrow().clipped;
        let result = run(Some(spec), seed, &tokens);
        let values: Vec<_> = tensors.iter().map(|(_, values)| values.clone()).collect();
        let expected: f64 = definition.loss(&values);
        assert!((result.loss - expected).abs() <= 1e-13, "{} {expected}", result.loss);
        let proved: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| with_gradient(name, tensor, &result.gradients[name]))
            .collect();
        assert_gradients(&definition, &proved);
    }
    assert!(clipped > 0, "nothing was clipped: the masks were not tried");
}

/// Property of (N8d): wide grids leave a model almost as it is, and each place counts.
#[test]
fn eight_bits_are_near_to_none_and_fewer_are_further() {
    let tokens = [3, 0, 4, 1];
    let plain = run(None, 7, &tokens).loss;
    let apart = [8, 4, 2].map(|count| {
        let spec = ActivationSpec::new(bits(count));
        (run(Some(spec), 7, &tokens).loss - plain).abs()
    });
    assert!(0.0 < apart[0] && apart[0] < 0.02 * plain, "{apart:?} of {plain}");
    assert!(apart[0] < apart[1] && apart[1] < apart[2], "{apart:?}");
}
