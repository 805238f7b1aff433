//! `plumbline export`: a merged model in the format of the program that serves it.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use plumbline::checkpoint::ModelFolder;
use plumbline::cpu::Cpu;
use plumbline::export::{Exported, FloatType, Format, LayerProof, Request, export};
use plumbline::finetune::logit_difference;

use super::merge::{outputs, probe, refuse};
use super::progress::{Progress, waiting};

/// The options.
#[derive(clap::Args)]
pub struct ExportOptions {
    /// A model that merge or quantize wrote
    model: PathBuf,
    /// compressed-tensors, gptq, gptq-v2, awq, gguf-q4_0, gguf-q4_1, gguf-q5_0, gguf-q8_0, mlx,
    /// hugging-face (the weights that the codes stand for), or plumbline (codes side by side)
    #[arg(long)]
    format: Format,
    /// The folder to write, or the file where the format is one of GGUF's
    #[arg(long)]
    out: PathBuf,
    /// Type of the numbers that are no codes, and of what an engine computes with: f32, f16 or bf16.
    /// One that would round a value is refused. GGUF files have their own
    #[arg(long, default_value = "f32")]
    dtype: FloatType,
    /// Replace what is there, once the new is whole
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command: exit code 1 when the written model's outputs are not those of the merged one.
pub fn run(options: &ExportOptions) -> Result<ExitCode> {
    let ExportOptions { model, format, out, dtype, force, json } = options;
    let source = ModelFolder::open(model)?;
    let bar: RefCell<Option<Progress>> = RefCell::new(None);
    let watch = |done: usize, of: usize| {
        let mut bar = bar.borrow_mut();
        let bar = bar.get_or_insert_with(|| Progress::new("tensors", of as u64));
        bar.at(done as u64, String::new);
    };
    let request = Request { source: &source, format: *format, floats: *dtype, out, force: *force };
    let exported = export(&request, &watch)?;
    drop(bar.take());
    let probe = probe(&source);
    let ours = waiting("the merged model's outputs", || outputs(Arc::new(Cpu), &source, &probe))?;
    let written = ModelFolder::open(out)?;
    let theirs =
        waiting("the exported model's outputs", || outputs(Arc::new(Cpu), &written, &probe))?;
    if let Some(difference) = logit_difference(&ours, &theirs, source.config().vocab_size)? {
        return Ok(refuse("the model as exported", "the merged one", difference));
    }
    report(options, &exported, ours.len(), *json);
    Ok(ExitCode::SUCCESS)
}

fn report(options: &ExportOptions, exported: &Exported, compared: usize, json: bool) {
    let ExportOptions { format, out, .. } = options;
    let Exported { layers, tensors, bytes, notes } = exported;
    if json {
        let value = serde_json::json!({
            "out": out, "format": format, "tensors": tensors, "bytes": bytes, "layers": layers,
            "logits_compared": compared, "level": "E3", "notes": notes,
        });
        println!("{value}");
        return;
    }
    for LayerProof { name, bits, group_size, level, exact_in } in layers {
        let grid = match (bits, group_size) {
            (Some(bits), Some(size)) => format!("{bits} bits, groups of {size}"),
            _ => "no codes".into(),
        };
        println!("{name}: {grid}, {level}, exact in {}", exact_in.join(", "));
    }
    for note in notes {
        println!("note: {note}");
    }
    println!(
        "{}: {format}, {tensors} tensors, {bytes} bytes; every layer reads back with the values that \
         were trained (E2), and {compared} logits with every bit (E3)",
        out.display()
    );
}
