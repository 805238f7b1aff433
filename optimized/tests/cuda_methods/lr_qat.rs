//! LR-QAT's rounding and its gradients, over every stored type, grid, mask and dialect.

use plumbline::cpu::Cpu;
use plumbline::error::Error;
use plumbline::ops::fake_quantize::LowRank;
use plumbline::ops::lr_qat_quantize::{LrQatArgs, LrQatGradients, LrQatQuantize, StoredWeight};
use plumbline_reference::spec::{Downcast, InnerScale, LrQatDialect, LrQatMask, LrQatSpec};
use rand::Rng;

use crate::numbers::{Sum, bits, eighths, floats, random};
use crate::{SHAPES, cuda, powers, scales, spec, zero_points};

/// The arguments of a call, and what its gradients are added to.
#[derive(Debug, Clone)]
struct Host {
    spec: LrQatSpec,
    out: usize,
    rank: usize,
    lora_scaling: f32,
    weight: Vec<f32>,
    /// The first scale, which a frozen inner scale divides by; none takes the weight as it is.
    initial_scale: Option<Vec<f32>>,
    zero_point: Option<Vec<f32>>,
    lora_a: Vec<f32>,
    lora_b: Vec<f32>,
    scale: Vec<f32>,
    d_output: Vec<f32>,
    d_scale: Vec<f32>,
    d_lora_a: Vec<f32>,
    d_lora_b: Vec<f32>,
}

/// Gradients of argument, scale and factors.
type Gradients = [Vec<f32>; 4];

/// Ranks of the shapes, in turn: none, fewer and more than are staged at once.
const RANKS: [usize; 6] = [2, 1, 17, 16, 0, 5];

/// Every stored type with and without zero points, for a shape. The masks take turns.
fn specs(seed: usize) -> Vec<(LrQatSpec, bool)> {
    use Downcast::{Bf16, F16, F32, Fixed8, Int};
    let (_, width, count, group_size) = SHAPES[seed];
    let stored = [F32, Bf16, F16, Fixed8, Int].map(InnerScale::Frozen);
    let mut all = Vec::new();
    for inner_scale in stored.into_iter().chain([InnerScale::Live]) {
        for shifted in [false, true] {
            let masks = [LrQatMask::Rounded, LrQatMask::PreRound];
            let paper = (masks[(seed + usize::from(shifted)) % 2], LrQatDialect::Paper);
            for (mask, dialect) in [paper, (LrQatMask::Rounded, LrQatDialect::LrQatCode)] {
                let grid = spec(width, group_size, count);
                let Ok(spec) = LrQatSpec::new(grid, inner_scale, mask, dialect) else { continue };
                if count < 8 || !shifted {
                    all.push((spec, shifted));
                }
            }
        }
    }
    all
}

/// The shapes with every choice; the last two have nothing new for tiles.
fn all_cases() -> impl Iterator<Item = (u64, LrQatSpec, usize, bool)> {
    (0..9).flat_map(|seed| {
        let out = SHAPES[seed].0;
        specs(seed).into_iter().map(move |(spec, shifted)| (seed as u64, spec, out, shifted))
    })
}

impl Host {
    /// Arguments anywhere, some beyond the grid; some scales below the floor.
    fn rough(seed: u64, spec: LrQatSpec, out: usize, shifted: bool) -> Self {
        let (grid, rank) = (*spec.grid(), RANKS[seed as usize % RANKS.len()]);
        let (width, groups) = (grid.in_features(), out * grid.groups());
        let unit = 1.5 / f32::powi(2.0, grid.bits().count() as i32);
        let mut random = random(seed);
        let mut floats = |len, limit| floats(&mut random, len, limit);
        Self {
            spec,
            out,
            rank,
            lora_scaling: 0.5,
            weight: floats(out * width, 1.0),
            initial_scale: (spec.inner_scale() != InnerScale::Live)
                .then(|| floats(groups, 0.4).iter().map(|r| unit * (1.0 + r)).collect()),
            zero_point: shifted.then(|| zero_points(seed, groups, grid)),
            lora_a: floats(rank * width, 1.0),
            lora_b: floats(out * rank, 1.0),
            scale: scales(seed, groups, unit),
            d_output: floats(out * width, 1.0),
            d_scale: floats(groups, 1.0),
            d_lora_a: floats(rank * width, 1.0),
            d_lora_b: floats(out * rank, 1.0),
        }
    }

    /// Eighths and powers of two: many arguments are ties or lie on an end, and every sum of the
    /// backward pass is exact in any order.
    fn dyadic(seed: u64, spec: LrQatSpec, out: usize, shifted: bool) -> Self {
        let mut host = Self::rough(seed, spec, out, shifted);
        let reach = 16 * spec.grid().qmax().max(3);
        let groups = host.scale.len();
        let mut random = random(seed);
        host.weight = eighths(&mut random, host.weight.len(), reach);
        host.initial_scale = host.initial_scale.map(|_| powers(seed + 1, groups));
        host.scale = powers(seed, groups);
        let Self { lora_a, lora_b, d_scale, d_lora_a, d_lora_b, .. } = &mut host;
        for values in [lora_a, lora_b, d_scale, d_lora_a, d_lora_b] {
            values.fill_with(|| random.random_range(-2..=2i32) as f32);
        }
        host.d_output = eighths(&mut random, host.d_output.len(), 16);
        host
    }

    fn stored(&self) -> StoredWeight<Cpu> {
        let (InnerScale::Frozen(kind), Some(initial_scale)) =
            (self.spec.inner_scale(), &self.initial_scale)
        else {
            return StoredWeight::F32(self.weight.clone());
        };
        let zero_point = self.zero_point.as_deref();
        let grid = *self.spec.grid();
        StoredWeight::downcast(&self.weight, initial_scale, zero_point, grid, kind).unwrap()
    }

    fn with<B: LrQatQuantize, R>(
        &self,
        backend: &B,
        call: impl FnOnce(&LrQatArgs<'_, B>) -> R,
    ) -> R {
        let up = |values: &[f32]| backend.upload(values).unwrap();
        let weight = self.stored().upload(backend).unwrap();
        let zero_point = self.zero_point.as_deref().map(up);
        let (lora_a, lora_b, scale) = (up(&self.lora_a), up(&self.lora_b), up(&self.scale));
        let (rank, lora_scaling) = (self.rank, self.lora_scaling);
        call(&LrQatArgs {
            spec: self.spec,
            out_features: self.out,
            weight: &weight,
            zero_point: zero_point.as_ref(),
            low_rank: LowRank { lora_a: &lora_a, lora_b: &lora_b, rank, lora_scaling },
            scale: &scale,
        })
    }

    /// Output and codes; an error's text, whenever the backend tells it.
    fn quantize<B: LrQatQuantize>(&self, backend: &B) -> Result<(Vec<f32>, Vec<i8>), String> {
        let len = self.out * self.spec.grid().in_features();
        self.with(backend, |args| {
            let mut output = backend.zeros(len)?;
            let mut codes = backend.zero_codes(len)?;
            backend.lr_qat_quantize(args, &mut output, Some(&mut codes))?;
            let quantized = backend.download(&output, len)?;
            backend.clear(&mut output)?;
            backend.lr_qat_quantize(args, &mut output, None)?;
            assert_eq!(bits(&backend.download(&output, len)?), bits(&quantized));
            Ok((quantized, backend.download_codes(&codes)?))
        })
        .map_err(|error: Error| error.to_string())
    }

    fn backward<B: LrQatQuantize>(&self, backend: &B) -> Result<Gradients, String> {
        let starts = [&self.d_output, &self.d_scale, &self.d_lora_a, &self.d_lora_b];
        let mut buffers = starts.map(|values| backend.upload(values).unwrap());
        let done = self.with(backend, |args| {
            let [d_output, d_scale, d_lora_a, d_lora_b] = &mut buffers;
            let d_low_rank = Some((d_lora_a, d_lora_b));
            let gradients = LrQatGradients { d_scale: Some(d_scale), d_low_rank };
            backend.lr_qat_quantize_backward(args, d_output, gradients)
        });
        let down = |k: usize| backend.download(&buffers[k], starts[k].len());
        done.and_then(|()| Ok([down(0)?, down(1)?, down(2)?, down(3)?]))
            .map_err(|error| error.to_string())
    }

    /// `(inner, tested, code)` of every weight, by the formulas of the trait.
    fn rounded(&self) -> Vec<(f32, f32, f32)> {
        let grid = *self.spec.grid();
        let (width, size) = (grid.in_features(), grid.group_size());
        let phi = self.stored().phi(grid, self.zero_point.as_deref()).unwrap();
        let is_live = self.spec.inner_scale() == InnerScale::Live;
        let rounds_update = self.spec.dialect() == LrQatDialect::LrQatCode;
        phi.iter()
            .enumerate()
            .map(|(e, phi)| {
                let (o, i, g) = (e / width, e % width, e / size);
                let scale = self.scale[g];
                let inner = if is_live { phi / scale.max(1e-8) } else { *phi };
                let mut sum = 0.0f32;
                for r in 0..self.rank {
                    sum += self.lora_b[o * self.rank + r] * self.lora_a[r * width + i];
                }
                let delta = self.lora_scaling * sum;
                let argument = inner + delta;
                let rounded = match rounds_update {
                    true => inner + delta.round_ties_even(),
                    false => argument.round_ties_even(),
                };
                let tested = match self.spec.mask() {
                    LrQatMask::Rounded => rounded,
                    LrQatMask::PreRound => argument,
                };
                let (low, high) = self.range(g);
                (inner, tested, rounded.clamp(low, high))
            })
            .collect()
    }

    fn range(&self, group: usize) -> (f32, f32) {
        let grid = self.spec.grid();
        let low = self.zero_point.as_ref().map_or(grid.qmin() as f32, |z| -z[group]);
        (low, low + grid.unsigned_max() as f32)
    }
}

#[test]
fn outputs_and_codes_have_the_bits_of_the_cpu() {
    for (seed, spec, out, shifted) in all_cases() {
        for make in [Host::rough, Host::dyadic] {
            let host = make(seed, spec, out, shifted);
            let (expected, expected_codes) = host.quantize(&Cpu).unwrap();
            let (output, codes) = host.quantize(&cuda()).unwrap();
            assert_eq!(codes, expected_codes, "{spec:?} {shifted}");
            assert_eq!(bits(&output), bits(&expected), "{spec:?} {shifted}");
        }
    }
}

#[test]
fn the_inputs_reach_ties_both_ends_and_the_floor() {
    let spec = LrQatSpec::new(
        spec(160, 32, 4),
        InnerScale::Frozen(Downcast::F32),
        LrQatMask::PreRound,
        LrQatDialect::Paper,
    );
    let host = Host::dyadic(3, spec.unwrap(), 4, false);
    let of_ends = |holds: fn(f32) -> bool| {
        host.rounded().iter().filter(|(_, tested, _)| holds(*tested)).count()
    };
    assert!(of_ends(|v| v.abs() < 7.0 && v.fract().abs() == 0.5) > 10, "ties");
    assert!(of_ends(|v| v == -8.0 || v == 7.0) > 0, "ends");
    assert!(of_ends(|v| v < -8.0) > 10 && of_ends(|v| v > 7.0) > 10, "beyond");
    let (_, spec, ..) = all_cases().find(|(seed, ..)| *seed == 2).unwrap();
    assert!(Host::rough(2, spec, 33, false).scale.iter().any(|scale| *scale < 1e-8), "floor");
}

#[test]
fn gradients_whose_sums_are_exact_have_the_bits_of_the_cpu() {
    for (seed, spec, out, shifted) in all_cases() {
        let host = Host::dyadic(seed, spec, out, shifted);
        let expected = host.backward(&Cpu).unwrap();
        for (actual, expected) in host.backward(&cuda()).unwrap().iter().zip(&expected) {
            assert_eq!(bits(actual), bits(expected), "{spec:?} {shifted}");
        }
    }
}

#[test]
fn gradients_lie_within_the_rounding_of_their_sums() {
    for (seed, spec, out, shifted) in all_cases() {
        let host = Host::rough(seed, spec, out, shifted);
        let [d_argument, d_scale, ..] = host.backward(&cuda()).unwrap();
        let [expected, ..] = host.backward(&Cpu).unwrap();
        assert_eq!(bits(&d_argument), bits(&expected), "{spec:?} {shifted}");
        check_scales(&host, &d_scale);
    }
}

/// `d_scale` beside sums in f64 of the terms as f32 has them.
fn check_scales(host: &Host, actual: &[f32]) {
    let size = host.spec.grid().group_size();
    let is_live = host.spec.inner_scale() == InnerScale::Live;
    let rounded = host.rounded();
    for (g, actual) in actual.iter().enumerate() {
        if host.scale[g] < 1e-8 {
            assert_eq!(*actual, host.d_scale[g], "a floored scale does not move");
            continue;
        }
        let (low, high) = host.range(g);
        let terms = (g * size..(g + 1) * size).map(|e| {
            let (inner, tested, code) = rounded[e];
            let moves = is_live && tested >= low && tested <= high;
            f64::from(host.d_output[e] * (code - if moves { inner } else { 0.0 }))
        });
        Sum::of(host.d_scale[g], 1.0, terms).check(*actual, "d_scale");
    }
}

/// Both operations, on both backends, must refuse with the same words.
fn refused_alike(host: &Host, expected: &str) {
    let cuda = cuda();
    let forward = host.quantize(&Cpu).unwrap_err();
    assert!(forward.contains(expected), "{forward}");
    assert_eq!(host.quantize(&cuda).unwrap_err(), forward);
    assert_eq!(host.backward(&cuda), host.backward(&Cpu));
    assert!(case(3, InnerScale::Live, false).quantize(&cuda).is_ok(), "told once");
}

/// The first case of a shape with an inner scale.
fn case(shape: u64, inner_scale: InnerScale, shifted: bool) -> Host {
    let found = all_cases().find(|(seed, spec, _, is_shifted)| {
        (*seed, spec.inner_scale(), *is_shifted) == (shape, inner_scale, shifted)
    });
    let (seed, spec, out, shifted) = found.unwrap();
    Host::rough(seed, spec, out, shifted)
}

#[test]
fn what_is_not_finite_is_named_as_on_the_cpu() {
    type Field = fn(&mut Host) -> &mut Vec<f32>;
    let fields: [(&str, Field); 4] = [
        ("scale", |host| &mut host.scale),
        ("weight", |host| &mut host.weight),
        ("lora_a", |host| &mut host.lora_a),
        ("lora_b", |host| &mut host.lora_b),
    ];
    for shape in [1, 3] {
        for inner_scale in [InnerScale::Live, InnerScale::Frozen(Downcast::F32)] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for (name, field) in fields {
                    let mut host = case(shape, inner_scale, shape == 3);
                    host.initial_scale = None;
                    let values = field(&mut host);
                    let last = values.len() - 1;
                    (values[last], values[last / 2]) = (value, value);
                    refused_alike(&host, &format!("{name} is not finite: {value}"));
                }
            }
        }
    }
}

#[test]
fn what_overflows_is_refused_as_on_the_cpu() {
    let mut host = case(1, InnerScale::Live, false);
    (host.weight[3], host.scale[0]) = (3e38, 0.25);
    refused_alike(&host, "argument is not finite: inf at flat index 0");
    let mut host = case(3, InnerScale::Frozen(Downcast::Int), true);
    (host.lora_a[7], host.lora_b[0]) = (3e38, 3e38);
    refused_alike(&host, "argument is not finite: inf at flat index 0");
    let mut host = case(3, InnerScale::Frozen(Downcast::Bf16), false);
    host.scale[1] = 3e38;
    let output = host.quantize(&Cpu).unwrap_err();
    assert!(output.contains("lr_qat_quantize: output is not finite"), "{output}");
    assert_eq!(host.quantize(&cuda()).unwrap_err(), output);
}

#[test]
fn a_zero_point_that_is_no_code_is_refused() {
    for value in [0.5, -1.0, 16.0] {
        let mut host = case(3, InnerScale::Live, true);
        host.zero_point.as_mut().unwrap()[2] = value;
        let expected = host.quantize(&Cpu).unwrap_err();
        assert!(expected.contains(&format!("zero_point is {value} at flat index 2")), "{expected}");
        let expected = "zero_point is no code of its grid at flat index 2";
        assert_eq!(host.quantize(&cuda()).unwrap_err(), format!("lr_qat_quantize: {expected}"));
        let refused = host.backward(&cuda()).unwrap_err();
        assert_eq!(refused, format!("lr_qat_quantize_backward: {expected}"));
    }
    let mut host = case(4, InnerScale::Live, false);
    host.zero_point = Some(vec![0.0; host.scale.len()]);
    refused_alike(&host, "bits is 8");
}

#[test]
fn buffers_that_are_too_short_are_refused_as_on_the_cpu() {
    type Shorten = fn(&mut Host);
    let shortened: [Shorten; 5] = [
        |host| host.weight.truncate(host.weight.len() - 1),
        |host| host.lora_a.truncate(host.lora_a.len() - 1),
        |host| host.lora_b.truncate(host.lora_b.len() - 1),
        |host| host.scale.truncate(host.scale.len() - 1),
        |host| host.zero_point.as_mut().unwrap().truncate(2),
    ];
    for shorten in shortened {
        let mut host = case(3, InnerScale::Live, true);
        shorten(&mut host);
        refused_alike(&host, "expected");
    }
    let gradients: [Shorten; 4] = [
        |host| host.d_output.truncate(host.d_output.len() - 1),
        |host| host.d_scale.truncate(host.d_scale.len() - 1),
        |host| host.d_lora_a.truncate(host.d_lora_a.len() - 1),
        |host| host.d_lora_b.truncate(host.d_lora_b.len() - 1),
    ];
    for shorten in gradients {
        let mut host = case(3, InnerScale::Frozen(Downcast::F16), true);
        shorten(&mut host);
        let expected = host.backward(&Cpu).unwrap_err();
        assert_eq!(host.backward(&cuda()).unwrap_err(), expected);
    }
}
