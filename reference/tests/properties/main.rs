//! Properties of the equations of `docs/spec.md`, over generated tensors.

mod differences;
mod inputs;
mod proof;

mod adamw;
mod init_scale;
mod l4q;
mod llama;
mod lora;
mod lr_qat;
mod precision;
mod quantize;
mod refusals;
mod smooth;
mod storage;
mod straight_through;
