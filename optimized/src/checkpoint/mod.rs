//! Files: Hugging Face model folders in and out, GGUF files in, merged models, checkpoints of runs,
//! tokenizers, chat templates.

mod atomic;
pub(crate) mod chat_template;
mod folder;
mod gguf;
mod hash;
mod load;
mod mapped;
mod packed;
mod quantization;
mod reader;
mod save;
mod tokenizer;
mod training;

pub(crate) use atomic::write_parts;
pub use atomic::{
    free_bytes, new_folder, output_file, output_folder, remove_folder, remove_unfinished,
    write_file,
};
pub use folder::ModelFolder;
pub use gguf::BlockType;
pub(crate) use hash::hex;
pub use hash::{sha256, sha256_file};
pub use load::LoadedModel;
pub use packed::{Shift, Unpacked};
pub(crate) use quantization::specs_of;
pub use quantization::{LayerGrid, QuantizationConfig};
pub use reader::{Dtype, Storage, TensorFile, TensorInfo};
pub use save::{Precision, Stored, StoredCodes, dense_tensors, save_dense, save_merged};
pub(crate) use save::{StreamedTensor, stream_tensors};
pub(crate) use tokenizer::LLAMA3_PATTERN;
pub use tokenizer::Tokenizer;
pub use training::{Checkpoint, TrainingState, open_checkpoint, save_checkpoint};
