//! The sources of L4Q where they differ.

use serde::{Deserialize, Serialize};

use super::{GradScale, InitScaleRule};

/// Who is followed where the paper and the two public codes of L4Q choose differently.
///
/// | | initial scale (Q8) | gradient scale (Q7) |
/// |---|---|---|
/// | `paper` | `l4q` | `none` |
/// | `lit_gpt` | `lit_gpt` | `lit_gpt` |
/// | `peft` | `lsq_plus` | `peft` |
///
/// A dialect is a choice that a careful implementation could make. What those codes do by mistake
/// is not part of one: `d_x` without the offset, a mask lost for three projections, offset
/// gradients summed over outputs, the first sample of a batch alone. `docs/methods/l4q.md` lists
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum L4qDialect {
    /// The ACL text: nothing clips at the start, gradients of the scale as they are.
    #[default]
    Paper,
    /// The public Lit-GPT code.
    LitGpt,
    /// The public PEFT code.
    Peft,
}

impl L4qDialect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Paper, Self::LitGpt, Self::Peft];

    /// The factor on the gradients of scale and offset.
    pub fn grad_scale(self) -> GradScale {
        match self {
            Self::Paper => GradScale::None,
            Self::LitGpt => GradScale::LitGpt,
            Self::Peft => GradScale::Peft,
        }
    }

    /// How scale and offset start.
    pub fn init_scale_rule(self) -> InitScaleRule {
        match self {
            Self::Paper => InitScaleRule::L4q,
            Self::LitGpt => InitScaleRule::LitGpt,
            Self::Peft => InitScaleRule::LsqPlus,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_is_the_default_of_every_part() {
        let default = L4qDialect::default();
        assert_eq!(default.grad_scale(), GradScale::default());
        assert_eq!(default.init_scale_rule(), InitScaleRule::default());
    }

    #[test]
    fn dialects_differ_in_both_parts() {
        for (index, a) in L4qDialect::ALL.into_iter().enumerate() {
            for b in L4qDialect::ALL.into_iter().skip(index + 1) {
                assert_ne!(a.grad_scale(), b.grad_scale());
                assert_ne!(a.init_scale_rule(), b.init_scale_rule());
            }
        }
    }
}
