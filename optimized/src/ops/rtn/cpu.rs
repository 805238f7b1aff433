use plumbline_reference::spec::{QuantSpec, RangeSearch, RtnSpec, SymmetricScale};
use rayon::prelude::*;

use super::Rtn;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::affine::affine_code;
use crate::ops::fake_quantize::floored;
use crate::ops::{prefix, prefix_mut, refuse_non_finite};

impl Rtn for Cpu {
    fn rtn(
        &self,
        spec: QuantSpec,
        rtn: RtnSpec,
        out_features: usize,
        weight: &Vec<f32>,
        scale: &mut Vec<f32>,
        zero_point: &mut Vec<f32>,
    ) -> Result<()> {
        let groups = out_features * spec.groups();
        let weight = prefix("rtn", "weight", weight, out_features * spec.in_features())?;
        let scale = prefix_mut("rtn", "scale", scale, groups)?;
        let zero_point = prefix_mut("rtn", "zero_point", zero_point, groups)?;
        refuse_non_finite("rtn", "weight", weight)?;
        scale
            .par_iter_mut()
            .zip(zero_point)
            .zip(weight.par_chunks(spec.group_size()))
            .for_each(|((scale, zero), group)| (*scale, *zero) = grid_of(group, spec, rtn));
        refuse_non_finite("rtn", "scale", scale)
    }
}

/// Scale and zero point of one group.
fn grid_of(group: &[f32], spec: QuantSpec, rtn: RtnSpec) -> (f32, f32) {
    let low = group.iter().copied().fold(0.0, f32::min);
    let high = group.iter().copied().fold(0.0, f32::max);
    let RangeSearch::Lp { p, steps } = rtn.range else {
        return range_grid(low, high, spec, rtn);
    };
    let part = |k: usize| {
        let of_steps = |end: f32| k as f32 * end / steps as f32;
        range_grid(of_steps(low), of_steps(high), spec, rtn)
    };
    let widest = part(steps);
    if !widest.0.is_finite() {
        // Refused by the caller; a narrower range that does not overflow would be no choice.
        return widest;
    }
    // Summed in f64, so that close ranges are told apart as the exact formula tells them.
    let error = |(scale, zero_point): (f32, f32)| -> f64 {
        let of = |w: &f32| {
            let output = floored(scale) * (affine_code(spec, *w, scale, zero_point) - zero_point);
            f64::from(w - output).abs().powf(p)
        };
        group.iter().map(of).sum()
    };
    let mut best = (f64::INFINITY, widest);
    for k in 1..=steps {
        let grid = part(k);
        let error = error(grid);
        if error < best.0 {
            best = (error, grid);
        }
    }
    best.1
}

/// Scale and zero point of the range from `low` to `high`.
fn range_grid(low: f32, high: f32, spec: QuantSpec, rtn: RtnSpec) -> (f32, f32) {
    let largest = spec.unsigned_max() as f32;
    let absmax = (-low).max(high);
    let scale = match (rtn.symmetric, rtn.convention) {
        (true, SymmetricScale::Paper) => absmax / spec.qmax() as f32,
        (true, SymmetricScale::Gptq) => 2.0 * absmax / largest,
        (false, _) => (high - low) / largest,
    };
    let scale = if scale == 0.0 { 1.0 } else { scale };
    let zero_point = if rtn.symmetric {
        -spec.qmin() as f32
    } else {
        // 0 - low and not -low: a low of 0 gives the zero point 0, not -0.
        ((0.0 - low) / floored(scale)).round_ties_even()
    };
    (scale, zero_point)
}
