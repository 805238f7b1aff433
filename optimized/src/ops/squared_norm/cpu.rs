use rayon::prelude::*;

use super::SquaredNorm;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::{prefix, prefix_mut};

/// Values one partial sum covers; the partial sums are added in order.
const CHUNK: usize = 1 << 14;

impl SquaredNorm for Cpu {
    fn squared_norm(
        &self,
        x: &Vec<f32>,
        len: usize,
        sums: &mut Vec<f64>,
        slot: usize,
    ) -> Result<()> {
        let x = prefix("squared_norm", "x", x, len)?;
        let sums = prefix_mut("squared_norm", "sums", sums, slot + 1)?;
        let partial: Vec<f64> = x
            .par_chunks(CHUNK)
            .map(|chunk| chunk.iter().map(|v| f64::from(*v) * f64::from(*v)).sum())
            .collect();
        sums[slot] = partial.into_iter().sum();
        Ok(())
    }
}
