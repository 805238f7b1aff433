//! Quantization-aware fine-tuning of LLaMA models, made fast.
#![deny(unsafe_code)]

pub mod backend;
pub mod cpu;
pub mod error;
pub mod ops;
pub mod methods;
pub mod model;
pub mod checkpoint;
pub mod eval;
pub mod generate;
pub mod train;
pub mod recipe;
pub mod embedded;
pub mod finetune;
