use rayon::prelude::*;

use super::{Dropout, DropoutArgs};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::counter::random_word;
use crate::ops::{Write, prefix, prefix_mut};

/// Values one task handles.
const CHUNK: usize = 1 << 14;

impl Dropout for Cpu {
    fn dropout(&self, args: DropoutArgs, x: &Vec<f32>, output: &mut Vec<f32>) -> Result<()> {
        let x = prefix("dropout", "x", x, args.len)?;
        let output = prefix_mut("dropout", "output", output, args.len)?;
        let (threshold, factor) = (args.threshold(), args.factor());
        let chunks = output.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate();
        chunks.for_each(|(chunk, (output, x))| {
            for (i, (output, x)) in output.iter_mut().zip(x).enumerate() {
                let word = random_word(args.key, (chunk * CHUNK + i) as u64);
                let kept = if (word >> 32) as u32 >= threshold { x * factor } else { 0.0 };
                match args.write {
                    Write::Replace => *output = kept,
                    Write::Add => *output += kept,
                }
            }
        });
        Ok(())
    }
}
