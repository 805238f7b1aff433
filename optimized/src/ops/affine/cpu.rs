use plumbline_reference::spec::{QuantSpec, SCALE_FLOOR};
use rayon::prelude::*;

use super::{Affine, AffineGrid, PackedCodes};
use crate::cpu::{
    Cpu,
    simd::{lane_sum, vectorized},
};
use crate::error::Result;
use crate::ops::fake_quantize::{INFINITE, floored, magnitude};
use crate::ops::{prefix, prefix_mut, refuse_non_finite};

/// Weights one task handles, at least.
const CHUNK: usize = 1 << 12;

/// The buffers of a grid with their lengths checked.
struct Groups<'a> {
    spec: QuantSpec,
    len: usize,
    scale: &'a [f32],
    zero_point: &'a [f32],
}

impl<'a> Groups<'a> {
    fn new(operation: &'static str, grid: &AffineGrid<'a, Cpu>) -> Result<Self> {
        let groups = grid.out_features * grid.spec.groups();
        Ok(Self {
            spec: grid.spec,
            len: grid.out_features * grid.spec.in_features(),
            scale: prefix(operation, "scale", grid.scale, groups)?,
            zero_point: prefix(operation, "zero_point", grid.zero_point, groups)?,
        })
    }

    /// Scale and zero point of every group.
    fn grids(&self) -> impl IndexedParallelIterator<Item = (f32, f32)> + '_ {
        let grids = self.scale.par_iter().zip(self.zero_point);
        grids.map(|(scale, zero_point)| (*scale, *zero_point)).with_min_len(self.groups_of_a_task())
    }

    /// The codes of a group, counted over all rows.
    #[inline(always)]
    fn codes<'c>(
        &self,
        codes: &'c PackedCodes<Cpu>,
        group: usize,
        room: &'c mut Vec<u8>,
    ) -> &'c [u8] {
        let (groups, size) = (self.spec.groups(), self.spec.group_size());
        codes.of_row(group / groups, group % groups * size, size, room)
    }

    fn groups_of_a_task(&self) -> usize {
        1 + CHUNK / self.spec.group_size()
    }
}

impl Affine for Cpu {
    fn affine_quantize(
        &self,
        grid: &AffineGrid<'_, Self>,
        weight: &Vec<f32>,
        codes: &mut Vec<i8>,
    ) -> Result<()> {
        const NAME: &str = "affine_quantize";
        let groups = Groups::new(NAME, grid)?;
        let weight = prefix(NAME, "weight", weight, groups.len)?;
        let codes = prefix_mut(NAME, "codes", codes, groups.len)?;
        refuse_non_finite(NAME, "weight", weight)?;
        refuse_non_finite(NAME, "scale", groups.scale)?;
        let size = grid.spec.group_size();
        let pairs = codes.par_chunks_mut(size).zip(weight.par_chunks(size));
        pairs.zip(groups.grids()).for_each(|((codes, weight), (scale, zero_point))| {
            vectorized(
                #[inline(always)]
                || {
                    for (code, weight) in codes.iter_mut().zip(weight) {
                        *code = affine_code(grid.spec, *weight, scale, zero_point) as u8 as i8;
                    }
                },
            );
        });
        Ok(())
    }

    fn affine_dequantize(
        &self,
        grid: &AffineGrid<'_, Self>,
        codes: &PackedCodes<Self>,
        output: &mut Vec<f32>,
    ) -> Result<()> {
        const NAME: &str = "affine_dequantize";
        let groups = Groups::new(NAME, grid)?;
        codes.of_grid(NAME, grid.out_features, grid.spec)?;
        let output = prefix_mut(NAME, "output", output, groups.len)?;
        let size = grid.spec.group_size();
        let pairs = output.par_chunks_mut(size).zip(groups.grids()).enumerate();
        let largest = pairs.map_init(Vec::new, |room, (group, (output, (scale, zero_point)))| {
            vectorized(
                #[inline(always)]
                || {
                    let (scale, mut largest) = (floored(scale), 0);
                    for (y, code) in output.iter_mut().zip(groups.codes(codes, group, room)) {
                        *y = scale * (f32::from(*code) - zero_point);
                        largest = largest.max(magnitude(*y));
                    }
                    largest
                },
            )
        });
        if largest.reduce(|| 0, u32::max) >= INFINITE {
            refuse_non_finite(NAME, "scale", groups.scale)?;
            refuse_non_finite(NAME, "zero_point", groups.zero_point)?;
            refuse_non_finite(NAME, "output", output)?;
        }
        Ok(())
    }

    fn affine_dequantize_backward(
        &self,
        grid: &AffineGrid<'_, Self>,
        codes: &PackedCodes<Self>,
        d_output: &Vec<f32>,
        d_scale: &mut Vec<f32>,
    ) -> Result<()> {
        const NAME: &str = "affine_dequantize_backward";
        let groups = Groups::new(NAME, grid)?;
        codes.of_grid(NAME, grid.out_features, grid.spec)?;
        let d_output = prefix(NAME, "d_output", d_output, groups.len)?;
        let d_scale = prefix_mut(NAME, "d_scale", d_scale, groups.scale.len())?;
        let size = grid.spec.group_size();
        let pairs = d_scale.par_iter_mut().zip(d_output.par_chunks(size));
        let pairs = pairs.zip(groups.grids()).enumerate();
        pairs.for_each_init(
            Vec::new,
            |room, (group, ((d_scale, d_output), (scale, zero_point)))| {
                // The raised scale no longer moves with the parameter.
                if scale >= SCALE_FLOOR as f32 {
                    *d_scale += vectorized(
                        #[inline(always)]
                        || {
                            let codes = groups.codes(codes, group, room);
                            let steps = |i: usize| f32::from(codes[i]) - zero_point;
                            lane_sum(size, |i| d_output[i] * steps(i))
                        },
                    );
                }
            },
        );
        Ok(())
    }
}

/// The code of one weight, still a float. Eq. (Q11).
#[inline(always)]
pub(crate) fn affine_code(spec: QuantSpec, weight: f32, scale: f32, zero_point: f32) -> f32 {
    // The quotient is rounded before the zero point is added: an odd one does not turn a tie.
    let code = (weight / floored(scale)).round_ties_even() + zero_point;
    code.clamp(0.0, spec.unsigned_max() as f32)
}
