//! `plumbline eval logits`: a model's outputs, for comparing with other programs.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use plumbline::checkpoint::{output_file, write_file};
use safetensors::tensor::{Dtype, TensorView};

use crate::cli::device::{DeviceOption, Opened};
use crate::cli::merge::outputs;
use crate::cli::progress::waiting;
use crate::cli::source::{TextSource, open_model};

/// The options.
#[derive(clap::Args)]
pub struct LogitsOptions {
    /// Model folder in Hugging Face layout, merged or not, or a GGUF file; the built-in model by
    /// default
    #[arg(long)]
    model: Option<PathBuf>,
    #[command(flatten)]
    source: TextSource,
    /// The safetensors file to write: logits [tokens, vocabulary] in F32, input_ids [tokens] in I32
    #[arg(long)]
    out: PathBuf,
    /// Replace what is there, once the new is whole
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    on: DeviceOption,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(options: &LogitsOptions) -> Result<()> {
    let LogitsOptions { model, source, out, force, on, json } = options;
    let opened = on.open()?;
    let folder = open_model(model.as_deref())?;
    let (name, tokens) = source.tokens(&folder)?;
    let longest = folder.config().longest_sequence();
    let count = tokens.len();
    ensure!(
        (1..=longest).contains(&count),
        "{name}: has {count} tokens, the model takes 1 to {longest} at once"
    );
    let values = waiting("the model's outputs", || match opened {
        Opened::Cpu(backend) => outputs(backend, &folder, &tokens),
        Opened::Cuda(backend) => outputs(backend, &folder, &tokens),
        Opened::CudaHost(backend) => outputs(backend, &folder, &tokens),
    })?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let ids: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
    let shape = vec![count, folder.config().vocab_size];
    let file = safetensors::serialize(
        [
            ("logits", TensorView::new(Dtype::F32, shape.clone(), &bytes)?),
            ("input_ids", TensorView::new(Dtype::I32, vec![count], &ids)?),
        ],
        None,
    )?;
    output_file(out, *force, |path| write_file(path, &file))?;
    if *json {
        println!("{}", serde_json::json!({"out": out, "tokens": count, "vocabulary": shape[1]}));
    } else {
        println!("{}: logits of {count} tokens, {} each", out.display(), shape[1]);
    }
    Ok(())
}
