//! The command line: parses, calls, prints.

mod bench;
mod compare;
mod data;
mod demo;
mod device;
mod eval;
mod export;
mod fit;
mod frozen;
mod generate;
mod inspect;
mod interrupt;
mod memory;
mod merge;
mod methods;
mod plan;
mod pretrain;
mod progress;
mod quantize;
mod report;
mod run;
mod shape;
mod source;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Quantization-aware fine-tuning of LLaMA models: what was trained is what is deployed.
#[derive(Parser)]
#[command(name = "plumbline", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole way on the built-in model: measure, fine-tune, merge, prove, write
    Demo(demo::Demo),
    /// Fine-tune as a recipe says. Ctrl-C finishes the step and saves; the exit code is 130 then
    Train {
        /// The recipe, TOML; with --resume also the folder of a run
        recipe: PathBuf,
        /// Go on from the run's last good checkpoint, to the same bits; a run that is not there
        /// yet begins
        #[arg(long)]
        resume: bool,
        #[command(flatten)]
        on: device::DeviceOption,
        /// Print one JSON object at the end
        #[arg(long)]
        json: bool,
    },
    /// Train tokenizer and model from scratch as a recipe says
    Pretrain {
        /// The recipe, TOML
        recipe: PathBuf,
        /// Go on from the run's last good checkpoint, to the same bits; a run that is not there
        /// yet begins
        #[arg(long)]
        resume: bool,
        #[command(flatten)]
        on: device::DeviceOption,
    },
    /// Measure a model
    #[command(subcommand)]
    Eval(eval::Eval),
    /// Measure the program itself
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Count what a training run needs, from a model's configuration alone
    Plan(plan::PlanCommand),
    /// Turn a run's checkpoint into integer codes and prove them equal to it
    Merge {
        /// The run's folder
        run: PathBuf,
        /// Which one: last, best (of the evaluations) or step-N
        #[arg(long, default_value = "last")]
        checkpoint: String,
        /// The folder to write, which must not exist
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        on: device::DeviceOption,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write a merged model as other programs read it, without changing a value
    Export(export::ExportOptions),
    /// Make, measure and tabulate several methods on one model; finished rows stay
    Compare(compare::CompareCommand),
    /// One row of a comparison, which `compare` runs in a process of its own
    #[command(hide = true)]
    CompareRow {
        /// The row's folder
        row: PathBuf,
        #[command(flatten)]
        on: device::DeviceOption,
    },
    /// Turn a full-precision model into integer codes without training
    Quantize(quantize::Quantize),
    /// Write a run as one HTML page: curves, layers, recipe, environment
    Report {
        /// The run's folder
        run: PathBuf,
        /// The file to write; report.html in the run's folder by default
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Continue a text
    Generate(generate::Generate),
    /// Show what a model folder holds
    Inspect {
        /// Model folder; the built-in model by default
        model: Option<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command of this process. Exit code 0: done; 1: a check said no; 2: bad input.
pub fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(arguments) => return demo::demo(&arguments),
        Command::Train { recipe, resume, on, json } => {
            return train::train(&recipe, train::TrainOptions { on, resume, json });
        }
        Command::Pretrain { recipe, resume, on } => {
            return pretrain::pretrain(&recipe, on, resume);
        }
        Command::Eval(command) => eval::eval(command)?,
        Command::Bench(command) => bench::bench(command)?,
        Command::Plan(command) => plan::plan(&command)?,
        Command::Merge { run, checkpoint, out, on, json } => {
            let options = merge::MergeOptions { run, checkpoint, out, json };
            return merge::merge(&options, on);
        }
        Command::Export(options) => return export::run(&options),
        Command::Compare(command) => return compare::compare(&command),
        Command::CompareRow { row, on } => return compare::row(&row, on),
        Command::Quantize(arguments) => return quantize::quantize(&arguments),
        Command::Report { run, out } => report::report(&run, out)?,
        Command::Generate(arguments) => generate::generate(&arguments)?,
        Command::Inspect { model, json } => inspect::inspect(model.as_deref(), json)?,
    }
    Ok(ExitCode::SUCCESS)
}
