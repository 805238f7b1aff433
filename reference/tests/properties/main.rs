//! Properties of the equations of `docs/spec.md`, over generated tensors.

mod differences;
mod inputs;
mod proof;

mod affine;
mod init_scale;
mod l4q;
mod llama;
mod lora;
mod peqa;
mod precision;
mod qa_lora;
mod quantize;
mod refusals;
mod rtn;
mod smooth;
mod straight_through;
