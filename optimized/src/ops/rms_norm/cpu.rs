use rayon::prelude::*;

use super::{RmsNorm, RmsNormArgs, RmsNormGradients};
use crate::cpu::{
    Cpu,
    simd::{lane_sum, vectorized},
};
use crate::error::Result;
use crate::ops::{Write, prefix, prefix_mut};

/// Rows one task handles; also the rows of one partial sum of `d_weight`.
const ROWS: usize = 32;

impl RmsNorm for Cpu {
    fn rms_norm(
        &self,
        args: RmsNormArgs,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        output: &mut Vec<f32>,
        inverse_rms: &mut Vec<f32>,
    ) -> Result<()> {
        let RmsNormArgs { tokens, hidden, eps } = args;
        let x = prefix("rms_norm", "x", x, tokens * hidden)?;
        let weight = prefix("rms_norm", "weight", weight, hidden)?;
        let output = prefix_mut("rms_norm", "output", output, tokens * hidden)?;
        let inverse_rms = prefix_mut("rms_norm", "inverse_rms", inverse_rms, tokens)?;
        let block = ROWS * hidden;
        (output.par_chunks_mut(block), inverse_rms.par_chunks_mut(ROWS), x.par_chunks(block))
            .into_par_iter()
            .for_each(|(output, inverse_rms, x)| {
                vectorized(
                    #[inline(always)]
                    || {
                        let rows = x.chunks_exact(hidden).zip(output.chunks_exact_mut(hidden));
                        for ((x, y), inverse) in rows.zip(inverse_rms) {
                            let sum = lane_sum(hidden, |h| x[h] * x[h]);
                            *inverse = 1.0 / (sum / hidden as f32 + eps).sqrt();
                            for h in 0..hidden {
                                y[h] = x[h] * *inverse * weight[h];
                            }
                        }
                    },
                )
            });
        Ok(())
    }

    fn rms_norm_backward(
        &self,
        args: RmsNormArgs,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        inverse_rms: &Vec<f32>,
        d_output: &Vec<f32>,
        gradients: RmsNormGradients<'_, Vec<f32>>,
    ) -> Result<()> {
        const NAME: &str = "rms_norm_backward";
        let RmsNormArgs { tokens, hidden, eps: _ } = args;
        let x = prefix(NAME, "x", x, tokens * hidden)?;
        let weight = prefix(NAME, "weight", weight, hidden)?;
        let inverse_rms = prefix(NAME, "inverse_rms", inverse_rms, tokens)?;
        let d_output = prefix(NAME, "d_output", d_output, tokens * hidden)?;
        let d_x = prefix_mut(NAME, "d_x", gradients.d_x, tokens * hidden)?;
        let add = gradients.write_d_x == Write::Add;
        let wants_weight = gradients.d_weight.is_some();
        let block = ROWS * hidden;
        let partial: Vec<Vec<f32>> = (
            d_x.par_chunks_mut(block),
            x.par_chunks(block),
            d_output.par_chunks(block),
            inverse_rms.par_chunks(ROWS),
        )
            .into_par_iter()
            .map(|(d_x, x, d_output, inverse_rms)| {
                let mut d_weight = vec![0.0f32; if wants_weight { hidden } else { 0 }];
                vectorized(
                    #[inline(always)]
                    || {
                        for (row, inverse) in inverse_rms.iter().enumerate() {
                            let x = &x[row * hidden..][..hidden];
                            let d_y = &d_output[row * hidden..][..hidden];
                            let d_x = &mut d_x[row * hidden..][..hidden];
                            let dot = lane_sum(hidden, |h| d_y[h] * weight[h] * (x[h] * inverse));
                            let mean = dot / hidden as f32;
                            for h in 0..hidden {
                                let gradient =
                                    inverse * (d_y[h] * weight[h] - x[h] * inverse * mean);
                                d_x[h] = if add { d_x[h] + gradient } else { gradient };
                            }
                            if wants_weight {
                                for h in 0..hidden {
                                    d_weight[h] += d_y[h] * (x[h] * inverse);
                                }
                            }
                        }
                    },
                );
                d_weight
            })
            .collect();
        if let Some(d_weight) = gradients.d_weight {
            let d_weight = prefix_mut(NAME, "d_weight", d_weight, hidden)?;
            for partial in partial {
                for (sum, value) in d_weight.iter_mut().zip(partial) {
                    *sum += value;
                }
            }
        }
        Ok(())
    }
}
