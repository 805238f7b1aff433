//! `plumbline quantize`: a full-precision model to codes without training.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{ModelFolder, QuantizationConfig, StoredCodes};
use plumbline::methods::AffineTensors;
use plumbline::model::Projection;
use plumbline::ptq::{Calibration, GptqOptions, PtqSettings, quantize_watched};
use plumbline_reference::spec::{Bits, RtnSpec};
use serde_json::json;

use super::device::{DeviceOption, Opened};
use super::merge::{logits, probe, refuse, write_and_reload};
use super::progress::Progress;
use super::run::encode_plain;
use super::source::open_model;

/// Windows that GPTQ is calibrated on.
const WINDOWS: usize = 128;

/// Tokens of such a window, where the model has room for them.
const CONTEXT: usize = 2048;

/// `quantize`.
#[derive(clap::Args)]
pub struct Quantize {
    /// Model folder in Hugging Face layout; the built-in model by default
    model: Option<PathBuf>,
    /// Round to nearest, or column after column with each error made up for by the next
    #[arg(long, value_enum)]
    method: MethodOption,
    /// Width of a code, 2 to 8
    #[arg(long)]
    bits: u32,
    /// Consecutive inputs that share a scale; one group per row by default
    #[arg(long)]
    group_size: Option<usize>,
    /// Zero points in the middle of the codes instead of where the range puts them
    #[arg(long)]
    symmetric: bool,
    #[command(flatten)]
    gptq: GptqArguments,
    /// The folder to write, which must not exist
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    on: DeviceOption,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MethodOption {
    Rtn,
    Gptq,
}

/// What only GPTQ is told.
#[derive(clap::Args)]
struct GptqArguments {
    /// gptq: a UTF-8 text file that inputs of layers are measured on, or builtin:NAME
    #[arg(long, value_name = "TEXT")]
    calibration: Option<PathBuf>,
    /// gptq: windows of the text, 128 by default
    #[arg(long)]
    windows: Option<usize>,
    /// gptq: tokens of a window; by default 2048, or what the model was trained for if that is
    /// less
    #[arg(long)]
    context: Option<usize>,
    /// gptq: which windows, 0 by default
    #[arg(long)]
    seed: Option<u64>,
    /// gptq: part of the mean of the Hessian's diagonal that is added to the diagonal, 0.01 by
    /// default
    #[arg(long)]
    damping: Option<f64>,
    /// gptq: columns whose updates reach those behind them together, 128 by default
    #[arg(long)]
    block_size: Option<usize>,
    /// gptq: round the inputs that matter most first, on grids found beforehand
    #[arg(long)]
    act_order: bool,
}

impl GptqArguments {
    /// The first option that was given.
    fn given(&self) -> Option<&'static str> {
        let all = [
            ("--calibration", self.calibration.is_some()),
            ("--windows", self.windows.is_some()),
            ("--context", self.context.is_some()),
            ("--seed", self.seed.is_some()),
            ("--damping", self.damping.is_some()),
            ("--block-size", self.block_size.is_some()),
            ("--act-order", self.act_order),
        ];
        all.into_iter().find_map(|(option, given)| given.then_some(option))
    }

    fn options(&self, symmetric: bool) -> GptqOptions {
        let published = GptqOptions::default();
        GptqOptions {
            symmetric,
            damping: self.damping.unwrap_or(published.damping),
            block_size: self.block_size.unwrap_or(published.block_size),
            act_order: self.act_order,
        }
    }

    fn calibration(&self, base: &ModelFolder) -> Result<Calibration> {
        let path = self.calibration.as_ref().context("--method gptq needs --calibration")?;
        let longest = base.config().max_position_embeddings;
        let context = self.context.unwrap_or(CONTEXT.min(longest));
        if !(1..=longest).contains(&context) {
            bail!("--context is {context}, expected 1 to {longest} for this model");
        }
        let windows = self.windows.unwrap_or(WINDOWS);
        if windows == 0 {
            bail!("--windows is 0, expected at least 1");
        }
        let tokens = encode_plain(path, &base.tokenizer()?)?;
        Calibration::of_text(tokens, windows, context, self.seed.unwrap_or(0))
            .with_context(|| path.display().to_string())
    }
}

/// Runs the command: exit code 1 when what was written does not read as what was quantized.
pub fn quantize(arguments: &Quantize) -> Result<ExitCode> {
    match arguments.on.open()? {
        Opened::Cpu(backend) => quantize_on(backend, arguments),
        Opened::Cuda(backend) => quantize_on(backend, arguments),
        Opened::CudaHost(backend) => quantize_on(backend, arguments),
    }
}

fn quantize_on<B: Backend>(backend: Arc<B>, arguments: &Quantize) -> Result<ExitCode> {
    let Quantize { method, bits, group_size, symmetric, gptq, out, .. } = arguments;
    if out.exists() {
        bail!("{}: already exists; choose another --out or remove it", out.display());
    }
    let bits = Bits::new(*bits).context("--bits")?;
    let base = open_model(arguments.model.as_deref())?;
    let (group_size, symmetric) = (*group_size, *symmetric);
    let (settings, calibration) = match method {
        MethodOption::Rtn => {
            if let Some(option) = gptq.given() {
                bail!("{option} is for --method gptq; rtn looks at the weights alone");
            }
            let rtn = RtnSpec { symmetric, ..RtnSpec::default() };
            (PtqSettings::Rtn { bits, group_size, rtn }, Calibration::none())
        }
        MethodOption::Gptq => {
            let options = gptq.options(symmetric);
            (PtqSettings::Gptq { bits, group_size, options }, gptq.calibration(&base)?)
        }
    };
    let layers = Projection::all(base.config()).len();
    let mut bar = Progress::new(settings.name(), layers as u64);
    let progress = |done| bar.at(done as u64, String::new);
    let made = quantize_watched(backend, &base, &settings, &calibration, progress)?;
    drop(bar);
    let compared = logits(&made.model, &probe(&base))?;
    let quantization = QuantizationConfig::new((bits, group_size), AffineTensors::ZERO_POINT, []);
    if let Some(difference) = write_and_reload(out, &made, &quantization, &base, &compared)? {
        return Ok(refuse("the model as reloaded", "the quantized one", difference));
    }
    report(arguments, &settings, &calibration, compared.len());
    Ok(ExitCode::SUCCESS)
}

fn report(
    arguments: &Quantize,
    settings: &PtqSettings,
    calibration: &Calibration,
    compared: usize,
) {
    let (out, name) = (&arguments.out, settings.name());
    let (bits, group_size) = settings.grid();
    let windows = calibration.windows().len();
    let tokens = calibration.tokens();
    if arguments.json {
        let value = json!({
            "out": out, "method": name, "bits": bits, "group_size": group_size,
            "symmetric": arguments.symmetric, "calibration_windows": windows,
            "calibration_tokens": tokens, "logits_compared": compared,
        });
        println!("{value}");
        return;
    }
    let groups = group_size.map_or("one group per row".into(), |size| format!("groups of {size}"));
    let measured = match windows {
        0 => String::new(),
        _ => format!(", calibrated on {tokens} tokens in {windows} windows"),
    };
    println!(
        "{}: {name}, {} bits, {groups}{measured}; after reloading every bit of {compared} logits \
         is the quantized model's",
        out.display(),
        bits.count()
    );
}
