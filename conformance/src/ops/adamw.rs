//! `adamw.step`.

use ndarray::{ArrayD, Zip};
use plumbline_reference::adamw::adamw_step;
use serde_json::json;

use super::Operation;
use super::row::{any, bounded_like, like, runs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, TRANSCENDENTAL, named};
use crate::params::{AdamW, Params};
use crate::precision::{Precision, Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[Operation {
    name: "adamw.step",
    params: &["lr", "beta1", "beta2", "eps", "weight_decay", "step"],
    inputs: &[
        any("parameter"),
        like("gradient", "parameter"),
        like("first_moment", "parameter"),
        like("second_moment", "parameter"),
    ],
    outputs: &[
        bounded_like("parameter", "parameter", "gamma(20) * (|parameter| + |update|)"),
        bounded_like("first_moment", "parameter", "gamma(3) * sum of |terms|"),
        bounded_like("second_moment", "parameter", "gamma(4) * second_moment"),
    ],
    weights: None,
    sizes,
    run: runs!(run),
    grid: None,
    bounds,
    sample,
}];

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
    let [one, two] = [Decay::new(spec.beta1, step), Decay::new(spec.beta2, step)];
    let taken = gradient.mapv(|g| one.take * g.abs());
    let first = first.mapv(|m| one.keep * m.abs()) + &taken;
    let taken_square = gradient.mapv(|g| two.take * g * g);
    let second = second.mapv(|m| two.keep * m.abs()) + &taken_square;
    let update = Zip::from(&first)
        .and(&second)
        .map_collect(|m, v| lr * m / one.correction / ((v / two.correction).sqrt() + spec.eps));
    let condition = parameter.mapv(|p| p.abs() * (1.0 + lr * weight_decay)) + &update;
    // Constants that cancelled move the whole update, the second moment's by its root.
    let cancelled =
        one.take_error + one.correction_error + (two.take_error + two.correction_error) / 2.0;
    Ok(named([
        ("parameter", Allowance::of(&condition, 20.0, unit).plus(&(update * cancelled))),
        ("first_moment", Allowance::of(&first, 3.0, unit).plus(&(taken * one.take_error))),
        ("second_moment", Allowance::of(&second, 4.0, unit).plus(&(taken_square * two.take_error))),
    ]))
}

/// The constants of one moment, and what the decimal in the case loses when it is read.
struct Decay {
    keep: f64,
    take: f64,
    take_error: f64,
    correction: f64,
    correction_error: f64,
}

impl Decay {
    /// Reading `beta` as a binary64 moves it by one rounding, which `1 - beta` and
    /// `1 - beta^step` keep while the number itself shrinks.
    fn new(beta: f64, step: u64) -> Self {
        let unit = Unit::of(Precision::F64);
        let (steps, power) = (step as f64, beta.powf(step as f64));
        Self {
            keep: beta,
            take: 1.0 - beta,
            take_error: unit.roundoff * beta / (1.0 - beta),
            correction: 1.0 - power,
            correction_error: unit.gamma(steps + TRANSCENDENTAL) * power / (1.0 - power),
        }
    }
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
