//! `plumbline generate`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{LoadedModel, ModelFolder, Tokenizer};
use plumbline::generate::{Sampling, generate as continue_text};
use plumbline::methods::LinearMethod;
use plumbline::model::{Decoder, Llama};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::device::{DeviceOption, Opened};
use super::progress::waiting;
use super::source::{open_model, parse_token_ids};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Generate {
    /// Model folder in Hugging Face layout, merged or not; the built-in model by default
    #[arg(long)]
    model: Option<PathBuf>,
    /// Text to continue
    #[arg(long, conflicts_with = "prompt_ids")]
    prompt: Option<String>,
    /// Token ids to continue, separated by commas
    #[arg(long)]
    prompt_ids: Option<String>,
    /// New tokens at most
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// 0 takes the most likely token
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Consider only the most likely tokens with this probability together
    #[arg(long, default_value_t = 0.95)]
    top_p: f64,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    on: DeviceOption,
    /// Print one JSON object with the new token ids (and the text, where there is a tokenizer)
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn generate(arguments: &Generate) -> Result<()> {
    let sampling = Sampling::new(arguments.temperature, arguments.top_p)?;
    let opened = arguments.on.open()?;
    let folder = open_model(arguments.model.as_deref())?;
    let config = folder.config();
    let tokenizer = match folder.tokenizer_bytes() {
        Some(_) => Some(folder.tokenizer()?),
        None => None,
    };
    let prompt = match (&arguments.prompt, &arguments.prompt_ids, config.bos_token_id) {
        (Some(text), ..) => folder.tokenizer()?.encode(text)?,
        (None, Some(ids), _) => parse_token_ids(ids, config.vocab_size)?,
        (None, None, Some(bos)) => vec![bos as i32],
        (None, None, None) => bail!("the model has no BOS token: give --prompt or --prompt-ids"),
    };
    let task = Task { arguments, sampling, folder, tokenizer, prompt };
    match opened {
        Opened::Cpu(backend) => task.load_and_run(backend),
        Opened::Cuda(backend) => task.load_and_run(backend),
        Opened::CudaHost(backend) => task.load_and_run(backend),
    }
}

/// What is read before a model is loaded.
struct Task<'a> {
    arguments: &'a Generate,
    sampling: Sampling,
    folder: ModelFolder,
    tokenizer: Option<Tokenizer>,
    prompt: Vec<i32>,
}

impl Task<'_> {
    fn load_and_run<B: Backend>(&self, backend: Arc<B>) -> Result<()> {
        match waiting("loading the model", || self.folder.load(backend))? {
            LoadedModel::Dense(model) => self.run(&model),
            LoadedModel::Merged(model) => self.run(&model),
            LoadedModel::Affine(model) => self.run(&model),
        }
    }

    fn run<B: Backend, L: LinearMethod<B>>(&self, model: &Llama<B, L>) -> Result<()> {
        let Self { arguments, tokenizer, prompt, .. } = self;
        let mut decoder = Decoder::new(model, prompt.len() + arguments.tokens)?;
        let mut random = ChaCha8Rng::seed_from_u64(arguments.seed);
        let mut stream = (!arguments.json).then(|| Stream::new(tokenizer.as_ref(), prompt));
        if let Some(stream) = &mut stream {
            stream.show()?;
        }
        let ends = &self.folder.config().eos_token_ids;
        let each = |token| match &mut stream {
            Some(stream) => stream.push(token),
            None => Ok(()),
        };
        let (count, sampling) = (arguments.tokens, self.sampling);
        let new = continue_text(&mut decoder, prompt, count, sampling, ends, &mut random, each)?;
        if arguments.json {
            let mut value = serde_json::json!({ "prompt_ids": prompt, "new_ids": new });
            if let Some(tokenizer) = tokenizer {
                value["text"] = tokenizer.decode(&new)?.into();
            }
            println!("{value}");
        } else {
            println!();
        }
        Ok(())
    }
}

/// Prints text as it grows; ids where there is no tokenizer.
struct Stream<'a> {
    tokenizer: Option<&'a Tokenizer>,
    ids: Vec<i32>,
    shown: usize,
}

impl<'a> Stream<'a> {
    fn new(tokenizer: Option<&'a Tokenizer>, prompt: &[i32]) -> Self {
        Self { tokenizer, ids: prompt.to_vec(), shown: 0 }
    }

    fn push(&mut self, token: i32) -> plumbline::error::Result<()> {
        self.ids.push(token);
        self.show()
    }

    fn show(&mut self) -> plumbline::error::Result<()> {
        match self.tokenizer {
            Some(tokenizer) => {
                let text = tokenizer.decode(&self.ids)?;
                // A character may be split over tokens: wait for its end.
                if !text.ends_with('\u{fffd}') && text.is_char_boundary(self.shown) {
                    print!("{}", &text[self.shown.min(text.len())..]);
                    self.shown = text.len();
                }
            }
            None => {
                for id in &self.ids[self.shown..] {
                    print!("{id} ");
                }
                self.shown = self.ids.len();
            }
        }
        // A closed pipe ends the listening, not the program's correctness.
        let _ = std::io::stdout().flush();
        Ok(())
    }
}
