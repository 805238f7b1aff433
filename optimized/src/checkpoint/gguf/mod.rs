//! GGUF files of LLaMA models as checkpoints: names, shapes and the order of rows as in a Hugging
//! Face folder, weights dequantized when they are read.
//!
//! Layout: the GGUF specification, version 3, of the ggml project.

mod blocks;
mod header;
mod llama;
mod tokenizer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

pub use blocks::BlockType;

use super::reader::TensorInfo;
use crate::error::{Error, Result};
use header::Header;

/// A GGUF file's model, as a Hugging Face folder would have it.
pub(super) struct GgufModel {
    /// `config.json`.
    pub config: serde_json::Value,
    /// `tokenizer.json`, or why there is none.
    pub tokenizer: std::result::Result<Vec<u8>, String>,
    /// Tensors by their Hugging Face names.
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// Reads everything but the weights.
///
/// # Errors
/// `Io`; `File` for a damaged file, a storage type or an architecture that is not supported.
pub(super) fn open(path: &Path) -> Result<GgufModel> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let length = file.metadata().map_err(Error::io(path, "read"))?.len();
    let header = Header::read(&mut BufReader::new(file), length)
        .map_err(|reason| Error::file(path, reason))?;
    llama::model(&header).map_err(|reason| Error::file(path, reason))
}
