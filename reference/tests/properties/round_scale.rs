//! Properties of (Q23): the rounded scale is the nearest one that the rule has, and its gradient is
//! that of the definition in which rounding adds a constant and a scale beyond an end stays there.

use ndarray::{Array2, ArrayD, Zip, array};
use plumbline_reference::Real;
use plumbline_reference::round_scale::{round_scale, round_scale_backward};
use plumbline_reference::spec::{GradScale, MaskRule, SCALE_FLOOR, ScaleRule};
use plumbline_reference::straight_through::fake_quantize_backward;
use proptest::prelude::*;

use crate::inputs::{Quantizer, quantizer};
use crate::proof::{Definition, assert_gradients, matrix, weighted_sum, with_gradient};
use crate::straight_through::fake_quantized;

/// Smallest exponent, and fractional digits.
fn format(rule: ScaleRule) -> (i32, i32) {
    match rule {
        ScaleRule::F16 => (-14, 10),
        ScaleRule::Bf16InF16 => (-126, 7),
    }
}

fn rule() -> impl Strategy<Value = ScaleRule> {
    prop::sample::select(ScaleRule::ALL.to_vec())
}

/// From below the smallest number of a rule to above its largest, and what stands beside them.
fn scale() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => (1.0..2.0_f64, -28..18_i32).prop_map(|(m, exponent)| m * 2.0_f64.powi(exponent)),
        1 => prop::sample::select(vec![0.0, -1.0, 1e-9, 2.0_f64.powi(-24), 65504.0, 65280.0]),
    ]
}

/// The distance of the numbers about a scale, a constant of the definition.
fn quantum(scale: f64, rule: ScaleRule) -> f64 {
    let (emin, digits) = format(rule);
    let held = scale.max(SCALE_FLOOR).max(rule.smallest()).min(rule.largest());
    // The exponent field: `log2` rounds up beside a power of two.
    let exponent = (held.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    2.0_f64.powi(exponent.max(emin) - digits)
}

/// (Q23a) as it is printed, over any scalar.
fn rounded<T: Real>(scale: &Array2<T>, quantum: &Array2<f64>, rule: ScaleRule) -> Array2<T> {
    let [floor, smallest, largest] =
        [SCALE_FLOOR, rule.smallest(), rule.largest()].map(|end| T::of(end));
    Zip::from(scale).and(quantum).map_collect(|scale, &quantum| {
        let held = scale.max(floor).max(smallest).min(largest);
        T::of(quantum) * (held / T::of(quantum)).round_half_even()
    })
}

struct Loss<'a>(&'a Array2<f64>, Array2<f64>, ScaleRule);

impl Definition for Loss<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let Self(given, quantum, rule) = self;
        weighted_sum(given, &rounded(&matrix(&tensors[0]), quantum, *rule))
    }
}

/// A weight on the grid of a rounded scale, without an offset.
struct Quantized<'a>(&'a Quantizer, Array2<f64>, ScaleRule);

impl Definition for Quantized<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let [weight, scale] = [0, 1].map(|which| matrix(&tensors[which]));
        let Self(Quantizer { d_output, spec, offset, .. }, quantum, rule) = self;
        let (scale, offset) = (rounded(&scale, quantum, *rule), offset.mapv(T::of));
        let quantized = fake_quantized(&weight, &scale, &offset, spec, MaskRule::PreRound);
        weighted_sum(d_output, &quantized)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Property of (Q23): the forward is the formula, in both precisions, and stays where it is.
    #[test]
    fn the_rounded_scale_is_the_formula(rule in rule(), scale in scale()) {
        let formula = |scale: f64| rounded(&array![[scale]], &array![[quantum(scale, rule)]], rule);
        let once = round_scale(array![[scale]].view(), rule).unwrap();
        prop_assert_eq!(&once, &formula(scale));
        prop_assert_eq!(&round_scale(once.view(), rule).unwrap(), &once);
        let single = round_scale(array![[scale as f32]].view(), rule).unwrap();
        prop_assert_eq!(single.mapv(f64::from), formula(f64::from(scale as f32)));
    }

    /// Property of (Q23): the backward is the derivative of the definition.
    #[test]
    fn the_gradient_is_that_of_the_definition(
        rule in rule(), scale in scale(), given in -3.0..3.0_f64,
    ) {
        // One alone: beside a large scale the differences of a small one are lost.
        let [scale, given] = [scale, given].map(|value| array![[value]]);
        let d_scale = round_scale_backward(scale.view(), given.view(), rule).unwrap();
        let loss = Loss(&given, scale.mapv(|scale| quantum(scale, rule)), rule);
        assert_gradients(&loss, &[with_gradient("scale", &scale, &d_scale)]);
    }

    /// Property of (Q23), (Q5) and (Q6): a weight on the grid of a rounded scale has the gradients of
    /// that grid, and the scale behind it those of the rounded one.
    #[test]
    fn a_layer_trains_through_the_rounding(mut q in quantizer(), rule in rule()) {
        q.offset.fill(0.0);
        let used = round_scale(q.scale.view(), rule).unwrap();
        let gradients = fake_quantize_backward(
            q.weight.view(), used.view(), q.offset.view(), q.d_output.view(), &q.spec,
            GradScale::None,
        ).unwrap();
        let d_scale = round_scale_backward(q.scale.view(), gradients.d_scale.view(), rule).unwrap();
        let quantum = q.scale.mapv(|scale| quantum(scale, rule));
        assert_gradients(&Quantized(&q, quantum, rule), &[
            with_gradient("weight", &q.weight, &gradients.d_weight),
            with_gradient("scale", &q.scale, &d_scale),
        ]);
    }
}
