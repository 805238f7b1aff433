//! What `train` and `pretrain` share: texts, the run folder, and watching the loop.

use std::path::Path;

use anyhow::{Context, Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::{Tokenizer, write_file};
use plumbline::embedded;
use plumbline::error::Error;
use plumbline::eval::{Perplexity, perplexity};
use plumbline::methods::LinearMethod;
use plumbline::model::Llama;
use plumbline::train::{Metrics, Observer, StepRecord};
use serde::Serialize;

use super::progress::Progress;

/// A text file, or one inside this program; an empty one is refused.
pub fn read_text(path: &Path) -> Result<String> {
    let text = match path.to_string_lossy().strip_prefix("builtin:") {
        Some(name) => embedded::text(name)?.to_owned(),
        None => {
            let bytes =
                std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
            let Ok(text) = String::from_utf8(bytes) else {
                bail!("{}: is not UTF-8 text", path.display());
            };
            text
        }
    };
    if text.trim().is_empty() {
        bail!("{}: the text is empty", path.display());
    }
    Ok(text)
}

/// A text to be evaluated, by the name it has in reports.
pub struct EvalText {
    /// File name without folder.
    pub name: String,
    /// Token ids.
    pub tokens: Vec<i32>,
}

impl EvalText {
    /// Reads and encodes.
    pub fn read(path: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let tokens = tokenizer.encode(&read_text(path)?)?;
        if tokens.len() < 2 {
            bail!("{}: has fewer than two tokens", path.display());
        }
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, tokens })
    }
}

/// Makes the run folder with the resolved recipe in it.
pub fn start_run(folder: &Path, recipe: &impl Serialize) -> Result<Metrics> {
    if folder.exists() {
        bail!("{}: already exists; choose another output.dir or remove it", folder.display());
    }
    let text = toml::to_string(recipe).context("the recipe cannot be written as TOML")?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    write_file(&folder.join("recipe.toml"), text.as_bytes())?;
    Ok(Metrics::create(&folder.join("metrics.jsonl"))?)
}

/// One evaluation, as `metrics.jsonl` has it.
#[derive(Serialize)]
struct EvalRecord<'a> {
    step: u64,
    text: &'a str,
    #[serde(flatten)]
    result: Perplexity,
}

/// Writes metrics, shows progress, evaluates now and then.
pub struct Watch<'a> {
    metrics: &'a mut Metrics,
    progress: Progress,
    texts: &'a [EvalText],
    context: usize,
    every: u64,
    steps: u64,
    /// The last evaluation of each text.
    pub results: Vec<(String, Perplexity)>,
    /// Mean loss of the last step.
    pub last_loss: f64,
}

impl<'a> Watch<'a> {
    /// Evaluates `texts` after every `every` steps and at the end.
    pub fn new(
        metrics: &'a mut Metrics,
        texts: &'a [EvalText],
        context: usize,
        every: u64,
        steps: u64,
    ) -> Self {
        let progress = Progress::new("training", steps);
        Self { metrics, progress, texts, context, every, steps, results: vec![], last_loss: 0.0 }
    }

    /// Perplexity of every text, written to the metrics.
    pub fn evaluate<B: Backend, L: LinearMethod<B>>(
        &mut self,
        step: u64,
        model: &Llama<B, L>,
    ) -> plumbline::error::Result<()> {
        self.results.clear();
        for text in self.texts {
            let result = perplexity(model, &text.tokens, self.context, |_| {})?;
            self.metrics.write(&EvalRecord { step, text: &text.name, result })?;
            let line = format!("step {step}: perplexity of {} {:.3}", text.name, result.perplexity);
            self.progress.say(&line);
            self.results.push((text.name.clone(), result));
        }
        Ok(())
    }
}

impl<B: Backend, L: LinearMethod<B>> Observer<B, L> for Watch<'_> {
    fn after_step(
        &mut self,
        record: &StepRecord,
        model: &mut Llama<B, L>,
    ) -> plumbline::error::Result<()> {
        self.metrics.write(record)?;
        self.last_loss = record.loss;
        self.progress.at(record.step, || {
            format!("loss {:.4}, {:.0} tokens/s", record.loss, record.tokens_per_second)
        });
        let due = self.every > 0 && record.step.is_multiple_of(self.every);
        if due || record.step == self.steps {
            self.evaluate(record.step, model)?;
        }
        Ok(())
    }
}
