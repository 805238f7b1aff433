//! What `train` and `pretrain` share: texts and the run's folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plumbline::backend::Backend;
use plumbline::checkpoint::Tokenizer;
use plumbline::embedded;
use plumbline::eval::{Perplexity, perplexity, samples_perplexity};
use plumbline::methods::LinearMethod;
use plumbline::model::Llama;
use plumbline::recipe;
use plumbline::train::parquet::{is_parquet, token_ids};
use plumbline::train::samples::Samples;
use plumbline::train::{RECIPE, RunFolder};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Whether a file of a recipe is Parquet, and not a text inside this program.
pub fn is_table(path: &Path) -> bool {
    !path.to_string_lossy().starts_with("builtin:") && is_parquet(path)
}

/// Token ids of a text, or of the texts of a table one after the other, each encoded alone.
pub fn encode_text(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<i32>> {
    match is_table(path) {
        true => Ok(token_ids(path, tokenizer)?),
        false => encode_plain(path, tokenizer),
    }
}

/// Token ids of a text file, or of a text inside this program; an empty one is refused.
pub fn encode_plain(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<i32>> {
    let is_file = !path.to_string_lossy().starts_with("builtin:") && !is_parquet(path);
    match is_file {
        true => Ok(tokenizer.encode_file(path)?),
        false => Ok(tokenizer.encode(&read_text(path)?)?),
    }
}

/// A text file, or one inside this program; an empty one is refused.
pub fn read_text(path: &Path) -> Result<String> {
    let text = match path.to_string_lossy().strip_prefix("builtin:") {
        Some(name) => embedded::text(name)?.to_owned(),
        None if is_parquet(path) => {
            bail!(
                "{}: is Parquet, which is read in data of train and compare alone",
                path.display()
            )
        }
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
        let tokens = encode_text(path, tokenizer)?;
        if tokens.len() < 2 {
            bail!("{}: has fewer than two tokens", path.display());
        }
        Ok(Self { name: name_of(path), tokens })
    }
}

/// What a file has as its name in reports: without folder.
pub fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// What a run is measured on.
pub enum Measured {
    /// Every token of a text but the first of each window.
    Text(EvalText),
    /// The counted targets of samples, by the name that their file has in reports.
    Samples(String, Box<Samples>),
}

impl Measured {
    /// In reports.
    pub fn name(&self) -> &str {
        match self {
            Self::Text(text) => &text.name,
            Self::Samples(name, _) => name,
        }
    }

    /// Measures; `context` is the length of a text's windows.
    pub fn perplexity<B: Backend, L: LinearMethod<B>>(
        &mut self,
        model: &Llama<B, L>,
        context: usize,
    ) -> plumbline::error::Result<Perplexity> {
        match self {
            Self::Text(text) => perplexity(model, &text.tokens, context, |_| {}),
            Self::Samples(_, samples) => samples_perplexity(model, samples),
        }
    }
}

/// Whether a recipe's folder is new or holds a run to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing is there.
    New,
    /// A run of the same recipe.
    Begun,
}

impl Place {
    /// Looks at the folder. An existing one is refused without `resume`, and with it where its
    /// recipe is another.
    pub fn find<R>(folder: &Path, recipe: &R, resume: bool) -> Result<Self>
    where
        R: Serialize + DeserializeOwned + PartialEq,
    {
        let shown = folder.display();
        if !folder.exists() {
            return Ok(Self::New);
        }
        if !resume {
            bail!(
                "{shown}: already exists; go on with it by --resume or choose another output.dir"
            );
        }
        let path = folder.join(RECIPE);
        let stored: R = recipe::read(&path)?;
        if stored != *recipe {
            let difference = recipe::difference(&stored, recipe);
            bail!("{}: is another recipe: {difference}", path.display());
        }
        Ok(Self::Begun)
    }

    /// The folder, made where it is new.
    pub fn open(self, folder: &Path, recipe: &impl Serialize) -> Result<RunFolder> {
        match self {
            Self::Begun => Ok(RunFolder::open(folder)?),
            Self::New => {
                let text =
                    toml::to_string(recipe).context("the recipe cannot be written as TOML")?;
                Ok(RunFolder::create(folder, &text)?)
            }
        }
    }
}

/// The file that a command's RECIPE means: a run's folder stands for the recipe in it.
pub fn recipe_file(recipe: &Path) -> PathBuf {
    if recipe.is_dir() { recipe.join(RECIPE) } else { recipe.to_path_buf() }
}
