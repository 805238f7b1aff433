//! A layer with a target is the layer without one on the rounded scale, bit for bit: its output, its
//! gradients and what it merges to. The gradient of the scale passes between the ends of the rule.
//! What a layer without a target computes is judged against the reference by `conform`.

#[path = "common/numbers.rs"]
mod numbers;

use numbers::{bits, floats, random};
use plumbline::backend::Storage;
use plumbline::cpu::Cpu;
use plumbline::methods::{
    AffineTensors, BackwardCall, L4q, L4qOptions, L4qTensors, LinearMethod, LrQat, LrQatOptions,
    LrQatTensors, Peqa, Qat, QatOptions, QatTensors,
};
use plumbline::ops::Write;
use plumbline::ops::round_scale::RoundScale;
use plumbline::ops::widen::FrozenWeight;
use plumbline_reference::spec::ScaleRule;
use plumbline_reference::spec::{
    Bits, Downcast, GradScale, InitScaleRule, InnerScale, LrQatDialect, LrQatMask, LrQatSpec,
    QatQuantizer, QuantSpec,
};
use rand::Rng;

const TOKENS: usize = 5;
const OUT: usize = 7;
const WIDTH: usize = 24;
const RANK: usize = 3;

fn spec() -> QuantSpec {
    QuantSpec::new(Bits::new(4).unwrap(), Some(8), WIDTH).unwrap()
}

const GROUPS: usize = OUT * WIDTH / 8;

/// Of the size of the weights, some beyond either end of both rules.
fn scales() -> Vec<f32> {
    let mut random = random(1);
    let beyond = [1e-9, -0.25, 1e5, 0.0];
    let mut scale = |g: usize| match g % 5 {
        4 => beyond[g / 5 % beyond.len()],
        _ => random.random_range(0.05..0.15),
    };
    (0..GROUPS).map(&mut scale).collect()
}

fn on_grid(rule: ScaleRule, scale: &[f32]) -> Vec<f32> {
    let mut rounded = vec![0.0; scale.len()];
    Cpu.round_scale(rule, scale.len(), &scale.to_vec(), &mut rounded).unwrap();
    rounded
}

/// What a layer leaves: its output, its gradients by name after two passes, its codes and scales.
type Trace = (Vec<(String, Vec<u32>)>, (String, Vec<u32>));

fn pass<M: LinearMethod<Cpu>>(mut layer: M, merge: impl FnOnce(M) -> (String, Vec<f32>)) -> Trace {
    let (x, d_y) =
        (floats(&mut random(11), TOKENS * WIDTH, 1.0), floats(&mut random(12), TOKENS * OUT, 1.0));
    let (mut y, mut d_x) = (vec![0.0; TOKENS * OUT], vec![0.0; TOKENS * WIDTH]);
    let mut scratch = layer.scratch_need().allocate(&Cpu, TOKENS).unwrap();
    layer.forward(&Cpu, TOKENS, &x, &mut y, &mut scratch).unwrap();
    for _ in 0..2 {
        let call = BackwardCall::new(TOKENS, &x, &d_y, &mut d_x, Write::Add);
        layer.backward(&Cpu, call, &mut scratch).unwrap();
    }
    let mut tensors = vec![("y".to_owned(), bits(&y)), ("d_x".to_owned(), bits(&d_x))];
    for tensor in layer.trainable() {
        let gradient = Cpu.download(tensor.gradient, tensor.len).unwrap();
        tensors.push((format!("d_{}", tensor.name), bits(&gradient)));
    }
    let (codes, scale) = merge(layer);
    (tensors, (codes, bits(&scale)))
}

/// `targeted` on the scales as they are, `plain` on the rounded ones.
fn is_the_layer_on_the_rounded_scale(
    name: &str,
    make: impl Fn(Option<ScaleRule>, Vec<f32>) -> Trace,
) {
    for rule in ScaleRule::ALL {
        let scale = scales();
        let (targeted, merged) = make(Some(rule), scale.clone());
        let (plain, plainly_merged) = make(None, on_grid(rule, &scale));
        assert!(merged == plainly_merged, "{name}: merged under {rule:?}");
        let mut seen = 0;
        for (tensor, values) in &targeted {
            let (_, expected) = plain.iter().find(|(other, _)| other == tensor).unwrap();
            if tensor != "d_scale" {
                assert!(values == expected, "{name}: {tensor} under {rule:?}");
                continue;
            }
            for ((value, expected), scale) in values.iter().zip(expected).zip(&scale) {
                let passes = rule.reaches(f64::from(*scale));
                assert_eq!(*value, if passes { *expected } else { 0 }, "{name}: {scale:e}");
                assert!(!passes || *expected != 0, "{name}: {scale:e}: nothing to pass");
                seen += usize::from(passes) | usize::from(!passes && *expected != 0) << 8;
            }
        }
        assert!(seen & 0xff > 0 && seen >> 8 > 0, "{name}: both sides of an end: {seen:#x}");
        let missing = plain.len() - targeted.len();
        assert!(missing <= 1, "{name}: only the offset is not trained");
    }
}

fn weight() -> Vec<f32> {
    floats(&mut random(2), OUT * WIDTH, 1.0)
}

fn factors(limit: f32) -> (Vec<f32>, Vec<f32>) {
    (floats(&mut random(3), RANK * WIDTH, limit), floats(&mut random(4), OUT * RANK, limit))
}

#[test]
fn l4q() {
    let (lora_a, lora_b) = factors(0.3);
    is_the_layer_on_the_rounded_scale("L4Q", |scale_rule, scale| {
        let options = L4qOptions {
            spec: spec(),
            rank: RANK,
            lora_scaling: 0.5,
            init: InitScaleRule::L4q,
            grad_scale: GradScale::Lsq,
            scale_rule,
        };
        let (lora_a, lora_b, offset) = (lora_a.clone(), lora_b.clone(), vec![0.0; GROUPS]);
        let tensors = L4qTensors { lora_a, lora_b, scale, offset };
        let weight = FrozenWeight::F32(weight());
        let layer = L4q::from_tensors(&Cpu, &weight, OUT, options, &tensors).unwrap();
        pass(layer, |layer| {
            let merged = layer.merge(&Cpu).unwrap();
            (format!("{:?} {:?}", merged.codes, merged.offset), merged.scale)
        })
    });
}

#[test]
fn qat() {
    is_the_layer_on_the_rounded_scale("LSQ", |scale_rule, scale| {
        let options = QatOptions {
            spec: spec(),
            quantizer: QatQuantizer::Lsq,
            init: InitScaleRule::L4q,
            grad_scale: GradScale::None,
            scale_rule,
        };
        let tensors = QatTensors { weight: weight(), scale, offset: None };
        let layer = Qat::from_tensors(&Cpu, OUT, options, &tensors).unwrap();
        pass(layer, |layer| {
            let merged = layer.merge(&Cpu).unwrap();
            (format!("{:?}", merged.codes), merged.scale)
        })
    });
}

#[test]
fn lr_qat() {
    let (lora_a, lora_b) = factors(1.5);
    let frozen = [Downcast::F32, Downcast::Bf16, Downcast::Fixed8, Downcast::Int];
    for inner in frozen.map(InnerScale::Frozen).into_iter().chain([InnerScale::Live]) {
        is_the_layer_on_the_rounded_scale(&format!("LR-QAT {inner:?}"), |scale_rule, scale| {
            let (mask, dialect) = (LrQatMask::Rounded, LrQatDialect::Paper);
            let options = LrQatOptions {
                spec: LrQatSpec::new(spec(), inner, mask, dialect).unwrap(),
                rank: RANK,
                lora_scaling: 0.5,
                init: InitScaleRule::MinMax,
                scale_rule,
            };
            let tensors = LrQatTensors {
                initial_scale: (inner != InnerScale::Live).then(|| vec![0.125; GROUPS]),
                zero_point: None,
                lora_a: lora_a.clone(),
                lora_b: lora_b.clone(),
                scale,
            };
            let layer = LrQat::from_tensors(&Cpu, &weight(), OUT, options, &tensors).unwrap();
            pass(layer, |layer| {
                let merged = layer.merge(&Cpu).unwrap();
                (format!("{:?}", merged.codes), merged.scale)
            })
        });
    }
}

#[test]
fn peqa() {
    let mut random = random(6);
    let codes: Vec<u8> = (0..OUT * WIDTH).map(|_| random.random_range(0..16)).collect();
    let zero_point: Vec<f32> = (0..GROUPS).map(|_| random.random_range(0..16) as f32).collect();
    is_the_layer_on_the_rounded_scale("PEQA", |scale_rule, scale| {
        let (codes, zero_point) = (codes.clone(), zero_point.clone());
        let tensors = AffineTensors { spec: spec(), out_features: OUT, codes, scale, zero_point };
        let layer = Peqa::new(&Cpu, &tensors, scale_rule).unwrap();
        pass(layer, |layer| {
            let merged = layer.merge(&Cpu).unwrap();
            (format!("{:?} {:?}", merged.codes, merged.zero_point), merged.scale)
        })
    });
}

/// The weight is held in units of the scale that first multiplies it, so that a fresh layer of LR-QAT
/// is the quantizer on that scale.
#[test]
fn the_frozen_scale_of_lr_qat_is_the_first_scale_that_is_deployed() {
    let grid = QuantSpec::new(Bits::new(8).unwrap(), Some(8), WIDTH).unwrap();
    for rule in ScaleRule::ALL {
        let inner = InnerScale::Frozen(Downcast::F32);
        let (mask, dialect) = (LrQatMask::Rounded, LrQatDialect::Paper);
        let (spec, init) =
            (LrQatSpec::new(grid, inner, mask, dialect).unwrap(), InitScaleRule::MinMax);
        let options =
            LrQatOptions { spec, rank: RANK, lora_scaling: 1.0, init, scale_rule: Some(rule) };
        let fresh = LrQat::new(&Cpu, &weight(), OUT, options, &mut random(8)).unwrap();
        let begun = options.initial_scale(&Cpu, &weight(), OUT).unwrap();
        let merged = fresh.merge(&Cpu).unwrap();
        assert_eq!(merged.scale, on_grid(rule, &begun));
        assert_ne!(merged.scale, begun);
        for (at, (code, weight)) in merged.codes.iter().zip(weight()).enumerate() {
            let nearest = (weight / merged.scale[at / 8]).clamp(-128.0, 127.0).round_ties_even();
            assert_eq!(f32::from(*code), nearest, "{at} under {rule:?}");
        }
    }
}
