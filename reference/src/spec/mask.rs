//! Which weights the straight-through gradient passes, and what their group gradients are
//! multiplied by.

use serde::{Deserialize, Serialize};

use super::GradScale;

/// The interval on which rounding passes the gradient on. Eq. (Q1).
///
/// The rules differ only at the ends of the grid and within half a step of them; codes are the same
/// under all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskRule {
    /// Closed, and tested on the argument before rounding, as the L4Q paper writes it.
    #[default]
    PreRound,
    /// Closed, and tested on the rounded argument: the derivative of `clamp(round(argument))`, as
    /// in LR-QAT.
    Rounded,
    /// Open, and tested before rounding, as LSQ prints it: an argument at an end is clipped.
    Open,
}

impl MaskRule {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PreRound, Self::Rounded, Self::Open];
}

/// What a backward pass through the quantizer may be told. A [`GradScale`] alone stands for itself
/// with the default mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StraightThrough {
    /// Factor on the gradients of scale and offset.
    pub grad_scale: GradScale,
    /// Which weights pass their gradient.
    pub mask: MaskRule,
}

impl From<GradScale> for StraightThrough {
    fn from(grad_scale: GradScale) -> Self {
        Self { grad_scale, mask: MaskRule::default() }
    }
}

impl From<MaskRule> for StraightThrough {
    fn from(mask: MaskRule) -> Self {
        Self { grad_scale: GradScale::default(), mask }
    }
}
