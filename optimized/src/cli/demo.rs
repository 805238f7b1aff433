//! `plumbline demo`: the whole way on what the program carries, in under two minutes.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use plumbline::backend::Backend;
use plumbline::checkpoint::{ModelFolder, Tokenizer};
use plumbline::cpu::Cpu;
use plumbline::embedded;
use plumbline::eval::perplexity;
use plumbline::finetune::{Start, first_difference, merge, method_model, round_to_nearest};
use plumbline::generate::{Sampling, generate};
use plumbline::methods::LinearMethod;
use plumbline::model::{Decoder, Llama};
use plumbline::recipe::{L4qSettings, LoraSettings};
use plumbline::train::{
    Observer, OptimizerSettings, Schedule, ScheduleKind, StepRecord, TokenWindows, Trainer,
    TrainingSettings,
};
use plumbline_reference::spec::{Bits, GradScale, InitScaleRule};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::progress::Progress;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Demo {
    /// Optimizer steps of each fine-tuning
    #[arg(long, default_value_t = 60)]
    steps: u64,
    /// Seed of initialisation, data order and sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

const CONTEXT: usize = 256;
const GROUP_SIZE: usize = 32;
const RANK: usize = 16;
/// Windows of each evaluation text that are measured.
const EVAL_WINDOWS: usize = 96;
/// Tokens whose logits are compared bit by bit after a merge.
const COMPARED_TOKENS: usize = CONTEXT;
const PROMPT: &str = "So spake the Son, and ";
const SAMPLE_TOKENS: usize = 110;

/// One row of the table.
#[derive(Serialize)]
struct Row {
    name: String,
    /// Width of a code; 32 for f32.
    bits: u32,
    milton: f64,
    plays: f64,
    /// Of the distance between round-to-nearest and LoRA in Milton perplexity.
    gap_closed: Option<f64>,
    /// Logits of the merged model equal to the trained one's in every bit.
    merged_equals_trained: Option<bool>,
}

/// The model, the texts and the settings that all rows share.
struct Bench {
    base: ModelFolder,
    tokenizer: Tokenizer,
    train: Vec<i32>,
    milton: Vec<i32>,
    plays: Vec<i32>,
    steps: u64,
    seed: u64,
}

impl Bench {
    fn new(arguments: &Demo) -> Result<Self> {
        let base = embedded::model()?;
        let tokenizer = base.tokenizer()?;
        let eval = |name| -> Result<Vec<i32>> {
            let mut tokens = tokenizer.encode(embedded::text(name)?)?;
            tokens.truncate(EVAL_WINDOWS * CONTEXT);
            Ok(tokens)
        };
        let (milton, plays) = (eval("milton_eval")?, eval("plays_eval")?);
        let train = tokenizer.encode(embedded::text("milton_train")?)?;
        let (steps, seed) = (arguments.steps, arguments.seed);
        Ok(Self { base, tokenizer, train, milton, plays, steps, seed })
    }

    fn row<L: LinearMethod<Cpu>>(
        &self,
        name: &str,
        bits: u32,
        model: &Llama<Cpu, L>,
    ) -> Result<Row> {
        let total = (self.milton.len() + self.plays.len()) as u64;
        let mut bar = Progress::new(format!("measuring {name}"), total);
        let milton =
            perplexity(model, &self.milton, CONTEXT, |done| bar.at(done as u64, String::new))?;
        let first = self.milton.len();
        let plays = perplexity(model, &self.plays, CONTEXT, |done| {
            bar.at((first + done) as u64, String::new)
        })?;
        Ok(Row {
            name: name.into(),
            bits,
            milton: milton.perplexity,
            plays: plays.perplexity,
            gap_closed: None,
            merged_equals_trained: None,
        })
    }

    /// Fine-tunes to Milton.
    fn tune<L: LinearMethod<Cpu>>(
        &self,
        label: String,
        model: &mut Llama<Cpu, L>,
        optimizer: &OptimizerSettings,
    ) -> Result<()> {
        let settings = TrainingSettings {
            steps: self.steps,
            micro_batch: 8,
            accumulation: 1,
            seed: self.seed,
            recompute: Default::default(),
            eval_every: 0,
        };
        let warmup_steps = self.steps / 10;
        let schedule = Schedule { kind: ScheduleKind::Cosine, warmup_steps, final_ratio: 0.0 };
        let data = TokenWindows::new(self.train.clone(), CONTEXT, self.seed)?;
        let mut trainer = Trainer::new(model, data, CONTEXT, settings, optimizer, schedule)?;
        let mut bar = Bar(Progress::new(label, self.steps));
        Ok(trainer.run(model, &mut bar)?)
    }

    fn sample<B: Backend, L: LinearMethod<B>>(&self, model: &Llama<B, L>) -> Result<String> {
        let prompt = self.tokenizer.encode(PROMPT)?;
        let mut decoder = Decoder::new(model, prompt.len() + SAMPLE_TOKENS)?;
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let sampling = Sampling::new(0.7, 0.9)?;
        let each = |_| Ok(());
        let new = generate(&mut decoder, &prompt, SAMPLE_TOKENS, sampling, &[], &mut random, each)?;
        let all: Vec<i32> = prompt.into_iter().chain(new).collect();
        Ok(self.tokenizer.decode(&all)?)
    }
}

struct Bar(Progress);

impl<B: Backend, L> Observer<B, L> for Bar {
    fn after_step(
        &mut self,
        record: &StepRecord,
        _model: &mut Llama<B, L>,
    ) -> plumbline::error::Result<()> {
        self.0.at(record.step, || format!("loss {:.3}", record.loss));
        Ok(())
    }
}

/// What the demo found.
#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
    before: String,
    after: String,
    seconds: f64,
}

/// Runs the demo: exit code 1 when a merged model is not bit for bit the trained one.
pub fn demo(arguments: &Demo) -> Result<ExitCode> {
    let began = Instant::now();
    let bench = Bench::new(arguments)?;
    if !arguments.json {
        introduce(&bench);
    }
    let backend = Arc::new(Cpu);
    let dense = bench.base.load_dense(backend.clone(), false)?;
    let mut rows = vec![bench.row("full precision", 32, &dense)?];
    let before = bench.sample(&dense)?;
    drop(dense);

    let settings = LoraSettings { rank: RANK, lora_scaling: 2.0, dropout: 0.0, target: None };
    let start = Start::Fresh(bench.seed);
    let mut lora = method_model(backend.clone(), &bench.base, &settings, start)?;
    bench.tune("LoRA, f32".into(), &mut lora, &optimizer(3e-3, 0.0))?;
    let ceiling = bench.row("LoRA, f32", 32, &lora)?;
    let lora_milton = ceiling.milton;
    rows.push(ceiling);
    drop(lora);

    let mut after = String::new();
    for count in [4, 3, 2] {
        let bits = Bits::new(count)?;
        let specs = bench.base.specs(bits, Some(GROUP_SIZE))?;
        let rule = InitScaleRule::L4q;
        let nearest = round_to_nearest(backend.clone(), &bench.base, &specs, rule)?;
        let nearest = bench.row(&format!("round-to-nearest, {count} bits"), count, &nearest)?;
        let (mut row, sample) = l4q_row(&bench, bits)?;
        row.gap_closed = Some((nearest.milton - row.milton) / (nearest.milton - lora_milton));
        if count == 3 {
            after = sample;
        }
        rows.push(nearest);
        rows.push(row);
    }
    let equal = rows.iter().all(|row| row.merged_equals_trained != Some(false));
    let report = Report { rows, before, after, seconds: began.elapsed().as_secs_f64() };
    if arguments.json {
        println!("{}", serde_json::to_string(&report).context("plain data serialises")?);
    } else {
        print(&report);
    }
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Trains, merges and compares one L4Q model; also a passage it writes.
fn l4q_row(bench: &Bench, bits: Bits) -> Result<(Row, String)> {
    let count = bits.count();
    let settings = L4qSettings {
        bits,
        group_size: Some(GROUP_SIZE),
        rank: RANK,
        lora_scaling: 2.0,
        init: "l4q".into(),
        init_p: None,
        init_steps: None,
        grad_scale: GradScale::None,
        train_scale: true,
        lora_warmup_steps: 0,
        dropout: 0.0,
        target: None,
    };
    let start = Start::Fresh(bench.seed);
    let mut model = method_model(Arc::new(Cpu), &bench.base, &settings, start)?;
    let label = format!("L4Q, {count} bits");
    bench.tune(label.clone(), &mut model, &optimizer(3e-3, 3e-4))?;
    let probe = &bench.milton[..COMPARED_TOKENS.min(bench.milton.len())];
    let mut workspace = model.evaluation_workspace(probe.len())?;
    let trained = model.logits(1, probe, &mut workspace)?;
    drop(workspace);
    let merged = merge(model)?.model;
    let difference = first_difference(&trained, &merged, probe)?;
    let mut row = bench.row(&format!("{label}, merged"), count, &merged)?;
    row.merged_equals_trained = Some(difference.is_none());
    Ok((row, bench.sample(&merged)?))
}

fn optimizer(lora: f64, grid: f64) -> OptimizerSettings {
    let mut settings = OptimizerSettings { learning_rate: lora, ..OptimizerSettings::default() };
    settings.scale.learning_rate = Some(grid);
    settings.offset.learning_rate = Some(grid);
    settings
}

fn introduce(bench: &Bench) {
    let config = bench.base.config();
    println!(
        "A LLaMA of {} blocks, trained on Shakespeare, learns Milton at 4, 3 and 2 bits.",
        config.num_hidden_layers
    );
    println!(
        "Every linear layer is quantized in groups of {GROUP_SIZE}; the adapters have rank {RANK}; \
         {} steps of {} tokens.\n",
        bench.steps,
        8 * CONTEXT
    );
}

fn print(report: &Report) {
    let indent = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    println!("Before, full precision:\n{}", indent(&report.before));
    println!("After, L4Q at 3 bits, merged:\n{}", indent(&report.after));
    let line = "-".repeat(82);
    println!("Perplexity on text that no model has seen\n{line}");
    println!(
        "{:<28} {:>10} {:>12} {:>12} {:>16}",
        "model", "Milton", "Shakespeare", "gap closed", "merged = trained"
    );
    println!("{line}");
    for row in &report.rows {
        let gap = row.gap_closed.map_or(String::new(), |gap| format!("{:.0} %", 100.0 * gap));
        let equal = match row.merged_equals_trained {
            Some(true) => "every bit",
            Some(false) => "NO",
            None => "",
        };
        let Row { name, milton, plays, .. } = row;
        println!("{name:<28} {milton:>10.2} {plays:>12.2} {gap:>12} {equal:>16}");
    }
    println!("{line}");
    println!("gap closed: of the distance from round-to-nearest to LoRA in f32, on Milton");
    println!("{:.0} s", report.seconds);
}
