//! Properties of (Q5) to (Q7): the gradients are those of the definition in which rounding adds a
//! constant and a clipped element stays clipped. The true forward is a step function, whose
//! differences say nothing.

use ndarray::{Array2, ArrayD, Zip};
use plumbline_reference::Real;
use plumbline_reference::spec::{GradScale, MaskRule, QuantSpec, SCALE_FLOOR};
use plumbline_reference::straight_through::{fake_quantize_backward, grad_scale_factor};
use proptest::prelude::*;

use crate::inputs::{Quantizer, quantizer};
use crate::proof::{Definition, assert_gradients, matrix, weighted_sum, with_gradient};

pub fn any_mask() -> impl Strategy<Value = MaskRule> {
    prop_oneof![Just(MaskRule::PreRound), Just(MaskRule::Rounded), Just(MaskRule::Open)]
}

/// (Q4) as L4Q Eq. 7 to 10 print it, without codes between the rounding and the scale. The mask is
/// only a matter of where the clamp stands, and of which side it takes of two equals.
pub fn fake_quantized<T: Real>(
    weight: &Array2<T>,
    scale: &Array2<T>,
    offset: &Array2<T>,
    spec: &QuantSpec,
    mask: MaskRule,
) -> Array2<T> {
    let [qmin, qmax] = [spec.qmin(), spec.qmax()].map(|end| T::of(f64::from(end)));
    Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let g = i / spec.group_size();
        let scale = scale[[o, g]].max(T::of(SCALE_FLOOR));
        let argument = (weight[[o, i]] - offset[[o, g]]) / scale;
        let code = match mask {
            MaskRule::PreRound => argument.max(qmin).min(qmax).round_half_even(),
            MaskRule::Rounded => argument.round_half_even().max(qmin).min(qmax),
            MaskRule::Open => qmax.min(qmin.max(argument)).round_half_even(),
        };
        code * scale + offset[[o, g]]
    })
}

struct Loss<'a>(&'a Quantizer, MaskRule);

impl Definition for Loss<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let [weight, scale, offset] = [0, 1, 2].map(|which| matrix(&tensors[which]));
        let Self(Quantizer { d_output, spec, .. }, mask) = self;
        weighted_sum(d_output, &fake_quantized(&weight, &scale, &offset, spec, *mask))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (Q5), (Q6) and (Q7).
    #[test]
    fn gradients_are_those_of_the_definition(
        mut q in quantizer(), mask in any_mask(), ends in any::<bool>()
    ) {
        if ends {
            // Half steps: the ends of the grid and the ties beyond them, exactly.
            q.scale.fill(0.5);
            q.offset.mapv_inplace(|offset| offset.round_ties_even());
            q.weight.mapv_inplace(|weight| (weight * 2.0).round_ties_even() / 4.0);
        }
        let gradients = fake_quantize_backward(
            q.weight.view(), q.scale.view(), q.offset.view(), q.d_output.view(), &q.spec, mask,
        ).unwrap();
        assert_gradients(&Loss(&q, mask), &[
            with_gradient("weight", &q.weight, &gradients.d_weight),
            with_gradient("scale", &q.scale, &gradients.d_scale),
            with_gradient("offset", &q.offset, &gradients.d_offset),
        ]);
    }

    /// Property of (Q7): the factor multiplies finished sums.
    #[test]
    fn grad_scale_is_a_factor(q in quantizer()) {
        let gradients = |grad_scale| {
            fake_quantize_backward(
                q.weight.view(), q.scale.view(), q.offset.view(), q.d_output.view(), &q.spec,
                grad_scale,
            ).unwrap()
        };
        let plain = gradients(GradScale::None);
        for grad_scale in [GradScale::Lsq, GradScale::LitGpt, GradScale::Peft] {
            let factor = grad_scale_factor(&q.spec, grad_scale);
            let scaled = gradients(grad_scale);
            prop_assert_eq!(&scaled.d_weight, &plain.d_weight);
            prop_assert_eq!(scaled.d_scale, &plain.d_scale * factor);
            prop_assert_eq!(scaled.d_offset, &plain.d_offset * factor);
        }
    }

    /// Property of (Q5) and (Q7): every element's gradient goes to its weight or to its offset.
    #[test]
    fn weight_and_offset_share_the_gradient(q in quantizer(), mask in any_mask()) {
        let gradients = fake_quantize_backward(
            q.weight.view(), q.scale.view(), q.offset.view(),
            Array2::ones(q.weight.dim()).view(), &q.spec, mask,
        ).unwrap();
        let mut shares = gradients.d_offset.clone();
        for ((o, i), d_weight) in gradients.d_weight.indexed_iter() {
            shares[[o, i / q.spec.group_size()]] += d_weight;
        }
        let group_size = q.spec.group_size() as f64;
        prop_assert!(Zip::from(&shares).all(|&share| share == group_size));
    }
}
