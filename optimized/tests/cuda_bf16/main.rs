//! Products of operands rounded to bf16, on the kernels' interpreter.

mod attention;
#[path = "../common/mod.rs"]
mod common;
mod gradients;
#[path = "../cuda_quantizer/host.rs"]
mod host;
#[path = "../common/numbers.rs"]
mod numbers;
mod training;

use half::bf16;
use host::{Host, SHAPES};
use numbers::{bits, floats, random};
use plumbline::backend::Storage;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Compute, Cuda, Interpreter};
use plumbline::error::Error;
use plumbline::ops::affine::{Affine, AffineGrid, PackedCodes, packed_bits};
use plumbline::ops::fake_quantize::FakeQuantize;
use plumbline::ops::linear::{Linear, LinearArgs};
use plumbline::ops::nf4::{Nf4, Nf4Weight};
use plumbline_reference::spec::{Bits, BlockSize, QuantSpec};

/// A fresh one each time, so that no buffer is larger than its shape asks for.
fn cuda() -> Cuda<Interpreter> {
    Cuda::with_compute(Interpreter::with_orders(3), Compute::Bf16).unwrap()
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect()
}

/// How far `roundings` roundings in a row may lead, relative to what is rounded.
fn gamma(roundings: usize) -> f64 {
    1.01 * roundings as f64 * f64::from(f32::EPSILON) / 2.0
}

/// Codes, the weight as the backend multiplies it, and the same from the codes alone.
fn quantized(host: &Host, cuda: &Cuda<Interpreter>) -> Result<(Vec<i8>, [Vec<f32>; 2]), String> {
    host.with(cuda, |args| {
        let mut codes = cuda.zero_codes(host.len())?;
        let [mut output, mut restored] = [cuda.operand(host.len())?, cuda.operand(host.len())?];
        cuda.fake_quantize(args, &mut output, Some(&mut codes))?;
        let scale: Vec<f32> = host.scale.iter().map(|scale| scale.max(1e-8)).collect();
        let scale = cuda.upload(&scale)?;
        cuda.dequantize(host.spec, host.out, &codes, &scale, args.offset, &mut restored)?;
        let [output, restored] = [&output, &restored].map(|b| cuda.download(b, host.len()));
        Ok((cuda.download_codes(&codes)?, [output?, restored?]))
    })
    .map_err(|error: plumbline::error::Error| error.to_string())
}

#[test]
fn codes_are_those_of_f32_and_the_weight_is_its_rounded_once() {
    let mut ties = 0;
    for (seed, shape) in SHAPES.iter().enumerate() {
        for host in [Host::rough(*shape, seed as u64), Host::dyadic(*shape, seed as u64)] {
            let (output, codes) = host.fake_quantize(&Cpu).unwrap();
            let (actual_codes, weights) = quantized(&host, &cuda()).unwrap();
            assert_eq!(actual_codes, codes, "{shape:?}");
            for weight in weights {
                assert_eq!(bits(&weight), bits(&rounded(&output)), "{shape:?}");
            }
            ties += output.iter().filter(|y| y.to_bits() & 0xFFFF == 0x8000).count();
        }
    }
    assert!(ties > 0, "no value lies half way between two bf16");
}

#[test]
fn a_weight_that_bf16_cannot_hold_is_refused() {
    let mut host = Host::dyadic((1, 4, 4, None, None), 1);
    // Between the largest bf16 and the largest f32.
    host.offset[0] = 3.4e38;
    assert!(host.fake_quantize(&Cpu).is_ok());
    let refused = quantized(&host, &cuda()).unwrap_err();
    assert_eq!(refused, "fake_quantize: output is not finite: inf at flat index 0");
}

#[test]
fn affine_weights_are_those_of_f32_rounded_once() {
    for (out, width, group_size) in [(3, 10, 5), (5, 96, 32), (2, 1028, 4)] {
        let spec = QuantSpec::new(Bits::new(4).unwrap(), Some(group_size), width).unwrap();
        let groups = out * spec.groups();
        let scale = floats(&mut random(1), groups, 0.3);
        let zero_point: Vec<f32> = (0..groups).map(|g| (g % 16) as f32).collect();
        let codes: Vec<u8> = (0..out * width).map(|e| (e * 7 % 16) as u8).collect();
        fn weights<B: Affine>(
            backend: &B,
            spec: QuantSpec,
            out: usize,
            (scale, zero_point, codes): (&[f32], &[f32], &[u8]),
        ) -> Vec<f32> {
            let (scale, zero_point) =
                (backend.upload(scale).unwrap(), backend.upload(zero_point).unwrap());
            let four = packed_bits(spec.bits());
            let codes = PackedCodes::pack(codes, spec.in_features(), four).unwrap();
            let codes = codes.upload(backend).unwrap();
            let grid =
                AffineGrid { spec, out_features: out, scale: &scale, zero_point: &zero_point };
            let len = out * spec.in_features();
            let mut output = backend.operand(len).unwrap();
            backend.affine_dequantize(&grid, &codes, &mut output).unwrap();
            backend.download(&output, len).unwrap()
        }
        let tensors = (&scale[..], &zero_point[..], &codes[..]);
        let expected = rounded(&weights(&Cpu, spec, out, tensors));
        assert_eq!(bits(&weights(&cuda(), spec, out, tensors)), bits(&expected));
    }
}

#[test]
fn nf4_weights_are_those_of_f32_rounded_once() {
    fn weights<B: Nf4>(backend: &B, weight: &Nf4Weight<Cpu>) -> Result<Vec<f32>, Error> {
        let mut output = backend.operand(weight.elements())?;
        backend.nf4_dequantize(&weight.upload(backend)?, &mut output)?;
        backend.download(&output, weight.elements())
    }
    for (len, block_size) in [(33, 3), (1300, 4), (512, 64)] {
        let block_size = BlockSize::new(block_size).unwrap();
        for double_quantize in [false, true] {
            let values = floats(&mut random(1), len, 0.3);
            let weight = Nf4Weight::quantize(&values, block_size, double_quantize).unwrap();
            let expected = rounded(&weights(&Cpu, &weight).unwrap());
            assert_eq!(bits(&weights(&cuda(), &weight).unwrap()), bits(&expected));
        }
        // Between the largest bf16 and the largest f32.
        let large = [vec![1.0; len - 1], vec![-3.4e38]].concat();
        let weight = Nf4Weight::quantize(&large, block_size, false).unwrap();
        assert!(weights(&Cpu, &weight).is_ok());
        let refused = weights(&cuda(), &weight).unwrap_err().to_string();
        let last = len - 1;
        let expected = format!("nf4_dequantize: output is not finite: -inf at flat index {last}");
        assert_eq!(refused, expected);
    }
}

#[test]
fn a_rounded_operand_is_no_f32_buffer() {
    let cuda = cuda();
    let mut operand = cuda.operand(8).unwrap();
    assert!(cuda.write(&[1.0; 8], &mut operand).is_err());
    let x = cuda.zeros(8).unwrap();
    assert!(cuda.copy(&x, 0, &mut operand, 0, 8).is_err());
    assert!(cuda.linear(LinearArgs::new(2, 4, 2), &x, &x, &mut operand).is_err());
}

/// `start + multiplier * sum of products`, beside its bound for sums in f32 in any order.
fn check_sum(
    actual: f32,
    start: f32,
    multiplier: f32,
    products: impl Iterator<Item = (f32, f32)>,
    name: &str,
) {
    let (mut exact, mut size, mut terms) = (f64::from(start), f64::from(start).abs(), 0);
    for (a, b) in products {
        let term = f64::from(multiplier) * f64::from(a) * f64::from(b);
        (exact, size, terms) = (exact + term, size + term.abs(), terms + 1);
    }
    // Products of two bf16 are exact in f32; beside the sum, the factor and the old content round.
    let bound = gamma(terms + 2) * size;
    let error = (f64::from(actual) - exact).abs();
    assert!(error <= bound, "{name}: {actual} beside {exact}, bound {bound:e}");
}

#[test]
fn products_are_those_of_the_rounded_operands() {
    for (tokens, width, out) in [(1, 1, 1), (3, 5, 2), (7, 4, 33), (40, 17, 9), (33, 64, 40)] {
        let [of_x, of_weight, of_y] = [tokens * width, out * width, tokens * out];
        let new = |seed, len| floats(&mut random(seed), len, 1.0);
        let (x, weight, d_y) = (new(1, of_x), new(2, of_weight), new(3, of_y));
        let (old_y, old_x, old_weight) = (new(4, of_y), new(5, of_x), new(6, of_weight));
        let cuda = cuda();
        let up = |values: &[f32]| cuda.upload(values).unwrap();
        let (device_x, device_weight, device_d_y) = (up(&x), up(&weight), up(&d_y));
        let (mut y, mut d_x, mut d_weight) = (up(&old_y), up(&old_x), up(&old_weight));
        let args = LinearArgs::new(tokens, width, out).scaled(-0.7).adding();
        cuda.linear(args, &device_x, &device_weight, &mut y).unwrap();
        cuda.linear_input_gradient(args, &device_d_y, &device_weight, &mut d_x).unwrap();
        cuda.linear_weight_gradient(args, &device_d_y, &device_x, &mut d_weight).unwrap();
        let (x, weight, d_y) = (rounded(&x), rounded(&weight), rounded(&d_y));
        for (e, y) in cuda.download(&y, of_y).unwrap().into_iter().enumerate() {
            let (t, o) = (e / out, e % out);
            let terms = (0..width).map(|i| (x[t * width + i], weight[o * width + i]));
            check_sum(y, old_y[e], -0.7, terms, "y");
        }
        for (e, d) in cuda.download(&d_x, of_x).unwrap().into_iter().enumerate() {
            let (t, i) = (e / width, e % width);
            let terms = (0..out).map(|o| (d_y[t * out + o], weight[o * width + i]));
            check_sum(d, old_x[e], -0.7, terms, "d_x");
        }
        for (e, d) in cuda.download(&d_weight, of_weight).unwrap().into_iter().enumerate() {
            let (o, i) = (e / width, e % width);
            let terms = (0..tokens).map(|t| (d_y[t * out + o], x[t * width + i]));
            check_sum(d, old_weight[e], -0.7, terms, "d_weight");
        }
    }
}

#[test]
fn a_rounded_weight_multiplies_like_the_same_in_f32() {
    let (tokens, width, out) = (5, 12, 7);
    let mut host = Host::rough((out, width, 4, Some(4), Some(2)), 3);
    host.scale.iter_mut().for_each(|scale| *scale = scale.abs().max(1e-3));
    let x = floats(&mut random(9), tokens * width, 1.0);
    let y = |rounds: bool| {
        let cuda = cuda();
        let room = |len| if rounds { cuda.operand(len) } else { cuda.zeros(len) };
        let mut weight = room(host.len()).unwrap();
        host.with(&cuda, |args| cuda.fake_quantize(args, &mut weight, None).unwrap());
        let (x, mut y) = (cuda.upload(&x).unwrap(), cuda.zeros(tokens * out).unwrap());
        cuda.linear(LinearArgs::new(tokens, width, out), &x, &weight, &mut y).unwrap();
        bits(&cuda.download(&y, tokens * out).unwrap())
    };
    assert_eq!(y(true), y(false));
}
