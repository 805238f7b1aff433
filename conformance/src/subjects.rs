//! One file per subject.

pub mod cpu;
pub mod cuda;
pub mod exec;
mod optimized;
pub mod reference;
