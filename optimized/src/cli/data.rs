//! What a recipe trains on and measures, read and checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use plumbline::checkpoint::{ModelFolder, Tokenizer};
use plumbline::recipe::{DataFormat, DataSettings, TrainRecipe};
use plumbline::train::samples::{DataReport, Encoder, SampleFormat, Samples, WindowSettings};
use plumbline::train::{TokenWindows, TrainingData};
use serde::Serialize;

use super::progress::waiting;
use super::run::{Measured, encode_text, name_of};
use super::train::eval_text;

/// Reads every file that the recipe names. What is found in samples is said on standard error.
pub fn read_data(
    recipe: &TrainRecipe,
    base: &ModelFolder,
    tokenizer: &Tokenizer,
) -> Result<(TrainingData, Vec<Measured>)> {
    let data = &recipe.data;
    let text = |path: &PathBuf| Ok(Measured::Text(eval_text(path, base, tokenizer)?));
    let mut measured: Vec<Measured> = data.eval.iter().map(text).collect::<Result<_>>()?;
    let seed = recipe.training.seed;
    let Some(encoder) = encoder(data, base, tokenizer)? else {
        let tokens = encode_files(&data.train, tokenizer, base.config().vocab_size)?;
        return Ok((TokenWindows::new(tokens, data.context, seed)?.into(), measured));
    };
    let packing = data.packing.unwrap_or(true);
    let settings = WindowSettings { packing, max_dropped: data.max_dropped(), seed };
    let open = |paths: &[PathBuf]| {
        waiting("reading the samples", || Samples::open(paths, encoder.clone(), settings))
    };
    let train = open(&data.train)?;
    eprintln!("{}", train.report());
    for path in &data.eval_samples {
        let (name, samples) = (free_name(path, &measured)?, open(std::slice::from_ref(path))?);
        eprintln!("{name}: {}", samples.report());
        measured.push(Measured::Samples(name, Box::new(samples)));
    }
    Ok((TrainingData::Samples(Box::new(train)), measured))
}

/// How records become samples; none for text.
fn encoder(
    data: &DataSettings,
    base: &ModelFolder,
    tokenizer: &Tokenizer,
) -> Result<Option<Arc<Encoder>>> {
    let format = match data.format {
        DataFormat::Text => return Ok(None),
        DataFormat::Alpaca => SampleFormat::Alpaca { end: end_token(data, base, tokenizer)? },
        DataFormat::Messages => {
            let end = end_token(data, base, tokenizer)?;
            SampleFormat::Messages { template: data.template(), end }
        }
    };
    Ok(Some(Arc::new(Encoder {
        format,
        loss: data.loss.unwrap_or_default(),
        too_long: data.too_long.unwrap_or_default(),
        context: data.context,
        vocab_size: base.config().vocab_size,
        tokenizer: tokenizer.clone(),
    })))
}

/// The name of a file in reports, where one name may not stand for two files.
fn free_name(path: &Path, measured: &[Measured]) -> Result<String> {
    let name = name_of(path);
    if measured.iter().any(|other| other.name() == name) {
        bail!("data.eval_samples: {}: another file that is measured has this name", path.display());
    }
    Ok(name)
}

/// `data.json` of a run.
#[derive(Serialize)]
pub struct Found {
    #[serde(flatten)]
    train: DataReport,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    eval_samples: BTreeMap<String, DataReport>,
}

impl Found {
    /// What the first reading of samples counted; none for text.
    pub fn of(train: &TrainingData, measured: &[Measured]) -> Option<Self> {
        let report = |measured: &Measured| match measured {
            Measured::Text(_) => None,
            Measured::Samples(name, samples) => Some((name.clone(), samples.report().clone())),
        };
        let eval_samples = measured.iter().filter_map(report).collect();
        train.report().cloned().map(|train| Self { train, eval_samples })
    }
}

/// Token ids of several texts, each encoded alone, one after the other.
pub fn encode_files(
    paths: &[PathBuf],
    tokenizer: &Tokenizer,
    vocab_size: usize,
) -> Result<Vec<i32>> {
    let mut tokens = Vec::new();
    for path in paths {
        let of_text = encode_text(path, tokenizer)?;
        if let Some(token) = of_text.iter().find(|token| **token as usize >= vocab_size) {
            bail!("{}: token id {token} is outside 0..{vocab_size}", path.display());
        }
        tokens.extend(of_text);
    }
    Ok(tokens)
}

/// What is written after an answer: the recipe's token, or the one that the model's configuration
/// ends a text with; nothing where there is neither.
fn end_token(data: &DataSettings, base: &ModelFolder, tokenizer: &Tokenizer) -> Result<String> {
    for (field, token) in data.special_tokens() {
        ensure!(tokenizer.is_one_token(token), "{field}: {token:?} is not one token of this model");
    }
    let own = || base.config().eos_token_ids.first().and_then(|id| tokenizer.token(*id));
    let end = data.end_token.clone().or_else(own).unwrap_or_default();
    ensure!(
        end.is_empty() || tokenizer.is_one_token(&end),
        "the model ends a text with {end:?}, which its tokenizer does not read as one token; name \
         another data.end_token"
    );
    Ok(end)
}
