//! Files: Hugging Face model folders in and out, GGUF files in, merged models, adapters, tokenizers.

mod adapter;
mod atomic;
mod folder;
mod gguf;
mod hash;
mod reader;
mod save;
mod tokenizer;

pub use adapter::{Adapter, AdapterState, load_adapter, save_adapter};
pub use atomic::{new_folder, write_file};
pub use folder::{LoadedModel, ModelFolder, QuantizationConfig};
pub use gguf::BlockType;
pub use reader::{Dtype, Storage, TensorFile, TensorInfo};
pub use save::{Precision, Stored, StoredCodes, dense_tensors, save_dense, save_merged};
pub use tokenizer::Tokenizer;
