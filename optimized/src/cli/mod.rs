//! The command line: parses, calls, prints.

mod data;
mod demo;
mod device;
mod eval;
mod generate;
mod inspect;
mod merge;
mod pretrain;
mod progress;
mod run;
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
    /// Fine-tune as a recipe says
    Train {
        /// The recipe, TOML
        recipe: PathBuf,
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
        #[command(flatten)]
        on: device::DeviceOption,
    },
    /// Measure a model
    #[command(subcommand)]
    Eval(eval::Eval),
    /// Turn a run's last checkpoint into integer codes and prove them equal to it
    Merge {
        /// The run's folder
        run: PathBuf,
        /// The folder to write, which must not exist
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        on: device::DeviceOption,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
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
        Command::Train { recipe, on, json } => train::train(&recipe, on, json)?,
        Command::Pretrain { recipe, on } => pretrain::pretrain(&recipe, on)?,
        Command::Eval(command) => eval::eval(command)?,
        Command::Merge { run, out, on, json } => {
            return merge::merge(&run, &out, on, json);
        }
        Command::Generate(arguments) => generate::generate(&arguments)?,
        Command::Inspect { model, json } => inspect::inspect(model.as_deref(), json)?,
    }
    Ok(ExitCode::SUCCESS)
}
