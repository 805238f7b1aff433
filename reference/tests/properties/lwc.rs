//! Properties of (Q16) and (Q17).

use ndarray::{Array2, ArrayD};
use plumbline_reference::Real;
use plumbline_reference::lwc::Lwc;
use plumbline_reference::spec::QuantSpec;
use proptest::prelude::*;

use crate::inputs::{Random, cast, spec};
use crate::proof::{Definition, assert_gradients, matrix, weighted_sum, with_gradient};

#[derive(Debug, Clone)]
struct Clipped<T> {
    spec: QuantSpec,
    symmetric: bool,
    weight: Array2<T>,
    upper: Array2<T>,
    lower: Array2<T>,
    d_output: Array2<T>,
}

impl<T: Real> Clipped<T> {
    fn lwc(&self) -> Lwc<'_, T> {
        Lwc {
            weight: self.weight.view(),
            upper: self.upper.view(),
            lower: self.lower.view(),
            spec: self.spec,
            symmetric: self.symmetric,
        }
    }
}

fn clipped() -> impl Strategy<Value = Clipped<f64>> {
    (spec(), any::<bool>(), 1usize..=3, any::<u64>()).prop_map(|(spec, symmetric, rows, seed)| {
        let mut random = Random(seed);
        let (shape, groups) = ((rows, spec.in_features()), (rows, spec.groups()));
        Clipped {
            spec,
            symmetric,
            weight: random.array(shape, 2.0),
            upper: random.array(groups, 3.0),
            lower: random.array(groups, 3.0),
            d_output: random.array(shape, 1.0),
        }
    })
}

/// (Q16) over any scalar. Extremes and zero point are constants: they come from the tensors at the
/// point, whatever is moved.
struct Loss<'a>(&'a Clipped<f64>);

fn sigmoid<T: Real>(logit: T) -> T {
    T::of(1.0) / ((-logit).exp() + T::of(1.0))
}

impl Loss<'_> {
    /// The scale from the logits of one group.
    fn scale<T: Real>(&self, o: usize, g: usize, upper: T, lower: T) -> T {
        let Clipped { spec, symmetric, weight, .. } = self.0;
        let first = g * spec.group_size();
        let group = (first..first + spec.group_size()).map(|i| weight[[o, i]]);
        let least = group.clone().fold(f64::INFINITY, f64::min);
        let greatest = group.fold(f64::NEG_INFINITY, f64::max);
        let (high, low) = (sigmoid(upper) * T::of(greatest), sigmoid(lower) * T::of(least));
        let scale = if *symmetric {
            high.abs().max(low.abs()) / T::of(f64::from(spec.qmax()))
        } else {
            (high - low) / T::of(f64::from(spec.bits().unsigned_max()))
        };
        scale.max(T::of(1e-5)).min(T::of(1e4))
    }

    fn zero_point(&self, o: usize, g: usize) -> f64 {
        let Clipped { spec, symmetric, weight, upper, lower, .. } = self.0;
        if *symmetric {
            return f64::from(spec.qmax());
        }
        let first = g * spec.group_size();
        let group = (first..first + spec.group_size()).map(|i| weight[[o, i]]);
        let low = sigmoid(lower[[o, g]]) * group.fold(f64::INFINITY, f64::min);
        let steps = -low / self.scale(o, g, upper[[o, g]], lower[[o, g]]);
        steps.clamp(-1e4, 1e4).round_ties_even()
    }
}

impl Definition for Loss<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let Clipped { spec, d_output, .. } = self.0;
        let [weight, upper, lower] = [0, 1, 2].map(|which| matrix(&tensors[which]));
        let last = T::of(f64::from(spec.bits().unsigned_max()));
        let output = Array2::from_shape_fn(weight.dim(), |(o, i)| {
            let g = i / spec.group_size();
            let scale = self.scale(o, g, upper[[o, g]], lower[[o, g]]);
            let zero_point = T::of(self.zero_point(o, g));
            let place = (weight[[o, i]] / scale).round_half_even() + zero_point;
            (place.max(T::of(0.0)).min(last) - zero_point) * scale
        });
        weighted_sum(d_output, &output)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (Q17). A weight that was held at 1e-5 steps would swamp the proof's bound, so
    /// groups of one, whose range the fractions alone decide, are left to the unit tests.
    #[test]
    fn gradients_are_those_of_the_definition(clipped in clipped()) {
        prop_assume!(clipped.spec.group_size() > 1);
        let forward = clipped.lwc().forward().unwrap();
        prop_assume!(forward.scale.iter().all(|&scale| scale > 1e-3));
        let gradients = clipped.lwc().backward(clipped.d_output.view()).unwrap();
        assert_gradients(&Loss(&clipped), &[
            with_gradient("weight", &clipped.weight, &gradients.d_weight),
            with_gradient("upper", &clipped.upper, &gradients.d_upper),
            with_gradient("lower", &clipped.lower, &gradients.d_lower),
        ]);
    }

    /// Property of (Q16): codes, scale and zero point are all that the output is.
    #[test]
    fn codes_stand_for_the_output(clipped in clipped()) {
        fn check<T: Real>(clipped: &Clipped<T>) {
            let forward = clipped.lwc().forward().unwrap();
            for ((o, i), &output) in forward.output.indexed_iter() {
                let g = i / clipped.spec.group_size();
                let code = forward.codes[[o, i]];
                assert!(i32::from(code) <= clipped.spec.bits().unsigned_max());
                let steps = T::of(f64::from(code)) - forward.zero_point[[o, g]];
                assert_eq!(output, forward.scale[[o, g]] * steps);
            }
        }
        check(&clipped);
        check(&Clipped::<f32> {
            spec: clipped.spec,
            symmetric: clipped.symmetric,
            weight: cast(&clipped.weight),
            upper: cast(&clipped.upper),
            lower: cast(&clipped.lower),
            d_output: cast(&clipped.d_output),
        });
    }

    /// Property of (Q16): with everything kept, no weight moves by more than half a step, as long
    /// as the zero point is not held at its limit.
    #[test]
    fn large_logits_clip_nothing(mut clipped in clipped()) {
        clipped.upper.fill(60.0);
        clipped.lower.fill(60.0);
        let forward = clipped.lwc().forward().unwrap();
        for ((o, i), &weight) in clipped.weight.indexed_iter() {
            let scale = forward.scale[[o, i / clipped.spec.group_size()]];
            if scale > 1e-3 {
                let moved = (forward.output[[o, i]] - weight).abs();
                prop_assert!(moved <= 0.5 * scale * (1.0 + 1e-9), "{moved} of {scale}");
            }
        }
    }

    /// Property of (Q17): in a symmetric grid only one of the two logits is used.
    #[test]
    fn a_symmetric_grid_trains_one_logit_of_a_group(mut clipped in clipped()) {
        clipped.symmetric = true;
        let gradients = clipped.lwc().backward(clipped.d_output.view()).unwrap();
        let both = gradients.d_upper * gradients.d_lower;
        prop_assert!(both.iter().all(|&product| product == 0.0));
    }
}
