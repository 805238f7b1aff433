//! Properties of (Q5) to (Q7): the gradients are those of the surrogate in which rounding adds a
//! constant and a clipped element stays clipped. The true forward is a step function, whose
//! differences say nothing.

use ndarray::{Array2, Zip};
use plumbline_reference::quantize::argument;
use plumbline_reference::spec::{GradScale, QuantSpec};
use plumbline_reference::straight_through::{fake_quantize_backward, grad_scale_factor};
use proptest::prelude::*;

use crate::differences::{assert_gradient, noise};
use crate::inputs::{Quantizer, quantizer};

/// What rounding and clamping did to each element at one point.
pub enum Held {
    /// In range: the constant that rounding added to the argument.
    Residual(f64),
    /// Out of range: the end of the grid.
    End(f64),
}

pub fn held(
    weight: &Array2<f64>,
    scale: &Array2<f64>,
    offset: &Array2<f64>,
    spec: &QuantSpec,
) -> Vec<Held> {
    let (qmin, qmax) = (f64::from(spec.qmin()), f64::from(spec.qmax()));
    weight
        .indexed_iter()
        .map(|((o, i), &weight)| {
            let g = i / spec.group_size();
            let argument = argument(weight, scale[[o, g]], offset[[o, g]]);
            if argument < qmin {
                Held::End(qmin)
            } else if argument > qmax {
                Held::End(qmax)
            } else {
                Held::Residual(argument.round_ties_even() - argument)
            }
        })
        .collect()
}

/// The quantizer with everything discontinuous held.
pub fn surrogate(
    held: &[Held],
    weight: &Array2<f64>,
    scale: &Array2<f64>,
    offset: &Array2<f64>,
    spec: &QuantSpec,
) -> Array2<f64> {
    let elements = held.iter().zip(weight.indexed_iter()).map(|(held, ((o, i), &weight))| {
        let g = i / spec.group_size();
        let (scale, offset) = (scale[[o, g]], offset[[o, g]]);
        match held {
            Held::Residual(constant) => scale * ((weight - offset) / scale + constant) + offset,
            Held::End(end) => scale * end + offset,
        }
    });
    Array2::from_shape_vec(weight.dim(), elements.collect()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (Q5), (Q6) and (Q7).
    #[test]
    fn gradients_are_those_of_the_surrogate(q in quantizer()) {
        let Quantizer { spec, weight, scale, offset, d_output } = q;
        let held = held(&weight, &scale, &offset, &spec);
        let loss = |weight: &Array2<f64>, scale: &Array2<f64>, offset: &Array2<f64>| -> f64 {
            (surrogate(&held, weight, scale, offset, &spec) * &d_output).sum()
        };
        let gradients = fake_quantize_backward(
            weight.view(), scale.view(), offset.view(), d_output.view(), &spec, GradScale::None,
        ).unwrap();
        let matrix = |array: &ndarray::ArrayD<f64>| array.clone().into_dimensionality().unwrap();
        // Five roundings; weight - offset reaches 2 * qmax + 2, and scale * end plus offset
        // 2 * (qmax + 1) + 2; a step away from there still below the magnitude given.
        let noise = noise(5, weight.len(), 2.0 * f64::from(spec.qmax()) + 6.0);
        assert_gradient("weight", &weight, &gradients.d_weight, noise, |w| {
            loss(&matrix(w), &scale, &offset)
        });
        assert_gradient("scale", &scale, &gradients.d_scale, noise, |s| {
            loss(&weight, &matrix(s), &offset)
        });
        assert_gradient("offset", &offset, &gradients.d_offset, noise, |b| {
            loss(&weight, &scale, &matrix(b))
        });
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
    fn weight_and_offset_share_the_gradient(q in quantizer()) {
        let gradients = fake_quantize_backward(
            q.weight.view(), q.scale.view(), q.offset.view(),
            Array2::ones(q.weight.dim()).view(), &q.spec, GradScale::None,
        ).unwrap();
        let mut shares = gradients.d_offset.clone();
        for ((o, i), d_weight) in gradients.d_weight.indexed_iter() {
            shares[[o, i / q.spec.group_size()]] += d_weight;
        }
        let group_size = q.spec.group_size() as f64;
        prop_assert!(Zip::from(&shares).all(|&share| share == group_size));
    }
}
