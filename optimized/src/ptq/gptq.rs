//! GPTQ of one weight (arXiv:2210.17323), in the order of operations of the reference. Eq. (Q20).
//!
//! Rows do not know of each other: a task takes some through all columns. Within a row every sum
//! has its fixed order, so the codes do not depend on the number of threads.

use plumbline_reference::spec::GptqSpec;
use rayon::prelude::*;

use super::factor::factor_of_inverse;
use crate::cpu::simd::vectorized;
use crate::error::{Error, Result};
use crate::methods::AffineTensors;
use crate::ops::fake_quantize::floored;
use crate::ops::refuse_non_finite;

/// Rows of a task: what it reads of the factor serves all of them.
const ROWS: usize = 16;

/// Columns behind a block that are updated together: their part of the factor stays in the cache.
const TILE: usize = 512;

/// What GPTQ makes of a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqTensors {
    /// Codes, scales and integer zero points.
    pub tensors: AffineTensors,
    /// `[out, in]`, the dequantized codes.
    pub output: Vec<f32>,
    /// `[in]`, the group of each input: `i / group_size` unless groups follow the order.
    pub group_index: Vec<usize>,
}

/// Rounds `weight [out, in]` column by column, `hessian [in, in]` being that of its inputs. Weights
/// are f32 as everywhere; the factor is made in f64 and rounded once.
///
/// # Errors
/// `Length`; `NonFinite`; `Invalid` for a Hessian that is not symmetric, or not positive definite
/// with its damping.
pub fn gptq_quantize(weight: &[f32], hessian: &[f64], spec: &GptqSpec) -> Result<GptqTensors> {
    const NAME: &str = "gptq";
    let columns = spec.quant.in_features();
    let out_features = weight.len() / columns;
    length("weight", weight.len(), out_features * columns)?;
    length("hessian", hessian.len(), columns * columns)?;
    refuse_non_finite(NAME, "weight", weight)?;
    let mut weight = weight.to_vec();
    let (upper, order) = factor(hessian, &mut weight, spec)?;
    refuse_non_finite(NAME, "upper", &upper)?;
    let sweep = Sweep { spec, upper, group_index: group_index(&order, spec), order };
    let groups = spec.quant.groups();
    let mut tensors = AffineTensors {
        spec: spec.quant,
        out_features,
        codes: vec![0; weight.len()],
        scale: vec![0.0; out_features * groups],
        zero_point: vec![0.0; out_features * groups],
    };
    let mut output = vec![0.0; weight.len()];
    let rows = tensors.codes.par_chunks_mut(ROWS * columns);
    let rows = rows.zip(tensors.scale.par_chunks_mut(ROWS * groups));
    let rows = rows.zip(tensors.zero_point.par_chunks_mut(ROWS * groups));
    let rows = rows.zip(output.par_chunks_mut(ROWS * columns));
    let rows = rows.zip(weight.par_chunks(ROWS * columns));
    rows.try_for_each(|((((codes, scale), zero_point), output), weight)| {
        let each = codes.chunks_mut(columns).zip(scale.chunks_mut(groups));
        let each = each.zip(zero_point.chunks_mut(groups)).zip(output.chunks_mut(columns));
        let rows = each.zip(weight.chunks(columns)).map(
            |((((codes, scale), zero_point), output), weight)| {
                sweep.row(Results { codes, scale, zero_point, output }, weight)
            },
        );
        let mut rows: Vec<Row<'_>> = rows.collect();
        vectorized(
            #[inline(always)]
            || sweep.run(&mut rows),
        )
    })?;
    refuse_non_finite(NAME, "scale", &tensors.scale)?;
    refuse_non_finite(NAME, "output", &output)?;
    Ok(GptqTensors { tensors, output, group_index: sweep.group_index })
}

fn length(tensor: &'static str, actual: usize, expected: usize) -> Result<()> {
    if actual == expected {
        return Ok(());
    }
    Err(Error::Length { operation: "gptq", tensor, expected, actual })
}

/// The factor of Eq. (Q20b), rows and columns in the order in which inputs are rounded, and that
/// order. Weights of inputs that never occur become zero.
fn factor(hessian: &[f64], weight: &mut [f32], spec: &GptqSpec) -> Result<(Vec<f32>, Vec<usize>)> {
    let columns = spec.quant.in_features();
    if let Some(index) = hessian.iter().position(|h| !h.is_finite()) {
        let value = hessian[index] as f32;
        return Err(Error::NonFinite { tensor: "gptq: hessian".into(), index, value });
    }
    let at = |i: usize, k: usize| hessian[i * columns + k];
    if let Some((i, k)) =
        (0..columns).find_map(|i| (0..i).find(|k| at(i, *k) != at(*k, i)).map(|k| (i, k)))
    {
        return Err(Error::Invalid(format!("gptq: hessian[{i}, {k}] differs from its opposite")));
    }
    let mut diagonal: Vec<f64> = (0..columns).map(|i| at(i, i)).collect();
    for (i, h) in diagonal.iter_mut().enumerate().filter(|(_, h)| **h == 0.0) {
        *h = 1.0;
        weight.iter_mut().skip(i).step_by(columns).for_each(|w| *w = 0.0);
    }
    let mut order: Vec<usize> = (0..columns).collect();
    if spec.act_order {
        // Equals keep their places.
        order.sort_by(|i, k| diagonal[*k].total_cmp(&diagonal[*i]));
    }
    let added = spec.damping() * (diagonal.iter().sum::<f64>() / columns as f64);
    let mut damped = vec![0.0; hessian.len()];
    damped.par_chunks_mut(columns).zip(&order).for_each(|(row, i)| {
        for (element, k) in row.iter_mut().zip(&order) {
            *element = if i == k { diagonal[*i] + added } else { at(*i, *k) };
        }
    });
    match factor_of_inverse(damped, columns) {
        Some(upper) => Ok((upper, order)),
        None => Err(Error::Invalid(format!(
            "gptq: hessian is not positive definite with damping {}",
            spec.damping()
        ))),
    }
}

/// The group of each input.
fn group_index(order: &[usize], spec: &GptqSpec) -> Vec<usize> {
    let size = spec.quant.group_size();
    let mut index: Vec<usize> = (0..order.len()).map(|i| i / size).collect();
    if !spec.static_groups {
        for (j, i) in order.iter().enumerate() {
            index[*i] = j / size;
        }
    }
    index
}

/// Scale and zero point of one group. Eq. (Q20c).
#[inline(always)]
fn group_grid(weights: &[f32], spec: &GptqSpec) -> (f32, f32) {
    let mut low = weights.iter().copied().fold(0.0, f32::min);
    let mut high = weights.iter().copied().fold(0.0, f32::max);
    if low == high {
        (low, high) = (-1.0, 1.0);
    }
    if spec.symmetric {
        high = (-low).max(high);
        low = -high;
    }
    let maxq = spec.maxq() as f32;
    let scale = floored((high - low) / maxq);
    if low == -high {
        return (scale, (maxq + 1.0) / 2.0);
    }
    // 0 - low and not -low: a low of 0 gives the zero point 0, not -0.
    (scale, ((0.0 - low) / scale).round_ties_even())
}

/// What all rows share.
struct Sweep<'a> {
    spec: &'a GptqSpec,
    /// Upper triangular, `[in, in]`, in `order`.
    upper: Vec<f32>,
    /// The inputs in the order in which they are rounded.
    order: Vec<usize>,
    group_index: Vec<usize>,
}

/// Where a row's results go; inputs and groups in their own order.
struct Results<'a> {
    codes: &'a mut [u8],
    scale: &'a mut [f32],
    zero_point: &'a mut [f32],
    output: &'a mut [f32],
}

/// A row on its way.
struct Row<'a> {
    results: Results<'a>,
    /// Columns in the order of rounding, with the updates of finished blocks alone.
    weight: Vec<f32>,
    /// The block at hand, with its own updates too.
    live: Vec<f32>,
    /// `(weight - output) / upper[j,j]` of the block at hand.
    error: Vec<f32>,
}

impl Sweep<'_> {
    /// A row before its first column. Static grids are found here, from the weights as given.
    fn row<'r>(&self, results: Results<'r>, weight: &[f32]) -> Row<'r> {
        if self.spec.static_groups {
            for (g, group) in weight.chunks(self.spec.quant.group_size()).enumerate() {
                (results.scale[g], results.zero_point[g]) = group_grid(group, self.spec);
            }
        }
        let weight = self.order.iter().map(|i| weight[*i]).collect();
        Row { results, weight, live: Vec::new(), error: Vec::new() }
    }

    /// All columns of some rows.
    #[inline(always)]
    fn run(&self, rows: &mut [Row<'_>]) -> Result<()> {
        let columns = self.order.len();
        let mut first = 0;
        while first < columns {
            let end = first.saturating_add(self.spec.block_size()).min(columns);
            for row in rows.iter_mut() {
                self.block(row, first, end);
                refuse_non_finite("gptq", "error", &row.error)?;
            }
            for tile in (end..columns).step_by(TILE) {
                let tile = tile..(tile + TILE).min(columns);
                for row in rows.iter_mut() {
                    let mut taken = [0.0; TILE];
                    for (j, error) in (first..end).zip(&row.error) {
                        let upper = &self.upper[j * columns..][tile.clone()];
                        for (taken, upper) in taken.iter_mut().zip(upper) {
                            *taken += error * upper;
                        }
                    }
                    for (weight, taken) in row.weight[tile.clone()].iter_mut().zip(&taken) {
                        *weight -= taken;
                    }
                }
            }
            first = end;
        }
        Ok(())
    }

    /// Rounds the columns of a block, each with the updates of those before it. Eqs. (Q20d),
    /// (Q20e).
    #[inline(always)]
    fn block(&self, row: &mut Row<'_>, first: usize, end: usize) {
        let (columns, size) = (self.order.len(), self.spec.quant.group_size());
        row.live.clear();
        row.live.extend_from_slice(&row.weight[first..end]);
        row.error.clear();
        for j in first..end {
            if !self.spec.static_groups && j % size == 0 {
                // From the finished blocks' weight: what this block did so far is not in it.
                let (scale, zero_point) = group_grid(&row.weight[j..j + size], self.spec);
                row.results.scale[j / size] = scale;
                row.results.zero_point[j / size] = zero_point;
            }
            let upper = &self.upper[j * columns..][..columns];
            let weight = row.live[j - first];
            let error = (weight - self.round(&mut row.results, self.order[j], weight)) / upper[j];
            row.error.push(error);
            for (live, upper) in row.live[j + 1 - first..].iter_mut().zip(&upper[j + 1..]) {
                *live -= error * upper;
            }
        }
    }

    /// Code and output of input `i`. Eq. (Q20d).
    #[inline(always)]
    fn round(&self, results: &mut Results<'_>, i: usize, weight: f32) -> f32 {
        let g = self.group_index[i];
        let (scale, zero_point) = (results.scale[g], results.zero_point[g]);
        let code = (weight / scale).round_ties_even() + zero_point;
        let code = code.clamp(0.0, self.spec.maxq() as f32);
        results.codes[i] = code as u8;
        results.output[i] = scale * (code - zero_point);
        results.output[i]
    }
}

#[cfg(test)]
mod tests {
    use plumbline_reference::spec::{Bits, QuantSpec};

    use super::*;

    fn spec(bits: u32, group_size: Option<usize>, columns: usize) -> GptqSpec {
        let quant = QuantSpec::new(Bits::new(bits).unwrap(), group_size, columns).unwrap();
        GptqSpec::new(quant, true).with_damping(0.0).unwrap()
    }

    /// The example of Eq. (Q20): half of the error of 7.5 comes over to 0.375.
    #[test]
    fn an_error_is_made_up_for_by_the_next_column() {
        let quantized =
            gptq_quantize(&[7.5, 0.375], &[2.0, 1.0, 1.0, 2.0], &spec(4, None, 2)).unwrap();
        assert_eq!(quantized.tensors.codes, [15, 9]);
        assert_eq!((quantized.tensors.scale[0], quantized.tensors.zero_point[0]), (1.0, 8.0));
        assert_eq!(quantized.output, [7.0, 1.0]);
    }

    #[test]
    fn groups_follow_the_order_unless_they_are_static() {
        let weight = [1.5, 3.0, 6.0, 12.0];
        let mut hessian = [0.0; 16];
        for (i, h) in [2.0, 8.0, 4.0, 8.0].into_iter().enumerate() {
            hessian[5 * i] = h;
        }
        let mut spec = spec(2, Some(2), 4);
        spec.act_order = true;
        let moved = gptq_quantize(&weight, &hessian, &spec).unwrap();
        assert_eq!(moved.group_index, [1, 0, 1, 0]);
        assert_eq!(moved.tensors.scale, [8.0, 4.0]);
        spec.static_groups = true;
        let fixed = gptq_quantize(&weight, &hessian, &spec).unwrap();
        assert_eq!(fixed.group_index, [0, 0, 1, 1]);
        assert_eq!(fixed.tensors.scale, [2.0, 8.0]);
    }

    /// More rows than a task and more columns than a tile, in blocks that divide neither.
    #[test]
    fn one_thread_and_two_give_the_same_bits() {
        let (rows, columns): (usize, usize) = (35, 600);
        let weight: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5).collect();
        let hessian: Vec<f64> = (0..columns * columns)
            .map(|at| 0.5f64.powi((at / columns).abs_diff(at % columns) as i32))
            .collect();
        let spec = spec(3, Some(8), columns).with_block_size(37).unwrap();
        let of = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| gptq_quantize(&weight, &hessian, &spec)).unwrap()
        };
        let one = of(1);
        assert_eq!(one, of(2));
        // A row does not know of the others.
        let last = gptq_quantize(&weight[34 * columns..], &hessian, &spec).unwrap();
        assert_eq!(last.output, one.output[34 * columns..]);
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let run = |weight: &[f32], hessian: &[f64]| {
            gptq_quantize(weight, hessian, &spec(4, None, 2)).unwrap_err().to_string()
        };
        let singular = run(&[1.0, 2.0], &[1.0; 4]);
        assert!(singular.contains("not positive definite with damping 0"), "{singular}");
        let skewed = run(&[1.0, 2.0], &[1.0, 0.5, 0.25, 1.0]);
        assert!(skewed.contains("hessian[1, 0] differs"), "{skewed}");
        assert!(run(&[f32::NAN, 1.0], &[1.0; 4]).contains("weight is not finite"));
        assert!(run(&[1.0, 1.0], &[f64::NAN; 4]).contains("hessian is not finite"));
        assert!(run(&[1.0, 1.0], &[1.0; 3]).contains("hessian holds 3 values, expected 4"));
        let large = run(&[3e38, -3e38], &[1.0, 0.0, 0.0, 1.0]);
        assert!(large.contains("not finite"), "{large}");
    }
}
