//! Unsigned grids with a zero point from the data:
//! `code = clamp(round(argument) + zero_point, 0, 2^bits - 1)`.
//!
//! The zero point is itself rounded, so that beside a tie it is open like a code. A subject that
//! took the other integer has, legally, other codes: they are judged on the grid that it chose.

use ndarray::{Array2, Zip};
use plumbline_reference::spec::QuantSpec;

use super::quantizer::{Element, Ends, Grid};
use crate::judge::bound::{Allowance, Evidence};
use crate::precision::Unit;
use crate::tensor::Tensors;

/// An error beyond this many steps says nothing about a zero point; it is the greatest magnitude
/// that learnable weight clipping lets one have.
const UNKNOWN: f64 = 1e4;

/// A number as binary64 computes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Bound of what the subject's may differ by; 0 where every step is exact in binary32.
    pub error: f64,
}

impl Estimate {
    /// A number that every precision computes alike.
    pub fn exact(value: f64) -> Self {
        Self { value, error: 0.0 }
    }

    /// The integers that it may be rounded to, in ascending order. An error beyond [`UNKNOWN`] is
    /// cut off there.
    pub(super) fn integers(self) -> impl Iterator<Item = f64> {
        let reach = 0.5 + self.error.min(UNKNOWN);
        let [first, last] = if self.error == 0.0 {
            [self.value.round_ties_even(); 2]
        } else {
            [(self.value - reach).ceil(), (self.value + reach).floor()]
        };
        std::iter::successors(Some(first), |integer| Some(integer + 1.0))
            .take_while(move |integer| *integer <= last)
    }
}

/// The rounded zero points of a grid.
#[derive(Debug, Clone)]
pub struct ZeroPoints {
    /// `[rows, groups]`, those that are judged by.
    pub value: Array2<f64>,
    /// `[rows, groups]`, as binary64 rounds them.
    pub expected: Array2<f64>,
    /// `[rows, groups]`, before they are rounded.
    pub estimate: Array2<Estimate>,
    /// `[rows, groups]`, how far the scale may be off.
    pub scale_error: Array2<f64>,
}

/// An element of a grid with a zero point, whose mask is closed on the rounded argument.
pub fn element(argument: Estimate, zero_point: f64, ends: Ends) -> Element {
    let Estimate { value, error } = argument;
    let place = value.round_ties_even() + zero_point;
    let to_edge = [ends.low - 0.5, ends.high + 0.5]
        .map(|end| (value - (end - zero_point)).abs())
        .into_iter()
        .fold(f64::INFINITY, f64::min);
    Element {
        argument: value,
        error,
        zero_point,
        code: place.clamp(ends.low, ends.high),
        in_range: (ends.low..=ends.high).contains(&place),
        at_edge: error > 0.0 && to_edge <= error,
    }
}

impl Grid {
    /// A grid from scales and unrounded zero points `[rows, groups]` and arguments `[rows, in]`.
    pub fn unsigned(
        spec: QuantSpec,
        scale: &Array2<Estimate>,
        zero_point: &Array2<Estimate>,
        arguments: &Array2<Estimate>,
    ) -> Self {
        let ends = Ends::unsigned(&spec);
        let value = zero_point.mapv(|estimate| estimate.value.round_ties_even());
        let elements = Array2::from_shape_fn(arguments.dim(), |(o, i)| {
            element(arguments[[o, i]], value[[o, i / spec.group_size()]], ends)
        });
        let zero_points = ZeroPoints {
            expected: value.clone(),
            value,
            estimate: zero_point.clone(),
            scale_error: scale.mapv(|estimate| estimate.error),
        };
        Self {
            spec,
            ends,
            scale: scale.mapv(|estimate| estimate.value),
            offset: Array2::zeros(scale.dim()),
            raised: Array2::from_elem(scale.dim(), false),
            elements,
            zero_points: Some(zero_points),
        }
    }

    /// Takes over the subject's zero points wherever they are another legal integer.
    pub fn adopt_zero_points(&mut self, actual: &Tensors) {
        let (Some(zero_points), Some(own)) = (&mut self.zero_points, actual.get("zero_point"))
        else {
            return;
        };
        if own.shape() != zero_points.value.shape() {
            return;
        }
        for ((value, estimate), own) in
            zero_points.value.iter_mut().zip(&zero_points.estimate).zip(own.values())
        {
            if estimate.integers().any(|integer| integer == own) {
                *value = own;
            }
        }
        for ((o, i), at) in self.elements.indexed_iter_mut() {
            let zero_point = zero_points.value[[o, i / self.spec.group_size()]];
            if zero_point != at.zero_point {
                let argument = Estimate { value: at.argument, error: at.error };
                *at = element(argument, zero_point, self.ends);
            }
        }
    }

    /// The code of an element whose zero point was taken over: the expected one does not apply.
    pub fn expected_code(&self, index: usize) -> Option<f64> {
        let (o, i) = (index / self.spec.in_features(), index % self.spec.in_features());
        let place = [o, i / self.spec.group_size()];
        let zero_points = self.zero_points.as_ref()?;
        let moved = zero_points.value[place] != zero_points.expected[place];
        moved.then(|| self.elements[[o, i]].code)
    }
}

/// The zero points of a grid: equal, or another integer where the choice is open.
pub(super) fn zero_point_allowance(grid: &Grid) -> Allowance {
    let mut allowance = Allowance::absolute(std::iter::repeat_n(0.0, grid.scale.len()));
    let Some(zero_points) = &grid.zero_points else { return allowance };
    for (index, estimate) in zero_points.estimate.iter().enumerate() {
        let legal: Vec<_> = estimate.integers().map(|integer| (index, integer)).collect();
        if legal.len() > 1 {
            allowance.alternatives.extend(legal);
            allowance.open += 1;
        }
    }
    allowance
}

/// `scale * (code - zero_point)`: the difference of two integers is exact, the scale carries its
/// error, the product rounds. `grid` has the subject's own zero points; its codes, where they are
/// legal neighbours, replace the expected ones.
pub(super) fn steps_allowance(grid: &Grid, evidence: &Evidence) -> Allowance {
    let unit: Unit = evidence.unit;
    let own = grid.dequantized(evidence.codes);
    let group_size = grid.spec.group_size();
    let bound = own.indexed_iter().map(|((o, i), value)| {
        let place = [o, i / group_size];
        let error = grid.zero_points.as_ref().map_or(0.0, |z| z.scale_error[place]);
        let steps = (value / grid.scale[place]).abs();
        let product = if *value == 0.0 { 0.0 } else { unit.gamma(1.0) * value.abs() + unit.tiny };
        steps * error * (1.0 + unit.gamma(1.0)) + product
    });
    let mut allowance = Allowance::absolute(bound);
    // Without codes of its own the subject has the expected ones, if perhaps on another grid.
    let codes = evidence.codes.zip(evidence.expected_codes());
    for (index, own) in own.iter().enumerate() {
        let differs = |(own, expected): &(&[i16], Vec<i16>)| own[index] != expected[index];
        if codes.as_ref().is_some_and(differs) || grid.expected_code(index).is_some() {
            allowance.replaced.push((index, *own));
        }
    }
    allowance
}

/// `d_output` where the mask passes, else 0; both where a rounding error of the argument or an open
/// zero point decides.
pub(super) fn passed_allowance(grid: &Grid, d_output: &Array2<f64>) -> Allowance {
    let mut allowance = super::fake_quantize::copied_where_in_range(grid, d_output);
    let group_size = grid.spec.group_size();
    let Some(zero_points) = &grid.zero_points else { return allowance };
    for (index, ((o, i), at)) in grid.elements.indexed_iter().enumerate() {
        let argument = Estimate { value: at.argument, error: at.error };
        let moves = |zero_point: f64| {
            let moved = element(argument, zero_point, grid.ends);
            moved.in_range != at.in_range || moved.at_edge
        };
        let estimate = zero_points.estimate[[o, i / group_size]];
        if !at.at_edge && estimate.integers().any(moves) {
            allowance.alternatives.extend([(index, 0.0), (index, d_output[[o, i]])]);
            allowance.open += 1;
        }
    }
    allowance
}

/// The least and the greatest number of every group of a matrix.
pub(super) fn extremes(matrix: &Array2<f64>, spec: &QuantSpec) -> [Array2<f64>; 2] {
    let shape = (matrix.nrows(), spec.groups());
    let mut low = Array2::from_elem(shape, f64::INFINITY);
    let mut high = Array2::from_elem(shape, f64::NEG_INFINITY);
    for ((o, i), &number) in matrix.indexed_iter() {
        let place = [o, i / spec.group_size()];
        low[place] = number.min(low[place]);
        high[place] = number.max(high[place]);
    }
    [low, high]
}

/// Arrays of values and of errors as one.
pub(super) fn estimates(values: &Array2<f64>, errors: &Array2<f64>) -> Array2<Estimate> {
    Zip::from(values).and(errors).map_collect(|&value, &error| Estimate { value, error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Data, Tensor};
    use ndarray::array;
    use plumbline_reference::spec::Bits;

    const TWO_BITS: Ends = Ends { low: 0.0, high: 3.0 };

    fn near(value: f64) -> Estimate {
        Estimate { value, error: 1e-6 }
    }

    #[test]
    fn a_tie_is_one_of_the_argument_and_not_of_the_place() {
        // round(0.5) + 1 = 1, where round(0.5 + 1) would be 2.
        let at = element(Estimate::exact(0.5), 1.0, TWO_BITS);
        assert_eq!((at.code, at.nearest_tie(TWO_BITS)), (1.0, (0.0, 2.0)));
        assert!(!at.at_tie(TWO_BITS));
        assert!(element(near(0.5), 1.0, TWO_BITS).at_tie(TWO_BITS));
    }

    #[test]
    fn beyond_the_grid_the_mask_is_closed_on_the_rounded_argument() {
        for (argument, code, in_range) in [
            (-1.5, 0.0, false),
            (-1.4, 0.0, true),
            (2.4, 3.0, true),
            (2.5, 3.0, true),
            (3.5, 3.0, false),
        ] {
            let at = element(Estimate::exact(argument), 1.0, TWO_BITS);
            assert_eq!((at.code, at.in_range), (code, in_range), "{argument}");
        }
        assert!(element(near(2.5), 1.0, TWO_BITS).at_edge);
    }

    #[test]
    fn a_legal_zero_point_takes_its_codes_along() {
        let spec = QuantSpec::new(Bits::new(2).unwrap(), None, 3).unwrap();
        let arguments = array![[near(-1.4), near(0.2), near(1.6)]];
        let grid = |zero_point| {
            Grid::unsigned(spec, &array![[near(1.0)]], &array![[zero_point]], &arguments)
        };
        let own = |value: f32| {
            let tensor = Tensor::new(vec![1, 1], Data::F32(vec![value])).unwrap();
            Tensors::from([("zero_point".to_owned(), tensor)])
        };
        let codes = |grid: &Grid| grid.elements.mapv(|at| at.code);
        let mut open = grid(near(1.5));
        assert_eq!(codes(&open), array![[1.0, 2.0, 3.0]]);
        open.adopt_zero_points(&own(1.0));
        assert_eq!(codes(&open), array![[0.0, 1.0, 3.0]]);
        assert_eq!(open.expected_code(1), Some(1.0));
        for (zero_point, wrong) in
            [(near(1.5), 3.0), (near(1.5), 1.5), (near(1.4), 2.0), (Estimate::exact(1.5), 1.0)]
        {
            let mut closed = grid(zero_point);
            let before = codes(&closed);
            closed.adopt_zero_points(&own(wrong));
            assert_eq!(codes(&closed), before);
            assert_eq!(closed.expected_code(1), None);
        }
    }
}
