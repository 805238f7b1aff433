use rayon::prelude::*;

use super::{CrossEntropy, CrossEntropyArgs};
use crate::cpu::{
    Cpu,
    simd::{exp, lane_max, lane_sum, vectorized},
};
use crate::error::{Error, Result};
use crate::ops::{prefix, prefix_mut};

impl CrossEntropy for Cpu {
    fn cross_entropy(
        &self,
        args: CrossEntropyArgs,
        logits: &Vec<f32>,
        targets: &Vec<i32>,
        sums: &mut Vec<f64>,
        slot: usize,
    ) -> Result<usize> {
        let len = args.tokens * args.vocab_size;
        let logits = prefix("cross_entropy", "logits", logits, len)?;
        let targets = columns(args, targets)?;
        let sums = prefix_mut("cross_entropy", "sums", sums, slot + 1)?;
        let losses: Vec<Option<f64>> = logits
            .par_chunks(args.vocab_size)
            .zip(&targets)
            .map(|(row, target)| target.map(|target| log_sum_exp(row).minus(row[target])))
            .collect();
        sums[slot] += losses.iter().flatten().sum::<f64>();
        Ok(counted(&targets))
    }

    fn cross_entropy_backward(
        &self,
        args: CrossEntropyArgs,
        logits: &mut Vec<f32>,
        targets: &Vec<i32>,
        sums: &mut Vec<f64>,
        slot: usize,
    ) -> Result<usize> {
        let len = args.tokens * args.vocab_size;
        let logits = prefix_mut("cross_entropy_backward", "logits", logits, len)?;
        let targets = columns(args, targets)?;
        let sums = prefix_mut("cross_entropy", "sums", sums, slot + 1)?;
        let losses: Vec<Option<f64>> = logits
            .par_chunks_mut(args.vocab_size)
            .zip(&targets)
            .map(|(row, target)| {
                let Some(target) = *target else {
                    row.fill(0.0);
                    return None;
                };
                let normalizer = log_sum_exp(row);
                let loss = normalizer.minus(row[target]);
                let factor = args.gradient_multiplier / normalizer.sum;
                vectorized(
                    #[inline(always)]
                    || {
                        for value in row.iter_mut() {
                            *value = exp(*value - normalizer.max) * factor;
                        }
                    },
                );
                row[target] -= args.gradient_multiplier;
                Some(loss)
            })
            .collect();
        sums[slot] += losses.iter().flatten().sum::<f64>();
        Ok(counted(&targets))
    }
}

/// The column of each counted target.
pub(super) fn columns(args: CrossEntropyArgs, targets: &[i32]) -> Result<Vec<Option<usize>>> {
    let targets = prefix("cross_entropy", "targets", targets, args.tokens)?;
    let column = |(position, target): (usize, &i32)| {
        if *target == args.ignore_index {
            return Ok(None);
        }
        usize::try_from(*target).ok().filter(|target| *target < args.vocab_size).map(Some).ok_or(
            Error::TokenOutOfRange {
                token: i64::from(*target),
                position,
                vocab_size: args.vocab_size,
            },
        )
    };
    targets.iter().enumerate().map(column).collect()
}

/// How many targets are counted.
pub(super) fn counted(columns: &[Option<usize>]) -> usize {
    columns.iter().flatten().count()
}

/// `log(sum(exp(row)))` as its two parts.
struct LogSumExp {
    max: f32,
    sum: f32,
}

impl LogSumExp {
    /// The loss for one logit; the large parts cancel before the logarithm is added.
    fn minus(&self, logit: f32) -> f64 {
        f64::from(self.max) - f64::from(logit) + f64::from(self.sum).ln()
    }
}

fn log_sum_exp(row: &[f32]) -> LogSumExp {
    vectorized(
        #[inline(always)]
        || {
            let max = lane_max(row);
            LogSumExp { max, sum: lane_sum(row.len(), |v| exp(row[v] - max)) }
        },
    )
}
