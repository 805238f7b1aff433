//! `plumbline pretrain`: tokenizer and model from nothing but text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{Precision, Tokenizer, new_folder, save_dense};
use plumbline::recipe::{self, DataFormat, PretrainRecipe, resolve};
use plumbline::train::{TokenWindows, Trainer, new_model};

use super::device::{DeviceOption, Opened};
use super::run::{EvalText, Watch, read_text, start_run};

/// Runs a recipe and writes `model/` into its output folder.
pub fn pretrain(recipe_path: &Path, on: DeviceOption) -> Result<()> {
    match on.open()? {
        Opened::Cpu(backend) => pretrain_on(backend, recipe_path),
        Opened::Cuda(backend) => pretrain_on(backend, recipe_path),
        Opened::CudaHost(backend) => pretrain_on(backend, recipe_path),
    }
}

fn pretrain_on<B: Backend>(backend: Arc<B>, recipe_path: &Path) -> Result<()> {
    let mut recipe: PretrainRecipe = recipe::read(recipe_path)?;
    let folder = recipe_path.parent().unwrap_or(Path::new("."));
    for path in recipe.data.train.iter_mut().chain(&mut recipe.data.eval) {
        *path = resolve(folder, path)?;
    }
    recipe.output.dir = resolve(folder, &recipe.output.dir)?;
    recipe.training.check()?;
    recipe.optimizer.check()?;
    recipe.schedule.check()?;
    recipe.data.check()?;
    if recipe.data.format != DataFormat::Text {
        bail!("{}: data.format: pretraining reads text", recipe_path.display());
    }
    let context = recipe.data.context;
    if context < 2 {
        bail!("{}: data.context is {context}, expected at least 2", recipe_path.display());
    }
    let config = recipe.model.config(context)?;
    let texts: Vec<String> =
        recipe.data.train.iter().map(|path: &PathBuf| read_text(path)).collect::<Result<_>>()?;
    if recipe.output.dir.exists() {
        bail!("{}: already exists; choose another output.dir", recipe.output.dir.display());
    }
    eprintln!("training a tokenizer of {} entries", config.vocab_size);
    let tokenizer = Tokenizer::train(&texts.concat(), config.vocab_size)?;
    let mut tokens = Vec::new();
    for text in &texts {
        tokens.extend(tokenizer.encode(text)?);
    }
    let eval: Vec<EvalText> = recipe
        .data
        .eval
        .iter()
        .map(|path| EvalText::read(path, &tokenizer))
        .collect::<Result<_>>()?;
    let data = TokenWindows::new(tokens, context, recipe.training.seed)?;
    eprintln!(
        "{} windows of {context} tokens an epoch, {:.1} epochs",
        data.windows_per_epoch(),
        (recipe.training.steps as usize
            * recipe.training.micro_batch
            * recipe.training.accumulation) as f64
            / data.windows_per_epoch() as f64
    );
    let mut model = new_model(backend, &config, recipe.training.seed)?;
    let settings = recipe.training.clone();
    let schedule = recipe.schedule;
    let mut trainer =
        Trainer::new(&mut model, data, context, settings, &recipe.optimizer, schedule)?;
    let mut metrics = start_run(&recipe.output.dir, &recipe)?;
    let (every, steps) = (recipe.training.eval_every, recipe.training.steps);
    let mut watch = Watch::new(&mut metrics, &eval, context, every, steps);
    trainer.run(&mut model, &mut watch)?;
    drop(watch);
    let path = recipe.output.dir.join("model");
    let json = tokenizer.to_json()?;
    new_folder(&path, |folder| save_dense(folder, &model, Some(json.as_bytes()), Precision::Bf16))?;
    println!("{}", path.display());
    Ok(())
}
