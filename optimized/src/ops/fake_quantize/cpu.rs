use plumbline_reference::spec::{QuantSpec, SCALE_FLOOR};
use rayon::prelude::*;

use super::{FakeQuantize, FakeQuantizeArgs, LowRank};
use crate::cpu::{Cpu, simd::vectorized};
use crate::error::{Error, Result};
use crate::ops::widen::Weights;
use crate::ops::{prefix, prefix_mut, refuse_non_finite};

/// Columns whose low-rank sums stay in registers together.
const COLUMNS: usize = 64;

/// The update of a weight with its buffers' lengths checked, ready to be read by rows.
pub(crate) struct LowRankRows<'a> {
    width: usize,
    lora_a: &'a [f32],
    lora_b: &'a [f32],
    rank: usize,
    lora_scaling: f32,
}

impl<'a> LowRankRows<'a> {
    pub(crate) fn new(
        operation: &'static str,
        low_rank: &LowRank<'a, Vec<f32>>,
        (out_features, width): (usize, usize),
    ) -> Result<Self> {
        let LowRank { lora_a, lora_b, rank, lora_scaling } = *low_rank;
        Ok(Self {
            width,
            lora_a: prefix(operation, "lora_a", lora_a, rank * width)?,
            lora_b: prefix(operation, "lora_b", lora_b, out_features * rank)?,
            rank,
            lora_scaling,
        })
    }

    /// `lora_scaling * (lora_b @ lora_a)` of one row.
    #[inline(always)]
    pub(crate) fn delta(&self, row: usize, delta: &mut [f32]) {
        let width = self.width;
        let lora_b = &self.lora_b[row * self.rank..][..self.rank];
        let whole = width - width % COLUMNS;
        for start in (0..whole).step_by(COLUMNS) {
            let mut sums = [0.0f32; COLUMNS];
            for (r, b) in lora_b.iter().enumerate() {
                let a = &self.lora_a[r * width + start..][..COLUMNS];
                for (sum, a) in sums.iter_mut().zip(a) {
                    *sum += b * a;
                }
            }
            for (delta, sum) in delta[start..][..COLUMNS].iter_mut().zip(sums) {
                *delta = self.lora_scaling * sum;
            }
        }
        for (i, delta) in delta.iter_mut().enumerate().skip(whole) {
            let mut sum = 0.0f32;
            for (r, b) in lora_b.iter().enumerate() {
                sum += b * self.lora_a[r * width + i];
            }
            *delta = self.lora_scaling * sum;
        }
    }

    pub(crate) fn refuse_non_finite(&self, operation: &'static str) -> Result<()> {
        refuse_non_finite(operation, "lora_a", self.lora_a)?;
        refuse_non_finite(operation, "lora_b", self.lora_b)
    }
}

/// The buffers of [`FakeQuantizeArgs`] with their lengths checked, ready to be read by rows.
pub(crate) struct RowQuantizer<'a> {
    pub(crate) spec: QuantSpec,
    weight: Weights<'a>,
    low_rank: Option<LowRankRows<'a>>,
    scale: &'a [f32],
    offset: &'a [f32],
}

/// One output row: what [`RowQuantizer::row`] hands out.
pub(crate) struct Row<'a> {
    index: usize,
    weight: Weights<'a>,
    pub(crate) scale: &'a [f32],
    pub(crate) offset: &'a [f32],
}

impl<'a> RowQuantizer<'a> {
    pub(crate) fn new(operation: &'static str, args: &FakeQuantizeArgs<'a, Cpu>) -> Result<Self> {
        let (spec, out) = (args.spec, args.out_features);
        let groups = out * spec.groups();
        let low_rank = args.low_rank.as_ref();
        let low_rank = low_rank.map(|l| LowRankRows::new(operation, l, (out, spec.in_features())));
        let rows = Self {
            spec,
            weight: Weights::new(operation, args.weight, out * spec.in_features())?,
            low_rank: low_rank.transpose()?,
            scale: prefix(operation, "scale", args.scale, groups)?,
            offset: prefix(operation, "offset", args.offset, groups)?,
        };
        // An infinite scale would hide in a quotient of zero.
        refuse_non_finite(operation, "scale", rows.scale)?;
        refuse_non_finite(operation, "offset", rows.offset)?;
        Ok(rows)
    }

    pub(crate) fn row(&self, row: usize) -> Row<'a> {
        let (width, groups) = (self.spec.in_features(), self.spec.groups());
        Row {
            index: row,
            weight: self.weight.part(row * width, width),
            scale: &self.scale[row * groups..][..groups],
            offset: &self.offset[row * groups..][..groups],
        }
    }

    /// Fills `argument` with the row's `v` and returns the largest magnitude's bits: magnitudes
    /// compare as integers, and the non-finite ones are the largest.
    #[inline(always)]
    pub(crate) fn argument(&self, row: &Row<'_>, argument: &mut [f32]) -> u32 {
        match &self.low_rank {
            Some(low_rank) => {
                low_rank.delta(row.index, argument);
                row.weight.each(argument, |v, weight| *v += weight);
            }
            None => row.weight.each(argument, |v, weight| *v = weight),
        }
        let mut largest = 0u32;
        let groups = argument.chunks_exact_mut(self.spec.group_size());
        for (group, (scale, offset)) in groups.zip(row.scale.iter().zip(row.offset)) {
            let scale = floored(*scale);
            for v in group {
                *v = (*v - offset) / scale;
                largest = largest.max(magnitude(*v));
            }
        }
        largest
    }

    /// Judges the largest magnitude of all arguments. Finite inputs whose quotient overflows
    /// saturate, as the grid's ends say; everything else that is not finite is an error.
    pub(crate) fn check(&self, operation: &'static str, largest: u32) -> Result<()> {
        if largest < INFINITE {
            return Ok(());
        }
        self.weight.refuse_non_finite(operation)?;
        if let Some(low_rank) = &self.low_rank {
            low_rank.refuse_non_finite(operation)?;
        }
        if largest == INFINITE {
            return Ok(());
        }
        let tensor = format!("{operation}: quantizer argument");
        Err(Error::NonFinite { tensor, index: 0, value: f32::NAN })
    }
}

/// Bits of an infinite magnitude.
pub(crate) const INFINITE: u32 = f32::INFINITY.to_bits();

/// The bits without the sign.
#[inline(always)]
pub(crate) fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// The scale that is divided by.
#[inline(always)]
pub(crate) fn floored(scale: f32) -> f32 {
    // `max` would turn a NaN into the floor; this keeps it, so that it is reported.
    if scale < SCALE_FLOOR as f32 { SCALE_FLOOR as f32 } else { scale }
}

impl FakeQuantize for Cpu {
    fn fake_quantize(
        &self,
        args: &FakeQuantizeArgs<'_, Cpu>,
        output: &mut Vec<f32>,
        codes: Option<&mut Vec<i8>>,
    ) -> Result<()> {
        let rows = RowQuantizer::new("fake_quantize", args)?;
        let width = args.spec.in_features();
        let output = prefix_mut("fake_quantize", "output", output, args.out_features * width)?;
        let (argument, largest) = output
            .par_chunks_mut(width)
            .enumerate()
            .map(|(o, output)| {
                vectorized(
                    #[inline(always)]
                    || {
                        let row = rows.row(o);
                        let argument = rows.argument(&row, output);
                        (argument, snap(args.spec, &row, output))
                    },
                )
            })
            .reduce(|| (0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        rows.check("fake_quantize", argument)?;
        if largest >= INFINITE {
            let index = output.iter().position(|value| !value.is_finite()).unwrap_or(0);
            let tensor = "fake_quantize: output".to_owned();
            return Err(Error::NonFinite { tensor, index, value: output[index] });
        }
        if let Some(codes) = codes {
            let codes = prefix_mut("fake_quantize", "codes", codes, args.out_features * width)?;
            codes.par_chunks_mut(width).enumerate().for_each_init(
                || vec![0.0f32; width],
                |argument, (o, codes)| {
                    vectorized(
                        #[inline(always)]
                        || {
                            rows.argument(&rows.row(o), argument);
                            for (code, v) in codes.iter_mut().zip(argument.iter()) {
                                *code = nearest_code(args.spec, *v) as i8;
                            }
                        },
                    )
                },
            );
        }
        Ok(())
    }

    fn dequantize(
        &self,
        spec: QuantSpec,
        out_features: usize,
        codes: &Vec<i8>,
        scale: &Vec<f32>,
        offset: &Vec<f32>,
        output: &mut Vec<f32>,
    ) -> Result<()> {
        let len = out_features * spec.in_features();
        let codes = prefix("dequantize", "codes", codes, len)?;
        let scale = prefix("dequantize", "scale", scale, out_features * spec.groups())?;
        let offset = prefix("dequantize", "offset", offset, out_features * spec.groups())?;
        let output = prefix_mut("dequantize", "output", output, len)?;
        let size = spec.group_size();
        output
            .par_chunks_mut(size)
            .with_min_len(1 + (1 << 12) / size)
            .zip(codes.par_chunks(size))
            .zip(scale.par_iter().zip(offset))
            .for_each(|((output, codes), (scale, offset))| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (y, code) in output.iter_mut().zip(codes) {
                            *y = f32::from(*code) * scale + offset;
                        }
                    },
                )
            });
        Ok(())
    }
}

/// `round_half_even(clamp(v, qmin, qmax))`, still a float.
#[inline(always)]
pub(crate) fn nearest_code(spec: QuantSpec, v: f32) -> f32 {
    // Adding zero makes a negative zero positive: a code is an integer and has one zero.
    v.clamp(spec.qmin() as f32, spec.qmax() as f32).round_ties_even() + 0.0
}

/// Turns a row's arguments into grid points and returns the largest magnitude's bits.
#[inline(always)]
fn snap(spec: QuantSpec, row: &Row<'_>, argument: &mut [f32]) -> u32 {
    let mut largest = 0;
    let groups = argument.chunks_exact_mut(spec.group_size());
    for (group, (scale, offset)) in groups.zip(row.scale.iter().zip(row.offset)) {
        let scale = floored(*scale);
        for v in group {
            *v = nearest_code(spec, *v) * scale + offset;
            largest = largest.max(magnitude(*v));
        }
    }
    largest
}
