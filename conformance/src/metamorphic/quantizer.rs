//! What quantizing and merging promise to each other.

use serde_json::json;

use super::answer::{Answer, Bounded};
use super::powers::edit;
use super::trial::{Checked, Equal, Trial, unusable};
use crate::case::Request;
use crate::ops::Operation;
use crate::params::Quantizer;
use crate::precision::Precision;
use crate::tensor::{Data, Tensor};

/// The request of another operation with these inputs and what it knows of the parameters.
fn request_of(op: &'static Operation, from: &Request, inputs: &[(&str, Tensor)]) -> Request {
    let mut params = from.params.clone();
    params.0.retain(|name, _| op.params.contains(&name.as_str()));
    let inputs = inputs.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone()));
    Request { op, params, inputs: inputs.collect() }
}

/// The inputs of these names, as they are.
fn inputs<'a>(request: &Request, names: &[&'a str]) -> Vec<(&'a str, Tensor)> {
    let found = names.iter().filter_map(|name| Some((*name, request.inputs.get(*name)?.clone())));
    found.collect()
}

/// With `lora_b = 0` a layer is the layer without an update.
pub(super) fn zero_update(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let (with, without) = (ops[0], ops[1]);
    let mut request = trial.draw(with)?;
    edit(&mut request, "lora_b", |_| 0.0);
    let names: Vec<&str> = without.inputs.iter().map(|spec| &*spec.name).collect();
    let plain = request_of(without, &request, &inputs(&request, &names));
    let (with, without) = (trial.ask(&request)?, trial.ask(&plain)?);
    let pairs: &[(&str, &str, Equal)] = match ops[1].name {
        "fake_quantize.forward" => {
            &[("codes", "codes", Equal::Bits), ("output", "fake_quantized", Equal::Bits)]
        }
        // Two operations need not sum in the same order.
        _ => &[("y", "y", Equal::Bounds)],
    };
    for (plain, own, equal) in pairs {
        if !with.outputs.contains_key(*own) {
            continue;
        }
        compare_pair(trial, *equal, (&without, plain), (&with, own))?;
    }
    Ok(())
}

/// Outputs of two operations, under different names.
fn compare_pair(
    trial: &mut Trial,
    equal: Equal,
    (first, expected): (&Answer, &str),
    (second, found): (&Answer, &str),
) -> Checked {
    let op = second.request.op;
    if equal == Equal::Bits {
        return trial.same(op, found, first.output(expected), second.output(found));
    }
    let precision = trial.precision();
    let (should, is) = (first.bounded(expected, precision)?, second.bounded(found, precision)?);
    trial.close(op, found, &should, &is)
}

/// What is on the grid stays there.
pub(super) fn idempotent(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let op = ops[0];
    let mut request = trial.draw(op)?;
    // Beside an offset of millions of steps the points of the grid are no distinct numbers.
    edit(&mut request, "scale", |scale| scale.max(1e-4));
    let once = trial.ask(&request)?;
    let mut again = request.clone();
    again.inputs.insert("weight".to_owned(), once.full("output")?.clone());
    let twice = trial.ask(&again)?;
    for name in ["codes", "output"] {
        trial.same(op, name, once.output(name), twice.output(name))?;
    }
    Ok(())
}

/// The weight that an unsigned code stands for has that code.
pub(super) fn affine_round_trip(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let (quantize, dequantize) = (ops[0], ops[1]);
    // Zero points of the quantizer are integers on the grid; those of the other need not be.
    let request = trial.draw(quantize)?;
    let largest = Quantizer::read(&request.params).map_err(unusable(quantize))?;
    let largest = largest.bits.unsigned_max() as usize;
    let weight = request.tensor("weight").map_err(unusable(quantize))?;
    let codes: Vec<u8> = (0..weight.len()).map(|_| trial.sampler.size(0, largest) as u8).collect();
    let codes =
        Tensor::new(weight.shape().to_vec(), Data::U8(codes)).map_err(unusable(quantize))?;
    let mut given = inputs(&request, &["scale", "zero_point"]);
    given.push(("codes", codes.clone()));
    let weights = trial.ask(&request_of(dequantize, &request, &given))?;
    let mut again = request.clone();
    again.inputs.insert("weight".to_owned(), weights.full("output")?.clone());
    let back = trial.ask(&again)?;
    trial.same(quantize, "codes", &codes, back.output("codes"))
}

/// Packing loses nothing.
pub(super) fn pack_round_trip(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let (pack, unpack) = (ops[0], ops[1]);
    let request = trial.draw(pack)?;
    let packed = trial.ask(&request)?;
    let codes = request.tensor("codes").map_err(unusable(pack))?;
    let given = [("packed", packed.output("packed").clone())];
    let mut back = request_of(unpack, &request, &given);
    back.params.0.insert("in_features".to_owned(), json!(codes.shape()[1]));
    let unpacked = trial.ask(&back)?;
    trial.same(unpack, "codes", codes, unpacked.output("codes"))
}

/// The merged codes, dequantized, are the weight of the forward pass.
pub(super) fn merge_is_forward(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let (forward, merge) = (ops[0], ops[1]);
    let request = trial.draw(forward)?;
    let names: Vec<&str> = merge.inputs.iter().map(|spec| &*spec.name).collect();
    let merged = trial.ask(&request_of(merge, &request, &inputs(&request, &names)))?;
    let trained = trial.ask(&request)?;
    trial.same(merge, "codes", trained.output("codes"), merged.output("codes"))?;
    let dequantized = dequantized(&merged)?;
    trial.same(forward, "fake_quantized", &dequantized, trained.full("fake_quantized")?)
}

/// `codes * scale`, and `+ offset` where there is one: two operations in the type of the scale.
fn dequantized(merged: &Answer) -> Checked<Tensor> {
    let (codes, scale) = (merged.output("codes"), merged.output("scale"));
    let offset = merged.outputs.get("offset");
    let group_size = codes.len() / scale.len().max(1);
    let value = |place: usize| {
        let (code, group) = (codes.value(place), place / group_size);
        (code, scale.value(group), offset.map_or(0.0, |offset| offset.value(group)))
    };
    let places = 0..codes.len();
    let data = if matches!(merged.full("scale")?.data(), Data::F64(_)) {
        Data::F64(places.map(value).map(|(code, scale, offset)| code * scale + offset).collect())
    } else {
        let values = places.map(value);
        let narrow = values.map(|(c, s, o)| (c as f32, s as f32, o as f32));
        Data::F32(narrow.map(|(code, scale, offset)| code * scale + offset).collect())
    };
    let tensor = Tensor::new(codes.shape().to_vec(), data);
    tensor.map_err(unusable(merged.request.op))
}

/// A layer whose zero points have taken up the update has the outputs of the layer with it.
pub(super) fn merge_keeps_outputs(trial: &mut Trial, ops: &[&'static Operation]) -> Checked {
    let (forward, merge, plain) = (ops[0], ops[1], ops[2]);
    let mut request = trial.draw(forward)?;
    if request.params.0.get("dialect") == Some(&json!("hf_peft_qalora")) {
        // It has no merge.
        request.params.0.remove("dialect");
    }
    let names: Vec<&str> = merge.inputs.iter().map(|spec| &*spec.name).collect();
    let merged = trial.ask(&request_of(merge, &request, &inputs(&request, &names)))?;
    let mut given = inputs(&request, &["x", "codes", "scale"]);
    given.push(("zero_point", merged.output("zero_point").clone()));
    let precision = trial.precision();
    let deployed = trial.ask(&request_of(plain, &request, &given))?;
    let trained = trial.ask(&request)?;
    let is = moved_zero_points(deployed.bounded("y", precision)?, &merged, &request, precision)?;
    let should = trained.bounded("y", precision)?;
    trial.close(plain, "y", &should, &is)
}

/// What the errors of the merged zero points move: `sum_i |x| * scale * error`, to the first order,
/// which is all of it because `y` is linear in them.
fn moved_zero_points(
    y: Bounded,
    merged: &Answer,
    request: &Request,
    precision: Precision,
) -> Checked<Bounded> {
    let op = request.op;
    let zero_point = merged.bounded("zero_point", precision)?.allowed;
    let x: ndarray::Array2<f64> = request.array("x").map_err(unusable(op))?;
    let scale = request.tensor("scale").map_err(unusable(op))?;
    let groups = scale.shape()[1];
    let group_size = x.ncols() / groups;
    let (tokens, rows) = (y.value.shape()[0], y.value.shape()[1]);
    let moved = (0..tokens * rows).map(|place| {
        let (t, o) = (place / rows, place % rows);
        let terms = (0..groups).map(|g| {
            let inputs: f64 = (g * group_size..(g + 1) * group_size).map(|i| x[[t, i]].abs()).sum();
            let floor = plumbline_reference::spec::SCALE_FLOOR;
            inputs * scale.value(o * groups + g).max(floor) * zero_point.value(o * groups + g)
        });
        y.allowed.value(place) + terms.sum::<f64>()
    });
    let allowed = Tensor::from_f64s(vec![tokens, rows], moved, Precision::F64);
    Ok(Bounded { value: y.value, allowed })
}
