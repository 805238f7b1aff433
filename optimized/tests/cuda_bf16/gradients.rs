//! The weight gradient fused behind its quantizer, beside what it means.

use std::sync::LazyLock;

use plumbline::cpu::Cpu;
use plumbline::cuda::{Compute, Cuda, Interpreter, MODULES, Module};
use plumbline::ops::fake_quantize_backward::FakeQuantizeGradients;
use plumbline::ops::weight_gradient::{WeightGradient, WeightGradientArgs};
use plumbline::ops::widen::WeightType;
use plumbline_reference::spec::GradScale;
use rand::Rng;

use super::host::{Gradients, Host, SHAPES, Shape};
use super::numbers::{bits, eighths, floats, random};
use super::{cuda, gamma, rounded};

/// Several tiles each way, and a rank beyond what is staged at once.
const LARGE: &[(Shape, usize)] = &[
    ((130, 132, 4, Some(12), Some(20)), 70),
    ((129, 260, 3, Some(260), Some(64)), 33),
    ((257, 34, 4, Some(17), Some(5)), 31),
];

/// Every shape of the quantizer's tests, with tokens around the 32 of a step.
fn cases() -> impl Iterator<Item = (Shape, usize)> {
    let tokens = [1, 7, 31, 32, 33, 65, 100];
    let small = SHAPES.iter().zip(tokens.into_iter().cycle());
    small.map(|(shape, tokens)| (*shape, tokens)).chain(LARGE.iter().copied())
}

/// A layer's input and the gradient of its output.
struct Layer {
    host: Host,
    tokens: usize,
    x: Vec<f32>,
    d_y: Vec<f32>,
}

impl Layer {
    fn rough((shape, tokens): (Shape, usize)) -> Self {
        let host = Host::rough(shape, tokens as u64);
        let x = floats(&mut random(11), tokens * host.spec.in_features(), 1.0);
        let d_y = floats(&mut random(12), tokens * host.out, 1.0);
        Self { host, tokens, x, d_y }
    }

    /// Few products of -1, 0 and 1: every sum is exact in any order.
    fn dyadic((shape, tokens): (Shape, usize)) -> Self {
        let host = Host::dyadic(shape, tokens as u64);
        let sparse = |seed, len| {
            let mut random = random(seed);
            let value = move |_| match random.random_range(0..6) {
                0 => -1.0,
                1 => 1.0,
                _ => 0.0,
            };
            (0..len).map(value).collect()
        };
        let x = sparse(11, tokens * host.spec.in_features());
        let d_y = sparse(12, tokens * host.out);
        Self { host, tokens, x, d_y }
    }

    fn gradients<B: WeightGradient>(
        &self,
        backend: &B,
        grad_scale: GradScale,
        start: &Gradients,
    ) -> Result<Gradients, String> {
        let up = |values: &[f32]| backend.upload(values).unwrap();
        let (x, d_y, mut d_weight) = (up(&self.x), up(&self.d_y), up(&start.d_weight));
        let (mut d_scale, mut d_offset) = (up(&start.d_scale), up(&start.d_offset));
        let (mut d_lora_a, mut d_lora_b) = (up(&start.d_lora_a), up(&start.d_lora_b));
        self.host
            .with(backend, |args| {
                let from = WeightGradientArgs { tokens: self.tokens, d_y: &d_y, x: &x, grad_scale };
                let d_low_rank = self.host.rank.map(|_| (&mut d_lora_a, &mut d_lora_b));
                let gradients = FakeQuantizeGradients {
                    d_scale: Some(&mut d_scale),
                    d_offset: Some(&mut d_offset),
                    d_low_rank,
                };
                backend.weight_gradient(args, &from, &mut d_weight, gradients)?;
                Ok(Gradients {
                    d_weight: Vec::new(), // nothing to rely on
                    d_scale: backend.download(&d_scale, start.d_scale.len())?,
                    d_offset: backend.download(&d_offset, start.d_offset.len())?,
                    d_lora_a: backend.download(&d_lora_a, start.d_lora_a.len())?,
                    d_lora_b: backend.download(&d_lora_b, start.d_lora_b.len())?,
                })
            })
            .map_err(|error: plumbline::error::Error| error.to_string())
    }

    fn start(&self) -> Gradients {
        self.host.start(|k, len| floats(&mut random(k), len, 1.0))
    }

    /// `d_y^T @ x` of the rounded operands in f64, and how far sums in f32 may be from it.
    fn d_weight(&self) -> (Vec<f64>, Vec<f64>) {
        let (out, width) = (self.host.out, self.host.spec.in_features());
        let (x, d_y) = (rounded(&self.x), rounded(&self.d_y));
        (0..out * width)
            .map(|e| {
                let terms = (0..self.tokens).map(|t| {
                    f64::from(d_y[t * out + e / width]) * f64::from(x[t * width + e % width])
                });
                let (sum, size) =
                    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                (sum, gamma(self.tokens) * size)
            })
            .unzip()
    }
}

/// Fused where the backend multiplies bf16 and the rank is short.
fn is_fused(backend: &Cuda<Interpreter>) -> bool {
    backend.launcher().launched().iter().any(|(module, _)| *module == "weight_gradient")
}

/// The kernels differ in how they load the weight, and in nothing else.
#[test]
fn a_weight_in_16_bits_gives_the_bits_of_the_floats_that_it_stands_for() {
    for case in cases() {
        for stored in [WeightType::Bf16, WeightType::F16] {
            let Layer { host, tokens, x, d_y } = Layer::rough(case);
            let narrow = Layer { host: host.stored_as(stored), tokens, x, d_y };
            let host = Host { stored: WeightType::F32, ..narrow.host.clone() };
            let (x, d_y) = (narrow.x.clone(), narrow.d_y.clone());
            let wide = Layer { host, tokens, x, d_y };
            let start = narrow.start();
            let of = |layer: &Layer| layer.gradients(&cuda(), GradScale::None, &start).unwrap();
            assert_eq!(of(&narrow), of(&wide), "{case:?} {stored:?}");
        }
    }
}

#[test]
fn exact_sums_have_the_bits_of_the_two_steps() {
    let mut fused = 0;
    for case in cases() {
        let layer = Layer::dyadic(case);
        let start = layer.host.start(|k, len| eighths(&mut random(k), len, 16));
        for grad_scale in [GradScale::None, GradScale::Lsq] {
            let mut expected = layer.gradients(&Cpu, grad_scale, &start).unwrap();
            expected.d_weight.clear();
            let cuda = cuda();
            let actual = layer.gradients(&cuda, grad_scale, &start).unwrap();
            for (actual, expected) in actual.all().into_iter().zip(expected.all()) {
                assert_eq!(bits(actual), bits(expected), "{case:?}");
            }
            assert_eq!(is_fused(&cuda), layer.host.rank.unwrap_or(0) <= 64, "{case:?}");
            fused += usize::from(is_fused(&cuda));
        }
    }
    assert!(fused > 20);
}

#[test]
fn without_rounding_there_are_two_steps() {
    let layer = Layer::rough(((5, 12, 4, Some(4), Some(3)), 9));
    let cuda = Cuda::new(Interpreter::new()).unwrap();
    layer.gradients(&cuda, GradScale::None, &layer.start()).unwrap();
    assert!(!is_fused(&cuda));
}

#[test]
fn gradients_lie_within_the_rounding_of_their_sums() {
    for case in cases() {
        let layer = Layer::rough(case);
        let start = layer.start();
        let actual = layer.gradients(&cuda(), GradScale::None, &start).unwrap();
        assert_eq!(actual, layer.gradients(&cuda(), GradScale::None, &start).unwrap(), "{case:?}");
        check(&layer, &start, &actual);
    }
}

/// `start + factor * sum of d * c`, each d off by its error, and the bound of it all.
struct Sum {
    exact: f64,
    size: f64,
    inherited: f64,
    terms: usize,
}

impl Sum {
    fn of(start: f32, factor: f32, terms: impl Iterator<Item = (f64, f64, f64)>) -> Self {
        let mut sum = Self {
            exact: f64::from(start),
            size: f64::from(start).abs(),
            inherited: 0.0,
            terms: 0,
        };
        for (d, error, c) in terms {
            let factor = f64::from(factor);
            sum.exact += factor * d * c;
            sum.size += (factor * c).abs() * (d.abs() + error);
            sum.inherited += (factor * c).abs() * error;
            sum.terms += 1;
        }
        sum
    }

    /// A term rounds as a product and in at most `terms` sums; then the factor and the last sum.
    fn check(&self, actual: f32, name: &str) {
        let bound = self.inherited + gamma(self.terms + 3) * self.size;
        let error = (f64::from(actual) - self.exact).abs();
        assert!(error <= bound, "{name}: {actual} beside {}, bound {bound:e}", self.exact);
    }
}

fn check(layer: &Layer, start: &Gradients, actual: &Gradients) {
    let host = &layer.host;
    let (width, size, rank) =
        (host.spec.in_features(), host.spec.group_size(), host.rank.unwrap_or(0));
    let (qmin, qmax) = (host.spec.qmin() as f32, host.spec.qmax() as f32);
    let (d, error) = layer.d_weight();
    let v = host.arguments();
    let in_range: Vec<bool> = v.iter().map(|v| (qmin..=qmax).contains(v)).collect();
    for g in 0..host.groups() {
        let elements = g * size..(g + 1) * size;
        let of_scale = elements.clone().map(|e| {
            let code = v[e].clamp(qmin, qmax).round_ties_even();
            (d[e], error[e], f64::from(code - if in_range[e] { v[e] } else { 0.0 }))
        });
        let of_offset = elements.map(|e| (d[e], error[e], f64::from(u8::from(!in_range[e]))));
        if host.scale[g] < 1e-8 {
            assert_eq!(actual.d_scale[g], start.d_scale[g], "a floored scale does not move");
        } else {
            Sum::of(start.d_scale[g], 1.0, of_scale).check(actual.d_scale[g], "d_scale");
        }
        Sum::of(start.d_offset[g], 1.0, of_offset).check(actual.d_offset[g], "d_offset");
    }
    let masked = |e: usize, factor: f32| {
        let kept = f64::from(u8::from(in_range[e]));
        (kept * d[e], kept * error[e], f64::from(factor))
    };
    for (at, d_a) in actual.d_lora_a.iter().enumerate() {
        let (r, i) = (at / width, at % width);
        let terms = (0..host.out).map(|o| masked(o * width + i, host.lora_b[o * rank + r]));
        Sum::of(start.d_lora_a[at], host.lora_scaling, terms).check(*d_a, "d_lora_a");
    }
    for (at, d_b) in actual.d_lora_b.iter().enumerate() {
        let (o, r) = (at / rank, at % rank);
        let terms = (0..width).map(|i| masked(o * width + i, host.lora_a[r * width + i]));
        Sum::of(start.d_lora_b[at], host.lora_scaling, terms).check(*d_b, "d_lora_b");
    }
}

#[test]
fn what_is_not_finite_is_refused_in_the_words_of_the_two_steps() {
    let shape = (130, 40, 4, Some(8), Some(3));
    type Spoil = fn(&mut Host);
    let places: [(&str, Spoil); 4] = [
        ("weight", |host| host.weight[129 * 40 + 3] = f32::NAN),
        ("scale", |host| host.scale[7] = f32::INFINITY),
        ("lora_a", |host| host.lora_a[41] = f32::NEG_INFINITY),
        ("lora_b", |host| host.lora_b[200] = f32::NAN),
    ];
    for (name, spoil) in places {
        let mut layer = Layer::rough((shape, 5));
        spoil(&mut layer.host);
        let start = layer.start();
        let expected = layer.gradients(&Cpu, GradScale::None, &start).unwrap_err();
        assert!(expected.contains(name), "{expected}");
        assert_eq!(layer.gradients(&cuda(), GradScale::None, &start).unwrap_err(), expected);
    }
}

static FUSED: LazyLock<&'static Module> = LazyLock::new(|| {
    MODULES.iter().copied().find(|module| module.name == "weight_gradient").unwrap()
});

/// The kernel with one line of its text replaced.
fn replaced(line: usize, by: &str) -> Cuda<Interpreter> {
    let lines = FUSED.ptx.lines().enumerate();
    let text: Vec<&str> = lines.map(|(at, text)| if at == line { by } else { text }).collect();
    let module = Module { ptx: text.join("\n").leak(), ..**FUSED };
    let module = Box::leak(Box::new(module));
    Cuda::with_compute(Interpreter::new().replacing(module), Compute::Bf16).unwrap()
}

/// Lines of the wide and the narrow kernel that begin with an instruction.
fn lines_with(instruction: &str) -> Vec<usize> {
    let begins = |line: &str| line.trim_start().starts_with(instruction);
    let found = FUSED.ptx.lines().enumerate().filter(|(_, line)| begins(line));
    found.map(|(at, _)| at).collect()
}

/// Two tiles each way, three steps of tokens; two stages of ranks, or none: the barriers of a stage
/// stand in for others.
const WATCHED: [(Shape, usize); 4] = [
    ((140, 136, 4, Some(8), Some(20)), 70),
    ((140, 136, 4, Some(8), None), 70),
    ((140, 35, 4, Some(5), Some(20)), 70),
    ((140, 35, 4, Some(5), None), 70),
];

/// What the weight is stored as for the kernel that has this line.
fn stored_at(line: usize) -> WeightType {
    let heads = FUSED.ptx.lines().take(line + 1).filter(|text| text.contains(".entry "));
    match heads.last().map(|head| (head.contains("_of_bf16"), head.contains("_of_f16"))) {
        Some((true, _)) => WeightType::Bf16,
        Some((_, true)) => WeightType::F16,
        _ => WeightType::F32,
    }
}

fn survives(line: usize, by: &str) -> bool {
    WATCHED.iter().all(|case| {
        let Layer { host, tokens, x, d_y } = Layer::rough(*case);
        let layer = Layer { host: host.stored_as(stored_at(line)), tokens, x, d_y };
        layer.gradients(&replaced(line, by), GradScale::None, &layer.start()).is_ok()
    })
}

#[test]
fn a_missing_barrier_is_noticed() {
    let barriers = lines_with("bar.sync");
    assert!(barriers.len() >= 10, "{barriers:?}");
    let missed: Vec<_> = barriers.into_iter().filter(|line| survives(*line, "")).collect();
    assert!(missed.is_empty(), "nobody misses the barriers of lines {missed:?}");
}

#[test]
fn a_copy_that_nobody_waits_for_is_noticed() {
    let waits = lines_with("cp.async.wait_group");
    assert!(waits.len() >= 2, "{waits:?}");
    for line in waits {
        assert!(!survives(line, ""), "line {line}");
        assert!(!survives(line, "cp.async.wait_group 2;"), "line {line}");
    }
}
