//! Merged models in the formats of the programs that serve them.

mod format;
mod target;

pub use format::Format;
pub use plumbline_reference::spec::ScaleRule;
pub use target::Grid;
pub(crate) use target::read_target;
