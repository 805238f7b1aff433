//! Properties of (A4) and (A5).

use ndarray::{Array2, Axis};
use plumbline_reference::lora::delta_weight;
use plumbline_reference::low_rank_init::{
    Factors, SingularReal, grid_lora_b, loftq_init, svd_init,
};
use plumbline_reference::quantize::{dequantize, fake_quantize};
use plumbline_reference::spec::{InitScaleRule, LoftqQuantizer};
use plumbline_reference::{init_scale::init_scale, linear::linear};
use proptest::array::uniform4;
use proptest::prelude::*;

use crate::inputs::{Random, cast, spec};

/// What the decomposition may be off by, in units of its norm: at most 3 reflections a column, each
/// of 5 roundings a row and 21 more, and 68 roundings for the rotations that follow.
fn backward_error(weight: &Array2<f64>) -> f64 {
    let (long, short) = (weight.len_of(Axis(0)), weight.len_of(Axis(1)));
    let (long, short) = (long.max(short) as f64, long.min(short) as f64);
    let norm = weight.iter().map(|w| w * w).sum::<f64>().sqrt();
    short * (3.0 * (5.0 * long + 21.0) + 68.0) * f64::EPSILON / 2.0 * norm
}

fn product(factors: &Factors<f64>, lora_scaling: f64) -> Array2<f64> {
    delta_weight(factors.lora_a.view(), factors.lora_b.view(), lora_scaling).unwrap()
}

fn largest(array: &Array2<f64>) -> f64 {
    array.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()))
}

/// The largest singular value.
fn spectral_norm(array: &Array2<f64>) -> f64 {
    let factors = svd_init(array.view(), 1, 1.0).unwrap();
    let square = |column: &Array2<f64>| column.iter().map(|x| x * x).sum::<f64>();
    (square(&factors.lora_a) * square(&factors.lora_b)).sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (A4) C2: at full rank nothing is lost.
    #[test]
    fn at_full_rank_the_update_is_the_matrix(
        out in 1usize..7, inputs in 1usize..7, lora_scaling in 0.1..4.0_f64, seed: u64,
    ) {
        let weight = Random(seed).array((out, inputs), 1.0);
        let factors = svd_init(weight.view(), out.min(inputs), lora_scaling).unwrap();
        // Twice: the vectors are off too.
        let error = largest(&(product(&factors, lora_scaling) - &weight));
        prop_assert!(error <= 3.0 * backward_error(&weight));
    }

    /// Property of (A4) C2 and C3: what defines the best approximation. Both factors have
    /// orthogonal pairs of equal lengths, what is left is orthogonal to them, and it is no longer
    /// than the shortest of them.
    #[test]
    fn the_update_is_the_best_of_its_rank(
        out in 1usize..7, inputs in 1usize..7, rank in 1usize..7, lora_scaling in 0.1..4.0_f64,
        seed: u64,
    ) {
        prop_assume!(rank <= out.min(inputs));
        let weight = Random(seed).array((out, inputs), 1.0);
        let factors = svd_init(weight.view(), rank, lora_scaling).unwrap();
        let Factors { lora_a, lora_b } = &factors;
        let error = 4.0 * backward_error(&weight);
        let (of_b, of_a) = (
            linear(lora_b.t(), lora_b.t()).unwrap() * lora_scaling,
            linear(lora_a.view(), lora_a.view()).unwrap() * lora_scaling,
        );
        for ((r, s), b) in of_b.indexed_iter() {
            prop_assert!((b - of_a[[r, s]]).abs() <= error);
            prop_assert!(r == s || b.abs() <= error);
            prop_assert!(r != s || r == 0 || *b <= of_b[[r - 1, r - 1]] + error);
        }
        let rest = &weight - &product(&factors, lora_scaling);
        let shortest = of_b[[rank - 1, rank - 1]];
        prop_assert!(spectral_norm(&rest) <= shortest + error);
        // Lengths of the factors are at most the root of norm / lora_scaling.
        let lengths = (spectral_norm(&weight) / lora_scaling).sqrt().max(1.0);
        prop_assert!(largest(&linear(rest.view(), lora_a.view()).unwrap()) <= error * lengths);
        prop_assert!(largest(&linear(rest.t(), lora_b.t()).unwrap()) <= error * lengths);
    }

    /// Property of (A4) C4.
    #[test]
    fn the_largest_element_of_a_column_is_positive(
        out in 1usize..7, inputs in 1usize..7, seed: u64,
    ) {
        let weight = Random(seed).array((out, inputs), 1.0);
        let factors = svd_init(weight.view(), out.min(inputs), 1.0).unwrap();
        for column in factors.lora_b.columns() {
            let larger = |a: f64, b: &f64| if b.abs() > a.abs() { *b } else { a };
            let largest = column.iter().fold(0.0, larger);
            prop_assert!(largest > 0.0);
        }
    }

    /// Property of (A4) C3: four times the scaling halves both factors, bit for bit.
    #[test]
    fn the_scaling_is_shared_by_both_factors(out in 1usize..6, inputs in 1usize..6, seed: u64) {
        fn check<T: SingularReal>(weight: &Array2<f64>) {
            let weight = cast::<T, _>(weight);
            let [once, four] = [1.0, 4.0].map(|c| svd_init(weight.view(), 1, c).unwrap());
            assert_eq!(once.lora_a, four.lora_a * T::of(2.0));
            assert_eq!(once.lora_b, four.lora_b * T::of(2.0));
        }
        let weight = Random(seed).array((out, inputs), 1.0);
        check::<f64>(&weight);
        check::<f32>(&weight);
    }

    /// Property of (A5a): the first turn is the plain quantizer, and the factors of every turn are
    /// those of what its own codes lost: a pair.
    #[test]
    fn codes_and_factors_are_of_one_turn(
        spec in spec(), out in 1usize..5, iterations in 1usize..4, seed: u64,
    ) {
        fn check<T: SingularReal>(
            weight: &Array2<f64>, quantizer: LoftqQuantizer, iterations: usize,
        ) {
            let LoftqQuantizer::Uniform(spec) = quantizer else { unreachable!() };
            let weight = cast::<T, _>(weight);
            let found = loftq_init(weight.view(), quantizer, 1, iterations, 0.5).unwrap();
            let offset = Array2::zeros(found.scale.dim());
            let output =
                dequantize(found.codes.view(), found.scale.view(), offset.view(), &spec).unwrap();
            assert_eq!(found.output, output);
            let lost = &weight - &output;
            assert_eq!(found.factors, svd_init(lost.view(), 1, 0.5).unwrap());
            if iterations == 1 {
                let grid = init_scale(weight.view(), &spec, InitScaleRule::MinMax).unwrap();
                assert_eq!(found.scale, grid.scale);
                let (scale, offset) = (grid.scale.view(), grid.offset.view());
                let plain = fake_quantize(weight.view(), scale, offset, &spec).unwrap();
                assert_eq!(found.codes, plain.codes);
            }
        }
        let weight = Random(seed).array((out, spec.in_features()), 1.0);
        check::<f64>(&weight, LoftqQuantizer::Uniform(spec), iterations);
        check::<f32>(&weight, LoftqQuantizer::Uniform(spec), iterations);
    }

    /// Property of (A5a): the factors take something off what quantization lost, and never add.
    #[test]
    fn the_factors_make_up_for_a_part_of_the_loss(
        spec in spec(), out in 1usize..5, iterations in 1usize..4, seed: u64,
    ) {
        let weight = Random(seed).array((out, spec.in_features()), 1.0);
        let quantizer = LoftqQuantizer::Uniform(spec);
        let found = loftq_init(weight.view(), quantizer, 1, iterations, 2.0).unwrap();
        let lost = &weight - &found.output;
        let left = &lost - &product(&found.factors, 2.0);
        let square = |array: &Array2<f64>| array.iter().map(|x| x * x).sum::<f64>();
        let most = spectral_norm(&lost);
        let expected = square(&lost) - most * most;
        prop_assert!((square(&left) - expected).abs() <= 8.0 * most * backward_error(&lost));
    }

    /// Property of (A5b): with scales that are powers of two the update in units of the grid is the
    /// update, bit for bit.
    #[test]
    fn in_units_of_the_grid_the_update_is_the_same(
        out in 1usize..5, inputs in 1usize..5, rank in 1usize..4, powers in uniform4(-6i32..6),
        seed: u64,
    ) {
        let mut random = Random(seed);
        let (a, b) = (random.array((rank, inputs), 1.0), random.array((out, rank), 1.0));
        let scale = Array2::from_shape_fn((out, 1), |(o, _)| 2.0_f64.powi(powers[o]));
        let grid_b = grid_lora_b(b.view(), scale.view()).unwrap();
        let update = delta_weight(a.view(), grid_b.view(), 0.5).unwrap() * &scale;
        prop_assert_eq!(update, delta_weight(a.view(), b.view(), 0.5).unwrap());
    }
}
