//! GGUF files of LLaMA models as checkpoints: names, shapes and the order of rows as in a Hugging
//! Face folder, weights dequantized when they are read.
//!
//! Layout: the GGUF specification, version 3, of the ggml project.

mod blocks;
mod header;
mod llama;
mod rope;
mod tokenizer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
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
    pub chat_template: Option<String>,
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
    let refused = |reason| Error::file(path, reason);
    let mut file = BufReader::new(file);
    let header = Header::read(&mut file, length).map_err(refused)?;
    let mut model = llama::model(&header).map_err(refused)?;
    model.tensors.remove(rope::TENSOR);
    if let Some(tensor) = header.tensors.iter().find(|tensor| tensor.name == rope::TENSOR) {
        if tensor.block != BlockType::F32 {
            let reason = format!("tensor {} is {}, expected F32", tensor.name, tensor.block);
            return Err(refused(reason));
        }
        let mut bytes = vec![0; tensor.bytes as usize];
        file.seek(SeekFrom::Start(tensor.start)).map_err(Error::io(path, "read"))?;
        file.read_exact(&mut bytes).map_err(Error::io(path, "read"))?;
        let divisors = BlockType::F32.dequantize(&bytes);
        llama::slow_down(&mut model.config, &divisors).map_err(refused)?;
    }
    Ok(model)
}
