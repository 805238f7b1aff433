use plumbline_reference::spec::{GradScale, QuantSpec, SCALE_FLOOR};
use rayon::prelude::*;

use super::{FakeQuantizeBackward, FakeQuantizeGradients, factor};
use crate::cpu::{
    Cpu,
    gemm::{Matrix, Threads, product},
    simd::{LANES, add_lanes, vectorized},
};
use crate::error::Result;
use crate::ops::fake_quantize::{FakeQuantizeArgs, LowRank, RowQuantizer, nearest_code};
use crate::ops::prefix_mut;

const NAME: &str = "fake_quantize_backward";

impl FakeQuantizeBackward for Cpu {
    fn fake_quantize_backward(
        &self,
        args: &FakeQuantizeArgs<'_, Cpu>,
        grad_scale: GradScale,
        d_output: &mut Vec<f32>,
        gradients: FakeQuantizeGradients<'_, Vec<f32>>,
    ) -> Result<()> {
        let (spec, out) = (args.spec, args.out_features);
        let rows = RowQuantizer::new(NAME, args)?;
        let width = spec.in_features();
        let d_output = prefix_mut(NAME, "d_output", d_output, out * width)?;
        // [out, groups] pairs (d_scale, d_offset), before the constant factor.
        let mut sums = vec![(0.0f32, 0.0f32); out * spec.groups()];
        let largest = d_output
            .par_chunks_mut(width)
            .zip(sums.par_chunks_mut(spec.groups()))
            .enumerate()
            .map_init(
                || vec![0.0f32; width],
                |argument, (o, (d_row, sums))| {
                    vectorized(
                        #[inline(always)]
                        || {
                            let row = rows.row(o);
                            let largest = rows.argument(&row, argument);
                            let groups = d_row
                                .chunks_exact_mut(spec.group_size())
                                .zip(argument.chunks_exact(spec.group_size()));
                            for ((d_group, argument), sums) in groups.zip(sums) {
                                *sums = group_sums(spec, argument, d_group);
                            }
                            largest
                        },
                    )
                },
            )
            .reduce(|| 0, u32::max);
        rows.check(NAME, largest)?;
        let factor = factor(spec, grad_scale);
        if let Some(d_scale) = gradients.d_scale {
            let d_scale = prefix_mut(NAME, "d_scale", d_scale, sums.len())?;
            for ((d_scale, sums), scale) in d_scale.iter_mut().zip(&sums).zip(args.scale) {
                if *scale >= SCALE_FLOOR as f32 {
                    *d_scale += factor * sums.0;
                }
            }
        }
        if let Some(d_offset) = gradients.d_offset {
            let d_offset = prefix_mut(NAME, "d_offset", d_offset, sums.len())?;
            for (d_offset, sums) in d_offset.iter_mut().zip(&sums) {
                *d_offset += factor * sums.1;
            }
        }
        if let (Some(low_rank), Some(d_low_rank)) = (&args.low_rank, gradients.d_low_rank) {
            low_rank_gradients(NAME, low_rank, d_output, (out, width), d_low_rank)?;
        }
        Ok(())
    }
}

/// Adds the gradients of the factors of an update, from its own `d_weight [out, in]`. Eq. (A1b).
pub(crate) fn low_rank_gradients(
    operation: &'static str,
    low_rank: &LowRank<'_, Vec<f32>>,
    d_weight: &[f32],
    (out, width): (usize, usize),
    (d_lora_a, d_lora_b): (&mut Vec<f32>, &mut Vec<f32>),
) -> Result<()> {
    let LowRank { lora_a, lora_b, rank, lora_scaling } = *low_rank;
    let d_lora_a = prefix_mut(operation, "d_lora_a", d_lora_a, rank * width)?;
    let d_lora_b = prefix_mut(operation, "d_lora_b", d_lora_b, out * rank)?;
    let d_weight = Matrix::new(d_weight, out, width);
    let lora_a = Matrix::new(lora_a, rank, width);
    let lora_b = Matrix::new(lora_b, out, rank);
    product(d_lora_a, width, lora_b.t(), d_weight, lora_scaling, true, Threads::Pool);
    product(d_lora_b, rank, d_weight, lora_a.t(), lora_scaling, true, Threads::Pool);
    Ok(())
}

/// Masks the group's gradient in place and returns its sums for scale and offset.
#[inline(always)]
fn group_sums(spec: QuantSpec, argument: &[f32], d_group: &mut [f32]) -> (f32, f32) {
    let (qmin, qmax) = (spec.qmin() as f32, spec.qmax() as f32);
    let mut scale = [0.0f32; LANES];
    let mut offset = [0.0f32; LANES];
    let mut add = |lane: usize, v: f32, d: &mut f32| {
        let in_range = v >= qmin && v <= qmax;
        let code = nearest_code(spec, v);
        scale[lane] += *d * (code - if in_range { v } else { 0.0 });
        offset[lane] += if in_range { 0.0 } else { *d };
        *d = if in_range { *d } else { 0.0 };
    };
    let whole = argument.len() - argument.len() % LANES;
    let (argument, argument_tail) = argument.split_at(whole);
    let (d_group, d_tail) = d_group.split_at_mut(whole);
    for (argument, d) in argument.chunks_exact(LANES).zip(d_group.chunks_exact_mut(LANES)) {
        for lane in 0..LANES {
            add(lane, argument[lane], &mut d[lane]);
        }
    }
    for (lane, (v, d)) in argument_tail.iter().zip(d_tail).enumerate() {
        add(lane, *v, d);
    }
    (add_lanes(scale), add_lanes(offset))
}
