//! Every method's layer on both backends. The numbers are eighths and powers of two, so that all
//! sums are exact in any order: values and gradients are equal, whatever the sign of a zero.

use std::fmt::Debug;

use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::methods::{
    AffineTensors, BackwardCall, L4q, L4qOptions, L4qTensors, LinearMethod, Lora, LoraOptions,
    LrQat, LrQatOptions, LrQatTensors, Peqa, QaLora, QaLoraOptions, Qat, QatLora, QatOptions,
    QatTensors, Qlora, QloraOptions,
};
use plumbline::ops::Write;
use plumbline::ops::nf4::{Nf4, Nf4Weight};
use plumbline::ops::widen::FrozenWeight;
use plumbline_reference::spec::{
    BlockSize, Downcast, GradScale, GroupPool, InitScaleRule, InnerScale, LrQatDialect, LrQatMask,
    LrQatSpec, Pool, QaLoraDialect, QatQuantizer, QuantSpec, RangeSearch, RtnSpec,
};
use rand::Rng;

use crate::numbers::{eighths, floats, random};
use crate::{cuda, powers, spec, zero_points};

const TOKENS: usize = 5;
const RANK: usize = 3;
const LORA_SCALING: f32 = 0.5;

/// Rows and grid of the layers, by fours and not.
fn shapes() -> [(usize, QuantSpec); 2] {
    [(34, spec(24, 8, 4)), (7, spec(15, 5, 3))]
}

/// Named tensors of one layer's pass, and what it merges to.
type Trace = (Vec<(String, Vec<f32>)>, String);

/// What layers are made of.
struct Parts {
    out: usize,
    spec: QuantSpec,
    weight: Vec<f32>,
    scale: Vec<f32>,
    offset: Vec<f32>,
    lora_a: Vec<f32>,
    lora_b: Vec<f32>,
    affine: AffineTensors,
}

impl Parts {
    fn new((out, spec): (usize, QuantSpec)) -> Self {
        let (width, groups) = (spec.in_features(), out * spec.groups());
        let mut random = random(7);
        let mut whole = |len| (0..len).map(|_| random.random_range(-2..=2i32) as f32).collect();
        let (lora_a, lora_b) = (whole(RANK * width), whole(out * RANK));
        let scale = powers(1, groups);
        let affine = AffineTensors {
            spec,
            out_features: out,
            codes: zero_points(2, out * width, spec).iter().map(|code| *code as u8).collect(),
            scale: scale.clone(),
            zero_point: zero_points(3, groups, spec),
        };
        let weight = eighths(&mut random, out * width, 16 * spec.qmax());
        let offset = eighths(&mut random, groups, 8);
        Self { out, spec, weight, scale, offset, lora_a, lora_b, affine }
    }

    /// Forward, and backward twice: into a fresh gradient of the inputs and added to it.
    fn pass<B: Backend, M: LinearMethod<B>>(
        &self,
        backend: &B,
        mut layer: M,
        merge: impl FnOnce(M) -> String,
    ) -> Trace {
        let width = self.spec.in_features();
        let up = |seed, len| backend.upload(&eighths(&mut random(seed), len, 8)).unwrap();
        let (x, d_y) = (up(11, TOKENS * width), up(12, TOKENS * self.out));
        let mut y = backend.zeros(TOKENS * self.out).unwrap();
        let mut d_x = up(13, TOKENS * width);
        let mut scratch = layer.scratch_need().allocate(backend, TOKENS).unwrap();
        layer.forward(backend, TOKENS, &x, &mut y, &mut scratch).unwrap();
        for write in [Write::Replace, Write::Add] {
            let call = BackwardCall::new(TOKENS, &x, &d_y, &mut d_x, write);
            layer.backward(backend, call, &mut scratch).unwrap();
        }
        let mut tensors = vec![
            ("y".to_owned(), backend.download(&y, TOKENS * self.out).unwrap()),
            ("d_x".to_owned(), backend.download(&d_x, TOKENS * width).unwrap()),
        ];
        for tensor in layer.trainable() {
            tensors.push((tensor.name, backend.download(tensor.gradient, tensor.len).unwrap()));
        }
        (tensors, merge(layer))
    }

    fn l4q<B: Backend>(&self, backend: &B) -> Vec<Trace> {
        let (spec, init, grad_scale) = (self.spec, InitScaleRule::default(), GradScale::None);
        let (lora_scaling, scale_rule) = (LORA_SCALING, None);
        let options = L4qOptions { spec, rank: RANK, lora_scaling, init, grad_scale, scale_rule };
        let tensors = L4qTensors {
            lora_a: self.lora_a.clone(),
            lora_b: self.lora_b.clone(),
            scale: self.scale.clone(),
            offset: self.offset.clone(),
        };
        let weight = FrozenWeight::F32(self.weight.clone());
        let inside = L4q::from_tensors(backend, &weight, self.out, options, &tensors);
        let beside = QatLora::from_tensors(backend, &weight, self.out, options, &tensors);
        vec![
            self.pass(backend, inside.unwrap(), |layer| merged(layer.merge(backend))),
            self.pass(backend, beside.unwrap(), |_| String::new()),
        ]
    }

    fn qat<B: Backend>(&self, backend: &B) -> Vec<Trace> {
        let quantizers = [QatQuantizer::Lsq, QatQuantizer::LsqPlus];
        quantizers
            .map(|quantizer| {
                let (spec, init, grad_scale) =
                    (self.spec, InitScaleRule::default(), GradScale::None);
                let options = QatOptions { spec, quantizer, init, grad_scale, scale_rule: None };
                let has_offset = quantizer == QatQuantizer::LsqPlus;
                let tensors = QatTensors {
                    weight: self.weight.clone(),
                    scale: self.scale.clone(),
                    offset: has_offset.then(|| self.offset.clone()),
                };
                let layer = Qat::from_tensors(backend, self.out, options, &tensors).unwrap();
                self.pass(backend, layer, |layer| merged(layer.merge(backend)))
            })
            .into()
    }

    fn lr_qat<B: Backend>(&self, backend: &B) -> Vec<Trace> {
        use Downcast::{Bf16, F16, F32, Fixed8, Int};
        let frozen = [F32, Bf16, F16, Fixed8, Int].map(InnerScale::Frozen);
        let mut traces = Vec::new();
        for inner_scale in frozen.into_iter().chain([InnerScale::Live]) {
            for zero_point in [None, Some(self.affine.zero_point.clone())] {
                let (mask, dialect) = (LrQatMask::Rounded, LrQatDialect::Paper);
                let spec = LrQatSpec::new(self.spec, inner_scale, mask, dialect).unwrap();
                let (lora_scaling, init) = (LORA_SCALING, InitScaleRule::default());
                let options =
                    LrQatOptions { spec, rank: RANK, lora_scaling, init, scale_rule: None };
                let is_live = inner_scale == InnerScale::Live;
                let tensors = LrQatTensors {
                    initial_scale: (!is_live).then(|| powers(5, self.scale.len())),
                    zero_point,
                    lora_a: self.lora_a.clone(),
                    lora_b: self.lora_b.clone(),
                    scale: self.scale.clone(),
                };
                let layer = LrQat::from_tensors(backend, &self.weight, self.out, options, &tensors);
                let merge = |layer: LrQat<B>| merged(layer.merge(backend));
                traces.push(self.pass(backend, layer.unwrap(), merge));
            }
        }
        traces
    }

    fn affine<B: Backend>(&self, backend: &B) -> Vec<Trace> {
        let peqa = Peqa::new(backend, &self.affine, None).unwrap();
        let mut traces = vec![self.pass(backend, peqa, |layer| merged(layer.merge(backend)))];
        let (groups, lora_scaling) = (self.spec.groups(), LORA_SCALING);
        // A mean is exact where the group is a power of two.
        let pools = match self.spec.group_size().is_power_of_two() {
            true => &[Pool::Sum, Pool::Mean][..],
            false => &[Pool::Sum],
        };
        for pool in pools {
            let pool = GroupPool::new(*pool, QaLoraDialect::Paper).unwrap();
            let options = QaLoraOptions { rank: RANK, lora_scaling, pool };
            let lora_a = &self.lora_a[..RANK * groups];
            let layer =
                QaLora::from_tensors(backend, &self.affine, options, lora_a, &self.lora_b).unwrap();
            traces.push(self.pass(backend, layer, |layer| merged(layer.merge(backend))));
        }
        traces
    }

    fn lora<B: Backend>(&self, backend: &B) -> Vec<Trace> {
        let options = LoraOptions { rank: RANK, lora_scaling: LORA_SCALING };
        let shape = (self.out, self.spec.in_features());
        let (lora_a, lora_b) = (&self.lora_a, &self.lora_b);
        let weight = FrozenWeight::F32(self.weight.clone());
        let layer = Lora::from_tensors(backend, &weight, shape, options, lora_a, lora_b);
        vec![self.pass(backend, layer.unwrap(), |_| String::new())]
    }

    fn qlora<B: Backend>(&self, backend: &B, weight: &[f32], double_quantize: bool) -> Trace {
        let block_size = BlockSize::new(4).unwrap();
        let (rank, lora_scaling) = (RANK, LORA_SCALING);
        let (spec, rtn) = (self.spec, RtnSpec::default());
        let options = QloraOptions { rank, lora_scaling, block_size, double_quantize, spec, rtn };
        let (lora_a, lora_b) = (&self.lora_a, &self.lora_b);
        let layer = Qlora::from_tensors(backend, weight, self.out, options, lora_a, lora_b);
        self.pass(backend, layer.unwrap(), |layer| merged(layer.merge(backend)))
    }
}

/// The merged tensors as text.
fn merged<T: Debug>(result: plumbline::error::Result<T>) -> String {
    format!("{:?}", result.unwrap())
}

fn check(expected: &[Trace], actual: &[Trace]) {
    assert_eq!(actual.len(), expected.len());
    for (layer, ((actual, merged), (expected, expected_merged))) in
        actual.iter().zip(expected).enumerate()
    {
        for ((name, actual), (expected_name, expected)) in actual.iter().zip(expected) {
            assert_eq!(name, expected_name);
            assert!(expected.iter().any(|value| *value != 0.0), "{layer}: {name} is zero");
            assert_eq!(actual, expected, "{layer}: {name}");
        }
        assert_eq!(actual.len(), expected.len());
        assert_eq!(merged, expected_merged, "{layer}");
    }
}

#[test]
fn l4q_and_qat_lora_pass_as_on_the_cpu() {
    for shape in shapes() {
        let parts = Parts::new(shape);
        check(&parts.l4q(&Cpu), &parts.l4q(&cuda()));
    }
}

#[test]
fn qat_passes_as_on_the_cpu() {
    for shape in shapes() {
        let parts = Parts::new(shape);
        check(&parts.qat(&Cpu), &parts.qat(&cuda()));
    }
}

#[test]
fn lr_qat_passes_as_on_the_cpu() {
    for shape in shapes() {
        let parts = Parts::new(shape);
        check(&parts.lr_qat(&Cpu), &parts.lr_qat(&cuda()));
    }
}

#[test]
fn peqa_and_qa_lora_pass_as_on_the_cpu() {
    for shape in shapes() {
        let parts = Parts::new(shape);
        check(&parts.affine(&Cpu), &parts.affine(&cuda()));
    }
}

#[test]
fn lora_passes_as_on_the_cpu() {
    for shape in shapes() {
        let parts = Parts::new(shape);
        check(&parts.lora(&Cpu), &parts.lora(&cuda()));
    }
}

/// On weights of -1/2, 0 and 1/2 the levels are exact.
#[test]
fn qlora_passes_as_on_the_cpu() {
    for shape in shapes() {
        let parts = Parts::new(shape);
        let level = |w: &f32| if w.abs() < 2.0 { 0.0 } else { 0.5f32.copysign(*w) };
        let weight: Vec<f32> = parts.weight.iter().map(level).collect();
        check(&[parts.qlora(&Cpu, &weight, false)], &[parts.qlora(&cuda(), &weight, false)]);
    }
}

#[test]
fn qlora_is_lora_on_the_dequantized_weight() {
    for shape in shapes() {
        let mut parts = Parts::new(shape);
        let weight = parts.weight.clone();
        for double_quantize in [false, true] {
            let block_size = BlockSize::new(4).unwrap();
            let stored = Nf4Weight::quantize(&weight, block_size, double_quantize).unwrap();
            Cpu.nf4_dequantize(&stored, &mut parts.weight).unwrap();
            assert_ne!(parts.weight, weight);
            let (tensors, merged) = parts.qlora(&Cpu, &weight, double_quantize);
            check(&[(tensors, String::new())], &parts.lora(&Cpu));
            assert!(merged.contains("codes"), "{merged}");
        }
    }
}

#[test]
fn codes_of_a_weight_are_those_of_the_cpu() {
    for (out, spec) in shapes() {
        let weight = floats(&mut random(9), out * spec.in_features(), 1.0);
        for range in [RangeSearch::MinMax, RangeSearch::Lp { p: 2.0, steps: 11 }] {
            let rtn = RtnSpec { range, ..RtnSpec::default() };
            let expected = AffineTensors::round_to_nearest(&Cpu, &weight, out, spec, rtn);
            let actual = AffineTensors::round_to_nearest(&cuda(), &weight, out, spec, rtn);
            assert_eq!(actual.unwrap(), expected.unwrap(), "{rtn:?}");
        }
    }
}
