//! Properties of (Q14) and (Q15).

use ndarray::{Array2, ArrayD, Axis};
use plumbline_reference::Real;
use plumbline_reference::dynamic_quantize::{dynamic_quantize, dynamic_quantize_backward};
use plumbline_reference::spec::{QuantSpec, SCALE_FLOOR, ZeroPointRule};
use proptest::prelude::*;

use crate::inputs::{Random, cast, spec};
use crate::proof::{Definition, assert_gradients, matrix, weighted_sum, with_gradient};

#[derive(Debug, Clone)]
struct Tokens {
    spec: QuantSpec,
    rule: ZeroPointRule,
    x: Array2<f64>,
    d_output: Array2<f64>,
}

fn tokens() -> impl Strategy<Value = Tokens> {
    let rule = prop_oneof![Just(ZeroPointRule::Integer), Just(ZeroPointRule::Float)];
    (spec(), rule, 1usize..=3, -2.0..2.0_f64, any::<u64>()).prop_map(
        |(spec, rule, count, mean, seed)| {
            let mut random = Random(seed);
            let shape = (count, spec.in_features());
            Tokens {
                spec,
                rule,
                x: random.array(shape, 4.0).mapv(|x| f64::from((x + mean) as f32)),
                d_output: random.array(shape, 1.0),
            }
        },
    )
}

/// (Q14) over any scalar. What is taken from the data is a constant: it comes from the tokens at
/// the point, whatever is moved.
struct Loss<'a>(&'a Tokens);

impl Loss<'_> {
    fn grid(&self, t: usize, i: usize) -> (f64, f64) {
        let Tokens { spec, rule, x, .. } = self.0;
        let first = i / spec.group_size() * spec.group_size();
        let group = (first..first + spec.group_size()).map(|i| x[[t, i]]);
        let low = group.clone().fold(f64::INFINITY, f64::min);
        let high = group.fold(f64::NEG_INFINITY, f64::max);
        let steps = f64::from(spec.bits().unsigned_max());
        let range = if high > low { (high - low) / steps } else { low.abs() };
        let scale = range.max(SCALE_FLOOR);
        let zero_point = -low / scale;
        match rule {
            ZeroPointRule::Float => (scale, zero_point),
            ZeroPointRule::Integer => (scale, zero_point.round_ties_even()),
        }
    }
}

impl Definition for Loss<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let Tokens { spec, d_output, .. } = self.0;
        let x: Array2<T> = matrix(&tensors[0]);
        let last = T::of(f64::from(spec.bits().unsigned_max()));
        let output = Array2::from_shape_fn(x.dim(), |(t, i)| {
            let (scale, zero_point) = self.grid(t, i);
            let (scale, zero_point) = (T::of(scale), T::of(zero_point));
            let place = (x[[t, i]] / scale).round_half_even() + zero_point;
            (place.max(T::of(0.0)).min(last) - zero_point) * scale
        });
        weighted_sum(d_output, &output)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (Q15).
    #[test]
    fn the_gradient_is_that_of_the_definition(tokens in tokens()) {
        let Tokens { spec, rule, x, d_output } = &tokens;
        let d_x = dynamic_quantize_backward(x.view(), d_output.view(), spec, *rule).unwrap();
        assert_gradients(&Loss(&tokens), &[with_gradient("x", x, &d_x)]);
    }

    /// Property of (Q14): an activation moves by half a step at most, also where it is clipped: the
    /// clamp takes back what rounding up both the zero point and the greatest had added.
    #[test]
    fn nothing_moves_further_than_the_roundings(tokens in tokens()) {
        let Tokens { spec, rule, x, .. } = &tokens;
        let quantized = dynamic_quantize(x.view(), spec, *rule).unwrap();
        for ((t, i), &x) in x.indexed_iter() {
            let scale = quantized.scale[[t, i / spec.group_size()]];
            let moved = (quantized.output[[t, i]] - x).abs();
            prop_assert!(moved <= 0.5 * scale * (1.0 + 1e-9), "{moved} of {scale}");
        }
    }

    /// Property of (Q14): codes, scale and zero point are all that the output is, in both
    /// precisions.
    #[test]
    fn codes_stand_for_the_output(tokens in tokens()) {
        fn check<T: Real>(x: &Array2<T>, spec: &QuantSpec) {
            let quantized = dynamic_quantize(x.view(), spec, ZeroPointRule::Integer).unwrap();
            let codes = quantized.codes.unwrap();
            for ((t, i), &output) in quantized.output.indexed_iter() {
                let g = i / spec.group_size();
                assert!(i32::from(codes[[t, i]]) <= spec.bits().unsigned_max());
                let steps = T::of(f64::from(codes[[t, i]])) - quantized.zero_point[[t, g]];
                assert_eq!(output, quantized.scale[[t, g]] * steps);
            }
        }
        check(&tokens.x, &tokens.spec);
        check(&cast::<f32, _>(&tokens.x), &tokens.spec);
    }

    /// Property of (Q14): the unit of the activations does not matter.
    #[test]
    fn scaling_by_a_power_of_two_leaves_codes(tokens in tokens(), k in -6i32..6) {
        let Tokens { spec, rule, x, .. } = &tokens;
        let plain = dynamic_quantize(x.view(), spec, *rule).unwrap();
        let scaled = dynamic_quantize((x * 2.0_f64.powi(k)).view(), spec, *rule).unwrap();
        prop_assert_eq!(&scaled.codes, &plain.codes);
        prop_assert_eq!(&scaled.zero_point, &plain.zero_point);
        prop_assert_eq!(scaled.output, plain.output * 2.0_f64.powi(k));
    }

    /// Property of (Q14): no token sees another.
    #[test]
    fn every_token_is_quantized_alone(tokens in tokens()) {
        let Tokens { spec, rule, x, .. } = &tokens;
        let whole = dynamic_quantize(x.view(), spec, *rule).unwrap();
        for (t, token) in x.axis_iter(Axis(0)).enumerate() {
            let alone = dynamic_quantize(token.insert_axis(Axis(0)), spec, *rule).unwrap();
            prop_assert_eq!(alone.output.row(0), whole.output.row(t));
        }
    }
}
