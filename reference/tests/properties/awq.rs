//! Properties of (Q21) and (Q22).

use ndarray::{Array1, Array2, Axis, Slice};
use plumbline_reference::Real;
use plumbline_reference::awq::{
    channel_scale, fold, group_range, search_channel_scale, search_clip,
};
use plumbline_reference::linear::linear;
use plumbline_reference::rms_norm::rms_norm;
use plumbline_reference::spec::QuantSpec;
use proptest::array::uniform4;
use proptest::prelude::*;

use crate::inputs::{Random, cast, spec};

/// Weights and activations of which some channels are much larger than others.
fn layer(spec: &QuantSpec, out: usize, tokens: usize, seed: u64) -> (Array2<f64>, Array2<f64>) {
    let mut random = Random(seed);
    let weight = random.array((out, spec.in_features()), 1.0);
    let channels = random.array(spec.in_features(), 4.0).mapv(|power| 2.0_f64.powf(power));
    (weight, random.array((tokens, spec.in_features()), 1.0) * &channels)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Property of (Q21b): no ratio has less error, and an earlier one has more.
    #[test]
    fn the_first_ratio_of_least_error_is_kept(
        spec in spec(), out in 1usize..4, tokens in 1usize..5, steps in 1usize..12, seed: u64,
    ) {
        let (weight, x) = layer(&spec, out, tokens, seed);
        let best = search_channel_scale(weight.view(), x.view(), &spec, steps).unwrap();
        let tried: Vec<_> = (0..steps)
            .map(|k| channel_scale(weight.view(), x.view(), &spec, k, steps).unwrap())
            .collect();
        let kept = tried.iter().position(|tried| tried.ratio == best.ratio).unwrap();
        prop_assert_eq!(&tried[kept], &best);
        prop_assert!(tried[..kept].iter().all(|tried| tried.error > best.error));
        prop_assert!(tried[kept..].iter().all(|tried| tried.error >= best.error));
        let change = linear(x.view(), best.output.view()).unwrap()
            - linear(x.view(), weight.view()).unwrap();
        let mean = change.iter().map(|c| c * c).sum::<f64>() / change.len() as f64;
        prop_assert_eq!(mean, best.error);
    }

    /// Property of (Q21) C4: two quotients by the root of a product, six roundings in all.
    #[test]
    fn the_ends_of_the_channel_scales_have_product_one(
        spec in spec(), tokens in 1usize..5, k in 0usize..9, seed: u64,
    ) {
        let (weight, x) = layer(&spec, 1, tokens, seed);
        let scales = channel_scale(weight.view(), x.view(), &spec, k, 9).unwrap().channel_scale;
        let smallest = scales.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = scales.iter().copied().fold(0.0, f64::max);
        prop_assert!((smallest * largest - 1.0).abs() <= 6.0 * f64::EPSILON);
    }

    /// Property of (Q21c): where the range of a group contains 0, no weight moves by more than a
    /// step, half of it for the weight and half for the zero-point.
    #[test]
    fn a_range_with_zero_in_it_keeps_every_weight_within_a_step(
        spec in spec(), out in 1usize..4, seed: u64,
    ) {
        let (mut weight, x) = layer(&spec, out, 1, seed);
        for mut row in weight.rows_mut() {
            // A zero in every group.
            row.iter_mut().step_by(spec.group_size()).for_each(|w| *w = 0.0);
        }
        let output = channel_scale(weight.view(), x.view(), &spec, 0, 1).unwrap().output;
        let (weight, output) = (weight.as_slice().unwrap(), output.as_slice().unwrap());
        let groups = weight.chunks(spec.group_size()).zip(output.chunks(spec.group_size()));
        for (group, output) in groups {
            let min = group.iter().copied().fold(0.0, f64::min);
            let max = group.iter().copied().fold(0.0, f64::max);
            let step = (max - min).max(1e-5) / f64::from(spec.bits().unsigned_max());
            for (w, q) in group.iter().zip(output) {
                prop_assert!((w - q).abs() <= step + 4.0 * f64::EPSILON * w.abs());
            }
        }
    }

    /// Property of (Q21d): scaling up the weight and folding the inverse into the norm or the
    /// linear layer before leaves the function as it is; exactly, where scales are powers of two.
    #[test]
    fn folding_changes_nothing(
        tokens in 1usize..4, inputs in 1usize..5, out in 1usize..4, powers in uniform4(-6i32..6),
        seed: u64,
    ) {
        fn check<T: Real>(tokens: usize, scales: &Array1<f64>, out: usize, seed: u64) {
            let (mut random, inputs) = (Random(seed), scales.len());
            let scales = cast::<T, _>(scales);
            let h = cast::<T, _>(&random.array((tokens, inputs), 1.0));
            let (norm, weight): (Array1<T>, Array2<T>) =
                (cast(&random.array(inputs, 1.0)), cast(&random.array((out, inputs), 1.0)));
            let scaled = &weight * &scales;
            let plain = rms_norm(h.view(), norm.view(), 1e-5).unwrap();
            let folded = fold(norm.view(), scales.view()).unwrap();
            let divided = rms_norm(h.view(), folded.view(), 1e-5).unwrap();
            assert_eq!(
                linear(divided.view(), scaled.view()).unwrap(),
                linear(plain.view(), weight.view()).unwrap()
            );
            let previous = cast::<T, _>(&random.array((inputs, inputs), 1.0));
            let plain = linear(h.view(), previous.view()).unwrap();
            let folded = fold(previous.view(), scales.view()).unwrap();
            let divided = linear(h.view(), folded.view()).unwrap();
            assert_eq!(
                linear(divided.view(), scaled.view()).unwrap(),
                linear(plain.view(), weight.view()).unwrap()
            );
        }
        let scales: Array1<f64> = powers[..inputs].iter().map(|&p| 2.0_f64.powi(p)).collect();
        check::<f64>(tokens, &scales, out, seed);
        check::<f32>(tokens, &scales, out, seed);
    }

    /// Property of (Q22b): every group has the first of its own ranges of least error, whatever
    /// stands beside it, and none below half of its largest magnitude.
    #[test]
    fn the_first_range_of_least_error_is_kept(
        spec in spec(), out in 1usize..4, tokens in 1usize..5, steps in 2usize..24, seed: u64,
    ) {
        let (weight, x) = layer(&spec, out, tokens, seed);
        let best = search_clip(weight.view(), x.view(), &spec, steps).unwrap();
        for ((o, g), &max_value) in best.max_value.indexed_iter() {
            let inputs = Slice::from(g * spec.group_size()..(g + 1) * spec.group_size());
            let (row, kept) = (weight.row(o), best.output.row(o));
            let (group, kept) = (row.slice_axis(Axis(0), inputs), kept.slice_axis(Axis(0), inputs));
            let x = x.slice_axis(Axis(1), inputs);
            let tried: Vec<_> =
                (0..steps / 2).map(|k| group_range(group, x, &spec, k, steps).unwrap()).collect();
            let first = tried.iter().position(|tried| tried.max_value == max_value).unwrap();
            prop_assert_eq!(tried[first].output.view(), kept);
            let least = tried[first].error;
            prop_assert!(tried[..first].iter().all(|tried| tried.error > least));
            prop_assert!(tried[first..].iter().all(|tried| tried.error >= least));
            let absmax = group.iter().fold(0.0_f64, |largest, w| largest.max(w.abs()));
            prop_assert!(absmax / 2.0 < max_value && max_value <= absmax || absmax == 0.0);
        }
    }
}
