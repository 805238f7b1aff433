//! A LLaMA with a written forward and backward, generic over the device and over the
//! representation of its linear layers.

mod activations;
mod block;
mod decode;
mod diagnose;
mod head;
mod in_order;
mod llama;
mod on_grids;
mod plan;
mod presets;
mod run;
mod work;

pub use activations::{Recompute, Workspace};
pub use block::Block;
pub use decode::Decoder;
pub use head::LossSlot;
pub use in_order::LinearInput;
pub use llama::{LazyTensor, Llama, NamedTensor, Projection, tensor_shapes};
pub use plan::{Plan, Run};
pub use presets::{PRESETS, preset};
pub use run::{Batch, IGNORE};
pub use work::{Bytes, DEVICES, DeviceSpeed, Operations, StepWork};
