//! The CPU backend: buffers are `Vec`s, work is split by rayon.
//!
//! Every split is by a fixed number of rows and never by the number of threads, and partial sums
//! are added in the order of their rows, so one thread and many give the same bits.

pub(crate) mod gemm;
pub(crate) mod simd;

use crate::backend::{Backend, Storage};
use crate::error::Result;
use crate::ops::{prefix, prefix_mut};

/// The processor this program runs on. Uses the calling rayon pool's threads.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

impl Storage for Cpu {
    type Floats = Vec<f32>;
    type Codes = Vec<i8>;
    type Halves = Vec<u16>;
    type Tokens = Vec<i32>;
    type Sums = Vec<f64>;

    fn zeros(&self, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn upload(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn take(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn download(&self, buffer: &Vec<f32>, len: usize) -> Result<Vec<f32>> {
        Ok(prefix("download", "buffer", buffer, len)?.to_vec())
    }

    fn write(&self, values: &[f32], buffer: &mut Vec<f32>) -> Result<()> {
        prefix_mut("write", "buffer", buffer, values.len())?.copy_from_slice(values);
        Ok(())
    }

    fn copy(
        &self,
        from: &Vec<f32>,
        from_start: usize,
        to: &mut Vec<f32>,
        to_start: usize,
        len: usize,
    ) -> Result<()> {
        let from = &prefix("copy", "from", from, from_start + len)?[from_start..];
        prefix_mut("copy", "to", to, to_start + len)?[to_start..].copy_from_slice(from);
        Ok(())
    }

    fn clear(&self, buffer: &mut Vec<f32>) -> Result<()> {
        buffer.fill(0.0);
        Ok(())
    }

    fn zero_codes(&self, len: usize) -> Result<Vec<i8>> {
        Ok(vec![0; len])
    }

    fn upload_codes(&self, codes: &[i8]) -> Result<Vec<i8>> {
        Ok(codes.to_vec())
    }

    fn download_codes(&self, codes: &Vec<i8>) -> Result<Vec<i8>> {
        Ok(codes.clone())
    }

    fn upload_halves(&self, halves: &[u16]) -> Result<Vec<u16>> {
        Ok(halves.to_vec())
    }

    fn download_halves(&self, halves: &Vec<u16>, len: usize) -> Result<Vec<u16>> {
        Ok(prefix("download_halves", "halves", halves, len)?.to_vec())
    }

    fn write_halves(&self, halves: &[u16], buffer: &mut Vec<u16>) -> Result<()> {
        let to = prefix_mut("write_halves", "buffer", buffer, halves.len())?;
        to.copy_from_slice(halves);
        Ok(())
    }

    fn upload_tokens(&self, tokens: &[i32]) -> Result<Vec<i32>> {
        Ok(tokens.to_vec())
    }

    fn write_tokens(&self, tokens: &[i32], buffer: &mut Vec<i32>) -> Result<()> {
        prefix_mut("write_tokens", "buffer", buffer, tokens.len())?.copy_from_slice(tokens);
        Ok(())
    }

    fn upload_sums(&self, sums: &[f64]) -> Result<Vec<f64>> {
        Ok(sums.to_vec())
    }

    fn clear_sums(&self, sums: &mut Vec<f64>) -> Result<()> {
        sums.fill(0.0);
        Ok(())
    }

    fn read_sums(&self, sums: &mut Vec<f64>) -> Result<Vec<f64>> {
        Ok(sums.clone())
    }
}

impl Backend for Cpu {
    const NAME: &'static str = "cpu";
}
