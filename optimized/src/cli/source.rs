//! What the commands read: models, token ids, texts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plumbline::checkpoint::ModelFolder;
use plumbline::embedded;

/// A model folder, or the model inside this program.
pub fn open_model(path: Option<&Path>) -> Result<ModelFolder> {
    match path {
        Some(path) => Ok(ModelFolder::open(path)?),
        None => Ok(embedded::model()?),
    }
}

/// Token ids from a JSON file: an array, or an object with `input_ids`.
pub fn read_token_ids(path: &Path, vocab_size: usize) -> Result<Vec<i32>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: cannot read", path.display()))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{}: is not JSON", path.display()))?;
    let list = value.get("input_ids").unwrap_or(&value);
    let Some(list) = list.as_array() else {
        bail!("{}: holds neither an array nor an object with input_ids", path.display());
    };
    let ids = list.iter().enumerate().map(|(position, id)| {
        let id = id.as_i64().with_context(|| {
            format!("{}: {id} at position {position} is not a token id", path.display())
        })?;
        check_id(id, position, vocab_size).with_context(|| path.display().to_string())
    });
    ids.collect()
}

/// Token ids given on the command line, separated by commas.
pub fn parse_token_ids(text: &str, vocab_size: usize) -> Result<Vec<i32>> {
    let ids = text.split(',').enumerate().map(|(position, id)| {
        let id: i64 =
            id.trim().parse().with_context(|| format!("token ids: {id:?} is not a number"))?;
        check_id(id, position, vocab_size)
    });
    ids.collect()
}

fn check_id(id: i64, position: usize, vocab_size: usize) -> Result<i32> {
    if !(0..vocab_size as i64).contains(&id) {
        bail!("token id {id} at position {position} is outside 0..{vocab_size}");
    }
    Ok(id as i32)
}

/// Where a text or a list of ids comes from.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct TextSource {
    /// A UTF-8 text file, or builtin:NAME
    #[arg(long)]
    text: Option<PathBuf>,
    /// A JSON file: an array of token ids, or an object with input_ids
    #[arg(long)]
    token_ids: Option<PathBuf>,
}

impl TextSource {
    /// Its token ids and its name.
    pub fn tokens(&self, model: &ModelFolder) -> Result<(String, Vec<i32>)> {
        let vocab_size = model.config().vocab_size;
        if let Some(path) = &self.token_ids {
            return Ok((path.display().to_string(), read_token_ids(path, vocab_size)?));
        }
        let path = self.text.as_ref().context("neither --text nor --token-ids is given")?;
        let tokens = super::run::encode_plain(path, &model.tokenizer()?)?;
        let outside = tokens.iter().enumerate().find(|(_, id)| **id as usize >= vocab_size);
        if let Some((position, id)) = outside {
            check_id(i64::from(*id), position, vocab_size)
                .with_context(|| path.display().to_string())?;
        }
        Ok((path.display().to_string(), tokens))
    }
}
