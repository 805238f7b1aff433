//! `plumbline pretrain`: tokenizer and model from nothing but text.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{Precision, Tokenizer, TrainingState, new_folder, save_dense, sha256};
use plumbline::recipe::{self, DataFormat, PretrainRecipe, resolve};
use plumbline::train::{TokenWindows, Trainer, new_model};

use super::device::{DeviceOption, Opened};
use super::fit::{End, Run, Timetable};
use super::run::{EvalText, Measured, Place, read_text};

/// Runs a recipe and writes `model/` into its output folder.
pub fn pretrain(recipe_path: &Path, on: DeviceOption, resume: bool) -> Result<ExitCode> {
    match on.open()? {
        Opened::Cpu(backend) => pretrain_on(backend, recipe_path, on, resume),
        Opened::Cuda(backend) => pretrain_on(backend, recipe_path, on, resume),
        Opened::CudaHost(backend) => pretrain_on(backend, recipe_path, on, resume),
    }
}

/// The recipe with its paths resolved, every field judged.
fn read_recipe(path: &Path) -> Result<PretrainRecipe> {
    let mut recipe: PretrainRecipe = recipe::read(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    for file in recipe.data.files_mut() {
        *file = resolve(folder, file)?;
    }
    recipe.output.dir = resolve(folder, &recipe.output.dir)?;
    check(&recipe).with_context(|| path.display().to_string())?;
    if recipe.data.format != DataFormat::Text {
        bail!("{}: data.format: pretraining reads text", path.display());
    }
    let context = recipe.data.context;
    if context < 2 {
        bail!("{}: data.context is {context}, expected at least 2", path.display());
    }
    Ok(recipe)
}

/// Every field that can be judged alone.
fn check(recipe: &PretrainRecipe) -> Result<()> {
    recipe.training.check()?;
    recipe.optimizer.check()?;
    recipe.schedule.check()?;
    recipe.checkpoints.check()?;
    recipe.early_stopping.check(recipe.training.eval_every, recipe.data.measured())?;
    recipe.data.check()?;
    Ok(())
}

fn pretrain_on<B: Backend>(
    backend: Arc<B>,
    recipe_path: &Path,
    on: DeviceOption,
    resume: bool,
) -> Result<ExitCode> {
    let recipe = read_recipe(recipe_path)?;
    let context = recipe.data.context;
    let config = recipe.model.config(context)?;
    let texts: Vec<String> =
        recipe.data.train.iter().map(|path: &PathBuf| read_text(path)).collect::<Result<_>>()?;
    let place = Place::find(&recipe.output.dir, &recipe, resume)?;
    eprintln!("training a tokenizer of {} entries", config.vocab_size);
    let tokenizer = Tokenizer::train(&texts.concat(), config.vocab_size)?;
    let mut tokens = Vec::new();
    for text in &texts {
        tokens.extend(tokenizer.encode(text)?);
    }
    let read = |path: &PathBuf| Ok(Measured::Text(EvalText::read(path, &tokenizer)?));
    let eval: Vec<Measured> = recipe.data.eval.iter().map(read).collect::<Result<_>>()?;
    let data = TokenWindows::new(tokens, context, recipe.training.seed)?;
    eprintln!(
        "{} windows of {context} tokens an epoch, {:.1} epochs",
        data.windows_per_epoch(),
        (recipe.training.steps as usize
            * recipe.training.micro_batch
            * recipe.training.accumulation) as f64
            / data.windows_per_epoch() as f64
    );
    let data_sha256 = data.fingerprint();
    let mut model = new_model(backend, &config, recipe.training.seed)?;
    let settings = recipe.training.clone();
    let schedule = recipe.schedule;
    let mut trainer =
        Trainer::new(&mut model, data, context, settings, &recipe.optimizer, schedule)?;
    let folder = place.open(&recipe.output.dir, &recipe)?;
    let json = tokenizer.to_json()?;
    let base_sha256 = sha256(json.as_bytes());
    let device = on.compute.device_name::<B>();
    let state = TrainingState::new(device, base_sha256, data_sha256, folder.recipe_sha256()?);
    let timetable = Timetable {
        steps: recipe.training.steps,
        eval_every: recipe.training.eval_every,
        eval_start: false,
        context,
        checkpoints: recipe.checkpoints,
        early_stopping: recipe.early_stopping,
    };
    let mut run = Run::begin(folder, state, timetable, eval, (&mut model, &mut trainer))?;
    let end = run.fit(&mut model, &mut trainer)?;
    if let End::Interrupted(_) = end {
        run.report(end, false);
        return Ok(end.exit_code());
    }
    let path = recipe.output.dir.join("model");
    if path.exists() {
        // A run that was complete already.
        return Ok(ExitCode::SUCCESS);
    }
    new_folder(&path, |folder| save_dense(folder, &model, Some(json.as_bytes()), Precision::Bf16))?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}
