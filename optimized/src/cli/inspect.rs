//! `plumbline inspect`: what a model folder holds.

use std::path::Path;

use anyhow::Result;
use plumbline::checkpoint::{LayerGrid, ModelFolder};
use plumbline::model::Projection;
use plumbline_reference::spec::{ActivationSpec, LlamaConfig, RopeScaling};

use super::source::open_model;

/// How positions turn, and how far a token sees where that is limited.
fn rotation(config: &LlamaConfig) -> String {
    let scaling = match config.rope.scaling() {
        RopeScaling::Default => String::new(),
        RopeScaling::Linear { factor } => format!(", linear scaling by {factor}"),
        RopeScaling::Llama3(llama3) => format!(
            ", llama3 scaling by {} from {} positions",
            llama3.factor, llama3.original_max_position_embeddings
        ),
    };
    let window = config.sliding_window.map(|window| format!(", sliding window {window}"));
    format!("rotary base {}{scaling}{}", config.rope.theta(), window.unwrap_or_default())
}

/// Runs the command.
pub fn inspect(model: Option<&Path>, json: bool) -> Result<()> {
    let folder = open_model(model)?;
    if json {
        println!("{}", summary(&folder)?);
        return Ok(());
    }
    let config = folder.config();
    println!("{}", folder.path().display());
    println!("  hidden {}, intermediate {}", config.hidden_size, config.intermediate_size);
    println!(
        "  {} blocks, {} heads ({} key/value) of {}",
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim
    );
    let tied = if config.tie_word_embeddings { "tied" } else { "untied" };
    let positions = config.max_position_embeddings;
    println!("  vocabulary {} ({tied}), {positions} positions", config.vocab_size);
    println!("  {}, {}", config.model_type.name(), rotation(config));
    match folder.quantization() {
        Some(quantization) => {
            let group = quantization.group_size.map_or("a row".into(), |size| size.to_string());
            println!("  merged: {} bits, groups of {group}", quantization.bits.count());
            if let Some(ActivationSpec { bits, kv_bits, .. }) = quantization.activations {
                let (bits, kv_bits) = (bits.count(), kv_bits.count());
                println!("  activations: {bits} bits for each token, keys and values {kv_bits}");
            }
            if let Some(target) = quantization.target {
                println!("  trained for: {target}");
            }
            for (name, LayerGrid { bits, group_size }) in &quantization.layers {
                let group = group_size.map_or("a row".into(), |size| size.to_string());
                println!("    {name}: {} bits, groups of {group}", bits.count());
            }
            for name in &quantization.unquantized {
                println!("    {name}: full precision");
            }
        }
        None => match folder.packed() {
            Some((name, bits)) => println!("  {name}: {bits} bits, dequantized where it is read"),
            None => println!("  full precision"),
        },
    }
    for file in folder.files() {
        let values: usize =
            file.tensors().values().map(|info| info.shape.iter().product::<usize>()).sum();
        println!("  {}: {} tensors, {values} values", file.path().display(), file.tensors().len());
        for (name, info) in file.tensors() {
            println!("    {name} {} {:?}", info.storage, info.shape);
        }
    }
    if let Some(quantization) = folder.quantization() {
        println!("  code use per layer (share of codes at the ends of the range):");
        let has_codes = |linear: &Projection| quantization.grid_of(&linear.name).is_some();
        for linear in Projection::all(config).into_iter().filter(has_codes) {
            let (low, high) = ends(&folder, &linear)?;
            println!("    {} {:.2} % low, {:.2} % high", linear.name, 100.0 * low, 100.0 * high);
        }
    }
    Ok(())
}

fn summary(folder: &ModelFolder) -> Result<serde_json::Value> {
    let mut tensors = serde_json::Map::new();
    for file in folder.files() {
        for (name, info) in file.tensors() {
            let value = serde_json::json!({
                "file": file.path(), "dtype": info.storage.to_string(), "shape": info.shape,
            });
            tensors.insert(name.clone(), value);
        }
    }
    Ok(serde_json::json!({
        "model": folder.path(), "config": folder.config().to_value(),
        "quantization": folder.quantization(), "sha256": folder.fingerprint()?,
        "tokenizer": folder.tokenizer_bytes().is_some(), "tensors": tensors,
    }))
}

/// Shares of codes at the lower and at the upper end.
fn ends(folder: &ModelFolder, linear: &Projection) -> Result<(f64, f64)> {
    let is_unsigned = folder.quantization().is_some_and(|quantization| quantization.zero_point);
    let (codes, low, high): (Vec<i32>, i32, i32) = if is_unsigned {
        let merged = folder.affine(linear)?;
        (merged.codes.into_iter().map(i32::from).collect(), 0, merged.spec.unsigned_max())
    } else {
        let merged = folder.merged(linear)?;
        let (low, high) = (merged.spec.qmin(), merged.spec.qmax());
        (merged.codes.into_iter().map(i32::from).collect(), low, high)
    };
    let share =
        |end: i32| codes.iter().filter(|code| **code == end).count() as f64 / codes.len() as f64;
    Ok((share(low), share(high)))
}
