//! What training made: the trained tensors, and a `state.json` that says of what and when.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::atomic::{new_folder, write_file};
use super::hash::sha256_file;
use super::reader::TensorFile;
use super::save::{Precision, store, write_safetensors};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;
use crate::model::Llama;

/// `state.json` of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterState {
    /// Always `plumbline-adapter-1`.
    pub format: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Fingerprint of the base model.
    pub base_sha256: String,
    /// SHA-256 of `adapter.safetensors`.
    pub adapter_sha256: String,
}

/// A loaded checkpoint.
pub struct Adapter {
    /// Its `state.json`.
    pub state: AdapterState,
    file: TensorFile,
}

const FORMAT: &str = "plumbline-adapter-1";

/// Writes the trained tensors of a model as a new folder.
///
/// # Errors
/// `File` when the folder exists; `Io`.
pub fn save_adapter<B: Backend, L: LinearMethod<B>>(
    folder: &Path,
    model: &mut Llama<B, L>,
    step: u64,
    base_sha256: &str,
) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for tensor in model.trained_values()? {
        let stored = store(&tensor.values, &tensor.shape, Precision::F32);
        tensors.insert(tensor.name, stored);
    }
    new_folder(folder, |folder| {
        let path = folder.join("adapter.safetensors");
        write_safetensors(&path, &tensors, &[("format", FORMAT)])?;
        let state = AdapterState {
            format: FORMAT.into(),
            step,
            base_sha256: base_sha256.into(),
            adapter_sha256: sha256_file(&path)?,
        };
        let text = serde_json::to_string_pretty(&state).expect("plain data serialises");
        write_file(&folder.join("state.json"), text.as_bytes())
    })
}

/// Opens a checkpoint and checks that it is whole.
///
/// # Errors
/// `Io`; `File` for a checksum that does not match.
pub fn load_adapter(folder: &Path) -> Result<Adapter> {
    let state_path = folder.join("state.json");
    let text = std::fs::read_to_string(&state_path).map_err(Error::io(&state_path, "read"))?;
    let state: AdapterState =
        serde_json::from_str(&text).map_err(|error| Error::file(&state_path, error))?;
    if state.format != FORMAT {
        let reason = format!("format is {}, expected {FORMAT}", state.format);
        return Err(Error::file(&state_path, reason));
    }
    let path = folder.join("adapter.safetensors");
    let actual = sha256_file(&path)?;
    if actual != state.adapter_sha256 {
        let expected = &state.adapter_sha256;
        let reason = format!("has SHA-256 {actual}, {} states {expected}", state_path.display());
        return Err(Error::file(&path, reason));
    }
    Ok(Adapter { state, file: TensorFile::open(&path)? })
}

impl Adapter {
    /// A trained tensor, by the name it has in the model.
    ///
    /// # Errors
    /// `File` naming the tensor.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.file.floats(name, shape)
    }
}
