use plumbline_reference::spec::{
    InnerScale, LrQatDialect, LrQatMask, LrQatSpec, QuantSpec, SCALE_FLOOR,
};
use rayon::prelude::*;

use super::stored::lowest_codes;
use super::{LrQatArgs, LrQatGradients, LrQatQuantize, StoredWeight};
use crate::cpu::{
    Cpu,
    simd::{lane_sum, vectorized},
};
use crate::error::Result;
use crate::ops::fake_quantize::{INFINITE, LowRankRows, floored, magnitude};
use crate::ops::fake_quantize_backward::low_rank_gradients;
use crate::ops::{prefix, prefix_mut, refuse_non_finite};

/// The buffers of [`LrQatArgs`] with their lengths checked, ready to be read by rows.
struct Rows<'a> {
    spec: LrQatSpec,
    grid: QuantSpec,
    weight: &'a StoredWeight<Cpu>,
    /// Smallest code of every group.
    low: Vec<f32>,
    low_rank: LowRankRows<'a>,
    scale: &'a [f32],
}

/// One row on its way to the codes.
struct Work {
    /// Stored weight in units of the grid.
    inner: Vec<f32>,
    argument: Vec<f32>,
    rounded: Vec<f32>,
}

impl Work {
    fn new(width: usize) -> Self {
        Self { inner: vec![0.0; width], argument: vec![0.0; width], rounded: vec![0.0; width] }
    }
}

impl<'a> Rows<'a> {
    fn new(operation: &'static str, args: &LrQatArgs<'a, Cpu>) -> Result<Self> {
        let (grid, out) = (*args.spec.grid(), args.out_features);
        let groups = out * grid.groups();
        args.weight.check(operation, out, grid.in_features())?;
        let scale = prefix(operation, "scale", args.scale, groups)?;
        refuse_non_finite(operation, "scale", scale)?;
        Ok(Self {
            spec: args.spec,
            grid,
            weight: args.weight,
            low: lowest_codes(grid, args.zero_point.map(|z| z.as_slice()), groups)?,
            low_rank: LowRankRows::new(operation, &args.low_rank, (out, grid.in_features()))?,
            scale,
        })
    }

    /// Scale in use, smallest and largest code of every group of a row.
    #[inline(always)]
    fn groups(&self, row: usize) -> impl Iterator<Item = (f32, f32, f32)> + '_ {
        let from = row * self.grid.groups();
        let steps = self.grid.unsigned_max() as f32;
        let groups = self.scale[from..].iter().zip(&self.low[from..]).take(self.grid.groups());
        groups.map(move |(scale, low)| (floored(*scale), *low, low + steps))
    }

    /// Fills `work` and returns the bits of the argument's largest magnitude.
    #[inline(always)]
    fn round(&self, row: usize, work: &mut Work) -> u32 {
        let Work { inner, argument, rounded } = work;
        let size = self.grid.group_size();
        self.weight.read_row(self.grid, row, &self.low[row * self.grid.groups()..], inner);
        if self.spec.inner_scale() == InnerScale::Live {
            for (inner, (scale, ..)) in inner.chunks_exact_mut(size).zip(self.groups(row)) {
                inner.iter_mut().for_each(|weight| *weight /= scale);
            }
        }
        // Holds the update until it is added.
        self.low_rank.delta(row, argument);
        let is_paper = self.spec.dialect() == LrQatDialect::Paper;
        let mut largest = 0;
        for ((v, rounded), inner) in argument.iter_mut().zip(rounded).zip(inner.iter()) {
            let delta = *v;
            *v = inner + delta;
            *rounded = if is_paper { v.round_ties_even() } else { inner + delta.round_ties_even() };
            largest = largest.max(magnitude(*v));
        }
        largest
    }

    /// Judges the largest magnitude of all arguments.
    fn check(&self, operation: &'static str, largest: u32) -> Result<()> {
        if largest < INFINITE {
            return Ok(());
        }
        if let StoredWeight::F32(weight) = self.weight {
            refuse_non_finite(operation, "weight", weight)?;
        }
        self.low_rank.refuse_non_finite(operation)?;
        refuse_non_finite(operation, "argument", &[f32::INFINITY])
    }
}

/// The code of a rounded argument, still a float.
#[inline(always)]
fn code(rounded: f32, low: f32, high: f32) -> f32 {
    // Adding zero makes a negative zero positive: a code is an integer and has one zero.
    rounded.clamp(low, high) + 0.0
}

impl LrQatQuantize for Cpu {
    fn lr_qat_quantize(
        &self,
        args: &LrQatArgs<'_, Self>,
        output: &mut Vec<f32>,
        codes: Option<&mut Vec<i8>>,
    ) -> Result<()> {
        const NAME: &str = "lr_qat_quantize";
        let rows = Rows::new(NAME, args)?;
        let (width, size) = (rows.grid.in_features(), rows.grid.group_size());
        let output = prefix_mut(NAME, "output", output, args.out_features * width)?;
        let rounded = |work: &mut Work, o: usize, output: &mut [f32]| {
            vectorized(
                #[inline(always)]
                || {
                    let argument = rows.round(o, work);
                    let mut largest = 0;
                    let pairs = output.chunks_exact_mut(size).zip(work.rounded.chunks_exact(size));
                    for ((output, rounded), (scale, low, high)) in pairs.zip(rows.groups(o)) {
                        for (y, rounded) in output.iter_mut().zip(rounded) {
                            *y = code(*rounded, low, high) * scale;
                            largest = largest.max(magnitude(*y));
                        }
                    }
                    (argument, largest)
                },
            )
        };
        let (argument, largest) = output
            .par_chunks_mut(width)
            .enumerate()
            .map_init(|| Work::new(width), |work, (o, output)| rounded(work, o, output))
            .reduce(|| (0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        rows.check(NAME, argument)?;
        if largest >= INFINITE {
            refuse_non_finite(NAME, "output", output)?;
        }
        if let Some(codes) = codes {
            let codes = prefix_mut(NAME, "codes", codes, args.out_features * width)?;
            codes.par_chunks_mut(width).enumerate().for_each_init(
                || Work::new(width),
                |work, (o, codes)| {
                    rows.round(o, work);
                    let pairs = codes.chunks_exact_mut(size).zip(work.rounded.chunks_exact(size));
                    for ((codes, rounded), (_, low, high)) in pairs.zip(rows.groups(o)) {
                        for (byte, rounded) in codes.iter_mut().zip(rounded) {
                            *byte = code(*rounded, low, high) as i8;
                        }
                    }
                },
            );
        }
        Ok(())
    }

    fn lr_qat_quantize_backward(
        &self,
        args: &LrQatArgs<'_, Self>,
        d_output: &mut Vec<f32>,
        gradients: LrQatGradients<'_, Vec<f32>>,
    ) -> Result<()> {
        const NAME: &str = "lr_qat_quantize_backward";
        let rows = Rows::new(NAME, args)?;
        let (width, out) = (rows.grid.in_features(), args.out_features);
        let d_output = prefix_mut(NAME, "d_output", d_output, out * width)?;
        let mut sums = vec![0.0f32; rows.scale.len()];
        let largest = d_output
            .par_chunks_mut(width)
            .zip(sums.par_chunks_mut(rows.grid.groups()))
            .enumerate()
            .map_init(
                || Work::new(width),
                |work, (o, (d_row, sums))| {
                    vectorized(
                        #[inline(always)]
                        || {
                            let largest = rows.round(o, work);
                            rows.d_row(o, work, d_row, sums);
                            largest
                        },
                    )
                },
            )
            .reduce(|| 0, u32::max);
        rows.check(NAME, largest)?;
        if let Some(d_scale) = gradients.d_scale {
            let d_scale = prefix_mut(NAME, "d_scale", d_scale, sums.len())?;
            for ((d_scale, sum), scale) in d_scale.iter_mut().zip(&sums).zip(rows.scale) {
                // The raised scale no longer moves with the parameter.
                if *scale >= SCALE_FLOOR as f32 {
                    *d_scale += sum;
                }
            }
        }
        if let Some(d_low_rank) = gradients.d_low_rank {
            low_rank_gradients(NAME, &args.low_rank, d_output, (out, width), d_low_rank)?;
        }
        Ok(())
    }
}

impl Rows<'_> {
    /// Sums a row's gradient for its scales, and turns it into that of the argument.
    #[inline(always)]
    fn d_row(&self, row: usize, work: &Work, d_row: &mut [f32], sums: &mut [f32]) {
        let size = self.grid.group_size();
        let is_live = self.spec.inner_scale() == InnerScale::Live;
        let tested = match self.spec.mask() {
            LrQatMask::Rounded => &work.rounded,
            LrQatMask::PreRound => &work.argument,
        };
        let groups = d_row.chunks_exact_mut(size).zip(sums).zip(self.groups(row)).enumerate();
        for (g, ((d_group, sum), (scale, low, high))) in groups {
            let start = g * size;
            let in_range = |i: usize| tested[start + i] >= low && tested[start + i] <= high;
            let slope = |i: usize| {
                let code = code(work.rounded[start + i], low, high);
                code - if is_live && in_range(i) { work.inner[start + i] } else { 0.0 }
            };
            *sum = lane_sum(size, |i| d_group[i] * slope(i));
            for (i, d) in d_group.iter_mut().enumerate() {
                *d = if in_range(i) { scale * *d } else { 0.0 };
            }
        }
    }
}
