//! Fresh requests for LR-QAT.

use plumbline_reference::spec::{Bits, SCALE_FLOOR};
use serde_json::json;

use crate::params::Params;
use crate::precision::Precision;
use crate::sampler::{QuantizerShape, Sampler};
use crate::tensor::{Data, Tensor, Tensors};

/// Weight, first scale and, where it is possible, zero-points: some elements beyond the grid, some
/// cases on a lattice of exact ties, and some weights as near to a tie of what is stored as an f32
/// comes, with a scale that makes every quotient inexact.
fn frozen(sampler: &mut Sampler) -> (QuantizerShape, Params, Tensors) {
    let kind = sampler.pick(&["f32", "bf16", "f16", "fixed8", "int"]);
    let mut shape = sampler.quantizer();
    let widest = match kind {
        "fixed8" => 7,
        "int" => 4,
        _ => 8,
    };
    if shape.bits.count() > widest {
        shape.bits = Bits::new(sampler.size(2, widest as usize) as u32).expect("a width");
    }
    let mut params = shape.params();
    params.0.insert("downcast".to_owned(), json!(kind));
    let mut inputs = sampler.quantized_weight(&shape);
    inputs.remove("offset");
    let initial_scale = inputs.remove("scale").expect("just sampled");
    if let (true, Some(weight)) = (sampler.chance(0.4), inputs.get_mut("weight")) {
        put_beside_ties(sampler, &shape, kind, weight, &initial_scale);
    }
    inputs.insert("initial_scale".to_owned(), initial_scale.clone());
    if shape.bits.count() < 8 && sampler.chance(0.3) {
        let largest = shape.bits.unsigned_max() as usize;
        let values: Vec<f64> =
            (0..initial_scale.len()).map(|_| sampler.size(0, largest) as f64).collect();
        let dims = initial_scale.shape().to_vec();
        let zero_point = Tensor::from_f64s(dims, values.into_iter(), Precision::F32);
        inputs.insert("zero_point".to_owned(), zero_point);
    }
    (shape, params, inputs)
}

/// Half of the weights become the f32 nearest to a tie of their stored type, or of the codes.
fn put_beside_ties(
    sampler: &mut Sampler,
    shape: &QuantizerShape,
    kind: &str,
    weight: &mut Tensor,
    scale: &Tensor,
) {
    let bits = shape.bits.count() as i32;
    let fraction = match kind {
        "fixed8" => 8 - bits,
        // Ties of numbers between 1 and 2, of 8 and of 11 significant bits.
        "bf16" => 7,
        "f16" => 10,
        _ => 0,
    };
    let reach = if matches!(kind, "bf16" | "f16") { 2 } else { shape.bits.qmax() as usize };
    let units = reach << fraction;
    let Data::F32(weights) = weight.data_mut() else { return };
    for (index, weight) in weights.iter_mut().enumerate() {
        if sampler.chance(0.5) {
            let unit = 2_f64.powi(-fraction);
            let tie = (sampler.size(0, units) as f64 + 0.5) * unit * sampler.pick(&[1.0, -1.0]);
            *weight = (tie * scale.value(index / shape.group_size)) as f32;
        }
    }
}

pub(super) fn downcast(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (_, params, inputs) = frozen(sampler);
    Ok((params, inputs))
}

/// A layer with every option. Updates are some steps of the grid, in some cases quarters of a step,
/// so that sums are exact ties.
fn layer(sampler: &mut Sampler) -> (Params, Tensors) {
    let (shape, mut params, mut inputs) = frozen(sampler);
    let initial_scale = &inputs["initial_scale"];
    let moved = sampler.chance(0.5);
    let below_floor = sampler.chance(0.1).then(|| sampler.size(0, initial_scale.len() - 1));
    let scales: Vec<f64> = (0..initial_scale.len())
        .map(|group| {
            let factor = if moved { sampler.size(50, 200) as f64 / 100.0 } else { 1.0 };
            let scale = initial_scale.value(group) * factor;
            if below_floor == Some(group) { SCALE_FLOOR / 8.0 } else { scale }
        })
        .collect();
    let dims = initial_scale.shape().to_vec();
    inputs.insert("scale".to_owned(), Tensor::from_f64s(dims, scales.into_iter(), Precision::F32));

    let rank = sampler.pick(&[1, 2, 4, 8]);
    let quarters = sampler.chance(0.4);
    for (name, dims) in
        [("lora_a", [rank, shape.in_features]), ("lora_b", [shape.out_features, rank])]
    {
        let factor = sampler.normal(&dims, 0.7);
        let on_lattice =
            |value: f64| if quarters { (4.0 * value).round_ties_even() / 4.0 } else { value };
        let values: Vec<f64> = factor.values().map(on_lattice).collect();
        inputs.insert(
            name.to_owned(),
            Tensor::from_f64s(dims.to_vec(), values.into_iter(), Precision::F32),
        );
    }
    // 0.3 is not a binary32: subjects round the constant once.
    let lora_scaling = sampler.pick(&[2.0, 0.5, 1.0, 0.3]);
    params.0.insert("lora_scaling".to_owned(), json!(lora_scaling));
    add_options(sampler, &mut params, &mut inputs);
    (params, inputs)
}

fn add_options(sampler: &mut Sampler, params: &mut Params, inputs: &mut Tensors) {
    let downcast = params.0["downcast"].clone();
    if downcast == "f32" && sampler.chance(0.6) {
        params.0.insert("inner_scale".to_owned(), json!("live"));
        inputs.remove("initial_scale");
    } else if sampler.chance(0.3) {
        params.0.insert("inner_scale".to_owned(), json!("frozen"));
    }
    if downcast == "int" && sampler.chance(0.5) {
        params.0.insert("dialect".to_owned(), json!("lr_qat_code"));
    } else if sampler.chance(0.5) {
        let mask = sampler.pick(&["pre_round", "pre_round", "rounded"]);
        params.0.insert("mask".to_owned(), json!(mask));
    }
}

fn add_x(sampler: &mut Sampler, inputs: &mut Tensors) {
    let shape = [sampler.size(1, 6), inputs["weight"].shape()[1]];
    inputs.insert("x".to_owned(), sampler.normal(&shape, 1.0));
}

pub(super) fn forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = layer(sampler);
    add_x(sampler, &mut inputs);
    Ok((params, inputs))
}

pub(super) fn backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = forward(sampler)?;
    let shape = [inputs["x"].shape()[0], inputs["weight"].shape()[0]];
    inputs.insert("d_y".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}

pub(super) fn merge(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    Ok(layer(sampler))
}
