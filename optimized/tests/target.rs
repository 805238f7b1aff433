//! Training for a format: the scale in use is one that the format can hold, the trained model is the
//! merged one bit for bit, and what the optimizer moves is the scale behind it.

mod common;

use std::sync::Arc;

use common::settings::{base, l4q, lr_qat, peqa, qat};
use half::{bf16, f16};
use plumbline::checkpoint::ModelFolder;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Interpreter};
use plumbline::export::Format;
use plumbline::finetune::{MergedModel, Method, Start, first_difference, merge, method_model};
use plumbline::methods::{AffineTensors, IntoCodes, LinearMethod, MergedTensors};
use plumbline::model::{Llama, Recompute};
use plumbline::ops::round_scale::RoundScale;
use plumbline::recipe::{L4qSettings, LrQatSettings, PeqaSettings, QatSettings};
use plumbline::train::{
    Observer, OptimizerSettings, Schedule, StepRecord, TokenWindows, Trainer, TrainingSettings,
};
use plumbline_reference::spec::{Downcast, QatQuantizer, ScaleRule};

const TARGETS: [Format; 2] = [Format::GgufQ4_0, Format::Awq];

/// Whether a scale is a number of the rule, told by the types and not by the operation.
fn is_held(scale: f32, rule: ScaleRule) -> bool {
    let in_f16 = scale > 0.0 && f16::from_f32(scale).to_f32() == scale;
    match rule {
        ScaleRule::F16 => in_f16,
        ScaleRule::Bf16InF16 => {
            in_f16 && bf16::from_f32(scale).to_f32() == scale && scale >= 2_f32.powi(-17)
        }
    }
}

/// Scales of a merged layer, and whether it has no offset.
trait MergedScales {
    fn scales(&self) -> (&[f32], bool);
}

impl MergedScales for MergedTensors {
    fn scales(&self) -> (&[f32], bool) {
        (&self.scale, self.offset.iter().all(|offset| offset.to_bits() == 0))
    }
}

impl MergedScales for AffineTensors {
    fn scales(&self) -> (&[f32], bool) {
        (&self.scale, self.zero_point.iter().all(|zero| zero.fract() == 0.0))
    }
}

struct Nobody;

impl<L> Observer<Cpu, L> for Nobody {
    fn after_step(
        &mut self,
        _record: &StepRecord,
        _model: &mut Llama<Cpu, L>,
    ) -> plumbline::error::Result<()> {
        Ok(())
    }
}

fn train<L: LinearMethod<Cpu>>(folder: &ModelFolder, model: &mut Llama<Cpu, L>) -> Vec<i32> {
    let text = folder.tokenizer().unwrap().encode(&common::TEXT.repeat(12)).unwrap();
    let (context, recompute) = (24, Recompute::None);
    let settings = TrainingSettings {
        steps: 6,
        micro_batch: 2,
        accumulation: 2,
        seed: 5,
        recompute,
        eval_every: 0,
    };
    let optimizer = OptimizerSettings { learning_rate: 2e-2, ..OptimizerSettings::default() };
    let data = TokenWindows::new(text.clone(), context, 5).unwrap();
    let schedule = Schedule { warmup_steps: 2, ..Schedule::default() };
    let mut trainer = Trainer::new(model, data, context, settings, &optimizer, schedule).unwrap();
    trainer.run(model, &mut Nobody).unwrap();
    text
}

/// Trained scales by the name of their layer.
fn scales<L: LinearMethod<Cpu>>(model: &Llama<Cpu, L>) -> Vec<(String, Vec<f32>)> {
    let scale = |layer: &L| layer.trained_scale().unwrap().to_host(&Cpu).unwrap();
    model.linears().into_iter().map(|(name, layer)| (name, scale(layer))).collect()
}

fn merges<M: Method>(name: &str, method: &M)
where
    M::Layer<Cpu>: IntoCodes<Cpu>,
    <M::Layer<Cpu> as IntoCodes<Cpu>>::Tensors: MergedScales,
{
    let rule = method.target().unwrap().scale_rule().unwrap();
    let (_root, folder) = base();
    let mut model = method_model(Arc::new(Cpu), &folder, method, Start::Fresh(3)).unwrap();
    let begun = scales(&model);
    let text = train(&folder, &mut model);
    let behind = scales(&model);
    assert_ne!(begun, behind, "{name}: no scale moved");
    for tensor in model.trainable() {
        assert!(!tensor.name.ends_with("offset"), "{name}: {} is trained", tensor.name);
    }
    let between = behind.iter().flat_map(|(_, scale)| scale).any(|scale| !is_held(*scale, rule));
    assert!(between, "{name}: every scale was one already, a vacuous run");
    let probe = &text[..40];
    let mut workspace = model.evaluation_workspace(probe.len()).unwrap();
    let trained = model.logits(1, probe, &mut workspace).unwrap();
    let MergedModel { model: merged, linears } = merge(model).unwrap();
    assert_eq!(first_difference(&trained, &merged, probe).unwrap(), None, "{name}");
    assert_eq!(linears.len(), behind.len());
    for (layer, behind) in behind {
        let (scale, without_offset) = linears[&layer].scales();
        assert!(without_offset, "{name}: {layer} has an offset");
        for (scale, behind) in scale.iter().zip(behind) {
            assert!(is_held(*scale, rule), "{name}: {layer}: {scale:e}");
            let apart = (scale - behind).abs() / behind;
            let beyond = !rule.reaches(f64::from(behind));
            assert!(beyond || apart <= 2_f32.powi(-8), "{name}: {layer}: {scale:e} of {behind:e}");
        }
    }
}

#[test]
fn what_was_trained_for_a_format_is_merged_bit_for_bit_and_every_scale_is_held() {
    for format in TARGETS {
        let target = Some(format);
        merges(&format!("L4Q {format}"), &L4qSettings { target, ..l4q(4) });
        merges(&format!("LSQ {format}"), &QatSettings { target, ..qat(4, QatQuantizer::Lsq) });
        merges(&format!("PEQA {format}"), &PeqaSettings { target, ..peqa(3) });
        for (kind, inner) in
            [(Downcast::Fixed8, "frozen"), (Downcast::Bf16, "frozen"), (Downcast::F32, "live")]
        {
            let name = format!("LR-QAT {kind:?} {inner} {format}");
            merges(&name, &LrQatSettings { target, ..lr_qat(4, kind, inner) });
        }
    }
}

#[test]
fn a_scale_that_is_kept_and_a_warm_up_end_in_scales_that_are_held() {
    let target = Some(Format::Mlx);
    let rule = ScaleRule::Bf16InF16;
    let (_root, folder) = base();
    let kept = L4qSettings { target, train_scale: false, ..l4q(4) };
    let warmed = L4qSettings { target, lora_warmup_steps: 3, ..l4q(4) };
    for method in [kept, warmed] {
        let mut model = method_model(Arc::new(Cpu), &folder, &method, Start::Fresh(3)).unwrap();
        let text = train(&folder, &mut model);
        let mut workspace = model.evaluation_workspace(40).unwrap();
        let trained = model.logits(1, &text[..40], &mut workspace).unwrap();
        let merged = merge(model).unwrap();
        assert_eq!(first_difference(&trained, &merged.model, &text[..40]).unwrap(), None);
        for linear in merged.linears.values() {
            assert!(linear.scale.iter().all(|scale| is_held(*scale, rule)));
            assert!(linear.offset.iter().all(|offset| *offset == 0.0));
        }
    }
}

/// Bits of every trained tensor.
fn trained<M: Method>(folder: &ModelFolder, method: &M) -> Vec<(String, Vec<u32>)> {
    let mut model = method_model(Arc::new(Cpu), folder, method, Start::Fresh(3)).unwrap();
    train(folder, &mut model);
    let values = model.trained_values().unwrap().into_iter();
    values.map(|t| (t.name, t.values.into_iter().map(f32::to_bits).collect())).collect()
}

#[test]
fn a_target_that_any_f32_will_do_for_changes_nothing() {
    let (_root, folder) = base();
    let plain = trained(&folder, &l4q(4));
    for format in [Format::HuggingFace, Format::Plumbline] {
        assert!(trained(&folder, &L4qSettings { target: Some(format), ..l4q(4) }) == plain);
    }
    assert!(trained(&folder, &L4qSettings { target: Some(Format::Awq), ..l4q(4) }) != plain);
}

/// Numbers of 16 bits, what is halfway between two of them, and the f32 on either side.
fn close_calls() -> Vec<f32> {
    let mut scales = vec![0.0, -1.0, f32::MIN_POSITIVE, f32::MAX, 1e-8, 65520.0];
    for pattern in 0..0x7bff_u16 {
        let (low, high) = (f16::from_bits(pattern).to_f32(), f16::from_bits(pattern + 1).to_f32());
        let tie = f32::midpoint(low, high);
        scales.extend([low, tie.next_down(), tie, tie.next_up()]);
    }
    for pattern in 0x3000..0x4800_u16 {
        let (low, high) =
            (bf16::from_bits(pattern).to_f32(), bf16::from_bits(pattern + 1).to_f32());
        let tie = f32::midpoint(low, high);
        scales.extend([low, tie.next_down(), tie, tie.next_up()]);
    }
    scales
}

fn rounded<B: RoundScale>(backend: &B, rule: ScaleRule, scale: &[f32]) -> (Vec<u32>, Vec<u32>) {
    let given = backend.upload(scale).unwrap();
    let mut rounded = backend.zeros(scale.len()).unwrap();
    backend.round_scale(rule, scale.len(), &given, &mut rounded).unwrap();
    let ones = vec![1.0; scale.len()];
    let mut d_scale = backend.upload(&ones).unwrap();
    backend.round_scale_backward(rule, scale.len(), &given, &mut d_scale).unwrap();
    let bits = |buffer| {
        let values = backend.download(buffer, scale.len()).unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    (bits(&rounded), bits(&d_scale))
}

#[test]
fn the_compiled_kernel_rounds_every_close_call_as_the_cpu_does() {
    let scales = close_calls();
    let cuda = Cuda::new(Interpreter::new()).unwrap();
    for rule in [ScaleRule::F16, ScaleRule::Bf16InF16] {
        let host = rounded(&Cpu, rule, &scales);
        assert!(host == rounded(&cuda, rule, &scales), "{rule:?}");
        assert!(host.0.iter().all(|scale| is_held(f32::from_bits(*scale), rule)), "{rule:?}");
        let passes = host.1.iter().filter(|d_scale| **d_scale != 0).count();
        assert!(passes > 1000 && passes < scales.len(), "{rule:?}: {passes}");
    }
}
