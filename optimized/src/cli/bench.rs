//! `plumbline bench step`: training steps of a published shape, without its checkpoint.

use std::sync::Arc;

use anyhow::{Result, ensure};
use plumbline::backend::Backend;
use plumbline::cuda::Gpu;
use plumbline::finetune::{Method, random_model};
use plumbline::methods::{LayerCost, LinearMethod};
use plumbline::model::{DeviceSpeed, Llama, Plan, Recompute, StepWork};
use plumbline::ops::adamw::StateType;
use plumbline::train::{
    Observer, OptimizerSettings, Schedule, ScheduleKind, StepRecord, TokenWindows, Trainer,
    TrainingSettings,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::device::{DeviceOption, Opened};
use super::memory::Meter;
use super::methods::with_method;
use super::progress::waiting;
use super::shape::{RecomputeOption, Shape, ShapeOption, Sizes};

/// Measure the program itself
#[derive(clap::Subcommand)]
pub enum Bench {
    /// Training steps of a model of random weights: tokens/s, rates, memory
    Step(Step),
}

/// `bench step`.
#[derive(clap::Args)]
pub struct Step {
    #[command(flatten)]
    shape: ShapeOption,
    /// Keep activations, or run each block's forward again in the backward
    #[arg(long, value_enum, default_value = "none")]
    recompute: RecomputeOption,
    /// Timed steps
    #[arg(long, default_value_t = 5)]
    steps: u64,
    /// Steps before them
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    #[command(flatten)]
    on: DeviceOption,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is measured on: its name, its speed where it is known, and its memory.
struct Place {
    name: String,
    speed: Option<&'static DeviceSpeed>,
    meter: Meter,
}

/// Runs `bench`.
pub fn bench(command: Bench) -> Result<()> {
    let Bench::Step(step) = command;
    ensure!(step.steps > 0, "--steps is 0, expected at least 1");
    let shape = step.shape.resolve()?;
    let opened = step.on.open()?;
    let meter = Meter::from_now(&opened)?;
    match opened {
        Opened::Cpu(backend) => {
            on(backend, &step, &shape, Place { name: "cpu".into(), speed: None, meter })
        }
        Opened::Cuda(backend) => {
            let gpu: &Gpu = backend.launcher();
            let name = gpu.driver_name()?;
            let speed = DeviceSpeed::of_driver(&name);
            on(backend, &step, &shape, Place { name, speed, meter })
        }
        Opened::CudaHost(backend) => {
            on(backend, &step, &shape, Place { name: "cuda-host".into(), speed: None, meter })
        }
    }
}

fn on<B: Backend>(backend: Arc<B>, step: &Step, shape: &Shape, place: Place) -> Result<()> {
    let run = Run { step, shape, place: &place };
    let report = with_method!(&shape.method, |method| run.measure(backend, &method))?;
    if step.json {
        println!("{}", report.to_json(&run));
    } else {
        report.print(&run);
    }
    Ok(())
}

struct Run<'a> {
    step: &'a Step,
    shape: &'a Shape,
    place: &'a Place,
}

/// Seconds of every step.
#[derive(Default)]
struct Times {
    ends: Vec<f64>,
    last_loss: f64,
}

impl<B: Backend, L> Observer<B, L> for Times {
    fn after_step(
        &mut self,
        record: &StepRecord,
        _model: &mut Llama<B, L>,
    ) -> plumbline::error::Result<()> {
        self.ends.push(record.seconds);
        self.last_loss = record.loss;
        Ok(())
    }
}

/// Seed of weights, ids and updates.
const SEED: u64 = 1;

impl Run<'_> {
    /// Builds the model and trains it, as `train` does.
    fn measure<B: Backend, M: Method>(&self, backend: Arc<B>, method: &M) -> Result<Report> {
        let (config, Sizes { batch, context }) = (&self.shape.config, self.shape.sizes);
        let make = || random_model(backend, config, method, self.shape.stored, SEED);
        let mut model = waiting("drawing the weights", make)?;
        let operand_bytes = model.backend().operand_bytes();
        let layers: Vec<LayerCost> =
            model.linears().iter().map(|(_, layer)| layer.cost()).collect();
        let recompute: Recompute = self.step.recompute.into();
        let tokens = self.shape.sizes.tokens();
        let plan = Plan::new(&mut model, tokens, recompute, 1, StateType::F32);
        let sizes = (tokens, context);
        let work = StepWork::new(config, &layers, sizes, recompute, operand_bytes, StateType::F32);
        let settings = TrainingSettings {
            steps: self.step.warmup + self.step.steps,
            micro_batch: batch,
            accumulation: 1,
            seed: SEED,
            recompute,
            eval_every: 0,
        };
        let optimizer = OptimizerSettings { learning_rate: 1e-5, ..OptimizerSettings::default() };
        let schedule = Schedule { kind: ScheduleKind::Constant, ..Schedule::default() };
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let ids = (0..4 * tokens + 1).map(|_| random.random_range(0..config.vocab_size as i32));
        let data = TokenWindows::new(ids.collect(), context, SEED)?;
        let mut trainer = Trainer::new(&mut model, data, context, settings, &optimizer, schedule)?;
        let mut times = Times::default();
        trainer.run(&mut model, &mut times)?;
        let measured = self.place.meter.bytes()?;
        let floor = self.place.speed.map(|speed| work.floor(speed, operand_bytes));
        // A step ends where the next begins: what the host does between them belongs to a step.
        let begins = std::iter::once(0.0).chain(times.ends.iter().copied());
        let mut seconds: Vec<f64> =
            times.ends.iter().zip(begins).map(|(end, at)| end - at).collect();
        let mut seconds = seconds.split_off(self.step.warmup as usize);
        seconds.sort_by(f64::total_cmp);
        Ok(Report { seconds, plan, work, measured, floor, last_loss: times.last_loss })
    }
}

struct Report {
    /// Of the timed steps, ascending.
    seconds: Vec<f64>,
    plan: Plan,
    work: StepWork,
    measured: u64,
    /// Seconds.
    floor: Option<f64>,
    last_loss: f64,
}

impl Report {
    fn median(&self) -> f64 {
        let middle = self.seconds.len() / 2;
        match self.seconds.len() % 2 {
            0 => (self.seconds[middle - 1] + self.seconds[middle]) / 2.0,
            _ => self.seconds[middle],
        }
    }

    fn ends(&self) -> (f64, f64) {
        (self.seconds[0], self.seconds[self.seconds.len() - 1])
    }

    fn to_json(&self, run: &Run<'_>) -> Value {
        let Run { step, shape, place } = run;
        let (median, (least, most)) = (self.median(), self.ends());
        let tokens = shape.sizes.tokens();
        let operations = self.work.operations;
        let all = self.work.products() + operations.attention;
        json!({
            "config": shape.name, "layers": shape.config.num_hidden_layers,
            "layers_of_the_model": shape.all_blocks, "method": shape.method, "frozen": shape.stored,
            "tokens": tokens, "context": shape.sizes.context,
            "recompute": Recompute::from(step.recompute),
            "device": place.name, "compute": format!("{:?}", step.on.compute).to_lowercase(),
            "steps": step.steps, "warmup": step.warmup, "last_loss": self.last_loss,
            "step_seconds": { "median": median, "min": least, "max": most },
            "tokens_per_second": tokens as f64 / median,
            "operations": operations, "bytes": self.work.bytes,
            "flops_per_second": self.work.products() / median,
            "flops_per_second_with_attention": all / median,
            "floor_seconds": self.floor, "times_the_floor": self.floor.map(|floor| median / floor),
            "floor_from": place.speed,
            "memory": {
                "measured_bytes": self.measured, "measured_by": place.meter.what,
                "planned_bytes": self.plan.total(), "plan": self.plan,
            },
        })
    }

    fn print(&self, run: &Run<'_>) {
        let Run { step, shape, place } = run;
        let (median, (least, most)) = (self.median(), self.ends());
        let (config, sizes) = (&shape.config, shape.sizes);
        println!(
            "{}, {} of {} blocks, {}, {} x {} tokens, {} ({:?})",
            shape.name,
            config.num_hidden_layers,
            shape.all_blocks,
            shape.method.settings.name(),
            sizes.batch,
            sizes.context,
            place.name,
            step.on.compute
        );
        let ms = |seconds: f64| 1e3 * seconds;
        let tera = |operations: f64| operations / median / 1e12;
        println!(
            "  step       {:.1} ms, {:.1} to {:.1} over {} steps after {}",
            ms(median),
            ms(least),
            ms(most),
            step.steps,
            step.warmup
        );
        println!("  tokens/s   {:.1}", sizes.tokens() as f64 / median);
        let products = self.work.products();
        println!(
            "  TFLOP/s    {:.3} in linear layers and head, {:.3} with attention",
            tera(products),
            tera(products + self.work.operations.attention)
        );
        match (self.floor, place.speed) {
            (Some(floor), Some(speed)) => println!(
                "  floor      {:.1} ms on {} ({}): {:.2} times that",
                ms(floor),
                speed.name,
                speed.source,
                median / floor
            ),
            _ => println!("  floor      unknown device"),
        }
        let planned = self.plan.total() as f64;
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        println!(
            "  memory     {:.1} MiB ({}), planned {:.1} MiB: {:+.1} %",
            mib(self.measured as f64),
            place.meter.what,
            mib(planned),
            100.0 * (self.measured as f64 / planned - 1.0)
        );
    }
}
