use rayon::prelude::*;

use super::SquaredNorm;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::prefix;

/// Values one partial sum covers; the partial sums are added in order.
const CHUNK: usize = 1 << 14;

impl SquaredNorm for Cpu {
    fn squared_norm(&self, x: &Vec<f32>, len: usize) -> Result<f64> {
        let x = prefix("squared_norm", "x", x, len)?;
        let partial: Vec<f64> = x
            .par_chunks(CHUNK)
            .map(|chunk| chunk.iter().map(|v| f64::from(*v) * f64::from(*v)).sum())
            .collect();
        Ok(partial.into_iter().sum())
    }
}
