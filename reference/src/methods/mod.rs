//! Fine-tuning methods: how a frozen weight, a low-rank update and a quantizer are put together.
//!
//! A method is a struct of its tensors with `forward`, `backward` and `merge`.

pub mod l4q;
pub mod lr_qat;
pub mod peqa;
pub mod qa_lora;
pub mod qat;
pub mod qat_lora;
