//! `plumbline eval`.

mod choice;
mod logits;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use plumbline::backend::Backend;
use plumbline::checkpoint::{LoadedModel, ModelFolder};
use plumbline::eval::{Perplexity, perplexity};

use super::device::{DeviceOption, Opened};
use super::progress::{Progress, waiting};
use super::source::{TextSource, open_model};

/// What can be evaluated.
#[derive(clap::Subcommand)]
pub enum Eval {
    /// exp of the mean loss over consecutive windows of a text
    Perplexity {
        /// Model folder in Hugging Face layout, merged or not; the built-in model by default
        #[arg(long)]
        model: Option<PathBuf>,
        #[command(flatten)]
        source: TextSource,
        /// Tokens of a window; by default the longest the model was trained for
        #[arg(long)]
        context: Option<usize>,
        #[command(flatten)]
        on: DeviceOption,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Multiple choice: how often the likeliest answer is the right one
    Choice(choice::ChoiceOptions),
    /// Write a model's outputs for a text into a file
    Logits(logits::LogitsOptions),
}

/// Runs the command.
pub fn eval(command: Eval) -> Result<()> {
    let (model, source, context, on, json) = match command {
        Eval::Perplexity { model, source, context, on, json } => (model, source, context, on, json),
        Eval::Choice(options) => return choice::choice(&options),
        Eval::Logits(options) => return logits::run(&options),
    };
    let opened = on.open()?;
    let folder = open_model(model.as_deref())?;
    let (name, tokens) = source.tokens(&folder)?;
    let context = context.unwrap_or(folder.config().longest_sequence());
    let result = match opened {
        Opened::Cpu(backend) => measure(backend, &folder, &tokens, context)?,
        Opened::Cuda(backend) => measure(backend, &folder, &tokens, context)?,
        Opened::CudaHost(backend) => measure(backend, &folder, &tokens, context)?,
    };
    if json {
        let mut value = serde_json::to_value(result)?;
        value["model"] = folder.path().display().to_string().into();
        value["text"] = name.into();
        value["context"] = context.into();
        println!("{value}");
    } else {
        println!(
            "{name}: perplexity {:.4}, mean loss {:.6} over {} tokens in {} windows of {context}",
            result.perplexity, result.mean_nll, result.predicted_tokens, result.windows
        );
    }
    Ok(())
}

fn measure<B: Backend>(
    backend: Arc<B>,
    folder: &ModelFolder,
    tokens: &[i32],
    context: usize,
) -> Result<Perplexity> {
    let loaded = waiting("loading the model", || folder.load(backend))?;
    let mut bar = Progress::new("perplexity", tokens.len() as u64);
    let progress = |done| bar.at(done as u64, String::new);
    Ok(match loaded {
        LoadedModel::Dense(model) => perplexity(&model, tokens, context, progress)?,
        LoadedModel::Merged(model) => perplexity(&model, tokens, context, progress)?,
        LoadedModel::Affine(model) => perplexity(&model, tokens, context, progress)?,
    })
}
