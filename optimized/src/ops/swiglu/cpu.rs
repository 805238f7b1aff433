use rayon::prelude::*;

use super::Swiglu;
use crate::cpu::{
    Cpu,
    simd::{exp, vectorized},
};
use crate::error::Result;
use crate::ops::{prefix, prefix_mut};

/// Values one task handles.
const CHUNK: usize = 1 << 12;

impl Swiglu for Cpu {
    fn swiglu(
        &self,
        len: usize,
        gate: &Vec<f32>,
        up: &Vec<f32>,
        output: &mut Vec<f32>,
    ) -> Result<()> {
        let gate = prefix("swiglu", "gate", gate, len)?;
        let up = prefix("swiglu", "up", up, len)?;
        let output = prefix_mut("swiglu", "output", output, len)?;
        (output.par_chunks_mut(CHUNK), gate.par_chunks(CHUNK), up.par_chunks(CHUNK))
            .into_par_iter()
            .for_each(|(output, gate, up)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((y, g), u) in output.iter_mut().zip(gate).zip(up) {
                            *y = g / (1.0 + exp(-g)) * u;
                        }
                    },
                )
            });
        Ok(())
    }

    fn swiglu_backward(
        &self,
        len: usize,
        gate: &Vec<f32>,
        up: &Vec<f32>,
        d_output: &Vec<f32>,
        d_gate: &mut Vec<f32>,
        d_up: &mut Vec<f32>,
    ) -> Result<()> {
        let gate = prefix("swiglu_backward", "gate", gate, len)?;
        let up = prefix("swiglu_backward", "up", up, len)?;
        let d_output = prefix("swiglu_backward", "d_output", d_output, len)?;
        let d_gate = prefix_mut("swiglu_backward", "d_gate", d_gate, len)?;
        let d_up = prefix_mut("swiglu_backward", "d_up", d_up, len)?;
        (
            d_gate.par_chunks_mut(CHUNK),
            d_up.par_chunks_mut(CHUNK),
            gate.par_chunks(CHUNK),
            up.par_chunks(CHUNK),
            d_output.par_chunks(CHUNK),
        )
            .into_par_iter()
            .for_each(|(d_gate, d_up, gate, up, d_output)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for i in 0..gate.len() {
                            let p = 1.0 / (1.0 + exp(-gate[i]));
                            d_gate[i] = d_output[i] * up[i] * (p * (1.0 + gate[i] * (1.0 - p)));
                            d_up[i] = d_output[i] * (gate[i] * p);
                        }
                    },
                )
            });
        Ok(())
    }
}
