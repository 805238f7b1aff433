//! Properties of the equations of `docs/spec.md`, over generated tensors.

mod differences;
mod inputs;
mod proof;

mod dynamic_quantize;
mod init_scale;
mod l4q;
mod llama;
mod lora;
mod lwc;
mod precision;
mod qat;
mod quantize;
mod refusals;
mod smooth;
mod straight_through;
