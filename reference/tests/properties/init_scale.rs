//! Properties of (Q8).

use ndarray::Array2;
use plumbline_reference::init_scale::init_scale;
use plumbline_reference::quantize::{argument, fake_quantize, quantize};
use plumbline_reference::spec::{InitScaleRule, QuantSpec};
use proptest::prelude::*;

use crate::inputs::{Quantizer, quantizer};

/// `lp` with p = 1, where the power is exact.
const RULES: [InitScaleRule; 8] = [
    InitScaleRule::L4q,
    InitScaleRule::Lsq,
    InitScaleRule::LsqPlus,
    InitScaleRule::Symmetric,
    InitScaleRule::Asymmetric,
    InitScaleRule::MinMax,
    InitScaleRule::LitGpt,
    InitScaleRule::Lp { p: 1.0, steps: 8 },
];

fn codes(weight: &Array2<f64>, spec: &QuantSpec, rule: InitScaleRule) -> Array2<i8> {
    let chosen = init_scale(weight.view(), spec, rule).unwrap();
    quantize(weight.view(), chosen.scale.view(), chosen.offset.view(), spec).unwrap()
}

proptest! {
    /// Property of (Q8a), (Q8e), (Q8f): the extremes reach the ends of the grid and nothing passes
    /// them, but for the rounding of the scale: two roundings in it, two in the argument, and in
    /// `asymmetric` those of the offset.
    #[test]
    fn nothing_clips_where_the_rule_promises_it(Quantizer { spec, weight, .. } in quantizer()) {
        for rule in [InitScaleRule::L4q, InitScaleRule::Asymmetric, InitScaleRule::MinMax] {
            let chosen = init_scale(weight.view(), &spec, rule).unwrap();
            let (qmin, qmax) = (f64::from(spec.qmin()), f64::from(spec.qmax()));
            for ((o, i), &w) in weight.indexed_iter() {
                let g = i / spec.group_size();
                let (scale, offset) = (chosen.scale[[o, g]], chosen.offset[[o, g]]);
                let argument = argument(w, scale, offset);
                let largest = w.abs() + offset.abs() + scale * -qmin;
                let slack = 4.0 * f64::EPSILON * largest / scale;
                prop_assert!(qmin - slack <= argument && argument <= qmax + slack, "{rule:?}");
            }
        }
    }

    /// Property of (Q8): the unit of the weights does not matter.
    #[test]
    fn scaling_the_weights_by_a_power_of_two_leaves_codes(
        Quantizer { spec, weight, .. } in quantizer(),
        k in -10i32..10,
    ) {
        // Far above the floor, which is a unit of its own.
        let weight = weight.mapv(|w| w.signum() * (w.abs() + 0.125));
        let scaled = &weight * 2.0_f64.powi(k);
        for rule in RULES {
            prop_assert_eq!(codes(&weight, &spec, rule), codes(&scaled, &spec, rule), "{:?}", rule);
        }
    }

    /// Property of (Q8): mirrored weights have the same grid where the rule uses magnitudes.
    #[test]
    fn magnitude_rules_ignore_the_sign(Quantizer { spec, weight, .. } in quantizer()) {
        use InitScaleRule::{Lsq, LsqPlus, MinMax, Symmetric};
        for rule in [Lsq, LsqPlus, Symmetric, MinMax] {
            let plain = init_scale(weight.view(), &spec, rule).unwrap();
            let mirrored = init_scale((-&weight).view(), &spec, rule).unwrap();
            prop_assert_eq!(plain, mirrored);
        }
    }

    /// Property of (Q8g): no range that was tried has less error, and an earlier one has more.
    #[test]
    fn lp_keeps_the_first_of_least_error(
        Quantizer { spec, weight, .. } in quantizer(),
        p in 0.5..4.0_f64,
        steps in 1usize..12,
    ) {
        let chosen = init_scale(weight.view(), &spec, InitScaleRule::Lp { p, steps }).unwrap();
        for ((o, g), &scale) in chosen.scale.indexed_iter() {
            let first = g * spec.group_size();
            let group: Vec<f64> =
                (first..first + spec.group_size()).map(|i| weight[[o, i]]).collect();
            let absmax = group.iter().fold(0.0_f64, |largest, w| largest.max(w.abs()));
            prop_assume!(absmax > 1e-3);
            let one_group = QuantSpec::new(spec.bits(), None, group.len()).unwrap();
            let row = Array2::from_shape_vec((1, group.len()), group).unwrap();
            let tried: Vec<f64> = (1..=steps)
                .map(|k| k as f64 * absmax / steps as f64 / f64::from(spec.qmax()))
                .collect();
            let errors: Vec<f64> = tried
                .iter()
                .map(|&scale| {
                    let scale = Array2::from_elem((1, 1), scale);
                    let offset = Array2::zeros((1, 1));
                    let rounded =
                        fake_quantize(row.view(), scale.view(), offset.view(), &one_group).unwrap();
                    (&row - &rounded.output).iter().map(|d| d.abs().powf(p)).sum()
                })
                .collect();
            let kept = tried.iter().position(|&t| t == scale).expect("one of those tried");
            prop_assert!(errors[..kept].iter().all(|&error| error > errors[kept]));
            prop_assert!(errors[kept..].iter().all(|&error| error >= errors[kept]));
        }
    }
}
