//! Kernels around the quantizer beside the cpu backend: initial scales, sums, lookups, and plain
//! products.

use plumbline::backend::Storage;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Interpreter};
use plumbline::error::Result;
use plumbline::ops::add::Add;
use plumbline::ops::embedding::{Embedding, EmbeddingShape};
use plumbline::ops::fake_quantize::{FakeQuantize, FakeQuantizeArgs};
use plumbline::ops::init_scale::InitScale;
use plumbline::ops::linear::{Linear, LinearArgs};
use plumbline::ops::random_weights::{RandomWeights, RandomWeightsArgs};
use plumbline::ops::squared_norm::SquaredNorm;
use plumbline::ops::sums::{Clip, StepSlots};
use plumbline::ops::widen::WeightView;
use plumbline_reference::spec::{Bits, InitScaleRule, QuantSpec};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A fresh one each time, so that no buffer is larger than its shape asks for.
fn cuda() -> Cuda<Interpreter> {
    Cuda::new(Interpreter::with_orders(3)).unwrap()
}

fn floats(seed: u64, len: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn whole(seed: u64, len: usize) -> Vec<f32> {
    floats(seed, len).iter().map(|value| (value * 9.0).trunc()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn spec(width: usize, group_size: usize, count: u32) -> QuantSpec {
    QuantSpec::new(Bits::new(count).unwrap(), Some(group_size), width).unwrap()
}

/// Scale, then offset.
fn grid<B: InitScale>(
    backend: &B,
    spec: QuantSpec,
    rule: InitScaleRule,
    weight: &[f32],
) -> Result<Vec<f32>> {
    let out = weight.len() / spec.in_features();
    let groups = out * spec.groups();
    let weight = backend.upload(weight)?;
    let (mut scale, mut offset) = (backend.zeros(groups)?, backend.zeros(groups)?);
    backend.init_scale(spec, rule, out, &weight, &mut scale, &mut offset)?;
    let mut grid = backend.download(&scale, groups)?;
    grid.extend(backend.download(&offset, groups)?);
    Ok(grid)
}

#[test]
fn initial_grids_have_the_bits_of_the_cpu() {
    use InitScaleRule::{Asymmetric, L4q, LitGpt, Lp, Lsq, LsqPlus, MinMax, Symmetric};
    let powers = [1.0, 2.0, 2.4, 3.0, 4.0, 0.5];
    let rules = [L4q, Lsq, LsqPlus, Symmetric, Asymmetric, MinMax, LitGpt];
    let rules = rules.into_iter().chain(powers.map(|p| Lp { p, steps: 9 }));
    let shapes = [(1, 1, 1), (3, 33, 33), (5, 96, 32), (150, 7, 7), (2, 130, 65), (33, 12, 3)];
    for rule in rules {
        for (out, width, group_size) in shapes {
            for count in [2, 4, 5] {
                let mut weight = floats(out as u64, out * width);
                // Beside ordinary groups, one of zeros of both signs and a constant one.
                weight[..group_size].iter_mut().enumerate().for_each(|(i, w)| {
                    *w = if i % 3 == 1 { 0.0 } else { -0.0 };
                });
                let last = weight.len() - group_size;
                weight[last..].fill(0.375);
                let spec = spec(width, group_size, count);
                let expected = grid(&Cpu, spec, rule, &weight).unwrap();
                let actual = grid(&cuda(), spec, rule, &weight).unwrap();
                assert_eq!(bits(&actual), bits(&expected), "{rule:?} {out} {width} {count}");
            }
        }
    }
}

#[test]
fn a_weight_that_is_not_finite_gets_no_grid() {
    let mut weight = floats(1, 300 * 10);
    (weight[2999], weight[1234]) = (f32::NAN, f32::NEG_INFINITY);
    let refused = |result: Result<Vec<f32>>| result.unwrap_err().to_string();
    let rule = InitScaleRule::default();
    let expected = refused(grid(&Cpu, spec(10, 5, 4), rule, &weight));
    assert_eq!(expected, "init_scale: weight is not finite: -inf at flat index 1234");
    assert_eq!(refused(grid(&cuda(), spec(10, 5, 4), rule, &weight)), expected);
}

fn random_weights<B: RandomWeights>(backend: &B, args: RandomWeightsArgs) -> Vec<f32> {
    let mut output = backend.zeros(args.len).unwrap();
    backend.random_weights(args, &mut output).unwrap();
    backend.download(&output, args.len).unwrap()
}

#[test]
fn random_weights_have_the_bits_of_the_cpu_and_of_their_formula() {
    let args = |len, deviation, seed| RandomWeightsArgs { first: 0, len, deviation, seed };
    for len in [0, 1, 255, 256, 20_000] {
        for (deviation, seed) in [(0.02, 7), (1.5, u64::MAX), (0.0, 0)] {
            let expected = random_weights(&Cpu, args(len, deviation, seed));
            let actual = random_weights(&cuda(), args(len, deviation, seed));
            assert_eq!(bits(&actual), bits(&expected), "{len} {deviation} {seed}");
        }
    }
    let later = RandomWeightsArgs { first: 19_000, ..args(1000, 0.02, 7) };
    let whole = random_weights(&Cpu, args(20_000, 0.02, 7));
    assert_eq!(random_weights(&Cpu, later), whole[19_000..]);
    assert_eq!(random_weights(&cuda(), later), whole[19_000..]);
    // From another program with the same formula.
    let weights = random_weights(&Cpu, args(70_001, 0.02, 7));
    let known = [(0, 0x3b5b_1abc), (1, 0x3cd5_0546), (2, 0xbcbc_74af), (70_000, 0xbbe1_e951)];
    for (index, bits) in known {
        assert_eq!(weights[index].to_bits(), bits, "{index}");
    }
}

#[test]
fn random_weights_have_the_deviation_that_was_asked_for_and_differ_by_seed() {
    let of = |seed| {
        random_weights(&Cpu, RandomWeightsArgs { first: 0, len: 1 << 20, deviation: 0.5, seed })
    };
    let (first, second) = (of(1), of(2));
    let mean_of =
        |products: &mut dyn Iterator<Item = f64>| products.sum::<f64>() / (1 << 20) as f64;
    // Standard errors are 0.0005 for the mean and the same for products of two numbers halved.
    assert!(mean_of(&mut first.iter().map(|w| f64::from(*w))).abs() < 0.003);
    let squares = mean_of(&mut first.iter().map(|w| f64::from(*w).powi(2)));
    assert!((squares - 0.25).abs() < 0.002, "{squares}");
    let together = first.iter().zip(&second).map(|(a, b)| f64::from(*a) * f64::from(*b));
    assert!(mean_of(&mut together.into_iter()).abs() < 0.0015);
    let neighbours = first.windows(2).map(|pair| f64::from(pair[0]) * f64::from(pair[1]));
    assert!(mean_of(&mut neighbours.into_iter()).abs() < 0.0015);
}

#[test]
fn clipping_has_the_bits_of_the_cpu() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for (losses, tensors) in [(0, 0), (1, 1), (2, 5), (3, 255), (1, 256), (300, 700)] {
        let slots = StepSlots { losses, tensors };
        let mut sums: Vec<f64> =
            (0..slots.count()).map(|_| random.random_range(0.0..3.0)).collect();
        for round in 0..5 {
            // The third is not finite in a loss, the fourth in a gradient.
            match round {
                2 if losses > 0 => sums[losses - 1] = f64::INFINITY,
                3 if tensors > 0 => (sums[losses / 2], sums[losses]) = (0.0, f64::NAN),
                _ => {}
            }
            for max_norm in [0.0, 1e-3, 1.0, 1e6] {
                let cpu = clipped(&Cpu, slots, max_norm, &sums);
                let cuda = clipped(&cuda(), slots, max_norm, &sums);
                let finite = sums[..losses + tensors].iter().all(|sum| sum.is_finite());
                assert_eq!(cpu[slots.factor()].is_nan(), !finite);
                let bits = |sums: &[f64]| -> Vec<Option<u64>> {
                    let bits = |sum: &f64| (!sum.is_nan()).then(|| sum.to_bits());
                    sums.iter().map(bits).collect()
                };
                assert_eq!(bits(&cuda), bits(&cpu), "{slots:?} {round} {max_norm}");
            }
        }
    }
}

fn clipped<B: Clip>(backend: &B, slots: StepSlots, max_norm: f64, sums: &[f64]) -> Vec<f64> {
    let mut sums = backend.upload_sums(sums).unwrap();
    backend.clip(slots, max_norm, &mut sums).unwrap();
    backend.read_sums(&mut sums).unwrap()
}

#[test]
fn residuals_are_added_with_the_bits_of_the_cpu() {
    for len in [0, 1, 3, 4, 6, 1023, 1028] {
        let (x, y) = (floats(1, len), floats(2, len));
        let cuda = cuda();
        let (device_x, mut device_y) = (cuda.upload(&x).unwrap(), cuda.upload(&y).unwrap());
        cuda.add(&device_x, &mut device_y, len).unwrap();
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| y + x).collect();
        assert_eq!(bits(&cuda.download(&device_y, len).unwrap()), bits(&expected), "{len}");
    }
}

#[test]
fn a_squared_norm_is_a_sum_in_doubles() {
    for len in [0, 1, 31, 255, 257, 8191, 8192, 8193, 20_000] {
        let x = floats(len as u64, len);
        let cuda = cuda();
        let device = cuda.upload(&x).unwrap();
        let expected: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let mut sums = cuda.upload_sums(&[3.0; 3]).unwrap();
        cuda.squared_norm(&device, len, &mut sums, 0).unwrap();
        cuda.squared_norm(&device, len, &mut sums, 2).unwrap();
        let [actual, untouched, again] = cuda.read_sums(&mut sums).unwrap()[..] else {
            panic!("three sums");
        };
        // Squares of floats are exact in f64; all terms are positive.
        let bound = 2.0 * len as f64 * f64::EPSILON / 2.0 * expected;
        assert!((actual - expected).abs() <= bound, "{len}: {actual} beside {expected}");
        assert_eq!((actual.to_bits(), untouched), (again.to_bits(), 3.0));
    }
    for value in [f32::NAN, f32::INFINITY] {
        let cuda = cuda();
        let x = cuda.upload(&[1.0, value, 2.0]).unwrap();
        let mut sums = cuda.upload_sums(&[0.0; 2]).unwrap();
        cuda.squared_norm(&x, 3, &mut sums, 0).unwrap();
        cuda.squared_norm(&x, 1, &mut sums, 1).unwrap();
        let sums = cuda.read_sums(&mut sums).unwrap();
        assert!(!sums[0].is_finite() && sums[1] == 1.0);
    }
}

#[test]
fn a_complaint_is_heard_with_the_sums() {
    let cuda = cuda();
    let [weight, scale, offset] =
        [[f32::NAN, 1.0], [1.0; 2], [0.0; 2]].map(|values| cuda.upload(&values).unwrap());
    let (spec, low_rank) = (spec(2, 1, 4), None);
    let args = FakeQuantizeArgs {
        spec,
        out_features: 1,
        weight: WeightView::F32(&weight),
        low_rank,
        scale: &scale,
        offset: &offset,
    };
    let mut output = cuda.zeros(2).unwrap();
    cuda.fake_quantize(&args, &mut output, None).unwrap();
    let mut sums = cuda.upload_sums(&[0.0; 3]).unwrap();
    cuda.squared_norm(&scale, 2, &mut sums, 0).unwrap();
    let slots = StepSlots { losses: 0, tensors: 1 };
    cuda.clip(slots, 0.0, &mut sums).unwrap();
    let refused = cuda.read_sums(&mut sums).unwrap_err().to_string();
    assert_eq!(refused, "fake_quantize: weight is not finite: NaN at flat index 0");
    // It was told once; the sums are those of before, and the factor was spoilt by it.
    let told = cuda.read_sums(&mut sums).unwrap();
    assert!(told[..2] == [2.0, 2f64.sqrt()] && told[2].is_nan(), "{told:?}");
    cuda.clip(slots, 0.0, &mut sums).unwrap();
    assert_eq!(cuda.read_sums(&mut sums).unwrap()[2], 1.0);
}

/// The rows, then the table with their gradients added.
fn looked_up<B: Embedding>(backend: &B, shape: EmbeddingShape, tokens: &[i32]) -> Result<Vec<f32>> {
    let EmbeddingShape { tokens: count, vocab_size, hidden } = shape;
    let mut table = backend.upload(&floats(1, vocab_size * hidden))?;
    let d_output = backend.upload(&floats(2, count * hidden))?;
    let tokens = backend.upload_tokens(tokens)?;
    let mut output = backend.zeros(count * hidden)?;
    backend.embedding(shape, &tokens, &table, &mut output)?;
    let mut rows = backend.download(&output, count * hidden)?;
    backend.embedding_backward(shape, &tokens, &d_output, &mut table)?;
    rows.extend(backend.download(&table, vocab_size * hidden)?);
    Ok(rows)
}

#[test]
fn rows_of_tokens_and_their_gradients_have_the_bits_of_the_cpu() {
    for (hidden, count) in [(1, 1), (5, 40), (300, 9), (257, 0)] {
        // One token far more often than the others, and one that never occurs.
        let mut tokens: Vec<i32> = (0..count).map(|t| [4, 0, 4, 2, 4, 1][t * t % 6]).collect();
        tokens.push(-1); // beyond `count`: nobody reads it
        let shape = EmbeddingShape { tokens: count, vocab_size: 5, hidden };
        let expected = looked_up(&Cpu, shape, &tokens).unwrap();
        assert_eq!(bits(&looked_up(&cuda(), shape, &tokens).unwrap()), bits(&expected));
    }
}

#[test]
fn tokens_without_a_row_are_refused_as_on_the_cpu() {
    let shape = EmbeddingShape { tokens: 3, vocab_size: 5, hidden: 2 };
    for tokens in [&[0, 5, -1][..], &[-1, 0, 0], &[1, 2]] {
        let refused = |result: Result<Vec<f32>>| result.unwrap_err().to_string();
        let expected = refused(looked_up(&Cpu, shape, tokens));
        assert_eq!(refused(looked_up(&cuda(), shape, tokens)), expected);
    }
}

/// `y`, `d_x` and `d_weight`, each with and without its old content.
fn products<B: Linear>(backend: &B, args: LinearArgs) -> Vec<Vec<f32>> {
    let LinearArgs { tokens, in_features, out_features, .. } = args;
    let [of_x, of_weight, of_y] =
        [tokens * in_features, out_features * in_features, tokens * out_features];
    let up = |seed, len| backend.upload(&whole(seed, len)).unwrap();
    let (x, weight, d_y) = (up(1, of_x), up(2, of_weight), up(3, of_y));
    let mut results = Vec::new();
    for args in [args, args.adding()] {
        let (mut y, mut d_x, mut d_weight) = (up(4, of_y), up(5, of_x), up(6, of_weight));
        backend.linear(args, &x, &weight, &mut y).unwrap();
        backend.linear_input_gradient(args, &d_y, &weight, &mut d_x).unwrap();
        backend.linear_weight_gradient(args, &d_y, &x, &mut d_weight).unwrap();
        results.push(backend.download(&y, of_y).unwrap());
        results.push(backend.download(&d_x, of_x).unwrap());
        results.push(backend.download(&d_weight, of_weight).unwrap());
    }
    results
}

#[test]
fn products_of_whole_numbers_are_those_of_the_cpu() {
    for (tokens, in_features, out_features) in [(1, 1, 1), (3, 5, 2), (7, 4, 33), (40, 17, 9)] {
        let args = LinearArgs::new(tokens, in_features, out_features);
        for args in [args, args.scaled(-0.5)] {
            // Whole numbers and halves of them: exact in any order, and equal whatever their zeros.
            assert_eq!(products(&cuda(), args), products(&Cpu, args));
        }
    }
}
