//! What a recipe trains on, read and checked.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use plumbline::checkpoint::{ModelFolder, Tokenizer};
use plumbline::recipe::{DataFormat, DataSettings, TrainRecipe};
use plumbline::train::samples::{Encoder, SampleFormat, Samples, WindowSettings};
use plumbline::train::{TokenWindows, TrainingData};

use super::progress::waiting;
use super::run::read_text;

/// Reads every file of `data.train`. What is found in samples is said on standard error.
pub fn training_data(
    recipe: &TrainRecipe,
    base: &ModelFolder,
    tokenizer: &Tokenizer,
) -> Result<TrainingData> {
    let (data, seed) = (&recipe.data, recipe.training.seed);
    let vocab_size = base.config().vocab_size;
    let format = match data.format {
        DataFormat::Text => {
            let tokens = encode_files(&data.train, tokenizer, vocab_size)?;
            return Ok(TokenWindows::new(tokens, data.context, seed)?.into());
        }
        DataFormat::Alpaca => SampleFormat::Alpaca { end: end_token(data, base, tokenizer)? },
        DataFormat::Messages => {
            let end = end_token(data, base, tokenizer)?;
            SampleFormat::Messages { template: data.template(), end }
        }
    };
    let encoder = Encoder {
        format,
        loss: data.loss.unwrap_or_default(),
        too_long: data.too_long.unwrap_or_default(),
        context: data.context,
        vocab_size,
        tokenizer: tokenizer.clone(),
    };
    let packing = data.packing.unwrap_or(true);
    let settings = WindowSettings { packing, max_dropped: data.max_dropped(), seed };
    let samples = waiting("reading the samples", || Samples::open(&data.train, encoder, settings))?;
    eprintln!("{}", samples.report());
    Ok(TrainingData::Samples(Box::new(samples)))
}

/// Token ids of several texts, each encoded alone, one after the other.
pub fn encode_files(
    paths: &[PathBuf],
    tokenizer: &Tokenizer,
    vocab_size: usize,
) -> Result<Vec<i32>> {
    let mut tokens = Vec::new();
    for path in paths {
        let of_text = tokenizer.encode(&read_text(path)?)?;
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
