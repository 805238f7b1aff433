use serde::{Deserialize, Serialize};

/// The quantizer of full-model quantization-aware training. Eq. (M11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QatQuantizer {
    /// Scale and offset are trained.
    #[default]
    LsqPlus,
    /// The scale is trained; there is no offset.
    Lsq,
}
