use rayon::prelude::*;

use super::{ABSMAX_BLOCK, Absmax, LEVELS, Nf4, Nf4Weight};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::{prefix_mut, refuse_non_finite};

const NAME: &str = "nf4_dequantize";

/// Weights one task handles, at least.
const CHUNK: usize = 1 << 12;

impl Nf4Weight<Cpu> {
    /// The magnitude of a block. Eq. (Q19c).
    #[inline(always)]
    pub(super) fn absmax_of(&self, block: usize) -> f32 {
        match &self.absmax {
            Absmax::F32(absmax) => absmax[block],
            Absmax::Double(stored) => {
                let value = self.tables[LEVELS + usize::from(stored.codes[block] as u8)];
                value * stored.scale[block / ABSMAX_BLOCK] + stored.offset
            }
        }
    }

    /// The code of an element.
    #[inline(always)]
    pub(super) fn code(&self, n: usize) -> u8 {
        (self.codes[n / 2] as u8 >> (4 - 4 * (n % 2))) & 0xf
    }
}

impl Nf4 for Cpu {
    fn nf4_dequantize(&self, weight: &Nf4Weight<Self>, output: &mut Vec<f32>) -> Result<()> {
        let output = prefix_mut(NAME, "output", output, weight.len)?;
        let size = weight.block_size.get();
        let blocks = output.par_chunks_mut(size).enumerate().with_min_len(1 + CHUNK / size);
        let finite = blocks.map(|(block, output)| {
            let absmax = weight.absmax_of(block);
            let scaled: [f32; LEVELS] = std::array::from_fn(|code| weight.tables[code] * absmax);
            for (n, y) in (block * size..).zip(output) {
                *y = scaled[usize::from(weight.code(n))];
            }
            // No level is above 1.
            absmax.is_finite()
        });
        if finite.reduce(|| true, |all, one| all & one) {
            Ok(())
        } else {
            refuse_non_finite(NAME, "output", output)
        }
    }
}
