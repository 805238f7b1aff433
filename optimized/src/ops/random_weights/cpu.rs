use rayon::prelude::*;

use super::{RandomWeights, RandomWeightsArgs, start, step};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::counter::random_word;
use crate::ops::prefix_mut;

/// Weights of one task.
const CHUNK: usize = 1 << 14;

impl RandomWeights for Cpu {
    fn random_weights(&self, args: RandomWeightsArgs, output: &mut Vec<f32>) -> Result<()> {
        let output = prefix_mut("random_weights", "output", output, args.len)?;
        let (start, step) = (start(&args), step(args.deviation));
        output.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, output)| {
            for (i, value) in output.iter_mut().enumerate() {
                let word = random_word(start, (chunk * CHUNK + i) as u64);
                let sum = (word & 0xffff) + (word >> 16 & 0xffff) + (word >> 32 & 0xffff);
                let sum = (sum + (word >> 48)) as i32 - 131_070;
                *value = sum as f32 * step;
            }
        });
        Ok(())
    }
}
