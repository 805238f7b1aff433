//! `plumbline merge`: a trained run to integer codes, with proof that they are the trained model.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{
    LoadedModel, ModelFolder, QuantizationConfig, load_adapter, new_folder, save_merged,
};
use plumbline::finetune::{
    Difference, MergedModel, Start, first_difference, l4q_model, merge as to_codes,
};
use plumbline::recipe::{self, MethodSettings, TrainRecipe};

use super::device::{Device, Opened};
use super::progress::waiting;
use super::source::open_model;
use super::train::latest_checkpoint;

/// Tokens whose logits are compared.
const PROBE_TOKENS: usize = 256;

/// Runs the command: exit code 1 when the merged model is not bit for bit the trained one.
pub fn merge(run: &Path, out: &Path, device: Device, json: bool) -> Result<ExitCode> {
    match device.open()? {
        Opened::Cpu(backend) => merge_on(backend, run, out, json),
        Opened::Cuda(backend) => merge_on(backend, run, out, json),
        Opened::CudaHost(backend) => merge_on(backend, run, out, json),
    }
}

fn merge_on<B: Backend>(backend: Arc<B>, run: &Path, out: &Path, json: bool) -> Result<ExitCode> {
    if out.exists() {
        bail!("{}: already exists; choose another --out or remove it", out.display());
    }
    let recipe_path = run.join("recipe.toml");
    let recipe: TrainRecipe = recipe::read(&recipe_path)?;
    let MethodSettings::L4q(settings) = &recipe.method else {
        bail!(
            "{}: method.name is lora, which has no codes; merge is for l4q",
            recipe_path.display()
        );
    };
    let base = open_model(recipe.model.path.as_deref())?;
    let checkpoint = latest_checkpoint(run)?;
    let adapter = load_adapter(&checkpoint)?;
    let fingerprint = waiting("checking the base model", || base.fingerprint())?;
    if fingerprint != adapter.state.base_sha256 {
        bail!(
            "{}: trained on a base with fingerprint {}, {} has {fingerprint}",
            checkpoint.display(),
            adapter.state.base_sha256,
            base.path().display()
        );
    }
    let start = Start::Adapter(&adapter);
    let load = || l4q_model(backend.clone(), &base, settings, start);
    let model = waiting("loading the trained model", load)?;
    let probe = probe(&base);
    let mut workspace = model.evaluation_workspace(probe.len())?;
    let trained = model.logits(1, &probe, &mut workspace)?;
    drop(workspace);
    let MergedModel { model: merged, linears } = waiting("merging", || to_codes(model))?;
    if let Some(difference) = first_difference(&trained, &merged, &probe)? {
        return Ok(refuse("the merged model", difference));
    }
    let group_size = settings.group_size;
    let quant_method = "plumbline".to_owned();
    let quantization = QuantizationConfig { quant_method, bits: settings.bits, group_size };
    new_folder(out, |folder| save_merged(folder, &merged, &linears, &quantization, &base))?;
    // What was written, read again by the loader that serves it.
    let LoadedModel::Merged(reloaded) = ModelFolder::open(out)?.load(backend)? else {
        bail!("{}: does not read as a merged model", out.display());
    };
    if let Some(difference) = first_difference(&trained, &reloaded, &probe)? {
        return Ok(refuse("the merged model as reloaded", difference));
    }
    let compared = trained.len();
    if json {
        let value = serde_json::json!({
            "out": out, "checkpoint": checkpoint, "layers": linears.len(),
            "logits_compared": compared, "bitwise_equal": true,
        });
        println!("{value}");
    } else {
        println!(
            "{}: {} layers merged; {compared} logits bitwise equal to the trained model's, \
             before writing and after reloading",
            out.display(),
            linears.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn refuse(what: &str, difference: Difference) -> ExitCode {
    let Difference { position, token, left, right } = difference;
    eprintln!(
        "{what} differs from the trained one: position {position}, token {token}: \
         {left} ({:08x}) against {right} ({:08x})",
        left.to_bits(),
        right.to_bits()
    );
    ExitCode::from(1)
}

/// Ids that reach all over the vocabulary; what they say does not matter.
pub fn probe(model: &ModelFolder) -> Vec<i32> {
    let config = model.config();
    let length = PROBE_TOKENS.min(config.max_position_embeddings);
    (0..length)
        .map(|position| ((position * position * 31 + 7 * position) % config.vocab_size) as i32)
        .collect()
}
