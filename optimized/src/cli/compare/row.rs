//! One row of a comparison, in a process of its own: made, measured, written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{ModelFolder, write_file};
use plumbline::eval::perplexity;
use plumbline::finetune::{MergedModel, Method};
use plumbline::methods::{CodeTensors, IntoCodes, LinearMethod};
use plumbline::model::{Llama, Projection};
use plumbline::ptq::{Calibration, PtqSettings, quantize_watched};
use plumbline::recipe::{Making, Row, TrainRecipe};
use plumbline::report::comparison::{
    Deployment, Environment, PeakMemory, RowResult, TextResult, TrainingResult,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::data::encode_files;
use super::super::device::{DeviceOption, Opened};
use super::super::fit::End;
use super::super::memory::Meter;
use super::super::merge::{Merging, Proof, refuse};
use super::super::methods::with_method;
use super::super::progress::{Progress, waiting};
use super::super::run::Place;
use super::super::source::open_model;
use super::super::train::{Begun, Prepared, eval_text};
use super::{PEAK, RESULT, ROW, RUN};

/// Everything that a row's process is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    /// SHA-256 of everything that the result depends on.
    pub digest: String,
    /// What is made.
    pub row: Row,
    /// Of what; absent for the model inside the program.
    pub model: Option<PathBuf>,
    /// What a trained row is trained on, and GPTQ calibrated.
    pub train: Vec<PathBuf>,
    /// Seed of the order of the data.
    pub seed: u64,
    /// What it is measured on.
    pub eval: Vec<PathBuf>,
    /// Tokens of a window.
    pub context: usize,
    /// Windows of each text; absent for all.
    pub eval_windows: Option<usize>,
}

/// A row that is made, before it is written.
struct Made {
    deployment: Deployment,
    perplexity: Vec<TextResult>,
    trained_perplexity: Vec<TextResult>,
    largest_difference: Option<f32>,
    linear_bits: u64,
    training: Option<TrainingResult>,
    seconds: f64,
    peak_memory: Option<PeakMemory>,
}

/// How the work of a row ended.
enum Outcome {
    Made(Box<Made>),
    /// Without a result, and what the process says then.
    Ended(ExitCode),
}

/// A trained model and what it took, or how the process ends where a signal came first.
type Trained<B, L> = Result<(Llama<B, L>, Made), ExitCode>;

/// Runs the command of a row's process.
pub fn row(folder: &Path, on: DeviceOption) -> Result<ExitCode> {
    let opened = on.open()?;
    let meter = Meter::of(&opened)?;
    match opened {
        Opened::Cpu(backend) => run(backend, folder, meter, on),
        Opened::Cuda(backend) => run(backend, folder, meter, on),
        Opened::CudaHost(backend) => run(backend, folder, meter, on),
    }
}

fn run<B: Backend>(
    backend: Arc<B>,
    folder: &Path,
    meter: Meter,
    on: DeviceOption,
) -> Result<ExitCode> {
    let task: Task = read_json(&folder.join(ROW))?;
    let base = open_model(task.model.as_deref())?;
    let work = Work { backend, folder, on, meter, task, base };
    let made = match work.make()? {
        Outcome::Made(made) => *made,
        Outcome::Ended(code) => return Ok(code),
    };
    let result = work.result(made)?;
    let text = format!("{:#}\n", serde_json::to_value(&result)?);
    write_file(&folder.join(RESULT), text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// A JSON file that this program wrote.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: cannot read", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

struct Work<'a, B> {
    backend: Arc<B>,
    folder: &'a Path,
    on: DeviceOption,
    meter: Meter,
    task: Task,
    base: ModelFolder,
}

impl<B: Backend> Work<'_, B> {
    fn make(&self) -> Result<Outcome> {
        match &self.task.row.making {
            Making::FullPrecision => self.full_precision(),
            Making::Rtn(settings) => {
                let (bits, group_size, rtn) = (settings.bits, settings.group_size, settings.rtn()?);
                self.quantized(&PtqSettings::Rtn { bits, group_size, rtn }, || {
                    Ok(Calibration::none())
                })
            }
            Making::Gptq(settings) => {
                let calibration = || self.calibration(settings.windows);
                self.quantized(&settings.ptq()?, calibration)
            }
            Making::Trained(recipe) => with_method!(
                &recipe.method,
                codes: |method| self.merged(recipe, &method),
                beside: |method| self.as_trained(recipe, &method)
            ),
        }
    }

    fn full_precision(&self) -> Result<Outcome> {
        let began = Instant::now();
        let load = || self.base.load_dense(self.backend.clone(), false);
        let model = waiting("loading the model", load)?;
        let (seconds, peak_memory) = (began.elapsed().as_secs_f64(), self.peak());
        let (linear_bits, _) = self.base.stored_bits()?;
        self.untrained(&model, linear_bits, seconds, peak_memory)
    }

    /// Quantized without training.
    fn quantized(
        &self,
        settings: &PtqSettings,
        calibration: impl FnOnce() -> Result<Calibration>,
    ) -> Result<Outcome> {
        let calibration = calibration()?;
        let began = Instant::now();
        let layers = Projection::all(self.base.config()).len();
        let mut bar = Progress::new(settings.name(), layers as u64);
        let progress = |done| bar.at(done as u64, String::new);
        let backend = self.backend.clone();
        let MergedModel { model, linears } =
            quantize_watched(backend, &self.base, settings, &calibration, progress)?;
        drop(bar);
        let (seconds, peak_memory) = (began.elapsed().as_secs_f64(), self.peak());
        self.untrained(&model, bits_of(&linears), seconds, peak_memory)
    }

    fn calibration(&self, windows: usize) -> Result<Calibration> {
        let Task { train, context, seed, .. } = &self.task;
        let tokenizer = self.base.tokenizer()?;
        let tokens = encode_files(train, &tokenizer, self.base.config().vocab_size)?;
        Ok(Calibration::of_text(tokens, windows, *context, *seed)?)
    }

    fn untrained<L: LinearMethod<B>>(
        &self,
        model: &Llama<B, L>,
        linear_bits: u64,
        seconds: f64,
        peak_memory: Option<PeakMemory>,
    ) -> Result<Outcome> {
        Ok(Outcome::Made(Box::new(Made {
            deployment: Deployment::Untrained,
            perplexity: self.measure(model)?,
            trained_perplexity: Vec::new(),
            largest_difference: None,
            linear_bits,
            training: None,
            seconds,
            peak_memory,
        })))
    }

    /// Trained, merged, and measured as it is deployed. The trained model is measured too where the
    /// merged one is not the same in every bit.
    fn merged<M: Method>(&self, recipe: &TrainRecipe, method: &M) -> Result<Outcome>
    where
        M::Layer<B>: IntoCodes<B>,
    {
        let (model, trained) = match self.train(recipe, method)? {
            Ok(trained) => trained,
            Err(code) => return Ok(Outcome::Ended(code)),
        };
        let (deployment, trained_perplexity) = match Proof::of(&recipe.method.settings) {
            Proof::Bits => (Deployment::SameBits, Vec::new()),
            Proof::Function => (Deployment::SameFunction, self.measure(&model)?),
            Proof::None => (Deployment::RoundedAnew, self.measure(&model)?),
        };
        let merging = Merging::new(model, &self.base)?;
        if deployment == Deployment::SameBits
            && let Some(difference) = merging.difference
        {
            let code = refuse("the merged model", "the trained one", difference);
            return Ok(Outcome::Ended(code));
        }
        Ok(Outcome::Made(Box::new(Made {
            deployment,
            perplexity: self.measure(&merging.merged.model)?,
            trained_perplexity,
            largest_difference: Some(merging.apart),
            linear_bits: bits_of(&merging.merged.linears),
            ..trained
        })))
    }

    /// Trained, and measured with the update beside the weight.
    fn as_trained<M: Method>(&self, recipe: &TrainRecipe, method: &M) -> Result<Outcome> {
        let (model, trained) = match self.train(recipe, method)? {
            Ok(trained) => trained,
            Err(code) => return Ok(Outcome::Ended(code)),
        };
        let update: usize =
            model.linears().iter().flat_map(|(_, layer)| layer.cost().trained).sum();
        let weights = match method.grid() {
            // Scale and offset of a group are among the trained values.
            Some((bits, _)) => u64::from(bits.count()) * self.linear_parameters() as u64,
            None => self.base.stored_bits()?.0,
        };
        Ok(Outcome::Made(Box::new(Made {
            perplexity: self.measure(&model)?,
            linear_bits: weights + 32 * update as u64,
            ..trained
        })))
    }

    /// Trains to the last step and says what it took; the measurements are for the caller.
    fn train<M: Method>(
        &self,
        recipe: &TrainRecipe,
        method: &M,
    ) -> Result<Trained<B, M::Layer<B>>> {
        let mut recipe = recipe.clone();
        recipe.output.dir = self.folder.join(RUN);
        // The row's folder stands for its digest, so a run in it is a run of this recipe.
        let place = if recipe.output.dir.exists() { Place::Begun } else { Place::New };
        let prepared = Prepared::read(recipe, place, &self.folder.join(ROW))?;
        let Begun { mut model, mut trainer, mut run } =
            Begun::new(self.backend.clone(), prepared, method, self.on)?;
        let first = run.state.position.step;
        let end = run.fit(&mut model, &mut trainer)?;
        let position = run.state.position;
        let peak_memory = self.peak_of_sessions(position.step > first)?;
        if let End::Interrupted(_) = end {
            return Ok(Err(end.exit_code()));
        }
        let training = TrainingResult {
            trained_values: model.trainable().iter().map(|tensor| tensor.len).sum(),
            steps: position.step,
            tokens: position.tokens,
            tokens_per_second: position.tokens as f64 / position.seconds,
        };
        let made = Made {
            deployment: Deployment::AsTrained,
            perplexity: Vec::new(),
            trained_perplexity: Vec::new(),
            largest_difference: None,
            linear_bits: 0,
            training: Some(training),
            seconds: position.seconds,
            peak_memory,
        };
        Ok(Ok((model, made)))
    }

    fn peak(&self) -> Option<PeakMemory> {
        // A system that does not tell leaves a gap in the table.
        let bytes = self.meter.bytes().ok()?;
        Some(PeakMemory { bytes, of: self.meter.what.to_owned() })
    }

    /// The largest peak of the processes that trained the run, of which this is one if it did a step.
    fn peak_of_sessions(&self, is_trained_here: bool) -> Result<Option<PeakMemory>> {
        let path = self.folder.join(PEAK);
        let before: Option<PeakMemory> = path.exists().then(|| read_json(&path)).transpose()?;
        let here = is_trained_here.then(|| self.peak()).flatten();
        let peak = before.into_iter().chain(here).max_by_key(|peak| peak.bytes);
        if let Some(peak) = &peak {
            write_file(&path, serde_json::to_string(peak)?.as_bytes())?;
        }
        Ok(peak)
    }

    fn measure<L: LinearMethod<B>>(&self, model: &Llama<B, L>) -> Result<Vec<TextResult>> {
        let tokenizer = self.base.tokenizer()?;
        let context = self.task.context;
        let measured = self.task.eval.iter().map(|path| {
            let mut text = eval_text(path, &self.base, &tokenizer)?;
            if let Some(windows) = self.task.eval_windows {
                text.tokens.truncate(windows * context);
            }
            let mut bar = Progress::new("perplexity", text.tokens.len() as u64);
            let progress = |done| bar.at(done as u64, String::new);
            let result = perplexity(model, &text.tokens, context, progress)?;
            Ok(TextResult::new(&text.name, result))
        });
        measured.collect()
    }

    fn linear_parameters(&self) -> usize {
        let linears = Projection::all(self.base.config());
        linears.iter().map(|linear| linear.out_features * linear.in_features).sum()
    }

    fn result(&self, made: Made) -> Result<RowResult> {
        let Task { digest, row, .. } = &self.task;
        let (_, other_bits) = self.base.stored_bits()?;
        let (linears, all) = (self.linear_parameters(), super::parameters(&self.base));
        if linears == 0 {
            bail!("the model has no linear layers");
        }
        Ok(RowResult {
            digest: digest.clone(),
            name: row.name.clone(),
            method: row.method().to_owned(),
            bits: row.bits,
            optimizer: row.optimizer.clone(),
            deployment: made.deployment,
            perplexity: made.perplexity,
            trained_perplexity: made.trained_perplexity,
            largest_difference: made.largest_difference,
            linear_bits_per_weight: made.linear_bits as f64 / linears as f64,
            model_bits_per_weight: (made.linear_bits + other_bits) as f64 / all as f64,
            training: made.training,
            seconds: made.seconds,
            peak_memory: made.peak_memory,
            environment: Environment::new(&self.on.compute.device_name::<B>()),
        })
    }
}

fn bits_of<T: CodeTensors>(linears: &BTreeMap<String, T>) -> u64 {
    linears.values().map(CodeTensors::stored_bits).sum()
}
