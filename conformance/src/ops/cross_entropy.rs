//! `cross_entropy.forward` and `.backward`.

use ndarray::{Array1, Array2, ArrayView1};
use plumbline_reference::cross_entropy::{cross_entropy, cross_entropy_backward};
use serde_json::json;

use super::Operation;
use super::row::{LOGITS, SOFTMAX, bounded, given, ids, runs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, TRANSCENDENTAL, named};
use crate::params::Params;
use crate::precision::{Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Data, Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "cross_entropy.forward",
        params: &["ignore_index"],
        inputs: &[given("logits", LOGITS), ids("targets", &["tokens"])],
        outputs: &[bounded("loss", &[], SOFTMAX)],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: None,
        bounds: forward_bounds,
        sample,
    },
    Operation {
        name: "cross_entropy.backward",
        params: &["ignore_index"],
        inputs: &[given("logits", LOGITS), ids("targets", &["tokens"])],
        outputs: &[bounded("d_logits", LOGITS, SOFTMAX)],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: backward_bounds,
        sample,
    },
];

pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    request.params.required::<i32>("ignore_index")?;
    Ok(Vec::new())
}

struct Tokens<T> {
    logits: Array2<T>,
    targets: Array1<i32>,
    ignore_index: i32,
}

impl<T: Scalar> Tokens<T> {
    fn read(request: &Request) -> Result<Self, String> {
        Ok(Self {
            logits: request.array("logits")?,
            targets: request.tokens("targets")?,
            ignore_index: request.params.required("ignore_index")?,
        })
    }
}

pub(super) fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let Tokens::<T> { logits, targets, ignore_index } = Tokens::read(request)?;
    let loss =
        cross_entropy(logits.view(), targets.view(), ignore_index).map_err(|e| e.to_string())?;
    let loss = Tensor::from_f64s(Vec::new(), std::iter::once(loss.value()), T::PRECISION);
    Ok(super::tensors([("loss", loss)]))
}

pub(super) fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let Tokens::<T> { logits, targets, ignore_index } = Tokens::read(request)?;
    let d_logits = cross_entropy_backward(logits.view(), targets.view(), ignore_index)
        .map_err(|e| e.to_string())?;
    Ok(super::tensors([("d_logits", Tensor::floats(&d_logits))]))
}

/// Probabilities of one row, the relative error of each, and that of their sum.
struct Row {
    largest: f64,
    sum: f64,
    probability: Vec<f64>,
    exponent_error: Vec<f64>,
    sum_error: f64,
}

impl Row {
    /// An exponential takes the rounding of `logit - largest` as a relative error and adds its
    /// own; the sum takes their weighted mean and one rounding per term.
    fn new(logits: ArrayView1<f64>, unit: Unit) -> Self {
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exponentials: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        let probability: Vec<f64> = exponentials.iter().map(|e| e / sum).collect();
        let exponent_error: Vec<f64> = logits
            .iter()
            .map(|logit| unit.roundoff * (logit - largest).abs() + unit.gamma(TRANSCENDENTAL))
            .collect();
        let mean: f64 = probability.iter().zip(&exponent_error).map(|(p, e)| p * e).sum();
        let sum_error = mean + unit.gamma(logits.len() as f64);
        Self { largest, sum, probability, exponent_error, sum_error }
    }
}

/// A token's loss is `ln(sum) + largest - logit`: the sum's relative error, the logarithm's own,
/// and two sums, in any order. The mean adds one rounding per counted token.
pub(super) fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let unit = evidence.unit;
    let Tokens::<f64> { logits, targets, ignore_index } = Tokens::read(evidence.request)?;
    let (mut error, mut magnitude, mut counted) = (0.0, 0.0, 0.0);
    for (row, &target) in logits.rows().into_iter().zip(&targets) {
        let Some(logit) = counted_logit(row, target, ignore_index) else { continue };
        let Row { largest, sum, sum_error, .. } = Row::new(row, unit);
        let terms = sum.ln().abs() + largest.abs() + logit.abs();
        error += sum_error.exp_m1() + unit.gamma(TRANSCENDENTAL) * sum.ln().abs();
        error += unit.gamma(2.0) * terms;
        magnitude += sum.ln() + largest - logit;
        counted += 1.0;
    }
    error += unit.gamma(counted + 1.0) * magnitude;
    Ok(named([("loss", Allowance::absolute([error / counted]))]))
}

fn counted_logit(row: ArrayView1<f64>, target: i32, ignore_index: i32) -> Option<f64> {
    if target == ignore_index {
        return None;
    }
    usize::try_from(target).ok().and_then(|target| row.get(target).copied())
}

/// `d_logit = (p - [target]) / counted`; a token that is not counted gets exact zeros. The sum that
/// divides an exponential is at least 1, so it does not magnify what a flushed one lost.
pub(super) fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let unit = evidence.unit;
    let Tokens::<f64> { logits, targets, ignore_index } = Tokens::read(evidence.request)?;
    let counts = |target: &&i32| **target != ignore_index;
    let counted = targets.iter().filter(counts).count() as f64;
    let mut bound = Array2::zeros(logits.dim());
    for (t, &target) in targets.iter().enumerate() {
        if counted_logit(logits.row(t), target, ignore_index).is_none() {
            continue;
        }
        let Row { probability, exponent_error, sum_error, .. } = Row::new(logits.row(t), unit);
        for (c, p) in probability.into_iter().enumerate() {
            let is_target = usize::try_from(target).is_ok_and(|target| target == c);
            let result = if is_target { 1.0 - p } else { p };
            let relative = (exponent_error[c] + sum_error + unit.roundoff).exp_m1();
            let error = p * relative + unit.gamma(3.0) * result + unit.flush;
            bound[[t, c]] = error / counted + unit.tiny;
        }
    }
    Ok(named([("d_logits", Allowance::absolute(bound))]))
}

pub(super) fn sample(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (tokens, vocab) = (sampler.size(1, 6), sampler.size(2, 40));
    let spread = sampler.pick(&[0.5, 3.0, 20.0]);
    let logits = sampler.normal(&[tokens, vocab], spread);
    let ignore_index = sampler.pick(&[-100, 0]);
    let mut targets: Vec<i32> = (0..tokens)
        .map(|_| if sampler.chance(0.2) { ignore_index } else { sampler.size(0, vocab - 1) as i32 })
        .collect();
    // At least one token must count, or there is no mean.
    targets[0] = sampler.size(1, vocab - 1) as i32;
    let targets = Tensor::new(vec![tokens], Data::I32(targets))?;
    let params = Params::from_iter([("ignore_index", json!(ignore_index))]);
    Ok((params, [("logits".to_owned(), logits), ("targets".to_owned(), targets)].into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::Precision;
    use ndarray::array;

    #[test]
    fn a_uniform_row_is_only_as_uncertain_as_its_roundings() {
        let unit = Unit::of(Precision::F32);
        let row = Row::new(array![1.0, 1.0, 1.0, 1.0].view(), unit);
        assert_eq!(row.probability, [0.25; 4]);
        assert!(row.sum_error > 0.0 && row.sum_error < 10.0 * unit.roundoff);
    }
}
