//! Properties of the equations of `docs/spec.md`, over generated tensors.

mod differences;
mod inputs;
mod proof;

#[cfg(feature = "linalg")]
mod gptq;
mod init_scale;
mod l4q;
mod llama;
mod lora;
mod nf4;
mod precision;
mod quantize;
mod refusals;
mod smooth;
mod straight_through;
