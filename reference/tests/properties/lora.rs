//! Properties of (A1) to (A3).

use ndarray::{Array2, ArrayD};
use plumbline_reference::linear::linear;
use plumbline_reference::lora::{delta_weight, lora_backward, lora_forward};
use proptest::prelude::*;

use crate::differences::{assert_gradient, noise};
use crate::inputs::Random;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Property of (A1) and (A2): the path and the weight compute the same function. Each side is a
    /// sum of products of at most `in + rank + 3` factors and terms, all below 1 in magnitude but
    /// the scaling, 2.
    #[test]
    fn the_path_beside_the_weight_is_the_weight_with_the_update(
        tokens in 1usize..4, out in 1usize..5, inputs in 1usize..6, rank in 0usize..4, seed: u64,
    ) {
        let mut random = Random(seed);
        let x = random.array((tokens, inputs), 1.0);
        let weight = random.array((out, inputs), 1.0);
        let (a, b) = (random.array((rank, inputs), 1.0), random.array((out, rank), 1.0));
        let beside = lora_forward(x.view(), weight.view(), a.view(), b.view(), 2.0).unwrap();
        let within = &weight + &delta_weight(a.view(), b.view(), 2.0).unwrap();
        let within = linear(x.view(), within.view()).unwrap();
        let terms = (inputs * (1 + 2 * rank)) as f64;
        let bound = 2.0 * (inputs + rank + 3) as f64 * f64::EPSILON / 2.0 * terms;
        prop_assert!((beside - within).iter().all(|d| d.abs() <= bound));
    }

    /// Property of (A3).
    #[test]
    fn gradients_are_derivatives(
        tokens in 1usize..4, out in 1usize..5, inputs in 1usize..5, rank in 1usize..4, seed: u64,
    ) {
        let mut random = Random(seed);
        let x = random.array((tokens, inputs), 1.0);
        let weight = random.array((out, inputs), 1.0);
        let (a, b) = (random.array((rank, inputs), 1.0), random.array((out, rank), 1.0));
        let d_y = random.array((tokens, out), 1.0);
        let scaling = 0.75;
        let loss = |x: &Array2<f64>, a: &Array2<f64>, b: &Array2<f64>| -> f64 {
            let y = lora_forward(x.view(), weight.view(), a.view(), b.view(), scaling).unwrap();
            (y * &d_y).sum()
        };
        let gradients = lora_backward(
            x.view(), weight.view(), a.view(), b.view(), scaling, d_y.view(),
        ).unwrap();
        let matrix = |array: &ArrayD<f64>| array.clone().into_dimensionality().unwrap();
        let noise = noise(inputs + rank + 4, d_y.len(), (inputs * (1 + rank)) as f64 * 1.1);
        assert_gradient("x", &x, &gradients.d_x, noise, |x| loss(&matrix(x), &a, &b));
        assert_gradient("lora_a", &a, &gradients.d_lora_a, noise, |a| loss(&x, &matrix(a), &b));
        assert_gradient("lora_b", &b, &gradients.d_lora_b, noise, |b| loss(&x, &a, &matrix(b)));
    }
}
