//! Properties of (Q13).

use ndarray::{Array2, s};
use plumbline_reference::affine::{affine_dequantize, affine_quantize};
use plumbline_reference::init_scale::init_scale;
use plumbline_reference::rtn::rtn;
use plumbline_reference::spec::{InitScaleRule, QuantSpec, RangeSearch, RtnSpec, SymmetricScale};
use proptest::prelude::*;

use crate::inputs::{Quantizer, cast, quantizer};

/// `lp` with p = 1, where the power is exact.
const SEARCHED: RangeSearch = RangeSearch::Lp { p: 1.0, steps: 8 };

fn choices() -> impl Iterator<Item = RtnSpec> {
    let conventions = [SymmetricScale::Paper, SymmetricScale::Gptq];
    [RangeSearch::MinMax, SEARCHED].into_iter().flat_map(move |range| {
        conventions.into_iter().flat_map(move |convention| {
            [false, true].map(|symmetric| RtnSpec { symmetric, range, convention })
        })
    })
}

/// Extremes of a group, zero among them.
fn range(weight: &Array2<f64>, spec: &QuantSpec, o: usize, g: usize) -> (f64, f64) {
    let first = g * spec.group_size();
    let group = weight.slice(s![o, first..first + spec.group_size()]);
    group.iter().fold((0.0, 0.0), |(low, high): (f64, f64), &w| (low.min(w), high.max(w)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (Q13) C1: zero points are codes, in both precisions, and zero weights get them.
    #[test]
    fn zero_points_are_codes_and_stand_for_zero(q in quantizer()) {
        let Quantizer { spec, mut weight, .. } = q;
        weight[[0, 0]] = 0.0;
        for choice in choices() {
            let largest = f64::from(spec.unsigned_max());
            let on_grid = rtn(weight.view(), &spec, &choice).unwrap();
            let narrow = rtn(cast::<f32, _>(&weight).view(), &spec, &choice).unwrap();
            let zero_points = [on_grid.zero_point.clone(), narrow.zero_point.mapv(f64::from)];
            for zero_point in zero_points.iter().flatten() {
                prop_assert_eq!(zero_point.fract(), 0.0);
                prop_assert!((0.0..=largest).contains(zero_point), "{:?}", choice);
            }
            prop_assert_eq!(f64::from(on_grid.codes[[0, 0]]), on_grid.zero_point[[0, 0]]);
            prop_assert_eq!(on_grid.output[[0, 0]], 0.0);
        }
    }

    /// Property of (Q13): the result is (Q11) and (Q12) on the grid that it names.
    #[test]
    fn codes_and_output_are_those_of_the_grid(q in quantizer()) {
        let Quantizer { spec, weight, .. } = q;
        for choice in choices() {
            let on_grid = rtn(weight.view(), &spec, &choice).unwrap();
            let (scale, zero_point) = (on_grid.scale.view(), on_grid.zero_point.view());
            let codes = affine_quantize(weight.view(), scale, zero_point, &spec).unwrap();
            let output = affine_dequantize(codes.view(), scale, zero_point, &spec).unwrap();
            prop_assert_eq!(codes, on_grid.codes);
            prop_assert_eq!(output, on_grid.output);
        }
    }

    /// Property of (Q13) with `min_max`: no weight is off by more than half a step where nothing
    /// clips. In `gptq` the positive extreme lies half a step above the grid, which is as far;
    /// a rounded zero point moves either end of an asymmetric grid by half a step at most.
    #[test]
    fn the_range_of_the_weights_is_covered(q in quantizer()) {
        let Quantizer { spec, weight, .. } = q;
        for choice in choices().filter(|choice| choice.range == RangeSearch::MinMax) {
            let on_grid = rtn(weight.view(), &spec, &choice).unwrap();
            let steps = if choice.symmetric { 0.5 } else { 1.0 };
            for ((o, i), &w) in weight.indexed_iter() {
                let scale = on_grid.scale[[o, i / spec.group_size()]];
                let slack = 8.0 * f64::EPSILON * scale * f64::from(spec.unsigned_max());
                let miss = (on_grid.output[[o, i]] - w).abs();
                prop_assert!(miss <= steps * scale + slack, "{choice:?}: {miss} of {scale}");
            }
        }
    }

    /// Property of (Q13), symmetric: the scales of `paper` are those of (Q8f) and (Q8g).
    #[test]
    fn the_symmetric_scale_is_that_of_init_scale(q in quantizer()) {
        let Quantizer { spec, weight, .. } = q;
        for (range, rule) in [
            (RangeSearch::MinMax, InitScaleRule::MinMax),
            (SEARCHED, InitScaleRule::Lp { p: 1.0, steps: 8 }),
        ] {
            let choice = RtnSpec { symmetric: true, range, convention: SymmetricScale::Paper };
            let on_grid = rtn(weight.view(), &spec, &choice).unwrap();
            let started = init_scale(weight.view(), &spec, rule).unwrap();
            prop_assert_eq!(on_grid.scale, started.scale);
        }
    }

    /// Property of (Q13): the unit of the weights does not matter.
    #[test]
    fn scaling_the_weights_by_a_power_of_two_leaves_codes(q in quantizer(), k in -10i32..10) {
        // Far above the floor, which is a unit of its own.
        let weight = q.weight.mapv(|w| w.signum() * (w.abs() + 0.125));
        let factor = 2.0_f64.powi(k);
        for choice in choices() {
            let plain = rtn(weight.view(), &q.spec, &choice).unwrap();
            let scaled = rtn((&weight * factor).view(), &q.spec, &choice).unwrap();
            prop_assert_eq!(plain.codes, scaled.codes, "{:?}", choice);
            prop_assert_eq!(plain.zero_point, scaled.zero_point);
            prop_assert_eq!(plain.scale * factor, scaled.scale);
        }
    }

    /// Property of (Q13) `lp`: no range that was tried has less error, and an earlier one has more.
    #[test]
    fn lp_keeps_the_first_of_least_error(
        q in quantizer(),
        p in 0.5..4.0_f64,
        steps in 1usize..12,
        symmetric: bool,
    ) {
        let Quantizer { spec, weight, .. } = q;
        let searched = RtnSpec { symmetric, range: RangeSearch::Lp { p, steps }, ..RtnSpec::default() };
        let chosen = rtn(weight.view(), &spec, &searched).unwrap();
        for ((o, g), &scale) in chosen.scale.indexed_iter() {
            let (low, high) = range(&weight, &spec, o, g);
            prop_assume!(high - low > 1e-3);
            let first = g * spec.group_size();
            let group = weight.slice(s![o..=o, first..first + spec.group_size()]).to_owned();
            let one_group = QuantSpec::new(spec.bits(), None, spec.group_size()).unwrap();
            let tried: Vec<f64> = (1..=steps)
                .map(|k| {
                    let of_steps = |end: f64| k as f64 * end / steps as f64;
                    if symmetric {
                        of_steps((-low).max(high)) / f64::from(spec.qmax())
                    } else {
                        (of_steps(high) - of_steps(low)) / f64::from(spec.unsigned_max())
                    }
                })
                .collect();
            let errors: Vec<f64> = (1..=steps)
                .zip(&tried)
                .map(|(k, &scale)| {
                    let zero_point = if symmetric {
                        -f64::from(spec.qmin())
                    } else {
                        (-(k as f64 * low / steps as f64) / scale).round_ties_even()
                    };
                    let grid = [scale, zero_point].map(|x| Array2::from_elem((1, 1), x));
                    let [scale, zero_point] = [grid[0].view(), grid[1].view()];
                    let codes =
                        affine_quantize(group.view(), scale, zero_point, &one_group).unwrap();
                    let output =
                        affine_dequantize(codes.view(), scale, zero_point, &one_group).unwrap();
                    (&group - &output).iter().map(|d| d.abs().powf(p)).sum()
                })
                .collect();
            let kept = tried.iter().position(|&t| t == scale).expect("one of those tried");
            prop_assert!(errors[..kept].iter().all(|&error| error > errors[kept]));
            prop_assert!(errors[kept..].iter().all(|&error| error >= errors[kept]));
        }
    }
}
