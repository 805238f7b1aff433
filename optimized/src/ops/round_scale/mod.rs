//! `round_scale`: a scale as the format of another program can hold it. Eq. (Q23).

mod cpu;
mod cuda;

use plumbline_reference::spec::ScaleRule;

use crate::backend::Storage;
use crate::error::Result;

/// Rounds scales, and stops the gradients of those that their rounded ones do not follow.
pub trait RoundScale: Storage {
    /// The nearest scale that the rule allows. Eq. (Q23a).
    ///
    /// # Shapes
    /// `scale [len]` -> `rounded_scale [len]`
    ///
    /// # Errors
    /// `Length`; `NonFinite` for a scale that is not finite.
    fn round_scale(
        &self,
        rule: ScaleRule,
        len: usize,
        scale: &Self::Floats,
        rounded_scale: &mut Self::Floats,
    ) -> Result<()>;

    /// Turns the gradient of the rounded scale into that of the scale behind it, in place: it is 0
    /// beyond the ends of the rule. Eq. (Q23b). A sum of several such gradients may be turned at
    /// once, since the ends depend on the scale alone.
    ///
    /// # Shapes
    /// `scale, d_scale [len]`
    ///
    /// # Errors
    /// `Length`.
    fn round_scale_backward(
        &self,
        rule: ScaleRule,
        len: usize,
        scale: &Self::Floats,
        d_scale: &mut Self::Floats,
    ) -> Result<()>;
}

/// A rule in terms of the bits of an f32.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    smallest: f32,
    largest: f32,
    /// Bits behind the leading one.
    digits: u32,
    /// The exponent field of the smallest normal number.
    least_exponent: u32,
}

impl From<ScaleRule> for Numbers {
    fn from(rule: ScaleRule) -> Self {
        // Numbers of 16 bits, so nothing is lost here.
        let (smallest, largest) = (rule.smallest() as f32, rule.largest() as f32);
        let (digits, least_exponent) = match rule {
            ScaleRule::F16 => (10, 127 - 14),
            ScaleRule::Bf16InF16 => (7, 127 - 126),
        };
        Self { smallest, largest, digits, least_exponent }
    }
}
