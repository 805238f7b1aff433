use plumbline_reference::spec::ZeroPointRule;
use rayon::prelude::*;

use super::{DynamicCodes, DynamicQuantize, DynamicQuantizeArgs};
use crate::cpu::{Cpu, simd::vectorized};
use crate::error::{Error, Result};
use crate::ops::{prefix, prefix_mut, refuse_non_finite};

/// Smallest scale.
const SCALE_FLOOR: f32 = 1e-8;

/// Values one task handles, at least.
const CHUNK: usize = 1 << 12;

impl DynamicQuantize for Cpu {
    fn dynamic_quantize(
        &self,
        args: DynamicQuantizeArgs,
        x: &Vec<f32>,
        output: &mut Vec<f32>,
        codes: Option<DynamicCodes<'_, Self>>,
    ) -> Result<()> {
        const NAME: &str = "dynamic_quantize";
        let x = prefix(NAME, "x", x, args.len())?;
        let output = prefix_mut(NAME, "output", output, args.len())?;
        let grids = grids(NAME, args, x)?;
        let size = args.spec.group_size();
        by_rows(size, &grids, x, output).for_each(|(grid, x, output)| {
            for (y, x) in output.iter_mut().zip(x) {
                *y = grid.scale * (grid.level(*x) - grid.zero_point);
            }
        });
        if grids.iter().any(|grid| grid.overflows()) {
            refuse_non_finite(NAME, "output", output)?;
        }
        let Some(DynamicCodes { codes, scale, zero_point }) = codes else { return Ok(()) };
        let codes = prefix_mut(NAME, "codes", codes, args.len())?;
        let scale = prefix_mut(NAME, "scale", scale, grids.len())?;
        let zero_point = prefix_mut(NAME, "zero_point", zero_point, grids.len())?;
        by_rows(size, &grids, x, codes).for_each(|(grid, x, codes)| {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = grid.level(*x) as u8 as i8;
            }
        });
        for ((grid, scale), zero_point) in grids.iter().zip(scale).zip(zero_point) {
            (*scale, *zero_point) = (grid.scale, grid.zero_point);
        }
        Ok(())
    }

    fn dynamic_quantize_backward(
        &self,
        args: DynamicQuantizeArgs,
        x: &Vec<f32>,
        d: &mut Vec<f32>,
    ) -> Result<()> {
        const NAME: &str = "dynamic_quantize_backward";
        let x = prefix(NAME, "x", x, args.len())?;
        let d = prefix_mut(NAME, "d", d, args.len())?;
        let grids = grids(NAME, args, x)?;
        by_rows(args.spec.group_size(), &grids, x, d).for_each(|(grid, x, d)| {
            for (d, x) in d.iter_mut().zip(x) {
                let place = grid.place(*x);
                *d = if 0.0 <= place && place <= grid.last { *d } else { 0.0 };
            }
        });
        Ok(())
    }
}

/// Every row with its grid and its part of a result.
fn by_rows<'a, T: Send>(
    size: usize,
    grids: &'a [Grid],
    x: &'a [f32],
    result: &'a mut [T],
) -> impl ParallelIterator<Item = (&'a Grid, &'a [f32], &'a mut [T])> {
    let rows = grids.par_iter().zip(x.par_chunks(size)).zip(result.par_chunks_mut(size));
    rows.with_min_len(CHUNK.div_ceil(size)).map(|((grid, x), result)| (grid, x, result))
}

/// The grid of one row.
struct Grid {
    scale: f32,
    zero_point: f32,
    /// Greatest level.
    last: f32,
}

impl Grid {
    #[inline(always)]
    fn place(&self, x: f32) -> f32 {
        (x / self.scale).round_ties_even() + self.zero_point
    }

    #[inline(always)]
    fn level(&self, x: f32) -> f32 {
        self.place(x).max(0.0).min(self.last)
    }

    /// Whether one of its ends has no float.
    fn overflows(&self) -> bool {
        let ends = [0.0, self.last].map(|level| self.scale * (level - self.zero_point));
        !ends.iter().all(|end| end.is_finite())
    }
}

/// The grid of every row; refused where a value or a range is not finite.
fn grids(operation: &'static str, args: DynamicQuantizeArgs, x: &[f32]) -> Result<Vec<Grid>> {
    let size = args.spec.group_size();
    let last = args.spec.unsigned_max() as f32;
    let rows = x.par_chunks(size).with_min_len(CHUNK.div_ceil(size));
    let grids: Vec<Grid> = rows.map(|row| grid_of(row, last, args.zero_point)).collect();
    let Some(index) = grids.iter().position(|grid| !grid.scale.is_finite()) else {
        return Ok(grids);
    };
    refuse_non_finite(operation, "x", x)?;
    let tensor = format!("{operation}: scale");
    Err(Error::NonFinite { tensor, index, value: grids[index].scale })
}

/// Its scale is not finite where one of the values is not.
fn grid_of(row: &[f32], last: f32, rule: ZeroPointRule) -> Grid {
    let (low, high, is_finite) = vectorized(
        #[inline(always)]
        || {
            let (mut low, mut high, mut is_finite) = (f32::INFINITY, f32::NEG_INFINITY, true);
            for &x in row {
                low = if x < low { x } else { low };
                high = if x > high { x } else { high };
                is_finite &= x.is_finite();
            }
            (low, high, is_finite)
        },
    );
    let range = if high > low {
        ((high - low) / last).max(SCALE_FLOOR)
    } else if low == 0.0 {
        1.0
    } else {
        low.abs().max(SCALE_FLOOR)
    };
    let scale = if is_finite { range } else { f32::NAN };
    // 0 - low and not -low, and 0 more after rounding: there is no zero point -0.
    let zero_point = (0.0 - low) / scale;
    let zero_point = match rule {
        ZeroPointRule::Integer => zero_point.round_ties_even(),
        ZeroPointRule::Float => zero_point,
    };
    Grid { scale, zero_point: zero_point + 0.0, last }
}
