//! LR-QAT (arXiv:2406.06385): a low-rank update in units of the grid, inside the rounding, on top
//! of a frozen weight that is held in a cheap type. There is no path beside the quantized weight,
//! in training or after, so [`LrQat::merge`] gives codes that stand for exactly the weight of the
//! forward pass.

mod downcast;

use ndarray::{Array2, ArrayView2};

pub use downcast::{Downcasted, Stored, downcast};

use crate::linear::{linear, linear_backward};
use crate::lora::{delta_weight, delta_weight_backward};
use crate::quantize::raised_scale;
use crate::spec::{InnerScale, LrQatDialect, LrQatMask, LrQatSpec, SCALE_FLOOR};
use crate::{Error, Real, check};
use downcast::{GridEnds, grid_ends};

/// One linear layer under LR-QAT.
#[derive(Debug, Clone, Copy)]
pub struct LrQat<'a, T> {
    /// `[out, in]`, frozen.
    pub weight: ArrayView2<'a, T>,
    /// `[out, groups]`, frozen; there is one where the inner scale is.
    pub initial_scale: Option<ArrayView2<'a, T>>,
    /// `[out, groups]`, frozen integers; none means the signed grid.
    pub zero_point: Option<ArrayView2<'a, T>>,
    /// `[rank, in]`, in units of the grid; `B` of the paper.
    pub lora_a: ArrayView2<'a, T>,
    /// `[out, rank]`, in units of the grid; `A` of the paper.
    pub lora_b: ArrayView2<'a, T>,
    /// `[out, groups]`
    pub scale: ArrayView2<'a, T>,
    /// Multiplier on `lora_b @ lora_a`.
    pub lora_scaling: f64,
    /// The grid and the choices.
    pub spec: LrQatSpec,
}

/// Result of [`LrQat::forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct LrQatForward<T> {
    /// `[tokens, out]`
    pub y: Array2<T>,
    /// `[out, in]`
    pub codes: Array2<i8>,
    /// `[out, in]`, the weight that multiplied `x`.
    pub fake_quantized: Array2<T>,
}

/// Result of [`LrQat::backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct LrQatGradients<T> {
    /// `[tokens, in]`
    pub d_x: Array2<T>,
    /// `[rank, in]`
    pub d_lora_a: Array2<T>,
    /// `[out, rank]`
    pub d_lora_b: Array2<T>,
    /// `[out, groups]`
    pub d_scale: Array2<T>,
}

/// Result of [`LrQat::merge`]: all that is needed to run the layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LrQatMerged<T> {
    /// `[out, in]`, zero where the weight is.
    pub codes: Array2<i8>,
    /// `[out, groups]`, at least `SCALE_FLOOR`.
    pub scale: Array2<T>,
}

/// The weight on its way to the codes.
struct Rounding<T> {
    inner: Array2<T>,
    argument: Array2<T>,
    rounded: Array2<T>,
    ends: GridEnds<T>,
}

impl<T: Real> LrQat<'_, T> {
    /// The layer's output. Eq. (M5).
    ///
    /// ```text
    /// frozen: inner[o,i] = phi[o,i]
    /// live:   inner[o,i] = weight[o,i] / raised_scale[o,g]
    /// argument = inner + delta_weight(lora_a, lora_b, lora_scaling)
    /// paper:       rounded = round_half_even(argument)
    /// lr_qat_code: rounded = inner + round_half_even(delta_weight)
    /// codes[o,i] = clamp(rounded[o,i], low[o,g], high[o,g])
    /// fake_quantized[o,i] = codes[o,i] * raised_scale[o,g]
    /// y = linear(x, fake_quantized)
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]` -> `y [tokens, out]`, `codes, fake_quantized [out, in]`
    ///
    /// # Errors
    /// `Shape`, `NonFinite`, `ZeroPoint`, `Spec` for a `lora_scaling` that is not finite and for an
    /// `initial_scale` that the inner scale does not go with.
    pub fn forward(&self, x: ArrayView2<T>) -> Result<LrQatForward<T>, Error> {
        const OPERATION: &str = "lr_qat.forward";
        check::input(OPERATION, "x", &x, &[x.nrows(), self.spec.grid().in_features()])?;
        let rounding = self.rounding(OPERATION)?;
        let codes = self.codes(&rounding);
        let fake_quantized = self.fake_quantized(OPERATION, &codes)?;
        let y = linear(x, fake_quantized.view())?;
        Ok(LrQatForward { y, codes, fake_quantized })
    }

    /// Gradients of input and trained tensors; everything but `x` is recomputed. Eq. (M6).
    ///
    /// ```text
    /// d_x, d_fake_quantized = linear_backward(x, fake_quantized, d_y)
    /// rounded:   in_range[o,i] = low[o,g] <= rounded[o,i] <= high[o,g]
    /// pre_round: in_range[o,i] = low[o,g] <= argument[o,i] <= high[o,g]
    /// d_argument[o,i] = raised_scale[o,g] * d_fake_quantized[o,i] where in_range[o,i], else 0
    /// d_lora_a[r,i] = lora_scaling * sum_o lora_b[o,r] * d_argument[o,i]
    /// d_lora_b[o,r] = lora_scaling * sum_i d_argument[o,i] * lora_a[r,i]
    /// frozen: slope[o,i] = codes[o,i]
    /// live:   slope[o,i] = codes[o,i] - inner[o,i] where in_range[o,i], else codes[o,i]
    /// d_scale[o,g] = sum_(i in g) d_fake_quantized[o,i] * slope[o,i]
    /// d_scale[o,g] = 0 where scale[o,g] < SCALE_FLOOR
    /// ```
    ///
    /// # Shapes
    /// `x [tokens, in]`, `d_y [tokens, out]` -> like `x` and the trained tensors
    ///
    /// # Errors
    /// As [`LrQat::forward`].
    pub fn backward(
        &self,
        x: ArrayView2<T>,
        d_y: ArrayView2<T>,
    ) -> Result<LrQatGradients<T>, Error> {
        const OPERATION: &str = "lr_qat.backward";
        check::input(OPERATION, "x", &x, &[x.nrows(), self.spec.grid().in_features()])?;
        check::input(OPERATION, "d_y", &d_y, &[x.nrows(), self.weight.nrows()])?;
        let rounding = self.rounding(OPERATION)?;
        let codes = self.codes(&rounding);
        let fake_quantized = self.fake_quantized(OPERATION, &codes)?;
        let through_linear = linear_backward(x, fake_quantized.view(), d_y)?;
        let is_live = self.spec.inner_scale() == InnerScale::Live;
        let mut d_argument = Array2::zeros(self.weight.dim());
        let mut d_scale = Array2::zeros(self.scale.dim());
        for ((o, i), &d_fake_quantized) in through_linear.d_weight.indexed_iter() {
            let at = self.group_of(o, i);
            let code = T::of(f64::from(codes[[o, i]]));
            let in_range = self.in_range(&rounding, o, i);
            if in_range {
                d_argument[[o, i]] = raised_scale(self.scale[at]) * d_fake_quantized;
            }
            let slope = if is_live && in_range { code - rounding.inner[[o, i]] } else { code };
            d_scale[at] += d_fake_quantized * slope;
        }
        d_scale.zip_mut_with(&self.scale, |d_scale, &scale| {
            // The raised scale no longer moves with the parameter.
            if scale < T::of(SCALE_FLOOR) {
                *d_scale = T::zero();
            }
        });
        let d_argument = check::result(OPERATION, "d_argument", d_argument)?;
        let (a, b) = (self.lora_a, self.lora_b);
        let factors = delta_weight_backward(a, b, self.lora_scaling, d_argument.view())?;
        Ok(LrQatGradients {
            d_x: through_linear.d_x,
            d_lora_a: factors.d_lora_a,
            d_lora_b: factors.d_lora_b,
            d_scale: check::result(OPERATION, "d_scale", d_scale)?,
        })
    }

    /// The layer without its adapter. Eq. (M7).
    ///
    /// ```text
    /// codes = codes of (M5)
    /// scale = raised_scale
    /// ```
    ///
    /// `codes[o,i] * scale[o,g]` is `fake_quantized` of the forward pass, bit for bit.
    ///
    /// # Errors
    /// As [`LrQat::forward`].
    pub fn merge(&self) -> Result<LrQatMerged<T>, Error> {
        let codes = self.codes(&self.rounding("lr_qat.merge")?);
        Ok(LrQatMerged { codes, scale: self.scale.mapv(raised_scale) })
    }

    fn group_of(&self, o: usize, i: usize) -> [usize; 2] {
        [o, i / self.spec.grid().group_size()]
    }

    /// Everything before the clamp, after every tensor of the layer was checked.
    fn rounding(&self, operation: &'static str) -> Result<Rounding<T>, Error> {
        let grid = self.spec.grid();
        let (out_features, in_features) = (self.weight.nrows(), grid.in_features());
        let (rank, per_group) = (self.lora_a.nrows(), [out_features, grid.groups()]);
        check::input(operation, "weight", &self.weight, &[out_features, in_features])?;
        if let Some(initial_scale) = &self.initial_scale {
            check::input(operation, "initial_scale", initial_scale, &per_group)?;
        }
        let ends = grid_ends(operation, out_features, self.zero_point, grid)?;
        check::input(operation, "lora_a", &self.lora_a, &[rank, in_features])?;
        check::input(operation, "lora_b", &self.lora_b, &[out_features, rank])?;
        check::input(operation, "scale", &self.scale, &per_group)?;
        let inner = self.inner()?;
        let delta = delta_weight(self.lora_a, self.lora_b, self.lora_scaling)?;
        let argument = check::result(operation, "argument", &inner + &delta)?;
        let rounded = match self.spec.dialect() {
            LrQatDialect::Paper => argument.mapv(T::round_half_even),
            LrQatDialect::LrQatCode => &inner + &delta.mapv(T::round_half_even),
        };
        Ok(Rounding { inner, argument, rounded, ends })
    }

    /// The frozen weight in units of the grid.
    fn inner(&self) -> Result<Array2<T>, Error> {
        match (self.spec.inner_scale(), self.initial_scale) {
            (InnerScale::Frozen(kind), Some(initial_scale)) => {
                let grid = self.spec.grid();
                Ok(downcast(self.weight, initial_scale, self.zero_point, grid, kind)?.phi)
            }
            (InnerScale::Live, None) => Ok(Array2::from_shape_fn(self.weight.dim(), |(o, i)| {
                self.weight[[o, i]] / raised_scale(self.scale[self.group_of(o, i)])
            })),
            (InnerScale::Frozen(_), None) => Err(check::out_of_range(
                "initial_scale",
                "absent",
                "given with a frozen inner scale",
            )),
            (InnerScale::Live, Some(_)) => {
                Err(check::out_of_range("initial_scale", "given", "absent with a live inner scale"))
            }
        }
    }

    fn codes(&self, rounding: &Rounding<T>) -> Array2<i8> {
        let Rounding { rounded, ends, .. } = rounding;
        Array2::from_shape_fn(rounded.dim(), |(o, i)| {
            let at = self.group_of(o, i);
            rounded[[o, i]].max(ends.low[at]).min(ends.high[at]).value() as i8
        })
    }

    fn fake_quantized(
        &self,
        operation: &'static str,
        codes: &Array2<i8>,
    ) -> Result<Array2<T>, Error> {
        let weight = Array2::from_shape_fn(codes.dim(), |(o, i)| {
            T::of(f64::from(codes[[o, i]])) * raised_scale(self.scale[self.group_of(o, i)])
        });
        check::result(operation, "fake_quantized", weight)
    }

    /// Whether the straight-through gradient passes. Eq. (M6a).
    fn in_range(&self, rounding: &Rounding<T>, o: usize, i: usize) -> bool {
        let at = self.group_of(o, i);
        let tested = match self.spec.mask() {
            LrQatMask::Rounded => rounding.rounded[[o, i]],
            LrQatMask::PreRound => rounding.argument[[o, i]],
        };
        rounding.ends.low[at] <= tested && tested <= rounding.ends.high[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Bits, Downcast, QuantSpec};
    use ndarray::array;

    fn frozen(in_features: usize, kind: Downcast) -> LrQatSpec {
        with(in_features, InnerScale::Frozen(kind), LrQatMask::Rounded, LrQatDialect::Paper)
    }

    fn with(
        in_features: usize,
        inner: InnerScale,
        mask: LrQatMask,
        dialect: LrQatDialect,
    ) -> LrQatSpec {
        let grid = QuantSpec::new(Bits::new(4).unwrap(), None, in_features).unwrap();
        LrQatSpec::new(grid, inner, mask, dialect).unwrap()
    }

    /// Owns a row of weights with scales of 1, an update of `delta` and a batch that asks for
    /// `d_fake_quantized` of 1.
    struct Row {
        weight: Array2<f64>,
        delta: Array2<f64>,
        one: Array2<f64>,
        x: Array2<f64>,
    }

    impl Row {
        fn new(weight: &[f64], delta: &[f64]) -> Self {
            let row = |values: &[f64]| Array2::from_shape_fn((1, values.len()), |(_, i)| values[i]);
            let x = Array2::ones((1, weight.len()));
            Self { weight: row(weight), delta: row(delta), one: array![[1.0]], x }
        }

        fn layer(&self, spec: LrQatSpec) -> LrQat<'_, f64> {
            LrQat {
                weight: self.weight.view(),
                initial_scale: (spec.inner_scale() != InnerScale::Live).then(|| self.one.view()),
                zero_point: None,
                lora_a: self.delta.view(),
                lora_b: self.one.view(),
                scale: self.one.view(),
                lora_scaling: 1.0,
                spec,
            }
        }

        fn codes(&self, spec: LrQatSpec) -> Vec<i8> {
            self.layer(spec).merge().unwrap().codes.into_raw_vec_and_offset().0
        }

        /// `d_lora_a`, which is the mask here, and `d_scale`.
        fn gradients(&self, spec: LrQatSpec) -> (Vec<f64>, f64) {
            let d_y = self.one.view();
            let gradients = self.layer(spec).backward(self.x.view(), d_y).unwrap();
            (gradients.d_lora_a.into_raw_vec_and_offset().0, gradients.d_scale[[0, 0]])
        }
    }

    #[test]
    fn examples_of_m5_m6_and_m7() {
        let (weight, half) = (array![[0.609375, -6.0, 3.65625]], array![[0.5]]);
        let (lora_a, lora_b) = (array![[1.0, 2.0, 0.0]], array![[0.25]]);
        let layer = LrQat {
            weight: weight.view(),
            initial_scale: Some(half.view()),
            zero_point: None,
            lora_a: lora_a.view(),
            lora_b: lora_b.view(),
            scale: half.view(),
            lora_scaling: 1.0,
            spec: frozen(3, Downcast::Fixed8),
        };
        let x = array![[1.0, 1.0, 2.0]];
        let forward = layer.forward(x.view()).unwrap();
        assert_eq!(forward.codes, array![[2, -8, 7]]);
        assert_eq!(forward.fake_quantized, array![[1.0, -4.0, 3.5]]);
        assert_eq!(forward.y, array![[4.0]]);

        let backward = layer.backward(x.view(), array![[1.0]].view()).unwrap();
        assert_eq!(backward.d_x, array![[1.0, -4.0, 3.5]]);
        assert_eq!(backward.d_lora_a, array![[0.125, 0.125, 0.25]]);
        assert_eq!(backward.d_lora_b, array![[1.5]]);
        assert_eq!(backward.d_scale, array![[8.0]]);

        let merged = layer.merge().unwrap();
        assert_eq!(merged, LrQatMerged { codes: array![[2, -8, 7]], scale: half });
    }

    #[test]
    fn the_mask_is_closed_on_the_rounded_value_or_on_the_argument() {
        let (low, high) = (-8.5_f64, 7.5_f64);
        let arguments = [-8.0, -8.25, low, low.next_down(), 7.0, 7.25, high.next_down(), high, 3.5];
        let row = Row::new(&arguments, &[0.0; 9]);
        let spec = |mask| with(9, InnerScale::Frozen(Downcast::F32), mask, LrQatDialect::Paper);
        assert_eq!(row.codes(spec(LrQatMask::Rounded)), [-8, -8, -8, -8, 7, 7, 7, 7, 4]);
        assert_eq!(row.codes(spec(LrQatMask::PreRound)), row.codes(spec(LrQatMask::Rounded)));
        let (passes, _) = row.gradients(spec(LrQatMask::Rounded));
        assert_eq!(passes, [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]);
        let (passes, _) = row.gradients(spec(LrQatMask::PreRound));
        assert_eq!(passes, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn the_dialects_differ_at_ties_of_the_update_alone() {
        let row = Row::new(&[1.0, 2.0, 1.0, -3.0, 1.0], &[0.5, 0.5, 0.25, -0.5, 0.5 + 1e-9]);
        let spec =
            |dialect| with(5, InnerScale::Frozen(Downcast::Int), LrQatMask::Rounded, dialect);
        assert_eq!(row.codes(spec(LrQatDialect::Paper)), [2, 2, 1, -4, 2]);
        assert_eq!(row.codes(spec(LrQatDialect::LrQatCode)), [1, 2, 1, -3, 2]);
    }

    #[test]
    fn a_live_inner_scale_takes_the_residual_into_the_gradient_of_the_scale() {
        // Codes 1 and, clipped, 7.
        let row = Row::new(&[1.25, 9.0], &[0.125, 0.0]);
        let live = with(2, InnerScale::Live, LrQatMask::Rounded, LrQatDialect::Paper);
        assert_eq!(row.gradients(live), (vec![1.0, 0.0], 1.0 - 1.25 + 7.0));
        assert_eq!(row.gradients(frozen(2, Downcast::F32)), (vec![1.0, 0.0], 1.0 + 7.0));
    }

    #[test]
    fn below_the_floor_the_scale_stands_still_and_the_factors_move() {
        let row = Row::new(&[1.0, 1.0], &[0.0, 0.0]);
        let floor = [SCALE_FLOOR.next_down(), -1.0, 0.0, SCALE_FLOOR];
        for (scale, expected) in floor.into_iter().zip([0.0, 0.0, 0.0, 2.0]) {
            let scale = array![[scale]];
            let layer = LrQat { scale: scale.view(), ..row.layer(frozen(2, Downcast::Int)) };
            let gradients = layer.backward(row.x.view(), array![[1.0]].view()).unwrap();
            assert_eq!(gradients.d_scale, array![[expected]]);
            assert_eq!(gradients.d_lora_a, array![[SCALE_FLOOR, SCALE_FLOOR]]);
            assert_eq!(layer.merge().unwrap().scale, array![[SCALE_FLOOR]]);
        }
    }

    #[test]
    fn an_initial_scale_goes_with_a_frozen_inner_scale() {
        let row = Row::new(&[1.0], &[0.0]);
        let spec = frozen(1, Downcast::F32);
        let refused = LrQat { initial_scale: None, ..row.layer(spec) }.merge().unwrap_err();
        let message = "initial_scale is absent, expected given with a frozen inner scale";
        assert_eq!(refused.to_string(), message);
        let spec = with(1, InnerScale::Live, LrQatMask::Rounded, LrQatDialect::Paper);
        let layer = LrQat { initial_scale: Some(row.one.view()), ..row.layer(spec) };
        let message = "initial_scale is given, expected absent with a live inner scale";
        assert_eq!(layer.merge().unwrap_err().to_string(), message);
    }

    #[test]
    fn an_argument_or_a_weight_that_overflows_is_refused() {
        let refused = |weight: f32, update: f32| {
            let forward = LrQat {
                weight: array![[weight]].view(),
                initial_scale: Some(array![[1.0]].view()),
                zero_point: None,
                lora_a: array![[update]].view(),
                lora_b: array![[1.0]].view(),
                scale: array![[3e38]].view(),
                lora_scaling: 1.0,
                spec: frozen(1, Downcast::F32),
            }
            .forward(array![[0.0]].view());
            forward.unwrap_err().to_string()
        };
        assert_eq!(refused(3e38, 3e38), "lr_qat.forward: argument[0, 0] is inf");
        assert_eq!(refused(3.0, 0.0), "lr_qat.forward: fake_quantized[0, 0] is inf");
    }
}
