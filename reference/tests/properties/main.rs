//! Properties of the equations of `docs/spec.md`, over generated tensors.

mod differences;
mod inputs;
mod proof;

mod awq;
mod init_scale;
mod l4q;
mod llama;
mod lora;
#[cfg(feature = "linalg")]
mod low_rank_init;
mod precision;
mod quantize;
mod refusals;
mod smooth;
mod straight_through;
