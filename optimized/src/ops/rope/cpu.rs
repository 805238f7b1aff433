use rayon::prelude::*;

use super::{Rope, RopeArgs, RopeTable};
use crate::cpu::{Cpu, simd::vectorized};
use crate::error::Result;
use crate::ops::{prefix, prefix_mut};

/// Tokens one task handles.
const TOKENS: usize = 64;

impl Rope for Cpu {
    fn rope(
        &self,
        args: RopeArgs,
        table: &RopeTable<Vec<f32>>,
        documents: Option<&Vec<i32>>,
        x: &mut Vec<f32>,
    ) -> Result<()> {
        rotate(args, table, documents, x, 1.0)
    }

    fn rope_backward(
        &self,
        args: RopeArgs,
        table: &RopeTable<Vec<f32>>,
        documents: Option<&Vec<i32>>,
        d_x: &mut Vec<f32>,
    ) -> Result<()> {
        rotate(args, table, documents, d_x, -1.0)
    }
}

/// Rotates by `direction` times the table's angles.
fn rotate(
    args: RopeArgs,
    table: &RopeTable<Vec<f32>>,
    documents: Option<&Vec<i32>>,
    x: &mut [f32],
    direction: f32,
) -> Result<()> {
    let RopeArgs { batch, length, heads, head_dim, first_position } = args;
    let half = head_dim / 2;
    args.reached_by(table.positions)?;
    let documents = match documents {
        Some(documents) => Some(args.checked(documents)?),
        None => None,
    };
    let cosine = prefix("rope", "cosine", &table.cosine, table.positions * half)?;
    let sine = prefix("rope", "sine", &table.sine, table.positions * half)?;
    let width = heads * head_dim;
    let x = prefix_mut("rope", "x", x, batch * length * width)?;
    x.par_chunks_mut(TOKENS * width).enumerate().for_each(|(chunk, x)| {
        vectorized(
            #[inline(always)]
            || {
                for (row, x) in x.chunks_exact_mut(width).enumerate() {
                    let token = chunk * TOKENS + row;
                    let start = documents.map_or(0, |documents| documents[token] as usize);
                    let position = first_position + token % length - start;
                    let cosine = &cosine[position * half..][..half];
                    let sine = &sine[position * half..][..half];
                    for head in x.chunks_exact_mut(head_dim) {
                        let (first, second) = head.split_at_mut(half);
                        for i in 0..half {
                            let (a, b, s) = (first[i], second[i], direction * sine[i]);
                            first[i] = a * cosine[i] - b * s;
                            second[i] = b * cosine[i] + a * s;
                        }
                    }
                }
            },
        )
    });
    Ok(())
}
