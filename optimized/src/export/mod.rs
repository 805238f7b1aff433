//! Merged models in the formats of the programs that serve them.

mod format;

pub use format::{Format, ScaleRule};
