//! `adamw.step`.

use ndarray::{ArrayD, Zip};
use plumbline_reference::adamw::adamw_step;
use serde_json::json;

use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::params::{AdamW, Params};
use crate::precision::{Precision, Scalar};
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let params = AdamW::read(&request.params)?;
    if params.step == 0 {
        return Err("params.step is 0, expected at least 1".to_owned());
    }
    Ok(Vec::new())
}

pub(super) fn run<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let AdamW { spec, lr, weight_decay, step } = AdamW::read(&request.params)?;
    let (parameter, gradient): (ArrayD<T>, ArrayD<T>) =
        (request.array("parameter")?, request.array("gradient")?);
    let (first, second): (ArrayD<T>, ArrayD<T>) =
        (request.array("first_moment")?, request.array("second_moment")?);
    let state = adamw_step(
        parameter.view(),
        gradient.view(),
        first.view(),
        second.view(),
        &spec,
        lr,
        weight_decay,
        step,
    )
    .map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("parameter", Tensor::floats(&state.parameter)),
        ("first_moment", Tensor::floats(&state.first_moment)),
        ("second_moment", Tensor::floats(&state.second_moment)),
    ]))
}

/// Constants (`beta`, `1 - beta`, the bias corrections, `lr`) are computed in binary64 and
/// rounded once: `1 - 0.999` in binary32 would already be wrong by 1e-5.
///
/// Moments: a constant, a product (two for the square), a sum. Parameter: the first moment's 3,
/// its correction 2, the root of the corrected second moment 4 (half of 4 + 2, and its own), `eps`
/// 2, the division, `lr` 2, decay 3, the last sum; written in any order it is at most 20.
pub(super) fn bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let AdamW { spec, lr, weight_decay, step } = AdamW::read(&request.params)?;
    let [parameter, gradient, first, second]: [ArrayD<f64>; 4] = {
        let read = |name| request.array(name);
        [read("parameter")?, read("gradient")?, read("first_moment")?, read("second_moment")?]
    };
    let correction = |beta: f64| 1.0 - beta.powf(step as f64);
    let first = Zip::from(&first)
        .and(&gradient)
        .map_collect(|m, g| spec.beta1 * m.abs() + (1.0 - spec.beta1) * g.abs());
    let second = Zip::from(&second)
        .and(&gradient)
        .map_collect(|m, g| spec.beta2 * m.abs() + (1.0 - spec.beta2) * g * g);
    let condition = Zip::from(&parameter).and(&first).and(&second).map_collect(|p, m, v| {
        let denominator = (v / correction(spec.beta2)).sqrt() + spec.eps;
        p.abs() * (1.0 + lr * weight_decay) + lr * m / correction(spec.beta1) / denominator
    });
    Ok(named([
        ("parameter", Allowance::of(&condition, 20.0, unit)),
        ("first_moment", Allowance::of(&first, 3.0, unit)),
        ("second_moment", Allowance::of(&second, 4.0, unit)),
    ]))
}

pub(super) fn sample(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let rank = sampler.size(1, 2);
    let shape: Vec<usize> = (0..rank).map(|_| sampler.size(1, 12)).collect();
    let step = sampler.pick(&[1_u64, 2, 10, 1000, 100_000]);
    let params = Params::from_iter([
        ("lr", json!(sampler.pick(&[1e-3, 2e-5, 0.1]))),
        ("beta1", json!(sampler.pick(&[0.9, 0.0, 0.95]))),
        ("beta2", json!(sampler.pick(&[0.999, 0.95]))),
        ("eps", json!(sampler.pick(&[1e-8, 1e-6]))),
        ("weight_decay", json!(sampler.pick(&[0.0, 0.01, 0.1]))),
        ("step", json!(step)),
    ]);
    let magnitude = sampler.pick(&[1.0, 1e-4]);
    let parameter = sampler.normal(&shape, 1.0);
    let gradient = sampler.normal(&shape, magnitude);
    // The first step starts from zero moments; later ones have the size of what came before.
    let spread = if step == 1 { 0.0 } else { magnitude };
    let first = sampler.normal(&shape, spread);
    let squares = sampler.normal(&shape, spread);
    let second = Tensor::from_f64s(shape, squares.values().map(|x| x * x), Precision::F32);
    Ok((
        params,
        super::tensors([
            ("parameter", parameter),
            ("gradient", gradient),
            ("first_moment", first),
            ("second_moment", second),
        ]),
    ))
}
