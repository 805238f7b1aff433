//! Properties of (Q18) and (Q19).

use ndarray::{Array1, Array2};
use plumbline_reference::Real;
use plumbline_reference::lora::lora_forward;
use plumbline_reference::nf4::{
    LEVELS, absmax_map, dequantize, double_quantize, pack, quantize, unpack,
};
use plumbline_reference::spec::BlockSize;
use proptest::prelude::*;

use crate::inputs::{Random, cast};

fn weight() -> impl Strategy<Value = (Array2<f64>, BlockSize)> {
    (1usize..=4, 1usize..=9, 1usize..=12, any::<u64>()).prop_map(|(out, inputs, size, seed)| {
        (Random(seed).array((out, inputs), 0.25), BlockSize::new(size).unwrap())
    })
}

/// The `x` with `Phi(x) = p`, by Newton's method on the Taylor series of the normal distribution.
fn normal_quantile(p: f64) -> f64 {
    let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    // Phi(x) - 1/2 = density(x) * (x + x^3 / 3 + x^5 / (3 * 5) + ...)
    let distribution = |x: f64| {
        let (mut term, mut sum) = (x, x);
        for odd in (3..200).step_by(2) {
            term *= x * x / f64::from(odd);
            sum += term;
        }
        0.5 + density(x) * sum
    };
    let mut x = 0.0;
    for _ in 0..50 {
        x -= (distribution(x) - p) / density(x);
    }
    x
}

#[test]
fn the_quantile_of_the_test_is_one() {
    assert!((normal_quantile(0.975) - 1.959_963_984_540_054).abs() < 1e-14);
    assert_eq!(normal_quantile(0.5), 0.0);
}

/// Property of (Q18): the levels are the quantiles that the specification says, to the roundings
/// of binary32 that they were made with: one of the probability, whose slope at the outermost
/// level is 7 over the largest, and one of the quotient.
#[test]
fn levels_are_quantiles_of_the_normal_distribution() {
    let outermost: f64 = 0.9677083;
    let at = |k: usize, parts: usize| outermost + (0.5 - outermost) * k as f64 / parts as f64;
    let mut levels: Vec<f64> = (0..8).map(|k| normal_quantile(at(k, 8))).collect();
    levels.extend((0..7).map(|k| -normal_quantile(at(k, 7))));
    levels.push(0.0);
    levels.sort_by(f64::total_cmp);
    let largest = levels[15];
    for (level, printed) in levels.iter().zip(LEVELS) {
        let difference = (level / largest - printed).abs();
        assert!(difference <= 2.0_f64.powi(-23), "{printed}: {difference:e}");
    }
}

/// Property of (Q19a).
#[test]
fn the_map_has_256_values_and_is_symmetric_but_for_its_end() {
    let map = absmax_map();
    assert!(map.windows(2).all(|pair| pair[0] < pair[1]), "ascending, none twice");
    assert_eq!((map[127], map[255]), (0.0, 1.0));
    assert!((0..127).all(|k| map[k] == -map[254 - k]));
    // One value in the first decade, 64 in the last.
    let within = |low: f64, high: f64| map.iter().filter(|x| (low..high).contains(*x)).count();
    let decades: Vec<usize> =
        (0..7).map(|e| within(10.0_f64.powi(e - 7), 10.0_f64.powi(e - 6))).collect();
    assert_eq!(decades, [1, 2, 4, 8, 16, 32, 64]);
    assert_eq!(map[128], f64::from(5.5e-7_f32));
}

fn distance(value: f64, level: f64) -> f64 {
    (value - level).abs()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (Q18) C1.
    #[test]
    fn no_level_is_nearer((weight, block_size) in weight()) {
        let quantized = quantize(weight.view(), block_size).unwrap();
        for (n, (&weight, &code)) in weight.iter().zip(&quantized.codes).enumerate() {
            let absmax = quantized.absmax[n / block_size.get()];
            prop_assert!(weight.abs() <= absmax);
            let value = weight / absmax;
            let own = distance(value, LEVELS[usize::from(code)]);
            prop_assert!(LEVELS.iter().all(|&level| own <= distance(value, level)));
        }
    }

    /// Property of (Q18): output is on the grid already.
    #[test]
    fn quantizing_the_output_changes_nothing((weight, block_size) in weight()) {
        let once = quantize(weight.view(), block_size).unwrap();
        let twice = quantize(once.output.view(), block_size).unwrap();
        // Level -1 keeps the absmax of a block whose largest weight is negative.
        prop_assert_eq!(once, twice);
    }

    /// Property of (Q18): the unit of the weights does not matter.
    #[test]
    fn scaling_by_a_power_of_two_leaves_codes((weight, block_size) in weight(), k in -20i32..20) {
        let factor = 2.0_f64.powi(k);
        let plain = quantize(weight.view(), block_size).unwrap();
        let scaled = quantize((&weight * factor).view(), block_size).unwrap();
        prop_assert_eq!(plain.codes, scaled.codes);
        prop_assert_eq!(plain.output * factor, scaled.output);
    }

    /// Property of (Q18): precision decides a code beside a halfway point alone.
    #[test]
    fn f32_codes_are_those_of_f64_away_from_halfway_points((weight, block_size) in weight()) {
        let wide = quantize(weight.view(), block_size).unwrap();
        let narrow = quantize(cast::<f32, _>(&weight).view(), block_size).unwrap();
        for (n, (&weight, (&wide_code, &narrow_code))) in
            weight.iter().zip(wide.codes.iter().zip(&narrow.codes)).enumerate()
        {
            let value = weight / wide.absmax[n / block_size.get()];
            let to_halfway = LEVELS
                .windows(2)
                .map(|pair| distance(value, f64::midpoint(pair[0], pair[1])))
                .fold(f64::INFINITY, f64::min);
            prop_assert!(wide_code == narrow_code || to_halfway <= 2.0_f64.powi(-24));
        }
        prop_assert_eq!(wide.absmax, narrow.absmax.mapv(f64::from));
    }

    /// Property of (Q18c), and of a QLoRA layer: it is (A2) on the weight that the bytes stand for.
    #[test]
    fn a_qlora_layer_is_a_lora_layer_on_the_dequantized_weight(
        (weight, block_size) in weight(),
        seed: u64,
    ) {
        fn check<T: Real>(weight: &Array2<f64>, block_size: BlockSize, seed: u64) {
            let (weight, mut random) = (cast::<T, _>(weight), Random(seed));
            let (out, inputs) = weight.dim();
            let x: Array2<T> = cast(&random.array((2, inputs), 1.0));
            let lora_a: Array2<T> = cast(&random.array((2, inputs), 1.0));
            let lora_b: Array2<T> = cast(&random.array((out, 2), 1.0));
            let quantized = quantize(weight.view(), block_size).unwrap();
            let stored = double_quantize(quantized.absmax.view()).unwrap();
            let bytes = pack(quantized.codes.view()).unwrap();

            let codes = unpack(&bytes, (out, inputs)).unwrap();
            assert_eq!(codes, quantized.codes);
            let absmax = stored.dequantize().unwrap();
            let base = dequantize(codes.view(), absmax.view(), block_size).unwrap();
            let layer =
                lora_forward(x.view(), base.view(), lora_a.view(), lora_b.view(), 2.0).unwrap();
            // Element for element, with no function of the module.
            let by_hand = Array2::from_shape_fn((2, out), |(t, o)| {
                let mut y = T::zero();
                for i in 0..inputs {
                    let n = o * inputs + i;
                    let level = T::of(LEVELS[usize::from(quantized.codes[[o, i]])]);
                    y += x[[t, i]] * (level * absmax[n / block_size.get()]);
                }
                let mut update = T::zero();
                for r in 0..2 {
                    let mut low = T::zero();
                    for i in 0..inputs {
                        low += x[[t, i]] * lora_a[[r, i]];
                    }
                    update += low * lora_b[[o, r]];
                }
                y + T::of(2.0) * update
            });
            for (layer, by_hand) in layer.iter().zip(&by_hand) {
                assert_eq!(layer.value().to_bits(), by_hand.value().to_bits());
            }
        }
        check::<f64>(&weight, block_size, seed);
        check::<f32>(&weight, block_size, seed);
    }

    /// Property of (Q19): what is lost is at most half the widest step of the map, but at the
    /// lower end, where -1 is not in the map, and the last roundings.
    #[test]
    fn absmax_comes_back_to_half_a_step(count in 1usize..600, seed: u64) {
        let absmax: Array1<f64> = Random(seed).array(count, 0.5).mapv(|x| x + 1.0);
        let quantized = double_quantize(absmax.view()).unwrap();
        let (map, back) = (absmax_map(), quantized.dequantize().unwrap());
        let widest = map.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        for (b, (&absmax, &back)) in absmax.iter().zip(&back).enumerate() {
            let scale = quantized.absmax_scale[b / 256];
            let limit = scale * (widest / 2.0).max(1.0 + map[0]) + 4.0 * f64::EPSILON;
            prop_assert!((absmax - back).abs() <= limit);
            let value = (absmax - quantized.absmax_offset) / scale;
            if scale > 0.0 {
                let own = distance(value, map[usize::from(quantized.absmax_codes[b])]);
                prop_assert!(map.iter().all(|&entry| own <= distance(value, entry)));
            }
        }
    }
}
