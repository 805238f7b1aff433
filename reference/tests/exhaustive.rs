//! Where there are finitely many inputs, all of them: every bf16 and every f16 weight on a set of
//! grids of every width, and, on request, every f32 weight on one.
//!
//! The judge shares nothing with the quantizer. It takes the correctly rounded f32 quotient as
//! given, looks for the nearest code among the two integers around it, and decides ties by parity.

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2, array};
use plumbline_reference::quantize::fake_quantize;
use plumbline_reference::spec::{Bits, GradScale, QuantSpec};
use plumbline_reference::straight_through::fake_quantize_backward;

/// Powers of two, for which many weights are ties; what training gives; the ends of the range.
const SCALES: [f32; 12] =
    [1.0, 0.5, 0.0625, 0.001_953_125, 0.003_712_9, 0.017_3, 0.1, 7.0, 3.3e4, 1e-8, 1e-9, 1.7e38];

/// The code of a quotient, in integers, and whether it lies on the closed interval.
fn judged(quotient: f32, bits: u32) -> (i32, bool) {
    let (qmin, qmax) = (-(1_i32 << (bits - 1)), (1_i32 << (bits - 1)) - 1);
    if quotient < qmin as f32 {
        return (qmin, false);
    }
    if quotient > qmax as f32 {
        return (qmax, false);
    }
    let below = quotient.floor();
    // Exact: a quotient on the grid is below 128 in magnitude.
    let above_floor = quotient - below;
    let below = below as i32;
    let up = above_floor > 0.5 || (above_floor == 0.5 && below % 2 != 0);
    (below + i32::from(up), true)
}

fn check(weights: &[f32], scale: f32, bits: u32, name: &str) -> usize {
    let raised = if scale < 1e-8 { 1e-8 } else { scale };
    let spec = QuantSpec::new(Bits::new(bits).unwrap(), None, weights.len()).unwrap();
    let row = ArrayView2::from_shape((1, weights.len()), weights).unwrap();
    let (scale, offset) = (array![[scale]], array![[0.0_f32]]);
    let quantized = fake_quantize(row, scale.view(), offset.view(), &spec).unwrap();
    let ones = Array2::ones(row.dim());
    let gradients = fake_quantize_backward(
        row,
        scale.view(),
        offset.view(),
        ones.view(),
        &spec,
        GradScale::None,
    )
    .unwrap();
    let mut ties = 0;
    for (i, &weight) in weights.iter().enumerate() {
        let quotient = weight / raised;
        let (code, passes) = judged(quotient, bits);
        let place = || format!("{name} weight {weight:e}, scale {raised:e}, {bits} bits");
        assert_eq!(i32::from(quantized.codes[[0, i]]), code, "{}", place());
        let output = (f64::from(code) * f64::from(raised)) as f32;
        assert_eq!(quantized.output[[0, i]], output, "{}", place());
        assert_eq!(gradients.d_weight[[0, i]] == 1.0, passes, "{}", place());
        // Against the quotient before its rounding: another code only where f32 made a tie.
        let exact = f64::from(weight) / f64::from(raised);
        let is_tie = passes && (quotient - quotient.floor()) == 0.5;
        ties += usize::from(is_tie);
        if passes && !is_tie {
            let (qmin, qmax) = (f64::from(spec.qmin()), f64::from(spec.qmax()));
            assert_eq!(exact.clamp(qmin, qmax).round_ties_even() as i32, code, "{}", place());
        }
    }
    ties
}

fn every(name: &str, weight: impl Fn(u16) -> f32) {
    let weights: Vec<f32> =
        (0..=u16::MAX).map(weight).filter(|weight| weight.is_finite()).collect();
    assert!(weights.len() > 63_000, "all but infinities and NaNs");
    let mut ties = 0;
    for bits in 2..=8 {
        for scale in SCALES {
            ties += check(&weights, scale, bits, name);
        }
    }
    assert!(ties > 1000, "{ties} ties were among them");
}

#[test]
fn every_bf16_weight_at_every_width() {
    every("bf16", |bits| bf16::from_bits(bits).to_f32());
}

#[test]
fn every_f16_weight_at_every_width() {
    every("f16", |bits| f16::from_bits(bits).to_f32());
}

/// `cargo test --release -p plumbline-reference --test exhaustive -- --ignored`
#[test]
#[ignore = "every f32, some minutes: run with -- --ignored"]
fn every_f32_weight_on_one_grid() {
    const CHUNK: u32 = 1 << 16;
    let checked = |first: u32| {
        let patterns = (0..CHUNK).map(|low| f32::from_bits(first * CHUNK + low));
        let weights: Vec<f32> = patterns.filter(|weight| weight.is_finite()).collect();
        if !weights.is_empty() {
            check(&weights, 0.017_3, 4, "f32");
        }
        weights.len() as u64
    };
    let total: u64 = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(2, usize::from) as u32;
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    (0..1 << 16).filter(|first| first % threads == worker).map(checked).sum::<u64>()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!(total, 2 * 255 * (1 << 23), "every finite f32");
}
