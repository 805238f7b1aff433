//! Quantization-aware fine-tuning of LLaMA models, made fast.
#![deny(unsafe_code)]

pub mod backend;
pub mod checkpoint;
pub mod choice;
pub mod cpu;
pub mod cuda;
pub mod embedded;
pub mod error;
pub mod eval;
pub mod export;
pub mod finetune;
pub mod generate;
pub mod methods;
pub mod model;
pub mod ops;
pub mod ptq;
pub mod recipe;
pub mod report;
pub mod train;
