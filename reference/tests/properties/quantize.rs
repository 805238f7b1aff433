//! Properties of (Q1) to (Q4).

use ndarray::{Array2, array};
use plumbline_reference::quantize::{argument, dequantize, fake_quantize, quantize};
use plumbline_reference::spec::{Bits, GradScale, QuantSpec};
use plumbline_reference::straight_through::fake_quantize_backward;
use proptest::prelude::*;

use crate::inputs::{Quantizer, cast, quantizer};

fn one_weight(bits: u32) -> QuantSpec {
    QuantSpec::new(Bits::new(bits).unwrap(), None, 1).unwrap()
}

/// Code and mask of one weight; the mask is seen as the gradient that passes.
fn code_and_mask(weight: f64, scale: f64, offset: f64, bits: u32) -> (i8, bool) {
    let spec = one_weight(bits);
    let (weight, scale, offset) = (array![[weight]], array![[scale]], array![[offset]]);
    let codes = quantize(weight.view(), scale.view(), offset.view(), &spec).unwrap();
    let gradients = fake_quantize_backward(
        weight.view(),
        scale.view(),
        offset.view(),
        array![[1.0]].view(),
        &spec,
        GradScale::None,
    )
    .unwrap();
    (codes[[0, 0]], gradients.d_weight[[0, 0]] == 1.0)
}

proptest! {
    /// Property of (Q2) C1, for every finite f32, subnormal and huge ones included.
    #[test]
    fn codes_stay_in_range(
        bits in 2u32..=8,
        weight in proptest::num::f32::ANY,
        scale in proptest::num::f32::ANY,
        offset in proptest::num::f32::ANY,
    ) {
        prop_assume!(weight.is_finite() && scale.is_finite() && offset.is_finite());
        let spec = one_weight(bits);
        let (weight, scale, offset) = (array![[weight]], array![[scale]], array![[offset]]);
        let codes = quantize(weight.view(), scale.view(), offset.view(), &spec).unwrap();
        prop_assert!((spec.qmin()..=spec.qmax()).contains(&i32::from(codes[[0, 0]])));
    }

    /// Property of (Q2): no other code is nearer.
    #[test]
    fn the_code_is_the_nearest(q in quantizer()) {
        let codes = quantize(q.weight.view(), q.scale.view(), q.offset.view(), &q.spec).unwrap();
        let (qmin, qmax) = (f64::from(q.spec.qmin()), f64::from(q.spec.qmax()));
        for ((o, i), &code) in codes.indexed_iter() {
            let g = i / q.spec.group_size();
            let argument = argument(q.weight[[o, i]], q.scale[[o, g]], q.offset[[o, g]]);
            prop_assert!((argument.clamp(qmin, qmax) - f64::from(code)).abs() <= 0.5);
        }
    }

    /// Property of (Q2): a tie goes to the even code. Every number here is exact.
    #[test]
    fn ties_go_to_even(
        bits in 3u32..=8, half in -200i32..200, exponent in -20i32..20, shift in -50i32..50,
    ) {
        let tie = f64::from(half) + 0.5;
        let scale = 2.0_f64.powi(exponent);
        let offset = f64::from(shift) * scale;
        let (code, passes) = code_and_mask(tie * scale + offset, scale, offset, bits);
        let (qmin, qmax) = (one_weight(bits).qmin(), one_weight(bits).qmax());
        if passes {
            prop_assert_eq!(code % 2, 0);
            prop_assert!((f64::from(code) - tie).abs() == 0.5);
        } else {
            prop_assert!(half < qmin || half >= qmax);
            prop_assert_eq!(i32::from(code), half.clamp(qmin, qmax));
        }
    }

    /// Property of (Q4) C1: the output is a fixed point.
    #[test]
    fn fake_quantize_is_idempotent_in_codes(q in quantizer()) {
        fn check<T: plumbline_reference::Real>(q: &Quantizer) {
            let [weight, scale, offset] = [&q.weight, &q.scale, &q.offset].map(cast::<T, _>);
            let run = |weight: &Array2<T>| {
                fake_quantize(weight.view(), scale.view(), offset.view(), &q.spec).unwrap()
            };
            let once = run(&weight);
            assert_eq!(once, run(&once.output));
        }
        check::<f64>(&q);
        check::<f32>(&q);
    }

    /// Property of (Q3) and (Q2): the grid's points keep their codes.
    #[test]
    fn every_code_survives_the_round_trip(bits in 2u32..=8, scale in 1e-6..1e6_f64) {
        let bits = Bits::new(bits).unwrap();
        let all: Vec<i8> = (bits.qmin()..=bits.qmax()).map(|code| code as i8).collect();
        let spec = QuantSpec::new(bits, None, all.len()).unwrap();
        let codes = Array2::from_shape_vec((1, all.len()), all).unwrap();
        let (scale, offset) = (array![[scale as f32]], array![[0.0]]);
        let weight = dequantize(codes.view(), scale.view(), offset.view(), &spec).unwrap();
        let again = quantize(weight.view(), scale.view(), offset.view(), &spec).unwrap();
        prop_assert_eq!(again, codes);
    }

    /// Property of (Q2): a larger weight has no smaller code.
    #[test]
    fn codes_are_monotone(q in quantizer(), step in 0.0..4.0_f64) {
        let larger = q.weight.mapv(|w| w + step);
        let codes = quantize(q.weight.view(), q.scale.view(), q.offset.view(), &q.spec).unwrap();
        let above = quantize(larger.view(), q.scale.view(), q.offset.view(), &q.spec).unwrap();
        prop_assert!(codes.iter().zip(&above).all(|(code, above)| code <= above));
    }

    /// Property of (Q1): the unit of the weights does not matter.
    #[test]
    fn scaling_everything_by_a_power_of_two_leaves_codes(q in quantizer(), k in -12i32..40) {
        let factor = 2.0_f64.powi(k);
        let plain =
            fake_quantize(q.weight.view(), q.scale.view(), q.offset.view(), &q.spec).unwrap();
        let scaled = fake_quantize(
            (&q.weight * factor).view(),
            (&q.scale * factor).view(),
            (&q.offset * factor).view(),
            &q.spec,
        )
        .unwrap();
        prop_assert_eq!(&scaled.codes, &plain.codes);
        prop_assert_eq!(scaled.output, plain.output * factor);
    }

    /// Property of (Q1) C1: where the mask closes, and what the code is there.
    #[test]
    fn the_mask_is_closed_and_taken_before_rounding(
        bits in 2u32..=8,
        exponent in -10i32..10,
        shift in -50i32..50,
    ) {
        let scale = 2.0_f64.powi(exponent);
        let (qmin, qmax) = (one_weight(bits).qmin(), one_weight(bits).qmax());
        let (low, high) = (f64::from(qmin), f64::from(qmax));
        // Without an offset every neighbour of a boundary is itself an exact argument.
        for (argument, code, passes) in [
            (low, qmin, true),
            (low.next_down(), qmin, false),
            (low.next_up(), qmin, true),
            (low - 0.5, qmin, false),
            (low + 0.5, qmin, true),
            (high, qmax, true),
            (high.next_up(), qmax, false),
            (high.next_down(), qmax, true),
            (high + 0.5, qmax, false),
            ((high + 0.5).next_down(), qmax, false),
        ] {
            let seen = code_and_mask(argument * scale, scale, 0.0, bits);
            prop_assert_eq!(seen, (code as i8, passes), "argument {}", argument);
        }
        let offset = f64::from(shift) * scale;
        for (argument, code, passes) in [
            (low, qmin, true),
            (low - 0.5, qmin, false),
            (high, qmax, true),
            (high + 0.5, qmax, false),
        ] {
            let seen = code_and_mask(argument * scale + offset, scale, offset, bits);
            prop_assert_eq!(seen, (code as i8, passes), "argument {} with offset", argument);
        }
    }

    /// Property of (Q1) C2: no scale below the floor is told from the floor.
    #[test]
    fn a_scale_below_the_floor_is_the_floor(weight in -1e-7..1e-7_f64, scale in -1.0..1e-8_f64) {
        let spec = one_weight(4);
        let at = |scale: f64| {
            let (weight, scale) = (array![[weight]], array![[scale]]);
            fake_quantize(weight.view(), scale.view(), array![[0.0]].view(), &spec).unwrap()
        };
        prop_assert_eq!(at(scale), at(plumbline_reference::spec::SCALE_FLOOR));
    }
}
