//! GPTQ once more in binary64, along the subject's own codes.
//!
//! A code depends on every code before it in its row, so a legal flip changes all that follows.
//! Given the codes, nothing is left of the staircase: with `L = lower` of [`Factor`] the residuals
//! `d = weight - output` at the time of rounding solve
//!
//! ```text
//! L @ d = weight - output
//! ```
//!
//! with the weight as it was given, and the weight that a column, or a range, is read from after
//! the first `begun` columns is `weight[k] - sum_(j < begun) L[k,j] * d[j]`. A subject solves this
//! by substitution, with each residual, quotient, product and sum rounded, in any order of sums
//! (N. J. Higham, Accuracy and Stability of Numerical Algorithms, theorem 8.5): with `c` terms in a
//! column, what reaches column `k` from there is
//!
//! ```text
//! slack[k] = gamma(c + 3) * sum_j |L[k,j]| * |d[j]| + gamma(c) * |weight[k]| + error of output[k]
//! ```
//!
//! and with the error `K` of the factor the weight that is read differs by at most
//!
//! ```text
//! sum_(f = begun..k) |L[k,f]| * sum_(j < begun) |K[f,j]| * |d[j]|
//!   + sum_(j < begun) |(L @ L^-1_(begun columns))[k,j]| * slack[j] + slack of this read
//! ```
//!
//! to first order. Where no term is there, as for a diagonal Hessian, nothing is rounded and ties
//! are ties.

use ndarray::Array2;
use plumbline_reference::spec::{GptqSpec, SCALE_FLOOR};

use super::factor::Factor;
use crate::judge::bound::Evidence;
use crate::ops::quantizer::{Choice, Ends, Steps};
use crate::params;
use crate::precision::Unit;

/// A float of the answer, given the codes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Answer {
    pub value: f64,
    pub error: f64,
    /// Whether the subject's choices made it another value than the expected one.
    pub diverged: bool,
}

/// Everything that GPTQ answers, given the codes.
pub(super) struct Replay {
    pub codes: Array2<Choice>,
    pub zero_points: Array2<Choice>,
    pub scale: Array2<Answer>,
    pub output: Array2<Answer>,
}

/// The grid of one group, with the zero point that the subject chose.
#[derive(Debug, Clone, Copy)]
struct Grid {
    scale: Steps,
    scale_error: f64,
    zero: Choice,
    zero_point: f64,
}

/// What is the same for every row.
struct Problem {
    spec: GptqSpec,
    unit: Unit,
    /// `[out, in]` in the order of the inputs, zero where an input never occurs.
    weight: Array2<f64>,
    order: Vec<usize>,
    factor: Factor,
}

/// One row on the way through its columns, which are in `order`.
struct Row<'a> {
    problem: &'a Problem,
    given: Vec<f64>,
    residual: Vec<f64>,
    slack: Vec<f64>,
}

impl Problem {
    fn new(evidence: &Evidence) -> Result<Self, String> {
        let request = evidence.request;
        let mut weight: Array2<f64> = request.array("weight")?;
        let mut hessian: Array2<f64> = request.array("hessian")?;
        let spec = params::gptq(&request.params, weight.ncols())?;
        for i in 0..weight.ncols() {
            if hessian[[i, i]] == 0.0 {
                hessian[[i, i]] = 1.0;
                weight.column_mut(i).fill(0.0);
            }
        }
        let mut order: Vec<usize> = (0..weight.ncols()).collect();
        if spec.act_order {
            order.sort_by(|&i, &k| hessian[[k, k]].total_cmp(&hessian[[i, i]]));
        }
        let added = spec.damping() * hessian.diag().sum() / order.len() as f64;
        let damped = Array2::from_shape_fn(hessian.dim(), |(j, k)| {
            hessian[[order[j], order[k]]] + if j == k { added } else { 0.0 }
        });
        let factor = Factor::new(&damped, evidence.unit)?;
        Ok(Self { spec, unit: evidence.unit, weight, order, factor })
    }

    fn ends(&self) -> Ends {
        Ends::unsigned(&self.spec.quant)
    }

    /// The group of the input in place `j`.
    fn group(&self, j: usize) -> usize {
        let place = if self.spec.static_groups { self.order[j] } else { j };
        place / self.spec.quant.group_size()
    }

    /// Range and grid of weights that are known to so much, as Eq. (Q20c).
    fn grid(&self, weights: &[(f64, f64)]) -> Grid {
        let (unit, maxq) = (self.unit, f64::from(self.spec.maxq()));
        // The least and the largest of several are wrong by no more than the worst of them.
        let error = weights.iter().map(|(_, error)| *error).fold(0.0, f64::max);
        let (mut low, mut high) =
            weights.iter().fold((0.0_f64, 0.0_f64), |(l, h), (w, _)| (l.min(*w), h.max(*w)));
        if low == high {
            (low, high) = (-1.0, 1.0);
        }
        if self.spec.symmetric {
            high = high.max(-low);
            low = -high;
        }
        let width = Steps::start(high).plus(Steps::start(-low));
        let width = Steps { exact_in_f32: width.exact_in_f32 && error == 0.0, ..width };
        let mut scale = width.over(Steps::start(maxq));
        let mut scale_error = 2.0 * error / maxq * (1.0 + unit.gamma(2.0));
        if scale.value < SCALE_FLOOR {
            scale = Steps { value: SCALE_FLOOR, exact_in_f32: false };
        }
        if !scale.exact_in_f32 {
            scale_error += unit.gamma(2.0) * scale.value + 2.0 * unit.tiny;
        }
        let zero = if low == -high {
            Choice::certain((maxq + 1.0) / 2.0)
        } else {
            let argument = Steps::start(-low).over(scale);
            let bound = self.quotient_error(argument, error, scale.value, scale_error);
            let code = argument.value.round_ties_even();
            Choice::on_grid(argument.value, bound, code, self.ends())
        };
        Grid { scale, scale_error, zero, zero_point: zero.code }
    }

    /// Of a dividend known to `error` over a divisor known to `divisor_error`.
    fn quotient_error(&self, quotient: Steps, error: f64, divisor: f64, divisor_error: f64) -> f64 {
        if quotient.exact_in_f32 && error == 0.0 {
            return 0.0;
        }
        let inherited = (error + quotient.value.abs() * divisor_error) / divisor;
        inherited + self.unit.gamma(1.0) * (quotient.value.abs() + inherited) + self.unit.tiny
    }
}

impl Row<'_> {
    /// The weight of column `k` after the updates of the first `begun` columns, and its error.
    fn read(&self, begun: usize, k: usize) -> (f64, f64) {
        let Problem { factor, unit, .. } = self.problem;
        let mut value = self.given[k];
        let (mut terms, mut magnitude) = (0.0, 0.0);
        for j in 0..begun {
            let lower = factor.lower(k, j);
            value -= lower * self.residual[j];
            magnitude += (lower * self.residual[j]).abs();
            terms += f64::from(u8::from(lower != 0.0));
        }
        let mut error = self.read_slack(terms, magnitude, value);
        for f in begun..=k {
            let of_factor: f64 =
                (0..begun).map(|j| factor.error[[f, j]] * self.residual[j].abs()).sum();
            error += factor.lower(k, f).abs() * of_factor;
        }
        for j in 0..begun {
            // Column j's slack reaches k through every column from j on.
            let reach: f64 =
                (j..begun).map(|m| factor.lower(k, m) * factor.lower_inverse(m, j)).sum();
            error += reach.abs() * self.slack[j];
        }
        (value, if error > 0.0 { error + (terms + 3.0) * unit.tiny } else { 0.0 })
    }

    fn read_slack(&self, terms: f64, magnitude: f64, value: f64) -> f64 {
        let unit = self.problem.unit;
        if terms == 0.0 {
            return 0.0;
        }
        unit.gamma(terms + 3.0) * magnitude + unit.gamma(terms) * value.abs()
    }

    /// Notes that column `j` was read as `value` and became `output`.
    fn round(&mut self, j: usize, value: f64, output: f64, output_error: f64) {
        let factor = &self.problem.factor;
        let (mut terms, mut magnitude) = (0.0, 0.0);
        for m in 0..j {
            let term = (factor.lower(j, m) * self.residual[m]).abs();
            terms += f64::from(u8::from(factor.lower(j, m) != 0.0));
            magnitude += term;
        }
        self.slack.push(self.read_slack(terms, magnitude, value) + output_error);
        self.residual.push(value - output);
    }
}

impl Replay {
    /// Along `codes`, which are row-major in the order of the inputs.
    ///
    /// # Errors
    /// Where the request is wrong, or has no codes to follow.
    pub fn new(evidence: &Evidence, codes: Option<&[i16]>) -> Result<Self, String> {
        let problem = Problem::new(evidence)?;
        let expected = evidence.expected_codes().ok_or("out.codes is no tensor of codes")?;
        let codes = codes.filter(|codes| codes.len() == expected.len()).unwrap_or(&expected);
        let (rows, columns) = problem.weight.dim();
        let groups = problem.spec.quant.groups();
        let certain = Choice::certain(0.0);
        let mut replay = Self {
            codes: Array2::from_elem((rows, columns), certain),
            zero_points: Array2::from_elem((rows, groups), certain),
            scale: Array2::default((rows, groups)),
            output: Array2::default((rows, columns)),
        };
        for o in 0..rows {
            replay.row(&problem, evidence, o, &codes[o * columns..][..columns], &expected);
        }
        Ok(replay)
    }

    fn row(
        &mut self,
        problem: &Problem,
        evidence: &Evidence,
        o: usize,
        codes: &[i16],
        expected: &[i16],
    ) {
        let Problem { spec, order, unit, .. } = problem;
        let (columns, size) = (order.len(), spec.quant.group_size());
        let given: Vec<f64> = order.iter().map(|&i| problem.weight[[o, i]]).collect();
        let mut row = Row { problem, given, residual: Vec::new(), slack: Vec::new() };
        let mut grids = vec![None; spec.quant.groups()];
        let mut diverged = false;
        if spec.static_groups {
            for (g, grid) in grids.iter_mut().enumerate() {
                let weights = problem.weight.row(o).to_vec();
                let group: Vec<_> = weights[g * size..][..size].iter().map(|w| (*w, 0.0)).collect();
                *grid = Some(self.keep(problem.grid(&group), evidence, (o, g), &mut diverged));
            }
        }
        for j in 0..columns {
            let (i, g) = (order[j], problem.group(j));
            if !spec.static_groups && j % size == 0 {
                let begun = j - j % spec.block_size();
                let group: Vec<_> = (j..j + size).map(|k| row.read(begun, k)).collect();
                grids[g] = Some(self.keep(problem.grid(&group), evidence, (o, g), &mut diverged));
            }
            let grid = grids[g].expect("a group begins before its columns");
            let (weight, error) = row.read(j, j);
            let steps = Steps::start(weight).over(grid.scale);
            let bound = problem.quotient_error(steps, error, grid.scale.value, grid.scale_error);
            let ends = problem.ends();
            let code = (steps.value.round_ties_even() + grid.zero_point).clamp(ends.low, ends.high);
            let choice = Choice::on_grid(steps.value + grid.zero_point, bound, code, ends);
            self.codes[[o, i]] = Choice { diverged, ..choice };
            let own = f64::from(codes[i]);
            diverged |= codes[i] != expected[o * columns + i];
            let from_zero = own - grid.zero_point;
            let output = grid.scale.value * from_zero;
            let inherited = from_zero.abs() * grid.scale_error;
            let exact = inherited == 0.0 && output == f64::from(output as f32);
            let rounded = unit.gamma(1.0) * (output.abs() + inherited) + unit.tiny;
            let output_error = if exact { 0.0 } else { inherited + rounded };
            self.output[[o, i]] = Answer { value: output, error: output_error, diverged };
            row.round(j, weight, output, output_error);
        }
    }

    /// Enters a grid and takes the subject's zero point where it is a legal one.
    fn keep(
        &mut self,
        grid: Grid,
        evidence: &Evidence,
        (o, g): (usize, usize),
        diverged: &mut bool,
    ) -> Grid {
        let place = o * self.scale.ncols() + g;
        self.scale[[o, g]] =
            Answer { value: grid.scale.value, error: grid.scale_error, diverged: *diverged };
        self.zero_points[[o, g]] = Choice { diverged: *diverged, ..grid.zero };
        let expected = evidence.expected["zero_point"].value(place);
        let answer = evidence.actual.get("zero_point").filter(|t| t.len() == self.scale.len());
        let own = answer.map_or(expected, |answer| answer.value(place));
        let zero_point = if grid.zero.allows(own) { own } else { grid.zero.code };
        *diverged |= zero_point != expected;
        Grid { zero_point, ..grid }
    }
}
