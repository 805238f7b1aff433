//! Files: Hugging Face model folders in and out, merged models, adapters, tokenizers.

mod adapter;
mod atomic;
mod folder;
mod hash;
mod reader;
mod save;
mod tokenizer;

pub use adapter::{Adapter, AdapterState, load_adapter, save_adapter};
pub use atomic::{new_folder, write_file};
pub use folder::{LoadedModel, ModelFolder, QuantizationConfig};
pub(crate) use hash::hex;
pub use reader::{Dtype, TensorFile, TensorInfo};
pub use save::{Precision, Stored, StoredCodes, dense_tensors, save_dense, save_merged};
pub use tokenizer::Tokenizer;
