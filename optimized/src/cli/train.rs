//! `plumbline train`: a recipe to a run folder.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{ModelFolder, Tokenizer, TrainingState, write_file};
use plumbline::finetune::{Method, Start, method_model_on};
use plumbline::methods::LinearMethod;
use plumbline::model::Llama;
use plumbline::recipe::{self, TrainRecipe, resolve};
use plumbline::train::{Trainer, TrainingData};

use super::data::{Found, read_data};
use super::device::{DeviceOption, Opened};
use super::fit::{Run, Timetable};
use super::frozen::Frozen;
use super::methods::with_method;
use super::progress::waiting;
use super::run::{EvalText, Measured, Place, recipe_file};
use super::source::open_model;

/// Reads a recipe and makes its paths absolute.
pub fn read_recipe(path: &Path) -> Result<TrainRecipe> {
    let mut recipe: TrainRecipe = recipe::read(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for file in recipe.data.files_mut() {
        *file = resolve(folder, file)?;
    }
    if let Some(model) = &mut recipe.model.path {
        *model = resolve(folder, model)?;
    }
    recipe.output.dir = resolve(folder, &recipe.output.dir)?;
    recipe.method.settings.resolve();
    Ok(recipe)
}

/// What the command was asked beside its recipe.
#[derive(Debug, Clone, Copy)]
pub struct TrainOptions {
    /// The device and what it multiplies.
    pub on: DeviceOption,
    /// Go on with a run that was begun.
    pub resume: bool,
    /// Print one JSON object at the end.
    pub json: bool,
}

/// Everything a run needs, read and checked before anything is written.
pub struct Prepared {
    /// With absolute paths.
    pub recipe: TrainRecipe,
    /// Whether the run is new.
    pub place: Place,
    /// What is fine-tuned.
    pub base: ModelFolder,
    /// What it is trained on.
    pub data: TrainingData,
    /// What it is measured on.
    pub eval: Vec<Measured>,
}

fn prepare(path: &Path, options: TrainOptions) -> Result<Prepared> {
    let file = recipe_file(path);
    let mut recipe = read_recipe(&file)?;
    if path.is_dir() {
        // The folder may have been moved since its recipe was written.
        recipe.output.dir = resolve(Path::new(""), path)?;
    }
    check(&recipe).with_context(|| file.display().to_string())?;
    let place = if path.is_dir() && options.resume {
        Place::Begun
    } else {
        Place::find(&recipe.output.dir, &recipe, options.resume)?
    };
    Prepared::read(recipe, place, &file)
}

impl Prepared {
    /// Reads what a checked recipe names; messages name its file.
    pub fn read(recipe: TrainRecipe, place: Place, file: &Path) -> Result<Self> {
        let base = open_model(recipe.model.path.as_deref())?;
        recipe.method.check_layers(base.config()).with_context(|| file.display().to_string())?;
        check_context(recipe.data.context, &base).with_context(|| file.display().to_string())?;
        let tokenizer = base.tokenizer()?;
        let (data, eval) =
            read_data(&recipe, &base, &tokenizer).with_context(|| file.display().to_string())?;
        Ok(Self { recipe, place, base, data, eval })
    }
}

/// That windows have a length that the model knows.
pub fn check_context(context: usize, base: &ModelFolder) -> Result<()> {
    if context < 2 {
        bail!("data.context is {context}, expected at least 2");
    }
    base.config().check_length(context).with_context(|| format!("data.context is {context}"))
}

/// A text to be evaluated, of tokens that the model has.
pub fn eval_text(text: &Path, base: &ModelFolder, tokenizer: &Tokenizer) -> Result<EvalText> {
    let read = EvalText::read(text, tokenizer)?;
    check_vocabulary(&read.tokens, base.config().vocab_size, text)?;
    Ok(read)
}

/// Every field that can be judged without reading a model or a text.
fn check(recipe: &TrainRecipe) -> Result<()> {
    recipe.training.check()?;
    recipe.optimizer.check()?;
    recipe.schedule.check()?;
    recipe.method.check()?;
    recipe.checkpoints.check()?;
    recipe.early_stopping.check(recipe.training.eval_every, recipe.data.measured())?;
    recipe.data.check()?;
    Ok(())
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
pub fn train(path: &Path, options: TrainOptions) -> Result<ExitCode> {
    // A device that is not there is said before files are read for minutes.
    match options.on.open()? {
        Opened::Cpu(backend) => train_on(backend, path, options),
        Opened::Cuda(backend) => train_on(backend, path, options),
        Opened::CudaHost(backend) => train_on(backend, path, options),
    }
}

fn train_on<B: Backend>(backend: Arc<B>, path: &Path, options: TrainOptions) -> Result<ExitCode> {
    let prepared = prepare(path, options)?;
    let method = prepared.recipe.method.clone();
    with_method!(&method, |method| run(backend, prepared, &method, options))
}

fn run<B: Backend, M: Method>(
    backend: Arc<B>,
    prepared: Prepared,
    method: &M,
    options: TrainOptions,
) -> Result<ExitCode> {
    let Begun { mut model, mut trainer, mut run } =
        Begun::new(backend, prepared, method, options.on)?;
    let end = run.fit(&mut model, &mut trainer)?;
    run.report(end, options.json);
    warn_of_floored_scales(&model)?;
    Ok(end.exit_code())
}

/// A run that stands where its last checkpoint does, or at its beginning.
pub struct Begun<B: Backend, L> {
    /// What is trained.
    pub model: Llama<B, L>,
    /// What trains it.
    pub trainer: Trainer<B>,
    /// The folder and the loop.
    pub run: Run,
}

impl<B: Backend, L: LinearMethod<B>> Begun<B, L> {
    /// Makes the model and opens the folder.
    pub fn new<M: Method<Layer<B> = L>>(
        backend: Arc<B>,
        prepared: Prepared,
        method: &M,
        on: DeviceOption,
    ) -> Result<Self> {
        let Prepared { recipe, place, base, mut data, eval } = prepared;
        let found = Found::of(&data, &eval);
        let start = Start::Fresh(recipe.training.seed);
        let run_path = &recipe.output.dir;
        let frozen =
            Frozen::find(backend.clone(), run_path, &recipe.method.settings, &base, &mut data)?;
        let loaded = || method_model_on(backend, &base, frozen.codes(), method, start);
        let mut model = waiting(LOADING, loaded)?;
        let (context, data_sha256) = (recipe.data.context, data.fingerprint());
        let settings = recipe.training.clone();
        let schedule = recipe.schedule;
        let mut trainer =
            Trainer::new(&mut model, data, context, settings, &recipe.optimizer, schedule)?;
        let fingerprint = base.fingerprint()?;
        let folder = place.open(&recipe.output.dir, &recipe)?;
        let fingerprint = frozen.keep(folder.path(), &base, fingerprint)?;
        let device = on.compute.device_name::<B>();
        let state = TrainingState::new(device, fingerprint, data_sha256, folder.recipe_sha256()?);
        let timetable = Timetable {
            steps: recipe.training.steps,
            eval_every: recipe.training.eval_every,
            eval_start: true,
            context,
            checkpoints: recipe.checkpoints,
            early_stopping: recipe.early_stopping,
        };
        if let Some(found) = found {
            let text = serde_json::to_string_pretty(&found)?;
            write_file(&folder.path().join("data.json"), text.as_bytes())?;
        }
        let run = Run::begin(folder, state, timetable, eval, (&mut model, &mut trainer))?;
        Ok(Self { model, trainer, run })
    }
}

fn warn_of_floored_scales<B: Backend, L: LinearMethod<B>>(model: &Llama<B, L>) -> Result<()> {
    for (name, layer) in model.linears() {
        let Some(scale) = layer.trained_scale() else { continue };
        let (still, groups) = scale.standing_still(model.backend())?;
        if still > 0 {
            eprintln!(
                "warning: {name}: {still} of {groups} scales are at the floor, or beyond what \
                 method.target holds"
            );
        }
    }
    Ok(())
}
