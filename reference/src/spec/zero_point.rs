use serde::{Deserialize, Serialize};

/// The zero point of a grid that is taken from the data. Eq. (Q14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZeroPointRule {
    /// Rounded: levels are integers and can be stored as codes.
    #[default]
    Integer,
    /// Not rounded, as in the public LR-QAT code: levels are no integers.
    Float,
}
