//! Properties of (N1) to (N7): every gradient is a derivative, and what each operation leaves as it
//! was. Gradients are proved against differences of the function as it runs, and once more against
//! dual numbers and differences that know their own rounding errors: smooth forwards are their own
//! definitions.

use ndarray::{Array, Array1, Array2, Array3, Array4, ArrayD, Dimension, s};
use plumbline_reference::Real;
use plumbline_reference::attention::{attention, attention_backward};
use plumbline_reference::cross_entropy::{cross_entropy, cross_entropy_backward};
use plumbline_reference::embedding::{embedding, embedding_backward};
use plumbline_reference::linear::{linear, linear_backward};
use plumbline_reference::lora::{lora_backward, lora_forward};
use plumbline_reference::rms_norm::{rms_norm, rms_norm_backward};
use plumbline_reference::rope::{rope, rope_backward};
use plumbline_reference::spec::RopeSpec;
use plumbline_reference::swiglu::{swiglu, swiglu_backward};
use proptest::prelude::*;

use crate::differences::{assert_gradient, noise};
use crate::inputs::{Random, rope_spec};
use crate::proof::{Definition, assert_gradients, constant, weighted_sum, with_gradient};

/// An argument of `loss` back in its own number of dimensions.
fn sized<T: Real, D: Dimension>(array: &ArrayD<T>) -> Array<T, D> {
    array.clone().into_dimensionality().unwrap()
}

/// A definition by the forward itself: a name, its constants, and the loss of its tensors.
macro_rules! definition {
    ($name:ident { $($field:ident: $type:ty),* }, |$this:ident, $tensors:ident| $loss:expr) => {
        struct $name {
            $($field: $type),*
        }

        impl Definition for $name {
            fn loss<T: Real>(&self, $tensors: &[ArrayD<T>]) -> T {
                let $this = self;
                $loss
            }
        }
    };
}

definition!(Linear { d_y: Array2<f64> }, |this, t| {
    let (x, weight): (Array2<T>, Array2<T>) = (sized(&t[0]), sized(&t[1]));
    weighted_sum(&this.d_y, &linear(x.view(), weight.view()).unwrap())
});

definition!(Lora { lora_scaling: f64, d_y: Array2<f64> }, |this, t| {
    let [x, weight, a, b]: [Array2<T>; 4] = [0, 1, 2, 3].map(|which| sized(&t[which]));
    let scaling = this.lora_scaling;
    let y = lora_forward(x.view(), weight.view(), a.view(), b.view(), scaling).unwrap();
    weighted_sum(&this.d_y, &y)
});

definition!(RmsNorm { eps: f64, d_output: Array2<f64> }, |this, t| {
    let (x, weight): (Array2<T>, Array1<T>) = (sized(&t[0]), sized(&t[1]));
    weighted_sum(&this.d_output, &rms_norm(x.view(), weight.view(), this.eps).unwrap())
});

definition!(Rope { spec: RopeSpec, first: usize, d_output: Array3<f64> }, |this, t| {
    let x: Array3<T> = sized(&t[0]);
    weighted_sum(&this.d_output, &rope(x.view(), this.spec, this.first).unwrap())
});

definition!(Attention { d_output: Array4<f64> }, |this, t| {
    let [q, k, v]: [Array4<T>; 3] = [0, 1, 2].map(|which| sized(&t[which]));
    weighted_sum(&this.d_output, &attention(q.view(), k.view(), v.view()).unwrap())
});

definition!(Swiglu { d_output: ArrayD<f64> }, |this, t| {
    weighted_sum(&this.d_output, &swiglu(t[0].view(), t[1].view()).unwrap())
});

definition!(Embedding { tokens: Array2<i32>, d_output: Array3<f64> }, |this, t| {
    let table: Array2<T> = sized(&t[0]);
    weighted_sum(&this.d_output, &embedding(this.tokens.view(), table.view()).unwrap())
});

definition!(CrossEntropy { targets: Array1<i32>, ignore_index: i32 }, |this, t| {
    let logits: Array2<T> = sized(&t[0]);
    cross_entropy(logits.view(), this.targets.view(), this.ignore_index).unwrap()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Property of (N1b).
    #[test]
    fn gradients_of_linear_are_derivatives(
        tokens in 1usize..4, out in 1usize..5, inputs in 1usize..5, seed: u64,
    ) {
        let mut random = Random(seed);
        let (x, weight) = (random.array((tokens, inputs), 1.0), random.array((out, inputs), 1.0));
        let d_y = random.array((tokens, out), 1.0);
        let gradients = linear_backward(x.view(), weight.view(), d_y.view()).unwrap();
        let loss = |x: &Array2<f64>, weight: &Array2<f64>| -> f64 {
            (linear(x.view(), weight.view()).unwrap() * &d_y).sum()
        };
        let noise = noise(inputs + 1, d_y.len(), inputs as f64 * 1.1);
        assert_gradient("x", &x, &gradients.d_x, noise, |x| loss(&sized(x), &weight));
        assert_gradient("weight", &weight, &gradients.d_weight, noise, |w| loss(&x, &sized(w)));
        let x = with_gradient("x", &x, &gradients.d_x);
        let weight = with_gradient("weight", &weight, &gradients.d_weight);
        assert_gradients(&Linear { d_y }, &[x, weight]);
    }

    /// Property of (A3); `tests/properties/lora.rs` has the differences of the function as it runs.
    #[test]
    fn gradients_of_lora_are_derivatives(
        tokens in 1usize..4, out in 1usize..4, inputs in 1usize..4, rank in 1usize..3, seed: u64,
    ) {
        let mut random = Random(seed);
        let (x, weight) = (random.array((tokens, inputs), 1.0), random.array((out, inputs), 1.0));
        let (a, b) = (random.array((rank, inputs), 1.0), random.array((out, rank), 1.0));
        let (d_y, lora_scaling) = (random.array((tokens, out), 1.0), 0.75);
        let gradients = lora_backward(
            x.view(), weight.view(), a.view(), b.view(), lora_scaling, d_y.view(),
        ).unwrap();
        let tensors = [
            with_gradient("x", &x, &gradients.d_x),
            constant("weight", &weight),
            with_gradient("lora_a", &a, &gradients.d_lora_a),
            with_gradient("lora_b", &b, &gradients.d_lora_b),
        ];
        assert_gradients(&Lora { lora_scaling, d_y }, &tensors);
    }

    /// Property of (N2b).
    #[test]
    fn gradients_of_rms_norm_are_derivatives(tokens in 1usize..4, hidden in 1usize..7, seed: u64) {
        let mut random = Random(seed);
        let x = random.array((tokens, hidden), 2.0);
        let weight = random.array(hidden, 1.0);
        let d_output = random.array((tokens, hidden), 1.0);
        // A root mean square of at least 0.5: differences of 1/256 stay in the smooth part.
        let eps = 0.25;
        let gradients =
            rms_norm_backward(x.view(), weight.view(), d_output.view(), eps).unwrap();
        let loss = |x: &Array2<f64>, weight: &Array1<f64>| -> f64 {
            (rms_norm(x.view(), weight.view(), eps).unwrap() * &d_output).sum()
        };
        let noise = noise(hidden + 5, x.len(), (hidden as f64).sqrt() * 1.1);
        assert_gradient("x", &x, &gradients.d_x, noise, |x| loss(&sized(x), &weight));
        assert_gradient("weight", &weight, &gradients.d_weight, noise, |w| loss(&x, &sized(w)));
        let x = with_gradient("x", &x, &gradients.d_x);
        let weight = with_gradient("weight", &weight, &gradients.d_weight);
        assert_gradients(&RmsNorm { eps, d_output }, &[x, weight]);
    }

    /// Property of (N2a): a row's length does not matter once eps is small beside it.
    #[test]
    fn rms_norm_forgets_a_power_of_two(tokens in 1usize..4, hidden in 1usize..7, seed: u64) {
        let mut random = Random(seed);
        let x = random.array((tokens, hidden), 1.0);
        let weight = random.array(hidden, 1.0);
        let plain = rms_norm(x.view(), weight.view(), 0.25).unwrap();
        let scaled = rms_norm((&x * 8.0).view(), weight.view(), 0.25 * 64.0).unwrap();
        prop_assert_eq!(plain, scaled);
    }

    /// Property of (N3b).
    #[test]
    fn gradients_of_rope_are_derivatives(
        tokens in 1usize..4, heads in 1usize..3, half in 1usize..4, first in 0usize..1000,
        spec in rope_spec(), seed: u64,
    ) {
        let mut random = Random(seed);
        let x = random.array((tokens, heads, 2 * half), 1.0);
        let d_output = random.array((tokens, heads, 2 * half), 1.0);
        let d_x = rope_backward(d_output.view(), spec, first).unwrap();
        assert_gradient("x", &x, &d_x, noise(3, x.len(), 2.0), |x| {
            (rope(sized(x).view(), spec, first).unwrap() * &d_output).sum()
        });
        assert_gradients(&Rope { spec, first, d_output }, &[with_gradient("x", &x, &d_x)]);
    }

    /// Property of (N3): the score of a query and a key depends on how far apart they are. Angles
    /// below 300 are off by half an ulp of 256, and so is each of four factors per product; the
    /// rotated vectors have at most twice the magnitude.
    #[test]
    fn rope_makes_scores_relative(
        half in 1usize..5, place in 0usize..100, distance in 0usize..100, shift in 0usize..100,
        spec in rope_spec(), seed: u64,
    ) {
        let mut random = Random(seed);
        let q = random.array((1, 1, 2 * half), 1.0);
        let k = random.array((1, 1, 2 * half), 1.0);
        let score = |place: usize| -> f64 {
            let q = rope(q.view(), spec, place + distance).unwrap();
            let k = rope(k.view(), spec, place).unwrap();
            (q * k).sum()
        };
        let bound = 16.0 * half as f64 * 256.0 * f64::EPSILON;
        prop_assert!((score(place) - score(place + shift)).abs() <= bound);
    }

    /// Property of (N3): `first_position` continues a sequence.
    #[test]
    fn rope_continues_where_it_stopped(cut in 0usize..5, half in 1usize..4, spec in rope_spec(), seed: u64) {
        let x = Random(seed).array((5, 2, 2 * half), 1.0);
        let whole = rope(x.view(), spec, 7).unwrap();
        let rest = rope(x.slice(s![cut.., .., ..]), spec, 7 + cut).unwrap();
        prop_assert_eq!(whole.slice(s![cut.., .., ..]), rest.view());
    }

    /// Property of (N3): backward undoes forward, and lengths stay. `cos^2 + sin^2` is 1 to within
    /// three roundings of values below 1, and each product and sum adds one.
    #[test]
    fn rope_is_a_rotation(half in 1usize..4, first in 0usize..1000, spec in rope_spec(), seed: u64) {
        let x = Random(seed).array((3, 2, 2 * half), 1.0);
        let rotated = rope(x.view(), spec, first).unwrap();
        let back = rope_backward(rotated.view(), spec, first).unwrap();
        prop_assert!((&back - &x).iter().all(|d| d.abs() <= 16.0 * f64::EPSILON));
        let (before, after) = ((&x * &x).sum(), (&rotated * &rotated).sum());
        prop_assert!((before - after).abs() <= 16.0 * f64::EPSILON * x.len() as f64);
    }

    /// Property of (N4b), with one to three query heads on every key head.
    #[test]
    fn gradients_of_attention_are_derivatives(
        batch in 1usize..3, tokens in 1usize..5, kv_heads in 1usize..3, shared in 1usize..4,
        head_dim in 1usize..4, seed: u64,
    ) {
        let mut random = Random(seed);
        let q = random.array((batch, tokens, kv_heads * shared, head_dim), 1.5);
        let k = random.array((batch, tokens, kv_heads, head_dim), 1.5);
        let v = random.array((batch, tokens, kv_heads, head_dim), 1.0);
        let d_output = random.array(q.dim(), 1.0);
        let gradients =
            attention_backward(q.view(), k.view(), v.view(), d_output.view()).unwrap();
        // A score is at most 1.5^2 * sqrt(3) < 4 and rounds head_dim + 2 times, which the
        // exponential turns into as many relative errors of 4 units; then the sums over tokens.
        let noise = noise(2 * (4 * (head_dim + 2) + 2) + 3 * tokens, q.len(), 1.1);
        assert_gradient("q", &q, &gradients.d_q, noise, |q| {
            (attention(sized(q).view(), k.view(), v.view()).unwrap() * &d_output).sum()
        });
        assert_gradient("k", &k, &gradients.d_k, noise, |k| {
            (attention(q.view(), sized(k).view(), v.view()).unwrap() * &d_output).sum()
        });
        assert_gradient("v", &v, &gradients.d_v, noise, |v| {
            (attention(q.view(), k.view(), sized(v).view()).unwrap() * &d_output).sum()
        });
        let q = with_gradient("q", &q, &gradients.d_q);
        let k = with_gradient("k", &k, &gradients.d_k);
        let v = with_gradient("v", &v, &gradients.d_v);
        assert_gradients(&Attention { d_output }, &[q, k, v]);
    }

    /// Property of (N4): a token does not see those after it, and sequences do not see each other.
    #[test]
    fn attention_is_causal(tokens in 2usize..6, changed in 0usize..5, seed: u64) {
        prop_assume!(changed < tokens);
        let mut random = Random(seed);
        let q = random.array((2, tokens, 2, 3), 1.0);
        let [mut k, mut v] = [1.0, 1.0].map(|amplitude| random.array((2, tokens, 1, 3), amplitude));
        let before = attention(q.view(), k.view(), v.view()).unwrap();
        k[[0, changed, 0, 1]] += 1.0;
        v[[0, changed, 0, 2]] += 1.0;
        let after = attention(q.view(), k.view(), v.view()).unwrap();
        let earlier = s![0, ..changed, .., ..];
        prop_assert_eq!(before.slice(earlier), after.slice(earlier));
        prop_assert_eq!(before.slice(s![1, .., .., ..]), after.slice(s![1, .., .., ..]));
        for t in changed..tokens {
            prop_assert_ne!(before.slice(s![0, t, .., ..]), after.slice(s![0, t, .., ..]));
        }
    }

    /// Property of (N4): sharing a key head is repeating it.
    #[test]
    fn grouped_heads_equal_repeated_heads(tokens in 1usize..5, shared in 1usize..4, seed: u64) {
        let mut random = Random(seed);
        let q = random.array((2, tokens, 2 * shared, 2), 1.0);
        let (k, v) = (random.array((2, tokens, 2, 2), 1.0), random.array((2, tokens, 2, 2), 1.0));
        let repeated = |x: &ndarray::Array4<f64>| {
            ndarray::Array4::from_shape_fn(q.dim(), |(b, t, h, d)| x[[b, t, h / shared, d]])
        };
        let grouped = attention(q.view(), k.view(), v.view()).unwrap();
        let spread = attention(q.view(), repeated(&k).view(), repeated(&v).view()).unwrap();
        prop_assert_eq!(grouped, spread);
    }

    /// Property of (N5b).
    #[test]
    fn gradients_of_swiglu_are_derivatives(rows in 1usize..4, columns in 1usize..5, seed: u64) {
        let mut random = Random(seed);
        let gate = random.array((rows, columns), 6.0).into_dyn();
        let up = random.array((rows, columns), 2.0).into_dyn();
        let d_output = random.array((rows, columns), 1.0).into_dyn();
        let gradients = swiglu_backward(gate.view(), up.view(), d_output.view()).unwrap();
        let loss = |gate: &ArrayD<f64>, up: &ArrayD<f64>| -> f64 {
            (swiglu(gate.view(), up.view()).unwrap() * &d_output).sum()
        };
        let noise = noise(7, gate.len(), 13.0);
        assert_gradient("gate", &gate, &gradients.d_gate, noise, |gate| loss(gate, &up));
        assert_gradient("up", &up, &gradients.d_up, noise, |up| loss(&gate, up));
        let gate = with_gradient("gate", &gate, &gradients.d_gate);
        let up = with_gradient("up", &up, &gradients.d_up);
        assert_gradients(&Swiglu { d_output }, &[gate, up]);
    }

    /// Property of (N6b).
    #[test]
    fn gradients_of_embedding_are_derivatives(
        batch in 1usize..3, length in 1usize..5, vocab in 1usize..5, seed: u64,
    ) {
        let mut random = Random(seed);
        let tokens = random.tokens((batch, length), vocab as u64);
        let table = random.array((vocab, 2), 1.0);
        let d_output = random.array((batch, length, 2), 1.0);
        let d_table = embedding_backward(tokens.view(), d_output.view(), vocab).unwrap();
        assert_gradient("table", &table, &d_table, noise(1, d_output.len(), 1.1), |table| {
            (embedding(tokens.view(), sized(table).view()).unwrap() * &d_output).sum()
        });
        let table = with_gradient("table", &table, &d_table);
        assert_gradients(&Embedding { tokens, d_output }, &[table]);
    }

    /// Property of (N7b), with some targets ignored.
    #[test]
    fn gradients_of_cross_entropy_are_derivatives(
        tokens in 1usize..5, vocab in 2usize..6, seed: u64,
    ) {
        let mut random = Random(seed);
        let logits = random.array((tokens, vocab), 3.0);
        // Class 0 is the ignored one; the first target always counts.
        let mut targets = random.tokens((1, tokens), vocab as u64).row(0).to_owned();
        targets[0] = 1;
        let d_logits = cross_entropy_backward(logits.view(), targets.view(), 0).unwrap();
        // A term is at most 6 + ln 5 < 8; the mean adds up at most `tokens` of them.
        let noise = noise(vocab + 8, tokens, 8.0);
        assert_gradient("logits", &logits, &d_logits, noise, |logits| {
            cross_entropy(sized(logits).view(), targets.view(), 0).unwrap()
        });
        let logits = with_gradient("logits", &logits, &d_logits);
        assert_gradients(&CrossEntropy { targets, ignore_index: 0 }, &[logits]);
    }

    /// Property of (N7): a shift of all logits changes nothing. A shift by 64 rounds each logit to
    /// within 2^-47, and a loss has slope at most 2 in the largest such change.
    #[test]
    fn cross_entropy_ignores_a_shift(tokens in 1usize..5, vocab in 2usize..6, seed: u64) {
        let mut random = Random(seed);
        let logits = random.array((tokens, vocab), 3.0);
        let targets = random.tokens((1, tokens), vocab as u64).row(0).to_owned();
        let loss = cross_entropy(logits.view(), targets.view(), -100).unwrap();
        let shifted = cross_entropy((logits + 64.0).view(), targets.view(), -100).unwrap();
        let rounding = (vocab + tokens + 8) as f64 * 8.0 * f64::EPSILON;
        prop_assert!((loss - shifted).abs() <= 2.0 * 2.0_f64.powi(-47) + rounding);
    }

    /// Property of (N7b): what one logit gains, the others lose.
    #[test]
    fn gradients_of_logits_sum_to_zero(tokens in 1usize..5, vocab in 2usize..6, seed: u64) {
        let mut random = Random(seed);
        let logits = random.array((tokens, vocab), 3.0);
        let targets = random.tokens((1, tokens), vocab as u64).row(0).to_owned();
        let d_logits = cross_entropy_backward(logits.view(), targets.view(), -100).unwrap();
        for row in d_logits.rows() {
            prop_assert!(row.sum().abs() <= (2 * vocab) as f64 * f64::EPSILON);
        }
    }
}
