//! `plumbline eval choice`: multiple choice by log-likelihood.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use plumbline::backend::Backend;
use plumbline::checkpoint::{LoadedModel, ModelFolder, write_file};
use plumbline::choice::{Answered, Item, Score, Share, Shots, Task, score};
use serde_json::json;

use crate::cli::device::{DeviceOption, Opened};
use crate::cli::progress::{Progress, waiting};
use crate::cli::source::open_model;

/// The options.
#[derive(clap::Args)]
pub struct ChoiceOptions {
    /// Model folder in Hugging Face layout, merged or not, or a GGUF file; the built-in model by
    /// default
    #[arg(long)]
    model: Option<PathBuf>,
    /// The questions
    #[arg(long)]
    items: PathBuf,
    /// Their format: arc, openbookqa, piqa, hellaswag, winogrande, boolq, mmlu, instruction
    #[arg(long, value_parser = task)]
    task: Task,
    /// Solved questions before each one
    #[arg(long, default_value_t = 0)]
    shots: usize,
    /// Where solved questions come from, in the same format; by default the other questions
    #[arg(long)]
    shots_from: Option<PathBuf>,
    /// Seed of the choice of solved questions
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Only the first so many questions
    #[arg(long)]
    limit: Option<usize>,
    /// A file to write with one JSON object for each question, which must not exist
    #[arg(long)]
    samples: Option<PathBuf>,
    #[command(flatten)]
    on: DeviceOption,
    /// Print one JSON object, in the layout of lm-evaluation-harness
    #[arg(long)]
    json: bool,
}

fn task(name: &str) -> Result<Task, String> {
    let names = || Task::ALL.map(|(name, _)| name).join(", ");
    let known = Task::ALL.iter().find(|(known, _)| *known == name);
    known.map(|(_, task)| *task).ok_or_else(|| format!("expected one of {}", names()))
}

/// Runs the command.
pub fn choice(options: &ChoiceOptions) -> Result<()> {
    if let Some(path) = &options.samples {
        ensure!(!path.exists(), "{}: already exists", path.display());
    }
    let opened = options.on.open()?;
    let folder = open_model(options.model.as_deref())?;
    let all = options.task.read(&options.items)?;
    let from = options.shots_from.as_ref().map(|path| options.task.read(path)).transpose()?;
    let items = &all[..options.limit.unwrap_or(all.len()).min(all.len())];
    let shots = Shots {
        items: from.as_deref().unwrap_or(&all),
        count: options.shots,
        seed: options.seed,
        same: from.is_none(),
    };
    let mut samples = Vec::new();
    let score = match opened {
        Opened::Cpu(backend) => measure(backend, &folder, items, &shots, &mut samples),
        Opened::Cuda(backend) => measure(backend, &folder, items, &shots, &mut samples),
        Opened::CudaHost(backend) => measure(backend, &folder, items, &shots, &mut samples),
    }
    .with_context(|| options.items.display().to_string())?;
    if let Some(path) = &options.samples {
        write_file(path, &samples)?;
    }
    if score.shortened > 0 {
        let (count, longest) = (score.shortened, folder.config().longest_sequence());
        eprintln!("{count} questions begin before the model's {longest} positions and were cut");
    }
    if options.json {
        println!("{}", in_lm_eval_layout(options, &folder, &score, all.len(), items.len()));
        return Ok(());
    }
    let share = |share: Share| {
        let error = share.standard_error.map_or(String::new(), |e| format!(" +- {:.2}", 100.0 * e));
        format!("{:.2}{error} %", 100.0 * share.accuracy)
    };
    println!(
        "{}: {} questions, {} shots: accuracy {}, normalised by length {}",
        options.items.display(),
        items.len(),
        options.shots,
        share(score.plain),
        share(score.normalized)
    );
    Ok(())
}

fn measure<B: Backend>(
    backend: Arc<B>,
    folder: &ModelFolder,
    items: &[Item],
    shots: &Shots<'_>,
    samples: &mut Vec<u8>,
) -> Result<Score> {
    let tokenizer = folder.tokenizer()?;
    let loaded = waiting("loading the model", || folder.load(backend))?;
    let mut bar = Progress::new("questions", items.len() as u64);
    let told = |answered: &Answered| {
        bar.at(answered.item as u64 + 1, String::new);
        serde_json::to_writer(&mut *samples, answered).expect("numbers are JSON");
        writeln!(samples).expect("memory takes everything");
        Ok(())
    };
    Ok(match loaded {
        LoadedModel::Dense(model) => score(&model, &tokenizer, items, shots, told)?,
        LoadedModel::Merged(model) => score(&model, &tokenizer, items, shots, told)?,
        LoadedModel::Affine(model) => score(&model, &tokenizer, items, shots, told)?,
    })
}

fn in_lm_eval_layout(
    options: &ChoiceOptions,
    folder: &ModelFolder,
    score: &Score,
    original: usize,
    effective: usize,
) -> serde_json::Value {
    let name = options.items.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let result = json!({
        "alias": name,
        "acc,none": score.plain.accuracy,
        "acc_stderr,none": score.plain.standard_error,
        "acc_norm,none": score.normalized.accuracy,
        "acc_norm_stderr,none": score.normalized.standard_error,
    });
    json!({
        "results": {&name: result},
        "n-shot": {&name: options.shots},
        "n-samples": {&name: {"original": original, "effective": effective}},
        "config": {
            "model": "plumbline",
            "model_args": format!("pretrained={}", folder.path().display()),
            "random_seed": options.seed,
            "limit": options.limit,
        },
    })
}
