//! Gradients through the rounding: the straight-through convention of LSQ+ and L4Q.
//!
//! Rounding is treated as adding a constant, clamping as what it is. Everything follows from that:
//! `output = scale * (argument + constant) + offset` in range, `scale * qmin + offset` below,
//! `scale * qmax + offset` above. What counts as in range is the [`MaskRule`]; the constant is
//! whatever takes the argument to its code.
//!
//! [`MaskRule`]: crate::spec::MaskRule

use ndarray::{Array2, ArrayView2};

use crate::quantize::{argument, code, in_range};
use crate::spec::{GradScale, QuantSpec, SCALE_FLOOR, StraightThrough};
use crate::{Error, Real, check};

/// Gradients of a loss through [`fake_quantize`](crate::quantize::fake_quantize).
#[derive(Debug, Clone, PartialEq)]
pub struct FakeQuantizeGradients<T> {
    /// `[out, in]`
    pub d_weight: Array2<T>,
    /// `[out, groups]`
    pub d_scale: Array2<T>,
    /// `[out, groups]`
    pub d_offset: Array2<T>,
}

/// Constant factor on `d_scale` and `d_offset`. Eq. (Q7).
///
/// ```text
/// none:    grad_scale = 1
/// lsq:     grad_scale = 1 / sqrt(group_size * qmax)
/// lit_gpt: grad_scale = 1 / sqrt(groups * qmax)
/// peft:    grad_scale = 1 / (sqrt(group_size) * qmax)
/// ```
pub fn grad_scale_factor(spec: &QuantSpec, grad_scale: GradScale) -> f64 {
    let qmax = f64::from(spec.qmax());
    let group_size = spec.group_size() as f64;
    match grad_scale {
        GradScale::None => 1.0,
        GradScale::Lsq => 1.0 / (group_size * qmax).sqrt(),
        GradScale::LitGpt => 1.0 / (spec.groups() as f64 * qmax).sqrt(),
        GradScale::Peft => 1.0 / (group_size.sqrt() * qmax),
    }
}

/// Gradients of weight, scale and offset. Eq. (Q5), Eq. (Q6), Eq. (Q7).
///
/// ```text
/// d_weight[o,i] = d_output[o,i] where in_range[o,i], else 0
/// d_scale[o,g] = grad_scale * sum_(i in g) d_output[o,i] * slope[o,i]
/// slope[o,i] = codes[o,i] - argument[o,i] where in_range[o,i], else codes[o,i]
/// d_scale[o,g] = 0 where scale[o,g] < SCALE_FLOOR
/// d_offset[o,g] = grad_scale * sum_(i in g) (0 where in_range[o,i], else d_output[o,i])
/// ```
///
/// Sums run from zero in ascending `i`; `grad_scale` multiplies the finished sum. `rules` is a
/// [`GradScale`], a [`MaskRule`](crate::spec::MaskRule) or a [`StraightThrough`] with both.
///
/// # Shapes
/// `weight, d_output [out, in]`, `scale, offset [out, groups]` ->
/// `d_weight [out, in]`, `d_scale, d_offset [out, groups]`
///
/// # Errors
/// `Shape`, `NonFinite`.
pub fn fake_quantize_backward<T: Real>(
    weight: ArrayView2<T>,
    scale: ArrayView2<T>,
    offset: ArrayView2<T>,
    d_output: ArrayView2<T>,
    spec: &QuantSpec,
    rules: impl Into<StraightThrough>,
) -> Result<FakeQuantizeGradients<T>, Error> {
    const OPERATION: &str = "fake_quantize_backward";
    let StraightThrough { grad_scale, mask } = rules.into();
    check::quantizer(OPERATION, &weight, &scale, &offset, spec)?;
    check::input(OPERATION, "d_output", &d_output, weight.shape())?;
    let mut d_weight = Array2::zeros(weight.dim());
    let mut d_scale = Array2::zeros(scale.dim());
    let mut d_offset = Array2::zeros(offset.dim());
    for ((o, i), &d_output) in d_output.indexed_iter() {
        let g = i / spec.group_size();
        let argument = argument(weight[[o, i]], scale[[o, g]], offset[[o, g]]);
        let code = T::of(f64::from(code(argument, spec)));
        if in_range(argument, spec, mask) {
            d_weight[[o, i]] = d_output;
            d_scale[[o, g]] += d_output * (code - argument);
        } else {
            d_scale[[o, g]] += d_output * code;
            d_offset[[o, g]] += d_output;
        }
    }
    let factor = T::of(grad_scale_factor(spec, grad_scale));
    d_scale.zip_mut_with(&scale, |d_scale, &scale| {
        // The raised scale no longer moves with the parameter.
        *d_scale = if scale < T::of(SCALE_FLOOR) { T::zero() } else { *d_scale * factor };
    });
    d_offset.mapv_inplace(|d_offset| d_offset * factor);
    Ok(FakeQuantizeGradients {
        d_weight,
        d_scale: check::result(OPERATION, "d_scale", d_scale)?,
        d_offset: check::result(OPERATION, "d_offset", d_offset)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Bits, MaskRule};
    use ndarray::array;

    #[test]
    fn examples_of_q5_q6_and_q7() {
        let spec = QuantSpec::new(Bits::new(2).unwrap(), None, 3).unwrap();
        let gradients = fake_quantize_backward(
            array![[0.125, 2.0, -2.0]].view(),
            array![[0.5]].view(),
            array![[0.0]].view(),
            array![[1.0, 10.0, 100.0]].view(),
            &spec,
            GradScale::None,
        )
        .unwrap();
        assert_eq!(gradients.d_weight, array![[1.0, 0.0, 0.0]]);
        assert_eq!(gradients.d_scale, array![[-190.25]]);
        assert_eq!(gradients.d_offset, array![[110.0]]);
    }

    #[test]
    fn masks_decide_what_is_clipped() {
        let spec = QuantSpec::new(Bits::new(2).unwrap(), None, 4).unwrap();
        // Arguments 1 (the end), 1.25, -2.5 and 1.5, of which the last rounds off the grid.
        let gradients = |mask: MaskRule| {
            fake_quantize_backward(
                array![[0.5, 0.625, -1.25, 0.75]].view(),
                array![[0.5]].view(),
                array![[0.0]].view(),
                array![[1.0, 10.0, 100.0, 1000.0]].view(),
                &spec,
                mask,
            )
            .unwrap()
        };
        let pre_round = gradients(MaskRule::PreRound);
        assert_eq!(pre_round.d_weight, array![[1.0, 0.0, 0.0, 0.0]]);
        assert_eq!(pre_round.d_scale, array![[10.0 - 200.0 + 1000.0]]);
        assert_eq!(pre_round.d_offset, array![[1110.0]]);
        let rounded = gradients(MaskRule::Rounded);
        assert_eq!(rounded.d_weight, array![[1.0, 10.0, 100.0, 0.0]]);
        assert_eq!(rounded.d_scale, array![[-2.5 + 50.0 + 1000.0]]);
        assert_eq!(rounded.d_offset, array![[1000.0]]);
        let open = gradients(MaskRule::Open);
        assert_eq!(open.d_weight, array![[0.0, 0.0, 0.0, 0.0]]);
        assert_eq!(open.d_scale, array![[1.0 + 10.0 - 200.0 + 1000.0]]);
        assert_eq!(open.d_offset, array![[1111.0]]);
    }

    #[test]
    fn factors_of_q7() {
        let spec = QuantSpec::new(Bits::new(3).unwrap(), Some(3), 36).unwrap();
        assert_eq!(grad_scale_factor(&spec, GradScale::None), 1.0);
        assert_eq!(grad_scale_factor(&spec, GradScale::Lsq), 1.0 / 3.0);
        assert_eq!(grad_scale_factor(&spec, GradScale::LitGpt), 1.0 / 6.0);
        assert_eq!(grad_scale_factor(&spec, GradScale::Peft), 1.0 / (3.0_f64.sqrt() * 3.0));
    }

    #[test]
    fn the_factor_is_on_scale_and_offset_and_not_on_weight() {
        let spec = QuantSpec::new(Bits::new(3).unwrap(), Some(3), 3).unwrap();
        let gradients = |grad_scale| {
            fake_quantize_backward(
                array![[0.125, 20.0, -20.0]].view(),
                array![[0.5]].view(),
                array![[0.0]].view(),
                array![[1.0, 10.0, 100.0]].view(),
                &spec,
                grad_scale,
            )
            .unwrap()
        };
        let (plain, lsq) = (gradients(GradScale::None), gradients(GradScale::Lsq));
        assert_eq!(lsq.d_weight, plain.d_weight);
        assert_eq!(lsq.d_scale, plain.d_scale * (1.0 / 3.0));
        assert_eq!(lsq.d_offset, plain.d_offset * (1.0 / 3.0));
    }

    #[test]
    fn below_the_floor_only_the_scale_stands_still() {
        let spec = QuantSpec::new(Bits::new(4).unwrap(), Some(1), 3).unwrap();
        // In units of the floor: far out of range, in range, and at the floor itself.
        let gradients = fake_quantize_backward(
            array![[1.0, 0.0, 1.0]].view(),
            array![[SCALE_FLOOR.next_down(), -1.0, SCALE_FLOOR]].view(),
            array![[0.0, 0.0, 0.0]].view(),
            array![[2.0, 3.0, 5.0]].view(),
            &spec,
            GradScale::None,
        )
        .unwrap();
        assert_eq!(gradients.d_weight, array![[0.0, 3.0, 0.0]]);
        assert_eq!(gradients.d_scale, array![[0.0, 0.0, 35.0]]);
        assert_eq!(gradients.d_offset, array![[2.0, 0.0, 5.0]]);
    }

    #[test]
    fn an_infinite_argument_leaves_no_trace() {
        let spec = QuantSpec::new(Bits::new(4).unwrap(), None, 2).unwrap();
        let gradients = fake_quantize_backward(
            array![[3e38_f32, -3e38]].view(),
            array![[1e-8]].view(),
            array![[0.0]].view(),
            array![[1.0, 1.0]].view(),
            &spec,
            GradScale::None,
        )
        .unwrap();
        assert_eq!(gradients.d_scale, array![[-1.0]]);
        assert_eq!(gradients.d_offset, array![[2.0]]);
    }
}
