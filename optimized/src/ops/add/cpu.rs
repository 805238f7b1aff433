use rayon::prelude::*;

use super::Add;
use crate::cpu::{Cpu, simd::vectorized};
use crate::error::Result;
use crate::ops::{prefix, prefix_mut};

/// Values one task handles.
const CHUNK: usize = 1 << 14;

impl Add for Cpu {
    fn add(&self, x: &Vec<f32>, y: &mut Vec<f32>, len: usize) -> Result<()> {
        let x = prefix("add", "x", x, len)?;
        let y = prefix_mut("add", "y", y, len)?;
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y += x;
                    }
                },
            )
        });
        Ok(())
    }
}
