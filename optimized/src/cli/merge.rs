//! `plumbline merge`: a trained run to integer codes, with proof that they are the trained model,
//! or how far they are from it where a method does not end in codes of its own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{
    Checkpoint, LoadedModel, ModelFolder, QuantizationConfig, StoredCodes, new_folder,
    open_checkpoint, save_merged,
};
use plumbline::finetune::{
    Difference, FrozenCodes, MergedModel, Method, Start, first_difference, logit_difference,
    merge as to_codes, method_model_on,
};
use plumbline::methods::{CodeTensors, IntoCodes, LinearMethod};
use plumbline::model::{Llama, Projection};
use plumbline::recipe::{self, MethodSettings, TrainRecipe};
use plumbline::train::{Checkpoints, RECIPE};
use plumbline_reference::spec::ActivationSpec;

use super::device::{DeviceOption, Opened};
use super::frozen;
use super::methods::with_method;
use super::progress::waiting;
use super::source::open_model;

/// Tokens whose logits are compared.
const PROBE_TOKENS: usize = 256;

/// What the command was asked.
pub struct MergeOptions {
    /// The run's folder.
    pub run: PathBuf,
    /// `last`, `best` or `step-N`.
    pub checkpoint: String,
    /// The folder to write.
    pub out: PathBuf,
    /// Print one JSON object.
    pub json: bool,
}

/// A merge under way.
struct Merge<'a, B> {
    backend: Arc<B>,
    out: &'a Path,
    json: bool,
    base: ModelFolder,
    codes: Option<FrozenCodes>,
    path: PathBuf,
    checkpoint: Checkpoint,
}

/// Runs the command: exit code 1 when the merged model is not bit for bit what it has to be.
pub fn merge(options: &MergeOptions, on: DeviceOption) -> Result<ExitCode> {
    match on.open()? {
        Opened::Cpu(backend) => merge_on(backend, options),
        Opened::Cuda(backend) => merge_on(backend, options),
        Opened::CudaHost(backend) => merge_on(backend, options),
    }
}

/// The checkpoint of a run that is meant. A damaged one is refused and not replaced by another:
/// what is merged is what was asked for.
fn find_checkpoint(run: &Path, which: &str) -> Result<PathBuf> {
    let checkpoints = Checkpoints::of_run(run);
    let steps = checkpoints.steps()?;
    let Some(last) = steps.last() else {
        bail!("{}: holds no checkpoint", run.display());
    };
    let step = match which {
        "last" => *last,
        "best" => {
            let newest = open_checkpoint(&checkpoints.path(*last))?;
            let best = newest.state.evaluations.best;
            best.with_context(|| format!("{}: had no evaluation yet", run.display()))?.step
        }
        _ => match which.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            Some(step) => step,
            None => bail!("--checkpoint is {which}, expected last, best or step-N"),
        },
    };
    if !steps.contains(&step) {
        let each: Vec<String> = steps.iter().map(|step| format!("step-{step}")).collect();
        bail!("{}: has no step-{step}, it has {}", run.display(), each.join(", "));
    }
    Ok(checkpoints.path(step))
}

fn merge_on<B: Backend>(backend: Arc<B>, options: &MergeOptions) -> Result<ExitCode> {
    let MergeOptions { run, out, json, .. } = options;
    if out.exists() {
        bail!("{}: already exists; choose another --out or remove it", out.display());
    }
    let recipe_path = run.join(RECIPE);
    let recipe: TrainRecipe = recipe::read(&recipe_path)?;
    let base = open_model(recipe.model.path.as_deref())?;
    let path = find_checkpoint(run, &options.checkpoint)?;
    let checkpoint = open_checkpoint(&path)?;
    let fingerprint = waiting("checking the base model", || base.fingerprint())?;
    let (codes, fingerprint) = frozen::of_run(run, &recipe.method.settings, fingerprint)?;
    if fingerprint != checkpoint.state.base_sha256 {
        bail!(
            "{}: trained on a base with fingerprint {}, {} has {fingerprint}",
            path.display(),
            checkpoint.state.base_sha256,
            base.path().display()
        );
    }
    let merge = Merge { backend, out, json: *json, base, codes, path, checkpoint };
    let method = &recipe.method;
    let proof = Proof::of(&method.settings);
    with_method!(method, codes: |method| merge.run(&method, proof), beside: |_method| bail!(
        "{}: method.name is {}, which keeps its update beside the weight; merge is for methods \
         that end in codes",
        recipe_path.display(),
        method.settings.name()
    ))
}

/// What merging a method keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Every bit of the trained model's logits.
    Bits,
    /// The function, in other roundings: how far the logits are apart is reported.
    Function,
    /// Nothing: the merged weight is rounded anew, and how far the logits are apart is reported.
    None,
}

impl Proof {
    /// What merging that method keeps.
    pub fn of(method: &MethodSettings) -> Self {
        match method {
            MethodSettings::L4q(_)
            | MethodSettings::LrQat(_)
            | MethodSettings::Peqa(_)
            | MethodSettings::Qat(_) => Self::Bits,
            MethodSettings::QaLora(_) => Self::Function,
            MethodSettings::Lora(_) | MethodSettings::QatLora(_) | MethodSettings::Qlora(_) => {
                Self::None
            }
        }
    }
}

/// A merged model beside the trained one.
pub struct Merging<B: Backend, T: CodeTensors> {
    /// The model and what it is made of.
    pub merged: MergedModel<B, T>,
    /// Its logits of the [`probe`].
    pub logits: Vec<f32>,
    /// Largest difference between the logits of the two.
    pub apart: f32,
    /// Where their bits first differ.
    pub difference: Option<Difference>,
}

impl<B: Backend, T: CodeTensors> Merging<B, T> {
    /// Merges, and compares the logits before and after.
    pub fn new<L>(model: Llama<B, L>, base: &ModelFolder) -> Result<Self>
    where
        L: IntoCodes<B, Tensors = T>,
    {
        let probe = probe(base);
        let trained = logits(&model, &probe)?;
        let merged = waiting("merging", || to_codes(model))?;
        let logits = logits(&merged.model, &probe)?;
        let difference = logit_difference(&trained, &logits, base.config().vocab_size)?;
        let apart = largest_difference(&trained, &logits);
        Ok(Self { merged, logits, apart, difference })
    }
}

/// What a method's layers leave.
type Codes<B, M> = <<M as Method>::Layer<B> as IntoCodes<B>>::Tensors;

impl<B: Backend> Merge<'_, B> {
    fn run<M: Method>(&self, method: &M, proof: Proof) -> Result<ExitCode>
    where
        M::Layer<B>: IntoCodes<B>,
        Codes<B, M>: StoredCodes,
    {
        let (start, base) = (Start::Checkpoint(&self.checkpoint), &self.base);
        let codes = self.codes.as_ref();
        let loaded = || method_model_on(self.backend.clone(), base, codes, method, start);
        let model = waiting("loading the trained model", loaded)?;
        let Merging { merged, logits, apart, difference } = Merging::new(model, base)?;
        if proof == Proof::Bits
            && let Some(difference) = difference
        {
            return Ok(refuse("the merged model", "the trained one", difference));
        }
        let Some(grid) = method.grid() else { bail!("the method has no codes") };
        let grids = Projection::all(base.config()).into_iter().map(|linear| {
            let grid = method.grid_of(&linear);
            (linear.name, grid)
        });
        let quantization = QuantizationConfig::new(grid, Codes::<B, M>::ZERO_POINT, grids)
            .with_activations(method.activations())
            .with_target(method.target());
        let layers = merged.linears.len() - quantization.unquantized.len();
        if let Some(difference) = write_and_reload(self.out, &merged, &quantization, base, &logits)?
        {
            return Ok(refuse("the model as reloaded", "the merged one", difference));
        }
        self.report(proof, layers, logits.len(), apart, method.activations());
        Ok(ExitCode::SUCCESS)
    }

    fn report(
        &self,
        proof: Proof,
        layers: usize,
        compared: usize,
        apart: f32,
        activations: Option<ActivationSpec>,
    ) {
        let Self { out, path, .. } = self;
        let is_equal = proof == Proof::Bits;
        if self.json {
            let value = serde_json::json!({
                "out": out, "checkpoint": path, "layers": layers,
                "logits_compared": compared, "bitwise_equal": is_equal,
                "largest_difference": apart, "activations": activations,
            });
            println!("{value}");
            return;
        }
        let out = out.display();
        match proof {
            Proof::Bits => println!(
                "{out}: {layers} layers merged; {compared} logits bitwise equal to the trained \
                 model's, before writing and after reloading"
            ),
            Proof::Function => println!(
                "{out}: {layers} layers merged into their zero points; of {compared} logits the \
                 largest difference to the trained model's is {apart:e}; after reloading every bit \
                 is the merged model's"
            ),
            Proof::None => println!(
                "{out}: {layers} layers with their updates rounded to nearest, which is another \
                 model than the trained one: of {compared} logits the largest difference is \
                 {apart:e}; after reloading every bit is the merged model's"
            ),
        }
        if let Some(ActivationSpec { bits, kv_bits, .. }) = activations {
            println!(
                "{out}: trained with activations rounded to {} bits for each token, keys and \
                 values to {}: whatever serves the model must round them alike \
                 (quantization_config.activations of its config.json)",
                bits.count(),
                kv_bits.count()
            );
        }
    }
}

/// Writes a model in codes and reads it again with the loader that serves it: where its logits of
/// the [`probe`] first differ from those it had.
pub fn write_and_reload<B: Backend, T: CodeTensors + StoredCodes>(
    out: &Path,
    merged: &MergedModel<B, T>,
    quantization: &QuantizationConfig,
    base: &ModelFolder,
    logits: &[f32],
) -> Result<Option<Difference>> {
    let MergedModel { model, linears } = merged;
    new_folder(out, |folder| save_merged(folder, model, linears, quantization, base))?;
    let (backend, probe) = (model.shared_backend(), probe(base));
    Ok(match ModelFolder::open(out)?.load(backend)? {
        LoadedModel::Merged(model) => first_difference(logits, &model, &probe)?,
        LoadedModel::Affine(model) => first_difference(logits, &model, &probe)?,
        LoadedModel::Dense(_) => bail!("{}: does not read as a merged model", out.display()),
    })
}

/// Logits of the ids of a [`probe`].
pub fn logits<B: Backend, L: LinearMethod<B>>(
    model: &Llama<B, L>,
    probe: &[i32],
) -> Result<Vec<f32>> {
    let mut workspace = model.evaluation_workspace(probe.len())?;
    Ok(model.logits(1, probe, &mut workspace)?)
}

/// Logits of token ids by the model of a folder.
pub fn outputs<B: Backend>(
    backend: Arc<B>,
    folder: &ModelFolder,
    tokens: &[i32],
) -> Result<Vec<f32>> {
    match folder.load(backend)? {
        LoadedModel::Dense(model) => logits(&model, tokens),
        LoadedModel::Merged(model) => logits(&model, tokens),
        LoadedModel::Affine(model) => logits(&model, tokens),
    }
}

fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

/// Says where two models differ that must not: exit code 1.
pub fn refuse(what: &str, other: &str, difference: Difference) -> ExitCode {
    let Difference { position, token, left, right } = difference;
    eprintln!(
        "{what} differs from {other}: position {position}, token {token}: \
         {left} ({:08x}) against {right} ({:08x})",
        left.to_bits(),
        right.to_bits()
    );
    ExitCode::from(1)
}

/// Ids that reach all over the vocabulary; what they say does not matter.
pub fn probe(model: &ModelFolder) -> Vec<i32> {
    let config = model.config();
    let length = PROBE_TOKENS.min(config.longest_sequence());
    (0..length)
        .map(|position| ((position * position * 31 + 7 * position) % config.vocab_size) as i32)
        .collect()
}
