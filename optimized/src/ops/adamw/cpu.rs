use rayon::prelude::*;

use super::moment::other_type;
use super::{
    AdamW, AdamWArgs, AdamWTensor, Constants, GradientMultiplier, Moment, StateType,
    TensorConstants,
};
use crate::cpu::{Cpu, simd::vectorized};
use crate::error::Result;
use crate::ops::counter::random_word;
use crate::ops::prefix;

/// Values one task handles.
const CHUNK: usize = 1 << 13;

impl AdamW for Cpu {
    fn adamw(
        &self,
        args: AdamWArgs,
        GradientMultiplier { sums, slot }: GradientMultiplier<'_, Vec<f64>>,
        tensors: &mut [AdamWTensor<'_, Self>],
    ) -> Result<()> {
        let multiplier = prefix("adamw", "sums", sums, slot + 1)?[slot] as f32;
        tensors.iter().try_for_each(|tensor| check(tensor, args.state))?;
        if !multiplier.is_finite() {
            return Ok(());
        }
        for tensor in tensors {
            let step = Step { multiplier, all: args.constants(), own: tensor.constants(&args) };
            match (&mut *tensor.first_moment, &mut *tensor.second_moment) {
                (Moment::F32(first), Moment::F32(second)) => {
                    step.take(tensor.parameter, &tensor.gradient[..tensor.len], first, second);
                }
                (Moment::Bf16(first), Moment::Bf16(second)) => {
                    step.take(tensor.parameter, &tensor.gradient[..tensor.len], first, second);
                }
                _ => unreachable!("the types were compared above"),
            }
        }
        Ok(())
    }
}

fn check(tensor: &AdamWTensor<'_, Cpu>, state: StateType) -> Result<()> {
    let AdamWTensor { len, parameter, gradient, first_moment, second_moment, .. } = tensor;
    prefix("adamw", "parameter", parameter, *len)?;
    prefix("adamw", "gradient", gradient, *len)?;
    for (name, moment) in [("first_moment", &**first_moment), ("second_moment", &**second_moment)] {
        match (moment, state) {
            (Moment::F32(values), StateType::F32) => {
                prefix("adamw", name, values, *len)?;
            }
            (Moment::Bf16(values), StateType::Bf16) => {
                prefix("adamw", name, values, *len)?;
            }
            _ => return Err(other_type(tensor.name)),
        }
    }
    Ok(())
}

/// A value of a moment as it is kept.
trait Kept: Copy + Send + Sync {
    /// Whether it takes random bits to keep one.
    const ROUNDS: bool;
    fn read(self) -> f32;
    /// `random` is below 2^16.
    fn keep(value: f32, random: u32) -> Self;
}

impl Kept for f32 {
    const ROUNDS: bool = false;

    #[inline(always)]
    fn read(self) -> f32 {
        self
    }

    #[inline(always)]
    fn keep(value: f32, _random: u32) -> f32 {
        value
    }
}

/// The bits of a bf16.
impl Kept for u16 {
    const ROUNDS: bool = true;

    #[inline(always)]
    fn read(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    /// Away from zero with the probability that the lower half's share of its range is.
    #[inline(always)]
    fn keep(value: f32, random: u32) -> u16 {
        (value.to_bits().wrapping_add(random) >> 16) as u16
    }
}

struct Step {
    multiplier: f32,
    all: Constants,
    own: TensorConstants,
}

impl Step {
    fn take<K: Kept>(&self, parameter: &mut [f32], gradient: &[f32], m: &mut [K], v: &mut [K]) {
        let len = gradient.len();
        (
            parameter[..len].par_chunks_mut(CHUNK),
            m[..len].par_chunks_mut(CHUNK),
            v[..len].par_chunks_mut(CHUNK),
            gradient.par_chunks(CHUNK),
        )
            .into_par_iter()
            .enumerate()
            .for_each(|(chunk, (parameter, first, second, gradient))| {
                let begin = (chunk * CHUNK) as u64;
                vectorized(
                    #[inline(always)]
                    || self.take_chunk(begin, parameter, gradient, first, second),
                );
            });
    }

    #[inline(always)]
    fn take_chunk<K: Kept>(
        &self,
        begin: u64,
        parameter: &mut [f32],
        gradient: &[f32],
        first: &mut [K],
        second: &mut [K],
    ) {
        let Constants { eps, old1, new1, old2, new2 } = self.all;
        let TensorConstants { key, keep, rate, correction } = self.own;
        for i in 0..gradient.len() {
            let g = gradient[i] * self.multiplier;
            let m = old1 * first[i].read() + new1 * g;
            let v = old2 * second[i].read() + new2 * (g * g);
            parameter[i] = parameter[i] * keep - rate * m / (v.sqrt() / correction + eps);
            let random = if K::ROUNDS { random_word(key, begin + i as u64) as u32 } else { 0 };
            first[i] = K::keep(m, random & 0xffff);
            second[i] = K::keep(v, random >> 16);
        }
    }
}
