//! What a training step costs a device beside its kernels: it is waited for once, and asked for
//! memory never.

mod common;

use std::sync::Arc;

use common::settings::{base, l4q, lr_qat, peqa, qa_lora, qat};
use plumbline::backend::{Backend, Storage};
use plumbline::cpu::Cpu;
use plumbline::cuda::{Compute, Cuda, Host, Interpreter};
use plumbline::error::{Error, Result};
use plumbline::export::Format;
use plumbline::finetune::{Method, Start, method_model, random_model};
use plumbline::methods::{L4q, LayerCost, LinearMethod};
use plumbline::model::{Llama, Plan, Projection, Recompute, Run};
use plumbline::ops::adamw::StateType;
use plumbline::ops::cross_entropy::CrossEntropyArgs;
use plumbline::ops::fake_quantize::{FakeQuantize, FakeQuantizeArgs};
use plumbline::ops::widen::{WeightType, WeightView};
use plumbline::recipe::{
    GridOverride, L4qSettings, LoraSettings, LrQatSettings, MethodRecipe, MethodSettings,
    PeqaSettings, QaLoraSettings, QatLoraSettings, QatSettings,
};
use plumbline::train::{
    Observer, Optimizer, OptimizerSettings, Schedule, StepRecord, TokenWindows, Trainer,
    TrainingSettings, new_model,
};
use plumbline_reference::spec::{ActivationSpec, Bits, Downcast, Pool, QatQuantizer, QuantSpec};

const CONTEXT: usize = 6;
const ACCUMULATION: usize = 2;

fn host() -> Arc<Host> {
    Arc::new(Cuda::new(Interpreter::new()).unwrap())
}

fn bits() -> Bits {
    Bits::new(4).unwrap()
}

fn trainer<B: Backend, L: LinearMethod<B>>(
    model: &mut Llama<B, L>,
    recompute: Recompute,
) -> Result<Trainer<B>> {
    let settings = TrainingSettings {
        steps: 3,
        micro_batch: 1,
        accumulation: ACCUMULATION,
        seed: 5,
        recompute,
        eval_every: 0,
    };
    let text = (0..400).map(|i| (i * i + 7 * i) % 280).collect();
    let data = TokenWindows::new(text, CONTEXT, 5)?;
    let optimizer = OptimizerSettings::default();
    Trainer::new(model, data, CONTEXT, settings, &optimizer, Schedule::default())
}

/// What the steps did and, where there is a machine to ask, what it had done after each.
#[derive(Default)]
struct Counts {
    machine: Option<Arc<Host>>,
    costs: Vec<[u64; 3]>,
    records: Vec<StepRecord>,
}

/// Reads, allocations and bytes.
fn costs(host: &Host) -> [u64; 3] {
    let machine = host.launcher();
    [machine.reads(), machine.allocations(), machine.bytes()]
}

impl<B: Backend, L> Observer<B, L> for Counts {
    fn after_step(&mut self, record: &StepRecord, _model: &mut Llama<B, L>) -> Result<()> {
        self.costs.extend(self.machine.as_deref().map(costs));
        self.records.push(record.clone());
        Ok(())
    }
}

/// Three steps: what each of them costs, and what the device holds beside the plan.
fn counted<L: LinearMethod<Host>>(mut model: Llama<Host, L>, recompute: Recompute) -> Counts {
    let backend = model.shared_backend();
    let plan = Plan::new(&mut model, CONTEXT, recompute, ACCUMULATION, StateType::F32);
    let mut trainer = trainer(&mut model, recompute).unwrap();
    // All that the trainer asks for is there before the first step, and all of it is in the plan.
    let status = 8;
    let planned = (plan.total() + status) as u64;
    assert_eq!(backend.launcher().bytes(), planned + backend.workspace_bytes() as u64, "{plan}");
    let before = costs(&backend);
    let mut counts = Counts { machine: Some(backend.clone()), ..Counts::default() };
    trainer.run(&mut model, &mut counts).unwrap();
    let [reads, allocations, bytes] = counts.costs[0];
    assert_eq!(reads, before[0] + 1, "the first step waits more than once");
    assert_eq!(bytes, planned + backend.workspace_bytes() as u64, "{plan}");
    for (step, later) in counts.costs.iter().enumerate() {
        assert_eq!(*later, [reads + step as u64, allocations, bytes], "step {}", step + 1);
    }
    assert_eq!(counts.costs.len(), 3);
    counts
}

fn begun<B: Backend, M: Method>(backend: Arc<B>, method: &M) -> Llama<B, M::Layer<B>> {
    let (_root, folder) = base();
    method_model(backend, &folder, method, Start::Fresh(3)).unwrap()
}

#[test]
fn a_step_waits_once_and_allocates_nothing() {
    let on_device = counted(begun(host(), &l4q(4)), Recompute::None);
    let mut model = begun(Arc::new(Cpu), &l4q(4));
    let mut on_cpu = Counts::default();
    trainer(&mut model, Recompute::None).unwrap().run(&mut model, &mut on_cpu).unwrap();
    for (device, cpu) in on_device.records.iter().zip(&on_cpu.records) {
        // Activations differ in their roundings, so a few weights may take another code.
        assert!((device.loss - cpu.loss).abs() <= 1e-3 * cpu.loss, "{device:?} {cpu:?}");
        assert!((device.grad_norm - cpu.grad_norm).abs() <= 1e-2 * cpu.grad_norm);
    }
    counted(begun(host(), &lr_qat(4, Downcast::Int, "frozen")), Recompute::Blocks);
    counted(begun(host(), &qa_lora(4, Pool::Sum)), Recompute::Blocks);
}

#[test]
fn neither_does_one_that_trains_every_weight() {
    counted(new_model(host(), &common::config(), 11).unwrap(), Recompute::Blocks);
}

/// That a plan made of settings alone is that of the model, and that the device holds as much.
fn planned<M: Method>(method: &M) {
    for stored in [WeightType::F32, WeightType::Bf16, WeightType::F16] {
        planned_on(method, stored);
    }
}

fn planned_on<M: Method>(method: &M, stored: WeightType) {
    let config = common::config();
    let linears = Projection::all(&config);
    let costs: Vec<LayerCost> =
        linears.iter().map(|one| method.cost(one, stored).unwrap()).collect();
    for recompute in [Recompute::None, Recompute::Blocks] {
        let backend = host();
        let mut model = random_model(backend.clone(), &config, method, stored, 3).unwrap();
        for ((name, layer), cost) in model.linears().iter().zip(&costs) {
            assert_eq!(layer.cost(), *cost, "{name}");
        }
        let trained: Vec<usize> = model.trainable().iter().map(|tensor| tensor.len).collect();
        assert_eq!(trained, costs.iter().flat_map(|cost| cost.trained.clone()).collect::<Vec<_>>());
        let accumulation = ACCUMULATION;
        let run = Run {
            tokens: CONTEXT,
            recompute,
            accumulation,
            operand_bytes: 4,
            state: StateType::F32,
            activations: method.activations(),
        };
        let plan = Plan::of_costs(&config, &costs, run);
        assert_eq!(Plan::new(&mut model, CONTEXT, recompute, accumulation, StateType::F32), plan);
        let _trainer = trainer(&mut model, recompute).unwrap();
        let beside = (8 + backend.workspace_bytes()) as u64;
        assert_eq!(backend.launcher().bytes(), plan.total() as u64 + beside, "{plan}");
    }
}

#[test]
fn a_plan_of_settings_alone_is_what_the_device_holds() {
    planned(&l4q(4));
    planned(&QatLoraSettings(l4q(3)));
    planned(&LoraSettings { rank: 5, lora_scaling: 2.0, dropout: 0.0, target: None });
    for downcast in [Downcast::Int, Downcast::Fixed8, Downcast::Bf16, Downcast::F32] {
        planned(&lr_qat(4, downcast, "frozen"));
    }
    planned(&lr_qat(4, Downcast::F32, "live"));
    planned(&peqa(4));
    planned(&qa_lora(4, Pool::Mean));
    planned(&qat(4, QatQuantizer::LsqPlus));
    planned(&qat(4, QatQuantizer::Lsq));
    planned(&L4qSettings { train_scale: false, ..l4q(4) });
    planned(&L4qSettings { lora_warmup_steps: 2, ..l4q(4) });
    planned(&LrQatSettings { train_scale: false, ..lr_qat(4, Downcast::Int, "frozen") });
    let activations = Some(ActivationSpec::new(Bits::new(8).unwrap()));
    planned(&LrQatSettings { activations, ..lr_qat(4, Downcast::Int, "frozen") });
    planned(&QatSettings { train_scale: false, ..qat(4, QatQuantizer::LsqPlus) });
    planned(&QatLoraSettings(L4qSettings { train_scale: false, dropout: 0.1, ..l4q(3) }));
    planned(&QaLoraSettings { dropout: 0.1, ..qa_lora(4, Pool::Mean) });
    planned(&LoraSettings { rank: 5, lora_scaling: 2.0, dropout: 0.1, target: None });
    let target = Some(Format::Awq);
    planned(&L4qSettings { target, ..l4q(4) });
    planned(&L4qSettings { target, train_scale: false, ..l4q(4) });
    planned(&LrQatSettings { target, ..lr_qat(4, Downcast::Int, "frozen") });
    planned(&QatSettings { target, ..qat(4, QatQuantizer::Lsq) });
    planned(&PeqaSettings { target, ..peqa(4) });
    let choice = MethodRecipe {
        targets: Some(vec!["self_attn.*".into(), "down_proj".into()]),
        overrides: vec![GridOverride { pattern: "q_proj".into(), bits: None, group_size: Some(0) }],
        ..MethodSettings::L4q(l4q(4)).into()
    };
    planned(&choice.on(&l4q(4)));
}

#[test]
fn a_plan_counts_the_rounded_operand_of_a_bf16_product() {
    let (config, method) = (common::config(), l4q(4));
    let backend = Arc::new(Cuda::with_compute(Interpreter::new(), Compute::Bf16).unwrap());
    let mut model = random_model(backend.clone(), &config, &method, WeightType::Bf16, 3).unwrap();
    let plan = Plan::new(&mut model, CONTEXT, Recompute::None, ACCUMULATION, StateType::F32);
    let _trainer = trainer(&mut model, Recompute::None).unwrap();
    let beside = (8 + backend.workspace_bytes()) as u64;
    assert_eq!(backend.launcher().bytes(), plan.total() as u64 + beside, "{plan}");
}

/// Every trained tensor, then every moment.
fn state<B: Backend>(model: &mut Llama<B, L4q<B>>, optimizer: &Optimizer<B>) -> Vec<Vec<u32>> {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    let backend = model.shared_backend();
    let mut all: Vec<Vec<u32>> =
        model.trained_values().unwrap().iter().map(|tensor| bits(&tensor.values)).collect();
    for moments in optimizer.moments(&*backend).unwrap().values() {
        all.extend([bits(&moments.first), bits(&moments.second)]);
    }
    all
}

/// A step on gradients of ones after `spoil`, which has to be refused and to change nothing.
fn refused<B: Backend>(
    backend: Arc<B>,
    spoil: impl FnOnce(&B, &mut Llama<B, L4q<B>>, &mut Optimizer<B>),
) -> String {
    let mut model = begun(backend.clone(), &l4q(4));
    let mut optimizer = Optimizer::new(&OptimizerSettings::default()).unwrap();
    optimizer.reserve(&mut model, ACCUMULATION).unwrap();
    for tensor in model.trainable() {
        backend.write(&vec![1.0; tensor.len], tensor.gradient).unwrap();
    }
    optimizer.step(&mut model, 1.0).unwrap();
    for tensor in model.trainable() {
        backend.write(&vec![1.0; tensor.len], tensor.gradient).unwrap();
    }
    let before = state(&mut model, &optimizer);
    spoil(&backend, &mut model, &mut optimizer);
    let told = optimizer.step(&mut model, 1.0).unwrap_err().to_string();
    assert!(before == state(&mut model, &optimizer), "something was updated: {told}");
    // Once it is forgotten, the step after it begins from nothing.
    optimizer.discard(&mut model).unwrap();
    let next = optimizer.step(&mut model, 1.0).unwrap();
    assert_eq!((next.loss, next.grad_norm, optimizer.steps()), (0.0, 0.0, 2));
    told
}

fn infinite_loss<B: Backend>(backend: &B, optimizer: &mut Optimizer<B>) {
    let args =
        CrossEntropyArgs { tokens: 1, vocab_size: 2, ignore_index: -100, gradient_multiplier: 1.0 };
    let logits = backend.upload(&[f32::NAN, 1.0]).unwrap();
    let targets = backend.upload_tokens(&[1]).unwrap();
    let loss = optimizer.loss_slot(1).unwrap();
    backend.cross_entropy(args, &logits, &targets, loss.sums, loss.slot).unwrap();
}

fn refuses_without_an_update<B: Backend>(backend: Arc<B>) {
    let told = refused(backend.clone(), |backend, model, _| {
        for tensor in model.trainable() {
            if tensor.name == "model.layers.1.mlp.up_proj.lora_b" {
                let mut gradient = vec![1.0; tensor.len];
                gradient[7] = f32::NEG_INFINITY;
                backend.write(&gradient, tensor.gradient).unwrap();
            }
        }
    });
    let name = "gradient of model.layers.1.mlp.up_proj.lora_b";
    assert_eq!(told, format!("{name} is not finite: -inf at flat index 7"));
    let told = refused(backend, |backend, _, optimizer| infinite_loss(backend, optimizer));
    assert_eq!(told, "loss of step 2 is not finite: NaN at flat index 0");
}

#[test]
fn a_loss_or_a_gradient_that_is_not_finite_updates_nothing() {
    refuses_without_an_update(Arc::new(Cpu));
    refuses_without_an_update(host());
}

#[test]
fn what_a_kernel_complains_of_updates_nothing() {
    let told = refused(host(), |backend, _, _| {
        let [weight, scale, offset] =
            [[0.5, 1.0], [f32::INFINITY, 1.0], [0.0; 2]].map(|v| backend.upload(&v).unwrap());
        let args = FakeQuantizeArgs {
            spec: QuantSpec::new(bits(), Some(1), 2).unwrap(),
            out_features: 1,
            weight: WeightView::F32(&weight),
            low_rank: None,
            scale: &scale,
            offset: &offset,
        };
        backend.fake_quantize(&args, &mut backend.zeros(2).unwrap(), None).unwrap();
    });
    assert_eq!(told, "fake_quantize: scale is not finite: inf at flat index 0");
}

#[test]
fn a_full_device_is_told_with_the_plan() {
    let mut model = begun(Arc::new(Cpu), &l4q(4));
    let plan = Plan::new(&mut model, CONTEXT, Recompute::None, ACCUMULATION, StateType::F32);
    let full = Error::Device { device: "cuda", reason: "cannot allocate 9 MiB".into() };
    let told = plan.explain(full).to_string();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[..2], ["cuda: cannot allocate 9 MiB", "the run needs, in MiB:"]);
    assert_eq!(lines.len(), 9);
    assert!(lines[8].starts_with("  in all"), "{told}");
    let other = Error::Invalid("something else".into());
    assert_eq!(plan.explain(other).to_string(), "something else");
}
