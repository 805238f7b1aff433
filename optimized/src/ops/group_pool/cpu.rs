use rayon::prelude::*;

use super::{GroupPool, GroupPoolArgs};
use crate::cpu::{
    Cpu,
    simd::{lane_sum, vectorized},
};
use crate::error::Result;
use crate::ops::{Write, prefix, prefix_mut};

/// Inputs one task handles, at least.
const CHUNK: usize = 1 << 12;

impl GroupPool for Cpu {
    fn group_pool(&self, args: GroupPoolArgs, x: &Vec<f32>, pooled: &mut Vec<f32>) -> Result<()> {
        let GroupPoolArgs { tokens, spec, .. } = args;
        let size = spec.group_size();
        let x = prefix("group_pool", "x", x, tokens * spec.in_features())?;
        let pooled = prefix_mut("group_pool", "pooled", pooled, tokens * spec.groups())?;
        let (divisor, factor) = args.divisor_and_factor();
        let groups = pooled.par_iter_mut().with_min_len(1 + CHUNK / size).zip(x.par_chunks(size));
        groups.for_each(|(pooled, x)| {
            let sum = vectorized(
                #[inline(always)]
                || lane_sum(x.len(), |i| x[i]),
            );
            *pooled = sum / divisor * factor;
        });
        Ok(())
    }

    fn group_pool_backward(
        &self,
        args: GroupPoolArgs,
        d_pooled: &Vec<f32>,
        d_x: &mut Vec<f32>,
        write: Write,
    ) -> Result<()> {
        const NAME: &str = "group_pool_backward";
        let GroupPoolArgs { tokens, spec, .. } = args;
        let size = spec.group_size();
        let d_pooled = prefix(NAME, "d_pooled", d_pooled, tokens * spec.groups())?;
        let d_x = prefix_mut(NAME, "d_x", d_x, tokens * spec.in_features())?;
        let (divisor, factor) = args.divisor_and_factor();
        let groups = d_x.par_chunks_mut(size).with_min_len(1 + CHUNK / size).zip(d_pooled);
        groups.for_each(|(d_x, d_pooled)| {
            let d_input = d_pooled * factor / divisor;
            match write {
                Write::Replace => d_x.fill(d_input),
                Write::Add => d_x.iter_mut().for_each(|d_x| *d_x += d_input),
            }
        });
        Ok(())
    }
}
