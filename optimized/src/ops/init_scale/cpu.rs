use plumbline_reference::spec::{InitScaleRule, QuantSpec, SCALE_FLOOR};
use rayon::prelude::*;

use super::InitScale;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::ops::{prefix, prefix_mut};

impl InitScale for Cpu {
    fn init_scale(
        &self,
        spec: QuantSpec,
        rule: InitScaleRule,
        out_features: usize,
        weight: &Vec<f32>,
        scale: &mut Vec<f32>,
        offset: &mut Vec<f32>,
    ) -> Result<()> {
        let groups = out_features * spec.groups();
        let weight = prefix("init_scale", "weight", weight, out_features * spec.in_features())?;
        let scale = prefix_mut("init_scale", "scale", scale, groups)?;
        let offset = prefix_mut("init_scale", "offset", offset, groups)?;
        if let Some(index) = weight.iter().position(|value| !value.is_finite()) {
            let value = weight[index];
            return Err(Error::NonFinite { tensor: "init_scale: weight".into(), index, value });
        }
        scale
            .par_iter_mut()
            .zip(offset)
            .zip(weight.par_chunks(spec.group_size()))
            .for_each(|((scale, offset), group)| (*scale, *offset) = grid_of(group, spec, rule));
        Ok(())
    }
}

/// Scale and offset of one group.
fn grid_of(group: &[f32], spec: QuantSpec, rule: InitScaleRule) -> (f32, f32) {
    let (qmin, qmax) = (spec.qmin() as f32, spec.qmax() as f32);
    let half_range = -qmin; // 2^(bits-1)
    let min = group.iter().copied().fold(f32::INFINITY, f32::min);
    let max = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let largest = max.abs().max(min.abs());
    let (scale, offset) = match rule {
        InitScaleRule::L4q => ((min / qmin).abs().max((max / qmax).abs()), 0.0),
        InitScaleRule::Lsq => {
            let mean = group.iter().map(|w| w.abs()).sum::<f32>() / group.len() as f32;
            (2.0 * mean / qmax.sqrt(), 0.0)
        }
        InitScaleRule::LsqPlus => {
            let (mean, sigma) = moments(group);
            ((mean - 3.0 * sigma).abs().max((mean + 3.0 * sigma).abs()) / half_range, 0.0)
        }
        InitScaleRule::Symmetric => (largest / half_range, 0.0),
        InitScaleRule::Asymmetric => {
            let scale = (max - min) / (qmax - qmin);
            (scale, max - scale * qmax)
        }
        InitScaleRule::MinMax => (largest / qmax, 0.0),
        InitScaleRule::LitGpt => {
            (largest / if spec.bits().count() == 4 { qmax } else { half_range }, 0.0)
        }
        InitScaleRule::Lp { p, steps } => (best_range(group, largest, spec, p, steps), 0.0),
    };
    // A constant group: code 0 reproduces it.
    if scale == 0.0 {
        (1.0, if rule == InitScaleRule::Asymmetric { max } else { 0.0 })
    } else {
        (scale, offset)
    }
}

/// Mean and unbiased standard deviation, zero for a single value.
fn moments(group: &[f32]) -> (f32, f32) {
    let mean = group.iter().sum::<f32>() / group.len() as f32;
    if group.len() == 1 {
        return (mean, 0.0);
    }
    let squares = group.iter().map(|w| (w - mean) * (w - mean)).sum::<f32>();
    (mean, (squares / (group.len() - 1) as f32).sqrt())
}

/// The first of the ranges `k * largest / steps` with the least L^p error. The errors are summed in
/// f64, so that close ranges are told apart as the exact formula tells them.
fn best_range(group: &[f32], largest: f32, spec: QuantSpec, p: f64, steps: usize) -> f32 {
    let (qmin, qmax) = (spec.qmin() as f32, spec.qmax() as f32);
    let error = |scale: f32| -> f64 {
        let used = scale.max(SCALE_FLOOR as f32);
        let of = |w: &f32| {
            f64::from(w - (w / used).clamp(qmin, qmax).round_ties_even() * used).abs().powf(p)
        };
        group.iter().map(of).sum()
    };
    let mut best = (f64::INFINITY, 0.0);
    for k in 1..=steps {
        let scale = k as f32 * largest / steps as f32 / qmax;
        let error = error(scale);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}
