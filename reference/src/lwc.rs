//! Learnable weight clipping (OmniQuant, arXiv:2308.13137): a frozen weight whose grid spans a
//! learned fraction of its range.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, Slice};

use crate::spec::QuantSpec;
use crate::{Error, Real, check};

/// The least and the greatest scale.
const SCALE_RANGE: [f64; 2] = [1e-5, 1e4];

/// The greatest magnitude of a zero point.
const ZERO_POINT_LIMIT: f64 = 1e4;

/// One weight and the logits of the fractions of its range that are kept.
#[derive(Debug, Clone, Copy)]
pub struct Lwc<'a, T> {
    /// `[out, in]`
    pub weight: ArrayView2<'a, T>,
    /// `[out, groups]`, of the positive end.
    pub upper: ArrayView2<'a, T>,
    /// `[out, groups]`, of the negative end.
    pub lower: ArrayView2<'a, T>,
    /// The grid.
    pub spec: QuantSpec,
    /// One fraction for both ends, and zero in the middle.
    pub symmetric: bool,
}

/// Result of [`Lwc::forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct LwcForward<T> {
    /// `[out, in]`, from 0 to `2^bits - 1`.
    pub codes: Array2<u8>,
    /// `[out, groups]`
    pub scale: Array2<T>,
    /// `[out, groups]`, integers.
    pub zero_point: Array2<T>,
    /// `[out, in]`
    pub output: Array2<T>,
}

/// Result of [`Lwc::backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct LwcGradients<T> {
    /// `[out, in]`
    pub d_weight: Array2<T>,
    /// `[out, groups]`
    pub d_upper: Array2<T>,
    /// `[out, groups]`
    pub d_lower: Array2<T>,
}

/// The range of one group and what is made of it.
struct GroupGrid<T> {
    min: T,
    max: T,
    keep_low: T,
    keep_high: T,
    low: T,
    high: T,
    /// Before it is clamped.
    range_scale: T,
    scale: T,
    zero_point: T,
}

fn sigmoid<T: Real>(logit: T) -> T {
    T::one() / (T::one() + (-logit).exp())
}

impl<T: Real> Lwc<'_, T> {
    /// The weight on the clipped grid. Eq. (Q16).
    ///
    /// ```text
    /// high[o,g] = sigmoid(upper[o,g]) * max_(i in g) weight[o,i]
    /// low[o,g] = sigmoid(lower[o,g]) * min_(i in g) weight[o,i]
    /// sigmoid(z) = 1 / (1 + exp(-z))
    /// asymmetric: scale[o,g] = clamp((high - low) / (2^bits - 1), 1e-5, 1e4)
    ///             zero_point[o,g] = round_half_even(clamp(-low / scale, -1e4, 1e4))
    /// symmetric:  scale[o,g] = clamp(max(|high|, |low|) / qmax, 1e-5, 1e4)
    ///             zero_point[o,g] = qmax
    /// place[o,i] = round_half_even(weight[o,i] / scale[o,g]) + zero_point[o,g]
    /// codes[o,i] = clamp(place[o,i], 0, 2^bits - 1)
    /// output[o,i] = scale[o,g] * (codes[o,i] - zero_point[o,g])
    /// ```
    ///
    /// # Shapes
    /// `weight [out, in]`, `upper, lower [out, groups]` ->
    /// `codes, output [out, in]`, `scale, zero_point [out, groups]`
    ///
    /// # Errors
    /// `Shape`, `NonFinite`.
    pub fn forward(&self) -> Result<LwcForward<T>, Error> {
        const OPERATION: &str = "lwc.forward";
        self.check(OPERATION)?;
        let mut forward = LwcForward {
            codes: Array2::zeros(self.weight.dim()),
            scale: Array2::zeros(self.upper.dim()),
            zero_point: Array2::zeros(self.upper.dim()),
            output: Array2::zeros(self.weight.dim()),
        };
        for (o, g) in ndarray::indices(self.upper.dim()) {
            let GroupGrid { scale, zero_point, .. } = self.group_grid(o, g);
            (forward.scale[[o, g]], forward.zero_point[[o, g]]) = (scale, zero_point);
            for i in self.inputs_of(g) {
                let code = self.clamped(self.place(o, i, scale, zero_point));
                forward.codes[[o, i]] = code.value() as u8;
                forward.output[[o, i]] = scale * (code - zero_point);
            }
        }
        forward.scale = check::result(OPERATION, "scale", forward.scale)?;
        forward.output = check::result(OPERATION, "output", forward.output)?;
        Ok(forward)
    }

    /// Gradients of weight and logits. Eq. (Q17).
    ///
    /// ```text
    /// in_range[o,i] = 0 <= place[o,i] <= 2^bits - 1
    /// d_weight[o,i] = d_output[o,i] where in_range[o,i], else 0
    /// passed[o,i] = weight[o,i] / scale[o,g] where in_range[o,i], else 0
    /// slope[o,i] = codes[o,i] - zero_point[o,g] - passed[o,i]
    /// d_scale[o,g] = sum_(i in g) d_output[o,i] * slope[o,i], 0 where the clamp moved scale
    /// asymmetric: d_high = d_scale / (2^bits - 1), d_low = -d_scale / (2^bits - 1)
    /// symmetric:  d_high = sign(high) * d_scale / qmax where |high| >= |low|, else 0
    ///             d_low = sign(low) * d_scale / qmax where |high| < |low|, else 0
    /// d_upper[o,g] = d_high * max_(i in g) weight[o,i] * (sigmoid(upper) * (1 - sigmoid(upper)))
    /// d_lower[o,g] = d_low * min_(i in g) weight[o,i] * (sigmoid(lower) * (1 - sigmoid(lower)))
    /// ```
    ///
    /// The zero point and the extremes of the weight are constants.
    ///
    /// # Shapes
    /// `d_output [out, in]` -> `d_weight [out, in]`, `d_upper, d_lower [out, groups]`
    ///
    /// # Errors
    /// As [`Lwc::forward`].
    pub fn backward(&self, d_output: ArrayView2<T>) -> Result<LwcGradients<T>, Error> {
        const OPERATION: &str = "lwc.backward";
        self.check(OPERATION)?;
        check::input(OPERATION, "d_output", &d_output, self.weight.shape())?;
        let mut gradients = LwcGradients {
            d_weight: Array2::zeros(self.weight.dim()),
            d_upper: Array2::zeros(self.upper.dim()),
            d_lower: Array2::zeros(self.lower.dim()),
        };
        for (o, g) in ndarray::indices(self.upper.dim()) {
            let grid = self.group_grid(o, g);
            let mut d_scale = T::zero();
            for i in self.inputs_of(g) {
                let place = self.place(o, i, grid.scale, grid.zero_point);
                let code = self.clamped(place);
                let mut slope = code - grid.zero_point;
                if place == code {
                    slope -= self.weight[[o, i]] / grid.scale;
                    gradients.d_weight[[o, i]] = d_output[[o, i]];
                }
                d_scale += d_output[[o, i]] * slope;
            }
            let (d_upper, d_lower) = self.logit_gradients(&grid, d_scale);
            (gradients.d_upper[[o, g]], gradients.d_lower[[o, g]]) = (d_upper, d_lower);
        }
        Ok(LwcGradients {
            d_upper: check::result(OPERATION, "d_upper", gradients.d_upper)?,
            d_lower: check::result(OPERATION, "d_lower", gradients.d_lower)?,
            ..gradients
        })
    }

    /// From the gradient of one scale to those of its two logits.
    fn logit_gradients(&self, grid: &GroupGrid<T>, d_scale: T) -> (T, T) {
        if grid.scale != grid.range_scale {
            return (T::zero(), T::zero());
        }
        let sign = |end: T| if end < T::zero() { -T::one() } else { T::one() };
        let (d_high, d_low) = if !self.symmetric {
            let steps = self.last();
            (d_scale / steps, -d_scale / steps)
        } else if grid.high.abs() >= grid.low.abs() {
            (sign(grid.high) * d_scale / self.qmax(), T::zero())
        } else {
            (T::zero(), sign(grid.low) * d_scale / self.qmax())
        };
        (
            d_high * grid.max * (grid.keep_high * (T::one() - grid.keep_high)),
            d_low * grid.min * (grid.keep_low * (T::one() - grid.keep_low)),
        )
    }

    fn check(&self, operation: &'static str) -> Result<(), Error> {
        let (rows, groups) = (self.weight.nrows(), self.spec.groups());
        check::input(operation, "weight", &self.weight, &[rows, self.spec.in_features()])?;
        check::input(operation, "upper", &self.upper, &[rows, groups])?;
        check::input(operation, "lower", &self.lower, &[rows, groups])
    }

    fn inputs_of(&self, g: usize) -> std::ops::Range<usize> {
        g * self.spec.group_size()..(g + 1) * self.spec.group_size()
    }

    fn group_grid(&self, o: usize, g: usize) -> GroupGrid<T> {
        let row = self.weight.row(o);
        let group: ArrayView1<T> = row.slice_axis(Axis(0), Slice::from(self.inputs_of(g)));
        let min = group.iter().copied().fold(T::infinity(), T::min);
        let max = group.iter().copied().fold(-T::infinity(), T::max);
        let (keep_high, keep_low) = (sigmoid(self.upper[[o, g]]), sigmoid(self.lower[[o, g]]));
        let (high, low) = (keep_high * max, keep_low * min);
        let range_scale = if self.symmetric {
            high.abs().max(low.abs()) / self.qmax()
        } else {
            (high - low) / self.last()
        };
        let scale = range_scale.max(T::of(SCALE_RANGE[0])).min(T::of(SCALE_RANGE[1]));
        let zero_point = if self.symmetric {
            self.qmax()
        } else {
            let limit = T::of(ZERO_POINT_LIMIT);
            (-low / scale).max(-limit).min(limit).round_half_even()
        };
        GroupGrid { min, max, keep_low, keep_high, low, high, range_scale, scale, zero_point }
    }

    /// Where a weight would lie on a grid without ends.
    fn place(&self, o: usize, i: usize, scale: T, zero_point: T) -> T {
        (self.weight[[o, i]] / scale).round_half_even() + zero_point
    }

    fn clamped(&self, place: T) -> T {
        place.max(T::zero()).min(self.last())
    }

    /// `2^bits - 1`, the greatest code and the number of steps.
    fn last(&self) -> T {
        T::of(f64::from(self.spec.bits().unsigned_max()))
    }

    fn qmax(&self) -> T {
        T::of(f64::from(self.spec.qmax()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Bits;
    use ndarray::array;

    fn two_bits(in_features: usize) -> QuantSpec {
        QuantSpec::new(Bits::new(2).unwrap(), None, in_features).unwrap()
    }

    /// `sigmoid` of these logits is a half.
    const HALF: [[f64; 1]; 1] = [[0.0]];

    #[test]
    fn examples_of_q16_and_q17() {
        let weight = array![[-2.0, 0.75, 4.0]];
        let half = ndarray::arr2(&HALF);
        let lwc = Lwc {
            weight: weight.view(),
            upper: half.view(),
            lower: half.view(),
            spec: two_bits(3),
            symmetric: false,
        };
        let forward = lwc.forward().unwrap();
        assert_eq!(forward.scale, array![[1.0]]);
        assert_eq!(forward.zero_point, array![[1.0]]);
        assert_eq!(forward.codes, array![[0, 2, 3]]);
        assert_eq!(forward.output, array![[-1.0, 1.0, 2.0]]);
        let backward = lwc.backward(array![[1.0, 8.0, 2.0]].view()).unwrap();
        assert_eq!(backward.d_weight, array![[0.0, 8.0, 0.0]]);
        // d_scale = 1 * (-1) + 8 * (1 - 0.75) + 2 * 2 = 5
        assert_eq!(backward.d_upper, array![[5.0 / 3.0 * 4.0 * 0.25]]);
        assert_eq!(backward.d_lower, array![[5.0 / 3.0 * 2.0 * 0.25]]);

        let symmetric = Lwc { symmetric: true, ..lwc };
        let forward = symmetric.forward().unwrap();
        assert_eq!(forward.scale, array![[2.0]]);
        assert_eq!(forward.codes, array![[0, 1, 3]]);
        assert_eq!(forward.output, array![[-2.0, 0.0, 4.0]]);
        let backward = symmetric.backward(array![[1.0, 8.0, 2.0]].view()).unwrap();
        // Everything is in range: d_scale = 0 + 8 * (0 - 0.375) + 0 = -3
        assert_eq!(backward.d_upper, array![[-3.0 * 4.0 * 0.25]]);
        assert_eq!(backward.d_lower, array![[0.0]]);
    }

    #[test]
    fn a_group_without_a_range_has_the_least_scale_and_no_gradient() {
        let (weight, half) = (array![[0.0, 0.0]], ndarray::arr2(&HALF));
        for symmetric in [false, true] {
            let lwc = Lwc {
                weight: weight.view(),
                upper: half.view(),
                lower: half.view(),
                spec: two_bits(2),
                symmetric,
            };
            let forward = lwc.forward().unwrap();
            assert_eq!((forward.scale, forward.output), (array![[1e-5]], array![[0.0, 0.0]]));
            let backward = lwc.backward(array![[1.0, 1.0]].view()).unwrap();
            assert_eq!((backward.d_upper, backward.d_lower), (array![[0.0]], array![[0.0]]));
        }
    }

    #[test]
    fn the_zero_point_is_limited() {
        // One weight far from zero: low / scale is beyond 1e4, and the grid cannot follow.
        let (weight, half) = (array![[0.5]], ndarray::arr2(&HALF));
        let lwc = Lwc {
            weight: weight.view(),
            upper: half.view(),
            lower: half.view(),
            spec: two_bits(1),
            symmetric: false,
        };
        let forward = lwc.forward().unwrap();
        assert_eq!(forward.zero_point, array![[-1e4]]);
        assert_eq!(forward.codes, array![[3]]);
        assert_eq!(forward.output, array![[1e-5 * 10003.0]]);
    }

    #[test]
    fn logits_without_bound_keep_everything_or_nothing() {
        let weight = array![[-3.0_f32, 3.0]];
        let (all, nothing) = (array![[1e30_f32]], array![[-1e30]]);
        let lwc = Lwc {
            weight: weight.view(),
            upper: all.view(),
            lower: all.view(),
            spec: two_bits(2),
            symmetric: false,
        };
        assert_eq!(lwc.forward().unwrap().scale, array![[2.0]]);
        let none = Lwc { upper: nothing.view(), lower: nothing.view(), ..lwc };
        assert_eq!(none.forward().unwrap().scale, array![[1e-5]]);
        let d_output = array![[1.0, 1.0]];
        assert_eq!(none.backward(d_output.view()).unwrap().d_upper, array![[0.0]]);
    }
}
