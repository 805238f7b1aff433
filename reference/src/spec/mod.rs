//! Validated parameters: the vocabulary that the reference and the optimized crate share.
//!
//! A value of one of these types is always valid, so numeric code never checks parameters again.
//! There is no arithmetic on tensors here: the two crates compute independently, and that is what
//! makes their agreement worth something.

mod activations;
mod gptq;
mod l4q;
mod llama_config;
mod loftq;
mod lr_qat;
mod mask;
mod nf4;
mod qa_lora;
mod qat;
mod rope;
mod rtn;
mod scale_rule;
mod stored;
mod zero_point;

pub use activations::ActivationSpec;
pub use gptq::GptqSpec;
pub use l4q::L4qDialect;
pub use llama_config::{LlamaConfig, ModelType};
pub use loftq::LoftqQuantizer;
pub use lr_qat::{Downcast, InnerScale, LrQatDialect, LrQatMask, LrQatSpec};
pub use mask::{MaskRule, StraightThrough};
pub use nf4::BlockSize;
pub use qa_lora::{GroupPool, Pool, QaLoraDialect};
pub use qat::QatQuantizer;
pub use rope::{Llama3Scaling, RopeScaling, RopeSpec};
pub use rtn::{RangeSearch, RtnSpec, SymmetricScale};
pub use scale_rule::ScaleRule;
pub use stored::{PackedBits, StoredType};
pub use zero_point::ZeroPointRule;

use serde::{Deserialize, Serialize};

/// The smallest scale a quantizer divides by; a smaller one is raised to this and gets no gradient.
pub const SCALE_FLOOR: f64 = 1e-8;

/// Why a parameter was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A number lies outside what the operation is defined for.
    #[error("{field} is {value}, expected {expected}")]
    OutOfRange {
        /// The parameter's name.
        field: &'static str,
        /// What was given.
        value: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// A group must not cross the end of a row.
    #[error("group_size {group_size} does not divide in_features {in_features}")]
    GroupDoesNotDivide {
        /// Consecutive inputs that share one scale.
        group_size: usize,
        /// Inputs of the layer.
        in_features: usize,
    },
    /// A model configuration asks for something that is not implemented.
    #[error("config field {field} is {value}, supported: {supported}")]
    Unsupported {
        /// Field of `config.json`.
        field: &'static str,
        /// What the file says.
        value: String,
        /// What is implemented.
        supported: &'static str,
    },
    /// A sequence is longer than a model configuration allows.
    #[error("a sequence of {length} tokens exceeds the model's {field} {limit}")]
    TooLong {
        /// Tokens of the sequence.
        length: usize,
        /// Field of `config.json`.
        field: &'static str,
        /// What the file says.
        limit: usize,
    },
    /// The text is not the JSON object that was expected.
    #[error("{0}")]
    Malformed(String),
}

fn out_of_range(
    field: &'static str,
    value: impl ToString,
    expected: &'static str,
) -> Result<std::convert::Infallible, SpecError> {
    Err(SpecError::OutOfRange { field, value: value.to_string(), expected })
}

/// Width of a code, 2 to 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Bits(u8);

impl Bits {
    /// Accepts 2 to 8.
    ///
    /// # Errors
    /// `OutOfRange` for anything else.
    pub fn new(bits: u32) -> Result<Self, SpecError> {
        if !(2..=8).contains(&bits) {
            out_of_range("bits", bits, "2 to 8")?;
        }
        Ok(Self(bits as u8))
    }

    /// The number of bits.
    pub fn count(self) -> u32 {
        u32::from(self.0)
    }

    /// Smallest signed code, `-2^(bits-1)`.
    pub fn qmin(self) -> i32 {
        -(1 << (self.0 - 1))
    }

    /// Largest signed code, `2^(bits-1) - 1`.
    pub fn qmax(self) -> i32 {
        (1 << (self.0 - 1)) - 1
    }

    /// Largest unsigned code, `2^bits - 1`.
    pub fn unsigned_max(self) -> i32 {
        (1 << self.0) - 1
    }
}

impl TryFrom<u32> for Bits {
    type Error = SpecError;
    fn try_from(bits: u32) -> Result<Self, SpecError> {
        Self::new(bits)
    }
}

impl From<Bits> for u32 {
    fn from(bits: Bits) -> u32 {
        bits.count()
    }
}

/// A uniform quantizer over the rows of one weight matrix.
///
/// A group is `group_size` consecutive inputs of one output row and has one scale and one offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantSpec {
    bits: Bits,
    group_size: usize,
    in_features: usize,
}

impl QuantSpec {
    /// `group_size: None` means one group per row.
    ///
    /// # Errors
    /// `OutOfRange` for an empty row or group; `GroupDoesNotDivide` where one would cross a row.
    pub fn new(
        bits: Bits,
        group_size: Option<usize>,
        in_features: usize,
    ) -> Result<Self, SpecError> {
        if in_features == 0 {
            out_of_range("in_features", 0, "at least 1")?;
        }
        let group_size = group_size.unwrap_or(in_features);
        if group_size == 0 {
            out_of_range("group_size", 0, "at least 1, or null for one group per row")?;
        }
        if !in_features.is_multiple_of(group_size) {
            return Err(SpecError::GroupDoesNotDivide { group_size, in_features });
        }
        Ok(Self { bits, group_size, in_features })
    }

    /// Width of a code.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Consecutive inputs that share a scale.
    pub fn group_size(&self) -> usize {
        self.group_size
    }

    /// Inputs of the layer.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Groups in one row, `in_features / group_size`.
    pub fn groups(&self) -> usize {
        self.in_features / self.group_size
    }

    /// Smallest signed code.
    pub fn qmin(&self) -> i32 {
        self.bits.qmin()
    }

    /// Largest signed code.
    pub fn qmax(&self) -> i32 {
        self.bits.qmax()
    }

    /// Largest unsigned code.
    pub fn unsigned_max(&self) -> i32 {
        self.bits.unsigned_max()
    }
}

/// Constant factor on the gradients of scale and offset. Eq. (Q7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GradScale {
    /// 1, as the L4Q paper writes it.
    #[default]
    None,
    /// `1 / sqrt(group_size * qmax)`, LSQ with N the elements that share the scale.
    Lsq,
    /// `1 / sqrt(groups * qmax)`, the public Lit-GPT code of L4Q.
    LitGpt,
    /// `1 / (sqrt(group_size) * qmax)`, the public PEFT code of L4Q.
    Peft,
}

/// How scale and offset are chosen before training. Eq. (Q8).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum InitScaleRule {
    /// `scale = max(|min / qmin|, |max / qmax|)`: nothing clips. The L4Q paper's choice.
    #[default]
    L4q,
    /// `scale = 2 * mean(|w|) / sqrt(qmax)`.
    Lsq,
    /// `scale = max(|mean - 3 sigma|, |mean + 3 sigma|) / 2^(bits-1)`, sigma unbiased.
    LsqPlus,
    /// `scale = max(|w|) / 2^(bits-1)`: clips a positive extreme.
    Symmetric,
    /// `scale = (max - min) / (qmax - qmin)`, `offset = max - scale * qmax`.
    Asymmetric,
    /// `scale = max(|w|) / qmax`.
    MinMax,
    /// `scale = max(|w|) / qmax` at 4 bits, `max(|w|) / 2^(bits-1)` at others: the public Lit-GPT
    /// code of L4Q.
    LitGpt,
    /// Best of `steps` ranges `k * max(|w|) / steps` under `sum |w - fake_quantize(w)|^p`.
    Lp {
        /// Exponent of the error, positive and finite.
        p: f64,
        /// Ranges tried, at least 1.
        steps: usize,
    },
}

impl InitScaleRule {
    /// Names as the case protocol and the recipes write them; `p` and `steps` belong to `lp` alone.
    ///
    /// # Errors
    /// `OutOfRange` for an unknown name, or for `p` and `steps` missing, present or out of range.
    pub fn from_name(name: &str, p: Option<f64>, steps: Option<usize>) -> Result<Self, SpecError> {
        if name == "lp" {
            let p = p.unwrap_or(f64::NAN);
            if !(p > 0.0 && p.is_finite()) {
                out_of_range("p", p, "a positive number with rule lp")?;
            }
            let steps = steps.unwrap_or(0);
            if steps == 0 {
                out_of_range("steps", steps, "at least 1 with rule lp")?;
            }
            return Ok(Self::Lp { p, steps });
        }
        if let Some(p) = p {
            out_of_range("p", p, "absent without rule lp")?;
        }
        if let Some(steps) = steps {
            out_of_range("steps", steps, "absent without rule lp")?;
        }
        Ok(match name {
            "l4q" => Self::L4q,
            "lsq" => Self::Lsq,
            "lsq_plus" => Self::LsqPlus,
            "symmetric" => Self::Symmetric,
            "asymmetric" => Self::Asymmetric,
            "min_max" => Self::MinMax,
            "lit_gpt" => Self::LitGpt,
            other => match out_of_range(
                "rule",
                other,
                "l4q, lsq, lsq_plus, symmetric, asymmetric, min_max, lit_gpt or lp",
            )? {},
        })
    }
}

/// AdamW's constants. Eq. (T1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSpec {
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment, positive.
    pub eps: f64,
}

impl AdamWSpec {
    /// # Errors
    /// `OutOfRange` for a beta outside [0, 1) or an eps that is not positive.
    pub fn new(beta1: f64, beta2: f64, eps: f64) -> Result<Self, SpecError> {
        for (field, beta) in [("beta1", beta1), ("beta2", beta2)] {
            if !(0.0..1.0).contains(&beta) {
                out_of_range(field, beta, "at least 0 and below 1")?;
            }
        }
        if !(eps > 0.0 && eps.is_finite()) {
            out_of_range("eps", eps, "a positive number")?;
        }
        Ok(Self { beta1, beta2, eps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_ranges_are_twos_complement() {
        let ranges: Vec<_> =
            (2..=8).map(|bits| Bits::new(bits).unwrap()).map(|b| (b.qmin(), b.qmax())).collect();
        assert_eq!(
            ranges,
            [(-2, 1), (-4, 3), (-8, 7), (-16, 15), (-32, 31), (-64, 63), (-128, 127)]
        );
        assert!(Bits::new(1).is_err() && Bits::new(9).is_err());
    }

    #[test]
    fn a_group_never_crosses_a_row() {
        let bits = Bits::new(4).unwrap();
        assert_eq!(QuantSpec::new(bits, Some(32), 128).unwrap().groups(), 4);
        assert_eq!(QuantSpec::new(bits, None, 172).unwrap().group_size(), 172);
        let refused = QuantSpec::new(bits, Some(32), 172).unwrap_err();
        assert_eq!(refused.to_string(), "group_size 32 does not divide in_features 172");
        assert!(QuantSpec::new(bits, Some(0), 8).is_err());
        assert!(QuantSpec::new(bits, None, 0).is_err());
    }

    #[test]
    fn p_and_steps_belong_to_one_initialisation_rule() {
        for (name, rule) in [
            ("l4q", InitScaleRule::L4q),
            ("lsq", InitScaleRule::Lsq),
            ("lsq_plus", InitScaleRule::LsqPlus),
            ("symmetric", InitScaleRule::Symmetric),
            ("asymmetric", InitScaleRule::Asymmetric),
            ("min_max", InitScaleRule::MinMax),
            ("lit_gpt", InitScaleRule::LitGpt),
        ] {
            assert_eq!(InitScaleRule::from_name(name, None, None).unwrap(), rule);
            let refusals = [
                InitScaleRule::from_name(name, Some(2.0), None).unwrap_err().to_string(),
                InitScaleRule::from_name(name, None, Some(10)).unwrap_err().to_string(),
            ];
            assert!(refusals[0].contains("p ") && refusals[1].contains("steps"), "{refusals:?}");
        }
        let lp = InitScaleRule::from_name("lp", Some(2.4), Some(100)).unwrap();
        assert_eq!(lp, InitScaleRule::Lp { p: 2.4, steps: 100 });
        for (p, steps) in [(None, Some(9)), (Some(0.0), Some(9)), (Some(2.0), Some(0))] {
            assert!(InitScaleRule::from_name("lp", p, steps).is_err());
        }
        let unknown = InitScaleRule::from_name("median", None, None).unwrap_err().to_string();
        assert!(unknown.contains("median"), "{unknown}");
    }

    #[test]
    fn constants_of_adamw_are_in_range() {
        assert!(AdamWSpec::new(0.9, 0.999, 1e-8).is_ok());
        for (beta1, beta2, eps) in
            [(1.0, 0.999, 1e-8), (0.9, -0.1, 1e-8), (0.9, 0.999, 0.0), (0.9, 0.999, f64::INFINITY)]
        {
            assert!(AdamWSpec::new(beta1, beta2, eps).is_err());
        }
    }
}
