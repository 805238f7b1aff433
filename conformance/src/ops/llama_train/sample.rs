//! Small models in training, each method in turn, on whose way no rounding is in doubt.

use ndarray::{Array2, Array3, ArrayView2, Ix2};
use plumbline_reference::lora::delta_weight;
use plumbline_reference::methods::lr_qat::downcast;
use plumbline_reference::model::train::{LayerShape, LayerTensor, Method, Training};
use plumbline_reference::model::{expected_shapes, linear_shapes};
use plumbline_reference::quantize::{argument, raised_scale};
use plumbline_reference::spec::{Downcast, InnerScale, LlamaConfig, QuantSpec};
use serde_json::{Value, json};

use super::{FIRST_MOMENT, SECOND_MOMENT, TOKENS, method, method_name, optimizer, training};
use crate::case::Request;
use crate::ops;
use crate::params::{self, Params, Quantizer};
use crate::precision::Precision;
use crate::sampler::Sampler;
use crate::tensor::{Data, Tensor, Tensors};

/// Least distance of a quantizer's argument from every tie and end of its grid, in steps of the
/// grid: a thousand times the roundings of binary32 that are on the way of the last argument.
const MARGIN: f64 = 1e-4;

pub(super) fn sample(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    // About two in three drawings keep the margin.
    for _ in 0..200 {
        let (params, inputs) = draw(sampler)?;
        let request = Request { op: ops::find("llama.train")?, params, inputs };
        if keeps_margin(&request)? {
            return Ok((request.params, request.inputs));
        }
    }
    Err("no drawing of 200 keeps its roundings away from ties".to_owned())
}

fn draw(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let vocab_size = sampler.size(5, 9);
    let config = json!({
        "model_type": "llama",
        "hidden_size": 4 * sampler.size(1, 2),
        "intermediate_size": 4 * sampler.size(1, 2),
        "num_hidden_layers": 1,
        "num_attention_heads": sampler.size(1, 2),
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": vocab_size,
        "rms_norm_eps": 1e-2,
        "rope_theta": 500.0,
        "tie_word_embeddings": sampler.chance(0.3),
    });
    let mut params = method_params(sampler);
    for (name, value) in [
        ("config", config),
        ("lr", json!(sampler.pick(&[0.01, 0.003]))),
        ("beta1", json!(0.9)),
        ("beta2", json!(sampler.pick(&[0.95, 0.999]))),
        ("eps", json!(sampler.pick(&[0.1, 0.05]))),
        ("weight_decay", json!(sampler.pick(&[0.0, 0.1]))),
    ] {
        params.0.insert(name.to_owned(), value);
    }
    let config = params::llama_config(&params)?;
    let mut inputs = model(sampler, &config, &params)?;
    if sampler.chance(0.3) {
        params.0.insert("first_step".to_owned(), json!(5));
        add_moments(sampler, &mut inputs, &method(&params)?);
    }
    let shape = vec![sampler.size(2, 3), 2, sampler.size(4, 6)];
    let count = shape.iter().product();
    let ids = (0..count).map(|_| sampler.size(0, vocab_size - 1) as i32).collect();
    inputs.insert(TOKENS.to_owned(), Tensor::new(shape, Data::I32(ids))?);
    Ok((params, inputs))
}

fn method_params(sampler: &mut Sampler) -> Params {
    let name = sampler.pick(&["lora", "l4q", "lr_qat", "qa_lora", "qat", "qat_lora", "peqa"]);
    let mut params = Params::from_iter([("method", json!(name))]);
    let mut set = |name: &str, value: Value| params.0.insert(name.to_owned(), value);
    if name != "lora" {
        set("bits", json!(sampler.size(2, 4)));
        set("group_size", sampler.pick(&[Some(2), Some(4), None]).into());
    }
    if !["qat", "peqa"].contains(&name) {
        set("lora_scaling", json!(sampler.pick(&[0.5, 1.0, 0.3])));
    }
    match name {
        "lr_qat" => {
            let downcast = sampler.pick(&["f32", "bf16", "fixed8", "int"]);
            set("downcast", json!(downcast));
            if downcast == "f32" && sampler.chance(0.5) {
                set("inner_scale", json!("live"));
            }
        }
        "qa_lora" => {
            set("pool", json!(sampler.pick(&["sum", "mean"])));
        }
        "qat" if sampler.chance(0.3) => {
            set("quantizer", json!("lsq"));
        }
        _ => {}
    }
    if ["l4q", "qat", "qat_lora"].contains(&name) {
        sampler.add_grad_scale(&mut params);
    }
    params
}

/// Embedding, norms, output projection, and the tensors of every layer.
fn model(sampler: &mut Sampler, config: &LlamaConfig, params: &Params) -> Result<Tensors, String> {
    let (method, rank) = (method(params)?, sampler.size(1, 2));
    let in_grid_units = method_name(params)? == "lr_qat";
    let unsigned = ["qa_lora", "peqa"].contains(&method_name(params)?);
    let linears = linear_shapes(config);
    let mut inputs = Tensors::new();
    for (name, shape) in expected_shapes(config) {
        if let [hidden] = shape[..] {
            inputs.insert(name, sampler.around(&[hidden], 1.0, 0.2));
        } else if !linears.contains_key(name.trim_end_matches(".weight")) {
            inputs.insert(name, sampler.normal(&shape, 1.0));
        }
    }
    let zero_points = in_grid_units && sampler.chance(0.5);
    for (layer, size) in linears {
        // Queries and keys are large enough for attention to choose, and so to have gradients.
        let chooses = layer.ends_with("q_proj") || layer.ends_with("k_proj");
        let deviation = if chooses { 2.0 } else { 1.0 } / (size[1] as f64).sqrt();
        // The grid ends at about one and a half deviations: some weights lie beyond.
        let last = params.optional("bits")?.map_or(1.0, |bits: i32| 2_f64.powi(bits - 1) - 0.5);
        let step = 1.5 * deviation / last;
        let groups = method.groups(size[1]).map_err(|e| e.to_string())?;
        for LayerTensor { name, shape, .. } in method.layer_tensors() {
            let sizes = shape.sizes(size, groups, rank);
            let tensor = match name {
                "codes" => {
                    let count = sizes[0] * sizes[1];
                    let largest = 2.0 * last;
                    let codes = (0..count).map(|_| sampler.size(0, largest as usize) as u8);
                    Tensor::new(sizes.to_vec(), Data::U8(codes.collect()))?
                }
                "scale" | "initial_scale" => sampler.around(&sizes, step, 0.1 * step),
                "offset" => sampler.normal(&sizes, 0.3 * step),
                "zero_point" if unsigned => sampler.around(&sizes, last, 0.5),
                "zero_point" if !zero_points => continue,
                "zero_point" => {
                    let middle = Quantizer::read(params)?.bits.qmax();
                    let count = sizes[0] * sizes[1];
                    let integers = std::iter::repeat_n(f64::from(middle), count);
                    Tensor::from_f64s(sizes.to_vec(), integers, Precision::F32)
                }
                _ if shape == LayerShape::Weight => sampler.normal(&sizes, deviation),
                _ => sampler.normal(&sizes, if in_grid_units { 0.7 } else { 0.3 }),
            };
            inputs.insert(format!("{layer}.{name}"), tensor);
        }
    }
    Ok(inputs)
}

/// What four steps before the first may have left.
fn add_moments(sampler: &mut Sampler, inputs: &mut Tensors, method: &Method) {
    let trained: Vec<_> = method.layer_tensors().into_iter().filter(|t| t.trained).collect();
    let is_trained = |name: &str| {
        name.contains("_proj.") && trained.iter().any(|t| name.ends_with(&format!("j.{}", t.name)))
    };
    let names: Vec<_> = inputs.keys().filter(|name| is_trained(name)).cloned().collect();
    for name in names {
        let shape = inputs[&name].shape().to_vec();
        let first = sampler.normal(&shape, 0.02);
        let second = first.values().map(|mean| mean * mean + 1e-5);
        let second = Tensor::from_f64s(shape, second, Precision::F32);
        inputs.insert(format!("{FIRST_MOMENT}{name}"), first);
        inputs.insert(format!("{SECOND_MOMENT}{name}"), second);
    }
}

/// Whether on all of the way the roundings of every layer are out of doubt.
fn keeps_margin(request: &Request) -> Result<bool, String> {
    let request = request.to_precision(Precision::F64);
    let (method, config) = (method(&request.params)?, params::llama_config(&request.params)?);
    let mut training = training::<f64>(&request)?;
    let (optimizer, first_step) = optimizer(&request.params)?;
    let tokens: Array3<i32> = request.tokens(TOKENS)?;
    for (batch, number) in tokens.outer_iter().zip(first_step..) {
        if !each_layer_keeps_margin(&training, &method, &config)? {
            return Ok(false);
        }
        training.step(batch, &optimizer, number).map_err(|e| e.to_string())?;
    }
    each_layer_keeps_margin(&training, &method, &config)
}

fn each_layer_keeps_margin(
    training: &Training<f64>,
    method: &Method,
    config: &LlamaConfig,
) -> Result<bool, String> {
    for (layer, [_, in_features]) in linear_shapes(config) {
        let tensor = |name: &str| -> Option<ArrayView2<f64>> {
            let tensor = training.tensors().get(&format!("{layer}.{name}"))?;
            tensor.view().into_dimensionality::<Ix2>().ok()
        };
        let keeps = match *method {
            Method::L4q { grid, .. } | Method::Qat { grid, .. } | Method::QatLora { grid, .. } => {
                let spec = QuantSpec::new(grid.bits, grid.group_size, in_features);
                let inside = match *method {
                    Method::L4q { lora_scaling, .. } => Some(lora_scaling),
                    _ => None,
                };
                on_learned_grid(&tensor, inside, &spec.map_err(|e| e.to_string())?)
            }
            Method::LrQat { grid, lora_scaling, inner_scale, .. } => {
                let spec = QuantSpec::new(grid.bits, grid.group_size, in_features);
                let spec = spec.map_err(|e| e.to_string())?;
                around_stored(&tensor, lora_scaling, inner_scale, &spec)
            }
            Method::Lora { .. } | Method::QaLora { .. } | Method::Peqa { .. } => Some(true),
        };
        match keeps {
            Some(true) => {}
            Some(false) => return Ok(false),
            None => return Err(format!("{layer} lacks a tensor of its method")),
        }
    }
    Ok(true)
}

/// The distance of an argument from the nearest point at which its code or its mask changes.
fn is_clear(argument: f64, low: f64, high: f64) -> bool {
    let tie = (argument.floor() + 0.5).clamp(low - 0.5, high + 0.5);
    let nearest = [tie, low, high].map(|point| (argument - point).abs());
    nearest.into_iter().fold(f64::INFINITY, f64::min) > MARGIN * argument.abs().max(1.0)
}

/// `tensor` finds a tensor of the layer; an update that is inside the quantizer has its scaling.
fn on_learned_grid<'a>(
    tensor: &impl Fn(&str) -> Option<ArrayView2<'a, f64>>,
    inside: Option<f64>,
    spec: &QuantSpec,
) -> Option<bool> {
    let (mut weight, scale) = (tensor("weight")?.to_owned(), tensor("scale")?);
    if let Some(lora_scaling) = inside {
        weight += &delta_weight(tensor("lora_a")?, tensor("lora_b")?, lora_scaling).ok()?;
    }
    let offset = tensor("offset").map_or_else(|| Array2::zeros(scale.dim()), |o| o.to_owned());
    Some(weight.indexed_iter().all(|((o, i), &weight)| {
        let at = [o, i / spec.group_size()];
        let argument = argument(weight, scale[at], offset[at]);
        is_clear(argument, f64::from(spec.qmin()), f64::from(spec.qmax()))
    }))
}

/// The same for a sum with a stored weight; what is stored must be the same in binary32.
fn around_stored<'a>(
    tensor: &impl Fn(&str) -> Option<ArrayView2<'a, f64>>,
    lora_scaling: f64,
    inner_scale: InnerScale,
    spec: &QuantSpec,
) -> Option<bool> {
    let (weight, scale) = (tensor("weight")?, tensor("scale")?);
    let delta = delta_weight(tensor("lora_a")?, tensor("lora_b")?, lora_scaling).ok()?;
    let zero_point = tensor("zero_point");
    let inner = match inner_scale {
        InnerScale::Live => Array2::from_shape_fn(weight.dim(), |(o, i)| {
            weight[[o, i]] / raised_scale(scale[[o, i / spec.group_size()]])
        }),
        InnerScale::Frozen(kind) => {
            let initial_scale = tensor("initial_scale")?;
            let phi = downcast(weight, initial_scale, zero_point, spec, kind).ok()?.phi;
            let narrow = |array: ArrayView2<f64>| array.mapv(|x| x as f32);
            let zero_point = zero_point.map(narrow);
            let zero_point = zero_point.as_ref().map(|zero_point| zero_point.view());
            let (weight, scale) = (narrow(weight), narrow(initial_scale));
            let in_f32 = downcast(weight.view(), scale.view(), zero_point, spec, kind).ok()?.phi;
            if kind != Downcast::F32 && in_f32.mapv(f64::from) != phi {
                return Some(false);
            }
            phi
        }
    };
    Some((inner + delta).indexed_iter().all(|((o, i), &argument)| {
        let at = [o, i / spec.group_size()];
        let (low, high) = match zero_point {
            Some(zero_point) => (-zero_point[at], f64::from(spec.unsigned_max()) - zero_point[at]),
            None => (f64::from(spec.qmin()), f64::from(spec.qmax())),
        };
        is_clear(argument, low, high)
    }))
}
