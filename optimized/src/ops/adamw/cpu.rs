use rayon::prelude::*;

use super::{AdamW, AdamWArgs, AdamWTensors, Constants, GradientMultiplier};
use crate::cpu::{Cpu, simd::vectorized};
use crate::error::Result;
use crate::ops::{prefix, prefix_mut};

/// Values one task handles.
const CHUNK: usize = 1 << 13;

impl AdamW for Cpu {
    fn adamw(
        &self,
        args: AdamWArgs,
        GradientMultiplier { sums, slot }: GradientMultiplier<'_, Vec<f64>>,
        tensors: AdamWTensors<'_, Vec<f32>>,
    ) -> Result<()> {
        let len = args.len;
        let parameter = prefix_mut("adamw", "parameter", tensors.parameter, len)?;
        let gradient = prefix("adamw", "gradient", tensors.gradient, len)?;
        let first = prefix_mut("adamw", "first_moment", tensors.first_moment, len)?;
        let second = prefix_mut("adamw", "second_moment", tensors.second_moment, len)?;
        let multiplier = prefix("adamw", "sums", sums, slot + 1)?[slot] as f32;
        if !multiplier.is_finite() {
            return Ok(());
        }
        let Constants { keep, rate, correction, eps, old1, new1, old2, new2 } = args.constants();
        (
            parameter.par_chunks_mut(CHUNK),
            first.par_chunks_mut(CHUNK),
            second.par_chunks_mut(CHUNK),
            gradient.par_chunks(CHUNK),
        )
            .into_par_iter()
            .for_each(|(parameter, first, second, gradient)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for i in 0..gradient.len() {
                            let g = gradient[i] * multiplier;
                            first[i] = old1 * first[i] + new1 * g;
                            second[i] = old2 * second[i] + new2 * (g * g);
                            let root = second[i].sqrt() / correction + eps;
                            parameter[i] = parameter[i] * keep - rate * first[i] / root;
                        }
                    },
                )
            });
        Ok(())
    }
}
