//! `plumbline train`: a recipe to a run folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{ModelFolder, save_adapter, write_file};
use plumbline::finetune::{Method, Start, method_model};
use plumbline::methods::LinearMethod;
use plumbline::model::Llama;
use plumbline::recipe::{self, MethodSettings, TrainRecipe, resolve};
use plumbline::train::{Trainer, TrainingData};

use super::data::training_data;
use super::device::{DeviceOption, Opened};
use super::progress::waiting;
use super::run::{EvalText, Watch, start_run};
use super::source::open_model;

/// Reads a recipe and makes its paths absolute.
pub fn read_recipe(path: &Path) -> Result<TrainRecipe> {
    let mut recipe: TrainRecipe = recipe::read(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for text in recipe.data.train.iter_mut().chain(&mut recipe.data.eval) {
        *text = resolve(folder, text)?;
    }
    if let Some(model) = &mut recipe.model.path {
        *model = resolve(folder, model)?;
    }
    recipe.output.dir = resolve(folder, &recipe.output.dir)?;
    Ok(recipe)
}

/// Everything a run needs, read and checked before anything is written.
struct Prepared {
    recipe: TrainRecipe,
    base: ModelFolder,
    data: TrainingData,
    eval: Vec<EvalText>,
}

fn prepare(path: &Path) -> Result<Prepared> {
    let recipe = read_recipe(path)?;
    let at = || path.display().to_string();
    recipe.training.check().with_context(at)?;
    recipe.optimizer.check().with_context(at)?;
    recipe.schedule.check().with_context(at)?;
    recipe.method.check().with_context(at)?;
    recipe.data.check().with_context(at)?;
    if recipe.output.dir.exists() {
        let dir = recipe.output.dir.display();
        bail!("{dir}: already exists; choose another output.dir or remove it");
    }
    let base = open_model(recipe.model.path.as_deref())?;
    let (context, longest) = (recipe.data.context, base.config().max_position_embeddings);
    if !(2..=longest).contains(&context) {
        bail!("{}: data.context is {context}, expected 2 to {longest}", path.display());
    }
    let tokenizer = base.tokenizer()?;
    let data = training_data(&recipe, &base, &tokenizer).with_context(at)?;
    let mut eval = Vec::new();
    for text in &recipe.data.eval {
        let read = EvalText::read(text, &tokenizer)?;
        check_vocabulary(&read.tokens, base.config().vocab_size, text)?;
        eval.push(read);
    }
    Ok(Prepared { recipe, base, data, eval })
}

/// A tokenizer with more entries than the model has rows gives ids that mean nothing to it.
fn check_vocabulary(tokens: &[i32], vocab_size: usize, text: &Path) -> Result<()> {
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
        bail!("{}: token id {token} is outside 0..{vocab_size}", text.display());
    }
    Ok(())
}

const LOADING: &str = "loading the model";

/// Runs a recipe.
pub fn train(path: &Path, on: DeviceOption, json: bool) -> Result<()> {
    // A device that is not there is said before files are read for minutes.
    match on.open()? {
        Opened::Cpu(backend) => train_on(backend, prepare(path)?, json),
        Opened::Cuda(backend) => train_on(backend, prepare(path)?, json),
        Opened::CudaHost(backend) => train_on(backend, prepare(path)?, json),
    }
}

fn train_on<B: Backend>(backend: Arc<B>, prepared: Prepared, json: bool) -> Result<()> {
    match &prepared.recipe.method.clone() {
        MethodSettings::L4q(settings) => fit(backend, prepared, settings, json),
        MethodSettings::Lora(settings) => fit(backend, prepared, settings, json),
        MethodSettings::LrQat(settings) => fit(backend, prepared, settings, json),
        MethodSettings::Peqa(settings) => fit(backend, prepared, settings, json),
        MethodSettings::QaLora(settings) => fit(backend, prepared, settings, json),
        MethodSettings::Qat(settings) => fit(backend, prepared, settings, json),
        MethodSettings::QatLora(settings) => fit(backend, prepared, settings, json),
    }
}

fn fit<B: Backend, M: Method>(
    backend: Arc<B>,
    prepared: Prepared,
    method: &M,
    json: bool,
) -> Result<()> {
    let Prepared { recipe, base, data, eval } = prepared;
    let found = data.report().cloned();
    let start = Start::Fresh(recipe.training.seed);
    let mut model = waiting(LOADING, || method_model(backend, &base, method, start))?;
    let settings = recipe.training.clone();
    let context = recipe.data.context;
    let schedule = recipe.schedule;
    let mut trainer =
        Trainer::new(&mut model, data, context, settings, &recipe.optimizer, schedule)?;
    let fingerprint = base.fingerprint()?;
    let mut metrics = start_run(&recipe.output.dir, &recipe)?;
    if let Some(found) = found {
        let text = serde_json::to_string_pretty(&found)?;
        write_file(&recipe.output.dir.join("data.json"), text.as_bytes())?;
    }
    let (every, steps) = (recipe.training.eval_every, recipe.training.steps);
    let mut watch = Watch::new(&mut metrics, &eval, context, every, steps);
    watch.evaluate(0, &model)?;
    trainer.run(&mut model, &mut watch)?;
    let (results, loss) = (std::mem::take(&mut watch.results), watch.last_loss);
    drop(watch);
    let checkpoint = recipe.output.dir.join("checkpoints").join(format!("step-{steps}"));
    save_adapter(&checkpoint, &mut model, steps, &fingerprint)?;
    warn_of_floored_scales(&model)?;
    if json {
        let perplexity: serde_json::Map<_, _> =
            results.iter().map(|(text, result)| (text.clone(), result.perplexity.into())).collect();
        let value = serde_json::json!({
            "run": recipe.output.dir, "checkpoint": checkpoint, "steps": steps,
            "last_loss": loss, "perplexity": perplexity,
        });
        println!("{value}");
    } else {
        println!("{} steps, last loss {loss:.4}; checkpoint {}", steps, checkpoint.display());
    }
    Ok(())
}

fn warn_of_floored_scales<B: Backend, L: LinearMethod<B>>(model: &Llama<B, L>) -> Result<()> {
    for (name, layer) in model.linears() {
        let Some(scale) = layer.trained_scale() else { continue };
        let (floored, groups) = scale.below_floor(model.backend())?;
        if floored > 0 {
            eprintln!("warning: {name}: {floored} of {groups} scales are at the floor");
        }
    }
    Ok(())
}

/// The newest checkpoint of a run.
pub fn latest_checkpoint(run: &Path) -> Result<PathBuf> {
    let folder = run.join("checkpoints");
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("{}: cannot read", folder.display()))?;
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let step = name.strip_prefix("step-").and_then(|step| step.parse::<u64>().ok());
        if let Some(step) = step
            && newest.as_ref().is_none_or(|(newest, _)| step > *newest)
        {
            newest = Some((step, path));
        }
    }
    match newest {
        Some((_, path)) => Ok(path),
        None => bail!("{}: holds no checkpoint", folder.display()),
    }
}
