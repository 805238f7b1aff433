use rayon::prelude::*;

use super::{WeightView, Widen, frozen::Weights};
use crate::cpu::{Cpu, simd::vectorized};
use crate::error::Result;
use crate::ops::prefix_mut;

/// Weights of one task.
const CHUNK: usize = 1 << 14;

impl Widen for Cpu {
    fn widen(&self, len: usize, weight: WeightView<'_, Self>, output: &mut Vec<f32>) -> Result<()> {
        let weights = Weights::new("widen", weight, len)?;
        let output = prefix_mut("widen", "output", output, len)?;
        output.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, output)| {
            vectorized(
                #[inline(always)]
                || {
                    let weights = weights.part(chunk * CHUNK, output.len());
                    weights.each(output, |to, weight| *to = weight);
                },
            );
        });
        Ok(())
    }
}
