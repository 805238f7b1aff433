//! f32 agrees with f64 to within a bound that is derived for each operation, not chosen.
//!
//! `u` is half an ulp of 1 in f32. A sum of `n` products, from zero and in order, is off by at most
//! `n * u` times the sum of the magnitudes, to first order; `SECOND_ORDER` covers the rest.

use ndarray::{Array, Array4, ArrayD, Dimension, s};
use plumbline_reference::attention::attention;
use plumbline_reference::cross_entropy::cross_entropy;
use plumbline_reference::linear::linear;
use plumbline_reference::quantize::{argument, quantize};
use plumbline_reference::rms_norm::rms_norm;
use plumbline_reference::rope::rope;
use plumbline_reference::swiglu::swiglu;
use plumbline_reference::{Real, quantize};
use proptest::prelude::*;

use crate::inputs::{Quantizer, Random, cast, dynamic, quantizer, rope_spec};

const U: f64 = f32::EPSILON as f64 / 2.0;
const SECOND_ORDER: f64 = 1.01;

fn assert_within<D: Dimension>(
    rounded: &Array<f32, D>,
    exact: &Array<f64, D>,
    bound: &Array<f64, D>,
) {
    for ((rounded, exact), bound) in rounded.iter().zip(exact).zip(bound) {
        let error = (rounded.value() - exact).abs();
        assert!(error <= bound * SECOND_ORDER, "{rounded} for {exact}: {error:e} > {bound:e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// (N1): `in` products and `in` sums, of which the first is exact.
    #[test]
    fn linear_rounds_once_per_term(
        tokens in 1usize..4, out in 1usize..4, inputs in 1usize..40, seed: u64,
    ) {
        let mut random = Random(seed);
        let (x, weight) = (random.array((tokens, inputs), 1.0), random.array((out, inputs), 1.0));
        let exact = linear(x.view(), weight.view()).unwrap();
        let rounded = linear::<f32>(cast(&x).view(), cast(&weight).view()).unwrap();
        let magnitudes = linear(x.mapv(f64::abs).view(), weight.mapv(f64::abs).view()).unwrap();
        assert_within(&rounded, &exact, &(magnitudes * (inputs as f64 * U)));
    }

    /// (N2): the mean square is a sum of positive terms, off by `hidden + 3` units at most; the
    /// root halves that and adds one; a quotient and a product follow.
    #[test]
    fn rms_norm_rounds_relatively(tokens in 1usize..4, hidden in 1usize..40, seed: u64) {
        let mut random = Random(seed);
        let (x, weight) = (random.array((tokens, hidden), 1.0), random.array(hidden, 1.0));
        let exact = rms_norm(x.view(), weight.view(), 1e-5).unwrap();
        let rounded = rms_norm::<f32>(cast(&x).view(), cast(&weight).view(), 1e-5).unwrap();
        let units = (hidden as f64 + 3.0) / 2.0 + 3.0;
        assert_within(&rounded, &exact, &exact.mapv(|y| y.abs() * units * U));
    }

    /// (N3): a rounded cosine or sine, a product, a sum.
    #[test]
    fn rope_rounds_three_times(
        tokens in 1usize..4, half in 1usize..5, first in 0usize..10_000,
        spec in rope_spec(), seed: u64,
    ) {
        let x = Random(seed).array((tokens, 2, 2 * half), 1.0);
        let exact = rope(x.view(), spec, first).unwrap();
        let rounded = rope::<f32>(cast(&x).view(), spec, first).unwrap();
        // Cosine and sine are at most 1.
        let bound = Array::from_shape_fn(x.dim(), |(t, h, d)| {
            3.0 * U * (x[[t, h, d]].abs() + x[[t, h, (d + half) % (2 * half)]].abs())
        });
        assert_within(&rounded, &exact, &bound);
    }

    /// (N4): see the steps below.
    #[test]
    fn attention_rounds_within_its_scores(tokens in 1usize..8, head_dim in 1usize..9, seed: u64) {
        let mut random = Random(seed);
        let shape = (1, tokens, 1, head_dim);
        let [q, k, v] = [2.0, 2.0, 1.0].map(|amplitude| random.array(shape, amplitude));
        let exact = attention(q.view(), k.view(), v.view()).unwrap();
        let [q32, k32, v32] = [&q, &k, &v].map(cast::<f32, _>);
        let rounded = attention(q32.view(), k32.view(), v32.view()).unwrap();
        let root = 1.0 / (head_dim as f64).sqrt();
        let bound = Array4::from_shape_fn(shape, |(b, t, h, d)| {
            let magnitudes: Vec<f64> = (0..=t)
                .map(|u| {
                    let terms = &q.slice(s![b, t, h, ..]) * &k.slice(s![b, u, h, ..]);
                    terms.iter().map(|term| term.abs()).sum::<f64>() * root
                })
                .collect();
            let largest = magnitudes.iter().fold(0.0_f64, |a, &b| a.max(b));
            // A score: its sum, the rounded root, the product with it.
            let score = (head_dim as f64 + 2.0) * U * largest;
            // Two scores and their difference of at most twice the largest; the exponential itself
            // is good to two units.
            let exponential = 2.0 * score + 2.0 * largest * U + 2.0 * U;
            // An exponential over a sum of at most t + 1 of them, and the quotient.
            let probability = 2.0 * exponential + (t as f64 + 1.0) * U + U;
            // Products and sums with the values.
            let units = probability + (t as f64 + 1.0) * U;
            let values = (0..=t).fold(0.0_f64, |a, u| a.max(v[[b, u, h, d]].abs()));
            units * values
        });
        assert_within(&rounded, &exact, &bound);
    }

    /// (N5): two units of the exponential, a sum and a quotient of positive numbers, two products.
    #[test]
    fn swiglu_rounds_relatively(count in 1usize..20, seed: u64) {
        let mut random = Random(seed);
        let (gate, up) = (random.array(count, 20.0), random.array(count, 2.0));
        let exact: ArrayD<f64> = swiglu(dynamic(&gate), dynamic(&up)).unwrap();
        let rounded = swiglu(dynamic(&cast::<f32, _>(&gate)), dynamic(&cast(&up))).unwrap();
        assert_within(&rounded, &exact, &exact.mapv(|y| y.abs() * 6.0 * U));
    }

    /// (N7): see the steps below.
    #[test]
    fn cross_entropy_rounds_within_its_range(tokens in 1usize..6, vocab in 2usize..20, seed: u64) {
        let mut random = Random(seed);
        let logits = random.array((tokens, vocab), 8.0);
        let targets = random.tokens((1, tokens), vocab as u64).row(0).to_owned();
        let exact = cross_entropy(logits.view(), targets.view(), -100).unwrap();
        let rounded = cross_entropy::<f32>(cast(&logits).view(), targets.view(), -100).unwrap();
        // Shifted logits reach 16: the exponentials are off by 16 + 2 units, their sum by `vocab`
        // more, and the logarithm, below ln 20 < 3, by its own two units of that. The difference
        // beside it rounds at 16, their sum below 19, the mean once per term and once for itself.
        let surprise = 16.0 + 2.0 + vocab as f64 + 2.0 * 3.0 + 16.0 + 19.0;
        let bound = (surprise + 19.0 * (tokens as f64 + 1.0)) * U * SECOND_ORDER;
        prop_assert!((rounded.value() - exact).abs() <= bound);
    }

    /// (Q2): an f32 code differs from the f64 code only beside a tie, by one, where the two
    /// roundings of the argument reach it.
    #[test]
    fn codes_differ_only_beside_a_tie(q in quantizer()) {
        let Quantizer { spec, weight, scale, offset, .. } = q;
        let [weight, scale, offset] = [weight, scale, offset].map(|t| cast::<f32, _>(&t));
        let rounded = quantize(weight.view(), scale.view(), offset.view(), &spec).unwrap();
        let [weight, scale, offset] = [weight, scale, offset].map(|t| t.mapv(f32::value));
        let exact = quantize::quantize(weight.view(), scale.view(), offset.view(), &spec).unwrap();
        for ((o, i), &exact) in exact.indexed_iter() {
            let g = i / spec.group_size();
            let argument = argument(weight[[o, i]], scale[[o, g]], offset[[o, g]]);
            let to_tie = (argument - argument.floor() - 0.5).abs();
            let difference = (exact - rounded[[o, i]]).abs();
            prop_assert!(difference == 0 || to_tie <= 2.0 * U * argument.abs() * SECOND_ORDER);
            prop_assert!(difference <= 1);
        }
    }
}
