//! Properties of the equations of `docs/spec.md`, over generated tensors.

mod differences;
mod inputs;
mod proof;

mod activations;
mod adamw;
mod affine;
mod awq;
mod configs;
mod dynamic_quantize;
#[cfg(feature = "linalg")]
mod gptq;
mod init_scale;
mod l4q;
mod llama;
mod lora;
#[cfg(feature = "linalg")]
mod low_rank_init;
mod lr_qat;
mod lwc;
mod nf4;
mod peqa;
mod precision;
mod qa_lora;
mod qat;
mod quantize;
mod refusals;
mod round_scale;
mod rtn;
mod smooth;
mod storage;
mod straight_through;
mod train;
