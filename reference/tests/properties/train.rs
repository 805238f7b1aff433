//! Properties of (T2).

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayD, ArrayView2, Ix2, IxDyn};
use plumbline_reference::Real;
use plumbline_reference::adamw::adamw_step;
use plumbline_reference::affine::affine_dequantize;
use plumbline_reference::methods::l4q::L4q;
use plumbline_reference::methods::lr_qat::LrQat;
use plumbline_reference::methods::qa_lora::QaLora;
use plumbline_reference::model::train::{
    Grid, LayerShape, LayerTensor, Method, Moments, Optimizer, Training,
};
use plumbline_reference::model::{Llama, expected_shapes, linear_shapes};
use plumbline_reference::quantize::{dequantize, fake_quantize, raised_scale};
use plumbline_reference::spec::{
    AdamWSpec, Bits, Downcast, GradScale, GroupPool, InnerScale, LlamaConfig, LrQatDialect,
    LrQatMask, LrQatSpec, Pool, QaLoraDialect, QatQuantizer, QuantSpec, StraightThrough,
};
use plumbline_reference::straight_through::fake_quantize_backward;

use crate::inputs::{Random, cast};

const VOCAB: u64 = 7;
const RANK: usize = 2;
const LORA_SCALING: f64 = 0.75;
const BITS: u32 = 3;
const GROUP_SIZE: usize = 2;

type Arrays<T> = BTreeMap<String, ArrayD<T>>;
type Codes = BTreeMap<String, Array2<u8>>;

fn config() -> LlamaConfig {
    LlamaConfig::from_value(&serde_json::json!({
        "hidden_size": 6, "intermediate_size": 4, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2,
        "vocab_size": VOCAB, "rms_norm_eps": 0.25, "rope_theta": 100.0,
    }))
    .unwrap()
}

fn grid() -> Grid {
    Grid { bits: Bits::new(BITS).unwrap(), group_size: Some(GROUP_SIZE) }
}

fn spec(in_features: usize) -> QuantSpec {
    QuantSpec::new(grid().bits, grid().group_size, in_features).unwrap()
}

fn rules() -> StraightThrough {
    GradScale::Lsq.into()
}

fn qa_lora_pool() -> GroupPool {
    GroupPool::new(Pool::Mean, QaLoraDialect::Paper).unwrap()
}

const L4Q: usize = 1;
const LR_QAT: usize = 2;
const QA_LORA: usize = 3;
const QAT: usize = 4;
const PEQA: usize = 6;

/// Each of the methods, in this order.
fn methods() -> [Method; 7] {
    let (grid, lora_scaling, rules) = (grid(), LORA_SCALING, rules());
    let inner_scale = InnerScale::Frozen(Downcast::Fixed8);
    let (mask, dialect) = (LrQatMask::Rounded, LrQatDialect::Paper);
    [
        Method::Lora { lora_scaling },
        Method::L4q { grid, lora_scaling, rules },
        Method::LrQat { grid, lora_scaling, inner_scale, mask, dialect },
        Method::QaLora { grid, lora_scaling, pool: qa_lora_pool() },
        Method::Qat { grid, quantizer: QatQuantizer::LsqPlus, rules },
        Method::QatLora { grid, lora_scaling, rules },
        Method::Peqa { grid },
    ]
}

/// A model in which weights clip, with no zero that would hide a path.
fn start(method: Method, seed: u64) -> (Arrays<f64>, Codes) {
    let (mut random, config) = (Random(seed), config());
    let (mut tensors, mut codes) = (Arrays::new(), Codes::new());
    for (name, shape) in expected_shapes(&config) {
        if !name.contains("_proj") {
            let shift = if shape.len() == 1 { 1.0 } else { 0.0 };
            tensors.insert(name, random.array(IxDyn(&shape), 0.8) + shift);
        }
    }
    for (layer, size) in linear_shapes(&config) {
        let groups = method.groups(size[1]).unwrap();
        let in_grid_units = matches!(method, Method::LrQat { .. });
        for LayerTensor { name, shape, .. } in method.layer_tensors() {
            let sizes = shape.sizes(size, groups, RANK);
            let array = match (name, shape) {
                ("codes", _) => {
                    let shape = (sizes[0], sizes[1]);
                    codes.insert(format!("{layer}.codes"), random.codes(shape, &spec(size[1])));
                    continue;
                }
                // Four steps to the lower end: some of the weights lie beyond.
                ("scale" | "initial_scale", _) => random.array(IxDyn(&sizes), 0.04) + 0.16,
                ("zero_point", _) if in_grid_units => ArrayD::from_elem(IxDyn(&sizes), 3.0),
                ("zero_point", _) => random.array(IxDyn(&sizes), 0.5) + 3.5,
                ("offset", _) => random.array(IxDyn(&sizes), 0.1),
                (_, LayerShape::LoraA | LayerShape::PooledLoraA | LayerShape::LoraB) => {
                    random.array(IxDyn(&sizes), if in_grid_units { 1.0 } else { 0.4 })
                }
                _ => random.array(IxDyn(&sizes), 0.8),
            };
            tensors.insert(format!("{layer}.{name}"), array);
        }
    }
    (tensors, codes)
}

fn training<T: Real>(method: Method, seed: u64) -> Training<T> {
    let (tensors, codes) = start(method, seed);
    let tensors = tensors.iter().map(|(name, array)| (name.clone(), cast(array))).collect();
    Training::new(config(), method, tensors, codes).unwrap()
}

fn optimizer(weight_decay: f64) -> Optimizer {
    Optimizer { spec: AdamWSpec::new(0.9, 0.95, 1e-3).unwrap(), lr: 0.02, weight_decay }
}

fn tokens(step: u64) -> Array2<i32> {
    Random(1000 + step).tokens((2, 5), VOCAB)
}

/// Every number that a run of some steps leaves, bit for bit.
fn run<T: Real>(training: &mut Training<T>, steps: std::ops::Range<u64>) -> Vec<u64> {
    let mut seen = Vec::new();
    for step in steps {
        let result = training.step(tokens(step).view(), &optimizer(0.1), step + 1).unwrap();
        seen.push(result.loss.value().to_bits());
        let gradients = result.gradients.values().flatten();
        seen.extend(gradients.map(|d| d.value().to_bits()));
    }
    seen
}

fn bits<T: Real>(training: &Training<T>) -> Vec<u64> {
    let moments = training.moments().values().flat_map(|m| m.first.iter().chain(&m.second));
    let tensors = training.tensors().values().flatten();
    tensors.chain(moments).map(|x| x.value().to_bits()).collect()
}

/// Property of (T2) C2: what an earlier run left is all that a later one needs; and a rerun gives
/// the same bits.
#[test]
fn a_run_in_two_halves_is_one_run() {
    fn check<T: Real>(method: Method) {
        let [mut whole, mut again, mut first] = [(); 3].map(|()| training::<T>(method, 3));
        let seen = run(&mut whole, 0..6);
        assert_eq!(run(&mut again, 0..6), seen, "{method:?}");
        assert_eq!(bits(&again), bits(&whole), "{method:?}");

        let mut halves = run(&mut first, 0..3);
        let codes = start(method, 3).1;
        let mut second = Training::new(config(), method, first.tensors().clone(), codes).unwrap();
        for (name, moments) in first.moments() {
            second = second.with_moments(name, moments.clone()).unwrap();
        }
        halves.extend(run(&mut second, 3..6));
        assert_eq!(halves, seen, "{method:?}");
        assert_eq!(bits(&second), bits(&whole), "{method:?}");
    }
    for method in methods() {
        check::<f32>(method);
        check::<f64>(method);
    }
}

/// Property of (T2): what a method does not train stays, and all that it trains moves.
#[test]
fn frozen_tensors_stay_and_trained_ones_move() {
    for method in methods() {
        let mut training = training::<f64>(method, 4);
        let before = training.tensors().clone();
        run(&mut training, 0..2);
        for (name, after) in training.tensors() {
            let is_trained = method
                .layer_tensors()
                .iter()
                .any(|tensor| tensor.trained && name.ends_with(&format!("_proj.{}", tensor.name)));
            assert_eq!(after != before[name], is_trained, "{method:?} {name}");
            assert_eq!(training.moments().contains_key(name), is_trained, "{method:?} {name}");
        }
    }
}

/// Property of (T2) C3.
#[test]
fn a_scale_and_an_offset_do_not_decay() {
    let method = methods()[L4Q];
    let [plain, decayed] = [0.0, 0.5].map(|weight_decay| {
        let mut training = training::<f64>(method, 5);
        training.step(tokens(0).view(), &optimizer(weight_decay), 1).unwrap();
        training.tensors().clone()
    });
    for (name, tensor) in &plain {
        let decays = name.ends_with(".lora_a") || name.ends_with(".lora_b");
        assert_eq!(*tensor != decayed[name], decays, "{name}");
    }
}

fn matrix<'a, T>(tensors: &'a Arrays<T>, layer: &str, name: &str) -> ArrayView2<'a, T> {
    tensors[&format!("{layer}.{name}")].view().into_dimensionality::<Ix2>().unwrap()
}

fn l4q<'a, T: Real>(tensors: &'a Arrays<T>, layer: &str) -> L4q<'a, T> {
    let weight = matrix(tensors, layer, "weight");
    L4q {
        weight,
        lora_a: matrix(tensors, layer, "lora_a"),
        lora_b: matrix(tensors, layer, "lora_b"),
        scale: matrix(tensors, layer, "scale"),
        offset: matrix(tensors, layer, "offset"),
        lora_scaling: LORA_SCALING,
        spec: spec(weight.ncols()),
    }
}

/// The dense model that multiplies with these weights.
fn dense<T: Real>(tensors: &Arrays<T>, weight: impl Fn(&str, usize) -> Array2<T>) -> Llama<T> {
    let config = config();
    let mut weights: Arrays<T> = expected_shapes(&config)
        .into_keys()
        .filter(|name| !name.contains("_proj"))
        .map(|name| (name.clone(), tensors[&name].clone()))
        .collect();
    for (layer, [_, in_features]) in linear_shapes(&config) {
        let weight = weight(&layer, in_features).into_dyn();
        weights.insert(format!("{layer}.weight"), weight);
    }
    Llama::new(config, weights).unwrap()
}

/// Property of (T2): for L4Q and QAT, whose quantized weight is all of the layer, a step is the
/// gradient of a dense model on that weight, taken through the quantizer, and one AdamW step.
#[test]
fn a_step_is_the_dense_gradient_through_the_quantizer_and_an_adamw_step() {
    for method in [methods()[L4Q], methods()[QAT]] {
        let mut training = training::<f64>(method, 6);
        let before = training.tensors().clone();
        let is_l4q = matches!(method, Method::L4q { .. });
        let quantized = |layer: &str, in_features: usize| {
            if is_l4q {
                let layer = l4q(&before, layer);
                return layer
                    .forward(Array2::zeros((0, in_features)).view())
                    .unwrap()
                    .fake_quantized;
            }
            let [weight, scale, offset] =
                ["weight", "scale", "offset"].map(|name| matrix(&before, layer, name));
            fake_quantize(weight, scale, offset, &spec(in_features)).unwrap().output
        };
        let expected = dense(&before, quantized).loss_and_gradients(tokens(0).view()).unwrap();
        let step = training.step(tokens(0).view(), &optimizer(0.1), 1).unwrap();
        assert_eq!(step.loss, expected.loss);
        for (layer, [_, in_features]) in linear_shapes(&config()) {
            let d_weight = matrix(&expected.gradients, &layer, "weight");
            let gradients = if is_l4q {
                let d = l4q(&before, &layer).parameter_gradients(d_weight, rules()).unwrap();
                let factors = [("lora_a", d.d_lora_a), ("lora_b", d.d_lora_b)];
                factors.into_iter().chain([("scale", d.d_scale), ("offset", d.d_offset)]).collect()
            } else {
                let [weight, scale, offset] =
                    ["weight", "scale", "offset"].map(|name| matrix(&before, &layer, name));
                let spec = spec(in_features);
                let d = fake_quantize_backward(weight, scale, offset, d_weight, &spec, rules());
                let d = d.unwrap();
                vec![("weight", d.d_weight), ("scale", d.d_scale), ("offset", d.d_offset)]
            };
            for (tensor, gradient) in gradients {
                let name = format!("{layer}.{tensor}");
                let gradient = gradient.into_dyn();
                assert_eq!(step.gradients[&name], gradient, "{name}");
                let zero = ArrayD::zeros(gradient.raw_dim());
                let state = adamw_step(
                    before[&name].view(),
                    gradient.view(),
                    zero.view(),
                    zero.view(),
                    &optimizer(0.1).spec,
                    optimizer(0.1).lr,
                    if matches!(tensor, "scale" | "offset") { 0.0 } else { 0.1 },
                    1,
                )
                .unwrap();
                assert_eq!(training.tensors()[&name], state.parameter, "{name}");
                let moments = Moments { first: state.first_moment, second: state.second_moment };
                assert_eq!(training.moments()[&name], moments, "{name}");
            }
        }
    }
}

/// The weight of a layer after merging, and whether a code is at an end of the grid.
fn merged<T: Real>(
    method: Method,
    tensors: &Arrays<T>,
    codes: &Codes,
    layer: &str,
    in_features: usize,
) -> Array2<T> {
    let spec = spec(in_features);
    let tensor = |name: &str| matrix(tensors, layer, name);
    match method {
        Method::L4q { .. } => {
            let merged = l4q(tensors, layer).merge().unwrap();
            assert!(merged.codes.iter().any(|code| i32::from(*code) == spec.qmin()), "{layer}");
            dequantize(merged.codes.view(), merged.scale.view(), merged.offset.view(), &spec)
        }
        Method::LrQat { inner_scale, mask, dialect, .. } => {
            let trained = LrQat {
                weight: tensor("weight"),
                initial_scale: Some(tensor("initial_scale")),
                zero_point: Some(tensor("zero_point")),
                lora_a: tensor("lora_a"),
                lora_b: tensor("lora_b"),
                scale: tensor("scale"),
                lora_scaling: LORA_SCALING,
                spec: LrQatSpec::new(spec, inner_scale, mask, dialect).unwrap(),
            };
            let merged = trained.merge().unwrap();
            let weight = |(o, i)| {
                let code = T::of(f64::from(merged.codes[[o, i]]));
                code * merged.scale[[o, i / GROUP_SIZE]]
            };
            return Array2::from_shape_fn(merged.codes.dim(), weight);
        }
        Method::Qat { .. } => {
            let (scale, offset) = (tensor("scale"), tensor("offset"));
            let codes = fake_quantize(tensor("weight"), scale, offset, &spec).unwrap().codes;
            dequantize(codes.view(), scale.mapv(raised_scale).view(), offset, &spec)
        }
        Method::QaLora { .. } => {
            let codes = codes[&format!("{layer}.codes")].view();
            let adapted = QaLora {
                codes,
                scale: tensor("scale"),
                zero_point: tensor("zero_point"),
                lora_a: tensor("lora_a"),
                lora_b: tensor("lora_b"),
                lora_scaling: LORA_SCALING,
                pool: qa_lora_pool(),
                spec,
            };
            let zero_point = adapted.merge().unwrap();
            affine_dequantize(codes, tensor("scale"), zero_point.view(), &spec)
        }
        Method::Peqa { .. } => {
            let codes = codes[&format!("{layer}.codes")].view();
            affine_dequantize(codes, tensor("scale"), tensor("zero_point"), &spec)
        }
        Method::Lora { .. } | Method::QatLora { .. } => panic!("keeps its path"),
    }
    .unwrap()
}

/// Property of (T2) C4, bit for bit in both precisions.
#[test]
fn the_merged_model_is_the_trained_one() {
    fn check<T: Real>(method: Method) {
        let mut training = training::<T>(method, 7);
        let before = training.logits(tokens(9).view()).unwrap();
        run(&mut training, 0..5);
        let trained = training.logits(tokens(9).view()).unwrap();
        assert_ne!(trained, before, "training moved something");
        let codes = start(method, 7).1;
        let merged = dense(training.tensors(), |layer, in_features| {
            merged(method, training.tensors(), &codes, layer, in_features)
        });
        assert_eq!(merged.logits(tokens(9).view()).unwrap(), trained, "{method:?}");
    }
    for method in [L4Q, LR_QAT, QAT, PEQA].map(|index| methods()[index]) {
        check::<f32>(method);
        check::<f64>(method);
    }
}

/// Property of (T2) C4: the merged zero points of QA-LoRA give the same function in other
/// roundings. Between tokens and logits lie fewer than a thousand, of numbers no larger than a few
/// times the largest logit; and the two do differ.
#[test]
fn merged_zero_points_give_the_trained_function() {
    let method = methods()[QA_LORA];
    let mut training = training::<f64>(method, 8);
    run(&mut training, 0..5);
    let codes = start(method, 8).1;
    let merged = dense(training.tensors(), |layer, in_features| {
        merged(method, training.tensors(), &codes, layer, in_features)
    });
    let trained = training.logits(tokens(9).view()).unwrap();
    let merged = merged.logits(tokens(9).view()).unwrap();
    let largest = trained.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    let worst = (&merged - &trained).iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    assert!(0.0 < worst && worst <= 1e3 * f64::EPSILON * largest, "{worst} of {largest}");
}
