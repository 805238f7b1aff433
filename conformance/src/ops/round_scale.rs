//! `round_scale.forward` and `round_scale.backward`.

use ndarray::Ix2;
use plumbline_reference::round_scale::{round_scale, round_scale_backward};
use plumbline_reference::spec::ScaleRule;
use serde_json::json;

use super::cast::nothing_to_allow;
use super::row::{GROUPS, given, runs, tensor};
use super::{Class, Operation, Shape};
use crate::case::Request;
use crate::params::{self, Params};
use crate::precision::{Precision, Scalar};
use crate::sampler::Sampler;
use crate::tensor::{Kind, Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "round_scale.forward",
        params: &["scale_rule"],
        inputs: &[given("scale", GROUPS)],
        outputs: &[tensor("rounded_scale", Kind::Float, Shape::Words(GROUPS), Class::Exact)],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: None,
        bounds: nothing_to_allow,
        sample: sample_forward,
    },
    Operation {
        name: "round_scale.backward",
        params: &["scale_rule"],
        inputs: &[given("scale", GROUPS), given("d_rounded_scale", GROUPS)],
        outputs: &[tensor("d_scale", Kind::Float, Shape::Words(GROUPS), Class::Exact)],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: nothing_to_allow,
        sample: sample_backward,
    },
];

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    params::scale_rule(&request.params).map(|_| Vec::new())
}

fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let rule = params::scale_rule(&request.params)?;
    let scale = request.array::<T, Ix2>("scale")?;
    let rounded = round_scale(scale.view(), rule).map_err(|e| e.to_string())?;
    Ok(super::tensors([("rounded_scale", Tensor::floats(&rounded))]))
}

fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let rule = params::scale_rule(&request.params)?;
    let (scale, given) =
        (request.array::<T, Ix2>("scale")?, request.array::<T, Ix2>("d_rounded_scale")?);
    let d_scale =
        round_scale_backward(scale.view(), given.view(), rule).map_err(|e| e.to_string())?;
    Ok(super::tensors([("d_scale", Tensor::floats(&d_scale))]))
}

/// Scales from far below the floor to far beyond every number of a rule, with few bits or all, some
/// of them at the ends and beside them.
fn scales(sampler: &mut Sampler, rule: ScaleRule) -> Tensor {
    let shape = vec![sampler.size(1, 5), sampler.size(1, 9)];
    let values: Vec<f64> = (0..shape[0] * shape[1])
        .map(|_| {
            if sampler.chance(0.25) {
                let ends = [rule.smallest(), rule.largest(), 1e-8, 0.0, -0.5];
                let end = sampler.pick(&ends) as f32;
                return f64::from(sampler.pick(&[end, end.next_up(), end.next_down()]));
            }
            // One bit more than f16 keeps is a tie, four bits more than bf16 are not.
            let mantissa = 2048 + sampler.size(0, 2047);
            let number = mantissa as f64 * 2_f64.powi(sampler.size(0, 50) as i32 - 42);
            let beside = [number as f32, (number as f32).next_up(), (number as f32).next_down()];
            f64::from(sampler.pick(&beside))
        })
        .collect();
    Tensor::from_f64s(shape, values.into_iter(), Precision::F32)
}

fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let rule = sampler.pick(&ScaleRule::ALL);
    let scale = scales(sampler, rule);
    let params = Params::from_iter([("scale_rule", json!(rule))]);
    Ok((params, super::tensors([("scale", scale)])))
}

fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (params, mut inputs) = sample_forward(sampler)?;
    let shape = inputs["scale"].shape().to_vec();
    let given: Vec<f64> =
        (0..shape[0] * shape[1]).map(|_| sampler.size(1, 255) as f64 / 16.0 - 8.0).collect();
    let given = Tensor::from_f64s(shape, given.into_iter(), Precision::F32);
    inputs.insert("d_rounded_scale".to_owned(), given);
    Ok((params, inputs))
}
