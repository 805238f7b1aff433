//! Unsigned grids: choosing them, going to codes and back, and pooling by their groups.

use plumbline::cpu::Cpu;
use plumbline::error::Result;
use plumbline::ops::Write;
use plumbline::ops::affine::{Affine, AffineGrid, PackedCodes, packed_bits};
use plumbline::ops::group_pool::{GroupPool, GroupPoolArgs};
use plumbline::ops::rtn::Rtn;
use plumbline_reference::spec::{
    self, PackedBits, Pool, QaLoraDialect, QuantSpec, RangeSearch, RtnSpec, SymmetricScale,
};

use crate::numbers::{bits, eighths, floats, random};
use crate::{SHAPES, cuda, powers, scales, spec, zero_points};

/// A weight and its grid, and the width that its codes are kept in.
#[derive(Debug, Clone)]
struct Host {
    spec: QuantSpec,
    out: usize,
    weight: Vec<f32>,
    scale: Vec<f32>,
    zero_point: Vec<f32>,
    d_output: Vec<f32>,
    d_scale: Vec<f32>,
    packed: PackedBits,
}

/// What the three operations leave.
#[derive(Debug)]
struct Answer {
    codes: Vec<i8>,
    output: Vec<f32>,
    d_scale: Vec<f32>,
}

impl Host {
    fn new((out, width, count, group_size): (usize, usize, u32, usize), seed: u64) -> Self {
        let spec = spec(width, group_size, count);
        let (len, groups) = (out * width, out * spec.groups());
        let mut random = random(seed);
        Self {
            spec,
            out,
            weight: floats(&mut random, len, 1.0),
            scale: scales(seed, groups, 1.5 / 2f32.powi(count as i32)),
            zero_point: zero_points(seed, groups, spec),
            d_output: floats(&mut random, len, 1.0),
            d_scale: floats(&mut random, groups, 1.0),
            packed: packed_bits(spec.bits()),
        }
    }

    /// Quotients in quarters and halves, many of them ties.
    fn with_ties(mut self, seed: u64) -> Self {
        let reach = 8 * (self.spec.unsigned_max() + 2);
        self.weight = eighths(&mut random(seed), self.weight.len(), reach);
        self.scale = powers(seed, self.scale.len());
        self
    }

    fn run<B: Affine>(&self, backend: &B) -> Result<Answer> {
        let Self { spec, out: out_features, .. } = *self;
        let (scale, zero_point) = (backend.upload(&self.scale)?, backend.upload(&self.zero_point)?);
        let grid = AffineGrid { spec, out_features, scale: &scale, zero_point: &zero_point };
        let len = out_features * spec.in_features();
        let mut codes = backend.zero_codes(len)?;
        let mut output = backend.zeros(len)?;
        backend.affine_quantize(&grid, &backend.upload(&self.weight)?, &mut codes)?;
        let codes_of = backend.download_codes(&codes)?;
        let bytes: Vec<u8> = codes_of.iter().map(|code| *code as u8).collect();
        let codes = PackedCodes::pack(&bytes, spec.in_features(), self.packed)?.upload(backend)?;
        backend.affine_dequantize(&grid, &codes, &mut output)?;
        let output = backend.download(&output, len)?;
        let mut d_scale = backend.upload(&self.d_scale)?;
        let d_output = backend.upload(&self.d_output)?;
        backend.affine_dequantize_backward(&grid, &codes, &d_output, &mut d_scale)?;
        let d_scale = backend.download(&d_scale, self.d_scale.len())?;
        Ok(Answer { codes: codes_of, output, d_scale })
    }

    fn refused<B: Affine>(&self, backend: &B) -> String {
        self.run(backend).unwrap_err().to_string()
    }
}

#[test]
fn codes_weights_and_gradients_have_the_bits_of_the_cpu() {
    for (seed, shape) in SHAPES.iter().enumerate() {
        let seed = seed as u64;
        for host in [Host::new(*shape, seed), Host::new(*shape, seed).with_ties(seed)] {
            let (expected, actual) = (host.run(&Cpu).unwrap(), host.run(&cuda()).unwrap());
            assert_eq!(actual.codes, expected.codes, "{shape:?}");
            assert_eq!(bits(&actual.output), bits(&expected.output), "{shape:?}");
            assert_eq!(bits(&actual.d_scale), bits(&expected.d_scale), "{shape:?}");
        }
    }
}

#[test]
fn packed_codes_are_the_same_weights_as_bytes() {
    for (seed, shape) in SHAPES.iter().enumerate() {
        let packed = Host::new(*shape, seed as u64);
        let bytes = Host { packed: PackedBits::new(8).unwrap(), ..packed.clone() };
        let (expected, actual) = (bytes.run(&Cpu).unwrap(), packed.run(&Cpu).unwrap());
        assert_eq!(bits(&actual.output), bits(&expected.output), "{shape:?}");
        assert_eq!(bits(&actual.d_scale), bits(&expected.d_scale), "{shape:?}");
        let on_device = bytes.run(&cuda()).unwrap();
        assert_eq!(bits(&on_device.output), bits(&expected.output), "{shape:?}");
        assert_eq!(bits(&on_device.d_scale), bits(&expected.d_scale), "{shape:?}");
    }
}

#[test]
fn codes_of_another_shape_are_refused_as_on_the_cpu() {
    fn refused<B: Affine>(backend: &B, rows: usize, width: usize) -> String {
        let ones = backend.upload(&[1.0; 4]).unwrap();
        let (spec, out_features) = (spec(8, 4, 4), 2);
        let grid = AffineGrid { spec, out_features, scale: &ones, zero_point: &ones };
        let four = PackedBits::new(4).unwrap();
        let codes = PackedCodes::pack(&vec![1; rows * width], width, four).unwrap();
        let codes = codes.upload(backend).unwrap();
        let mut output = backend.zeros(16).unwrap();
        backend.affine_dequantize(&grid, &codes, &mut output).unwrap_err().to_string()
    }
    for (rows, width) in [(1, 8), (4, 4), (2, 16)] {
        let expected = refused(&Cpu, rows, width);
        assert_eq!(
            expected,
            format!("affine_dequantize: codes are [{rows}, {width}], expected [2, 8]")
        );
        assert_eq!(refused(&cuda(), rows, width), expected);
    }
}

#[test]
fn the_weights_reach_ties_both_ends_and_the_floor() {
    let host = Host::new(SHAPES[3], 3).with_ties(3);
    let size = host.spec.group_size();
    let quotient = |e: usize| host.weight[e] / host.scale[e / size];
    let ties = (0..host.weight.len()).filter(|e| quotient(*e).fract().abs() == 0.5);
    assert!(ties.count() > 10);
    let codes = host.run(&Cpu).unwrap().codes;
    assert!(codes.iter().filter(|code| **code == 0).count() > 10);
    assert!(codes.iter().filter(|code| **code == 15).count() > 10);
    assert!(Host::new(SHAPES[2], 2).scale.iter().any(|scale| *scale < 1e-8));
    let wide = Host::new(SHAPES[4], 4).run(&Cpu).unwrap().codes;
    assert!(wide.iter().any(|code| *code < 0), "bytes above 127");
}

#[test]
fn what_is_not_finite_is_named_as_on_the_cpu() {
    for shape in [SHAPES[1], SHAPES[3]] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut host = Host::new(shape, 1);
            let last = host.scale.len() - 1;
            (host.scale[last], host.scale[last / 2]) = (value, value);
            let expected = host.refused(&Cpu);
            let index = last / 2;
            assert_eq!(
                expected,
                format!("affine_quantize: scale is not finite: {value} at flat index {index}")
            );
            assert_eq!(host.refused(&cuda()), expected);
            let last = host.weight.len() - 1;
            (host.weight[last], host.weight[last / 3]) = (value, value);
            let expected = host.refused(&Cpu);
            assert!(expected.contains("affine_quantize: weight is not finite"), "{expected}");
            assert_eq!(host.refused(&cuda()), expected);
        }
    }
}

/// `affine_dequantize` alone.
fn dequantized<B: Affine>(
    backend: &B,
    scale: &[f32; 2],
    zero_point: &[f32; 2],
) -> Result<Vec<f32>> {
    let [scale, zero_point] = [scale, zero_point].map(|values| backend.upload(values).unwrap());
    let (spec, out_features) = (spec(8, 4, 4), 1);
    let grid = AffineGrid { spec, out_features, scale: &scale, zero_point: &zero_point };
    let four = packed_bits(spec.bits());
    let codes = PackedCodes::pack(&[0, 1, 7, 15, 3, 2, 9, 15], 8, four)?.upload(backend)?;
    let mut output = backend.zeros(8)?;
    backend.affine_dequantize(&grid, &codes, &mut output)?;
    backend.download(&output, 8)
}

#[test]
fn a_bad_grid_reaches_the_output_and_is_named() {
    let sound = [1.0, 2.0];
    for (scale, zero_point, expected) in [
        ([1.0, f32::NAN], sound, "scale is not finite: NaN at flat index 1"),
        ([f32::INFINITY, 1.0], sound, "scale is not finite: inf at flat index 0"),
        (sound, [1.0, f32::NEG_INFINITY], "zero_point is not finite: -inf at flat index 1"),
        ([1.0, 3e38], [0.0, 0.0], "output is not finite: inf at flat index 4"),
    ] {
        let refused = dequantized(&Cpu, &scale, &zero_point).unwrap_err().to_string();
        assert_eq!(refused, format!("affine_dequantize: {expected}"));
        let cuda = cuda();
        assert_eq!(dequantized(&cuda, &scale, &zero_point).unwrap_err().to_string(), refused);
        assert!(dequantized(&cuda, &sound, &sound).is_ok(), "a complaint is told once");
    }
    let below = [-3.0, f32::NEG_INFINITY];
    let expected = dequantized(&Cpu, &below, &sound).unwrap();
    assert_eq!(bits(&dequantized(&cuda(), &below, &sound).unwrap()), bits(&expected));
}

#[test]
fn buffers_that_are_too_short_are_refused_as_on_the_cpu() {
    type Shorten = fn(&mut Host);
    let shortened: [Shorten; 5] = [
        |host| host.weight.truncate(host.weight.len() - 1),
        |host| host.scale.truncate(host.scale.len() - 1),
        |host| host.zero_point.truncate(host.zero_point.len() - 1),
        |host| host.d_output.truncate(host.d_output.len() - 1),
        |host| host.d_scale.truncate(host.d_scale.len() - 1),
    ];
    for shorten in shortened {
        let mut host = Host::new(SHAPES[1], 1);
        shorten(&mut host);
        let expected = host.refused(&Cpu);
        assert!(expected.contains("expected"), "{expected}");
        assert_eq!(host.refused(&cuda()), expected);
    }
}

/// Pooled inputs, then the gradient of the inputs replaced and added.
fn pooled<B: GroupPool>(backend: &B, args: GroupPoolArgs) -> [Vec<f32>; 3] {
    let GroupPoolArgs { tokens, spec, .. } = args;
    let (len, groups) = (tokens * spec.in_features(), tokens * spec.groups());
    let up = |seed, len| backend.upload(&floats(&mut random(seed), len, 1.0)).unwrap();
    let (x, d_pooled) = (up(1, len), up(2, groups));
    let (mut pooled, mut d_x, mut sum) = (up(3, groups), up(4, len), up(5, len));
    backend.group_pool(args, &x, &mut pooled).unwrap();
    backend.group_pool_backward(args, &d_pooled, &mut d_x, Write::Replace).unwrap();
    backend.group_pool_backward(args, &d_pooled, &mut sum, Write::Add).unwrap();
    let down = |buffer, len| backend.download(buffer, len).unwrap();
    [down(&pooled, groups), down(&d_x, len), down(&sum, len)]
}

#[test]
fn pooled_groups_have_the_bits_of_the_cpu() {
    let pools = [
        (Pool::Sum, QaLoraDialect::Paper),
        (Pool::Mean, QaLoraDialect::QaLoraCode),
        (Pool::Mean, QaLoraDialect::HfPeftQalora),
    ];
    for (pool, dialect) in pools {
        let pool = spec::GroupPool::new(pool, dialect).unwrap();
        for (tokens, width, count, group_size) in SHAPES {
            let spec = spec(*width, *group_size, *count);
            let args = GroupPoolArgs { tokens: *tokens, spec, pool };
            for (actual, expected) in pooled(&cuda(), args).iter().zip(pooled(&Cpu, args)) {
                assert_eq!(bits(actual), bits(&expected), "{args:?}");
            }
        }
    }
}

/// Scale, then zero point.
fn grid<B: Rtn>(backend: &B, spec: QuantSpec, rtn: RtnSpec, weight: &[f32]) -> Result<Vec<f32>> {
    let out = weight.len() / spec.in_features();
    let groups = out * spec.groups();
    let weight = backend.upload(weight)?;
    let (mut scale, mut zero_point) = (backend.zeros(groups)?, backend.zeros(groups)?);
    backend.rtn(spec, rtn, out, &weight, &mut scale, &mut zero_point)?;
    let mut grid = backend.download(&scale, groups)?;
    grid.extend(backend.download(&zero_point, groups)?);
    Ok(grid)
}

fn rtn_specs() -> Vec<RtnSpec> {
    let powers = [1.0, 2.0, 2.4, 3.0, 4.0, 0.5].map(|p| RangeSearch::Lp { p, steps: 7 });
    let ranges = [RangeSearch::MinMax].into_iter().chain(powers);
    ranges
        .flat_map(|range| {
            [
                (true, SymmetricScale::Paper),
                (true, SymmetricScale::Gptq),
                (false, SymmetricScale::Paper),
            ]
            .map(|(symmetric, convention)| RtnSpec { symmetric, range, convention })
        })
        .collect()
}

#[test]
fn nearest_grids_have_the_bits_of_the_cpu() {
    let shapes = [(1, 1, 1, 4), (3, 33, 33, 2), (5, 96, 32, 4), (150, 7, 7, 3), (33, 12, 3, 8)];
    for rtn in rtn_specs() {
        for (out, width, group_size, count) in shapes {
            let mut weight = floats(&mut random(out as u64), out * width, 1.0);
            // Beside ordinary groups, one of zeros of both signs, a constant and a tiny one.
            weight[..group_size].iter_mut().enumerate().for_each(|(i, w)| {
                *w = if i % 3 == 1 { 0.0 } else { -0.0 };
            });
            let last = weight.len() - group_size;
            weight[last..].fill(-0.375);
            weight[last / 2 / group_size * group_size..][..group_size].fill(1e-9);
            let spec = spec(width, group_size, count);
            let expected = grid(&Cpu, spec, rtn, &weight).unwrap();
            let actual = grid(&cuda(), spec, rtn, &weight).unwrap();
            assert_eq!(bits(&actual), bits(&expected), "{rtn:?} {out} {width} {count}");
        }
    }
}

#[test]
fn weights_without_a_nearest_grid_are_refused_as_on_the_cpu() {
    for rtn in rtn_specs() {
        let mut weight = floats(&mut random(1), 40 * 10, 1.0);
        let spec = spec(10, 5, 4);
        let refused = |weight: &[f32]| {
            let expected = grid(&Cpu, spec, rtn, weight).unwrap_err().to_string();
            let cuda = cuda();
            let actual = grid(&cuda, spec, rtn, weight).unwrap_err().to_string();
            assert_eq!(actual, expected);
            assert!(grid(&cuda, spec, rtn, &[0.5; 10]).is_ok());
            expected
        };
        let is_lp = rtn.range != RangeSearch::MinMax;
        if is_lp || !rtn.symmetric || rtn.convention == SymmetricScale::Gptq {
            (weight[21], weight[22], weight[201]) = (-3.4e38, 3.4e38, 3.4e38);
            let overflow = refused(&weight);
            assert!(overflow.contains("rtn: scale is not finite: inf at flat index"), "{overflow}");
        }
        (weight[399], weight[123]) = (f32::NAN, f32::NEG_INFINITY);
        assert_eq!(refused(&weight), "rtn: weight is not finite: -inf at flat index 123");
    }
}
