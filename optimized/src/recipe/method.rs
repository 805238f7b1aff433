//! `[method]`: a method and its own settings.

use plumbline_reference::spec::{
    Bits, BlockSize, GradScale, GroupPool, InitScaleRule, Pool, QaLoraDialect, QatQuantizer,
    QuantSpec, RangeSearch, RtnSpec, SymmetricScale,
};
use serde::{Deserialize, Serialize};

use super::LrQatSettings;
use super::frozen_codes::{FrozenBase, GptqBase};
use crate::error::{Error, Result};
use crate::export::{Format, read_target};
use crate::methods::refuse_offset;

/// A method and its own settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum MethodSettings {
    /// Low-rank update inside the quantizer.
    L4q(L4qSettings),
    /// Low-rank update of a full-precision weight.
    Lora(LoraSettings),
    /// Low-rank update in units of the grid, on a frozen weight in a cheap type.
    LrQat(LrQatSettings),
    /// Frozen codes, scales only.
    Peqa(PeqaSettings),
    /// Frozen codes, and an adapter that sees groups of inputs.
    QaLora(QaLoraSettings),
    /// Every weight, through its quantizer.
    Qat(QatSettings),
    /// Frozen weight on a trained grid, low-rank update beside it.
    QatLora(QatLoraSettings),
    /// Low-rank update of a frozen weight in NF4.
    Qlora(QloraSettings),
}

/// `[method] name = "l4q"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L4qSettings {
    /// Width of a code.
    pub bits: Bits,
    /// Consecutive inputs that share a scale; absent for one group per row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, alpha / rank.
    #[serde(default = "two")]
    pub lora_scaling: f32,
    /// How scale and offset begin.
    #[serde(default = "l4q_rule")]
    pub init: String,
    /// Exponent, with `init = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_p: Option<f64>,
    /// Ranges tried, with `init = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_steps: Option<usize>,
    /// Factor on the gradients of scale and offset.
    #[serde(default)]
    pub grad_scale: GradScale,
    /// Whether scale and offset are trained.
    #[serde(default = "yes")]
    pub train_scale: bool,
    /// Updates at the start in which the update is trained beside the full-precision weight.
    #[serde(default)]
    pub lora_warmup_steps: u64,
    /// Probability with which what an adapter beside the weight reads is dropped.
    #[serde(default)]
    pub dropout: f32,
    /// The format that the model is trained for; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read_target")]
    pub target: Option<Format>,
}

/// `[method] name = "qat_lora"`: the fields of L4Q.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QatLoraSettings(pub L4qSettings);

/// `[method] name = "lora"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSettings {
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, alpha / rank.
    #[serde(default = "two")]
    pub lora_scaling: f32,
    /// Probability with which what the adapter reads is dropped.
    #[serde(default)]
    pub dropout: f32,
    /// Refused: what is merged is not bit for bit what was trained.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read_target")]
    pub target: Option<Format>,
}

/// `[method] name = "qat"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QatSettings {
    /// Width of a code.
    pub bits: Bits,
    /// Consecutive inputs that share a scale; absent for one group per row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// Whether there is an offset.
    #[serde(default)]
    pub quantizer: QatQuantizer,
    /// How scale and offset begin.
    #[serde(default = "l4q_rule")]
    pub init: String,
    /// Exponent, with `init = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_p: Option<f64>,
    /// Ranges tried, with `init = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_steps: Option<usize>,
    /// Factor on the gradients of scale and offset.
    #[serde(default)]
    pub grad_scale: GradScale,
    /// Whether scale and offset are trained.
    #[serde(default = "yes")]
    pub train_scale: bool,
    /// The format that the model is trained for; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read_target")]
    pub target: Option<Format>,
}

/// `[method] name = "peqa"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeqaSettings {
    /// Width of a code.
    pub bits: Bits,
    /// Consecutive inputs that share a scale; absent for one group per row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// Zero point in the middle of the codes, or where the range puts it.
    #[serde(default)]
    pub symmetric: bool,
    /// Which ranges round-to-nearest tries: `min_max` or `lp`.
    #[serde(default = "min_max")]
    pub range: String,
    /// Exponent, with `range = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_p: Option<f64>,
    /// Ranges tried, with `range = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_steps: Option<usize>,
    /// The scale where `symmetric`.
    #[serde(default)]
    pub convention: SymmetricScale,
    /// What makes the frozen codes.
    #[serde(default)]
    pub base: FrozenBase,
    /// What GPTQ is told, with `base = "gptq"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gptq: Option<GptqBase>,
    /// The format that the model is trained for; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read_target")]
    pub target: Option<Format>,
}

/// `[method] name = "qa_lora"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QaLoraSettings {
    /// Width of a code.
    pub bits: Bits,
    /// Consecutive inputs that share a scale; absent for one group per row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, alpha / rank.
    #[serde(default = "two")]
    pub lora_scaling: f32,
    /// What the adapter sees of a group.
    #[serde(default)]
    pub pool: Pool,
    /// Whose pooling is meant.
    #[serde(default)]
    pub dialect: QaLoraDialect,
    /// Zero point in the middle of the codes, or where the range puts it.
    #[serde(default)]
    pub symmetric: bool,
    /// Which ranges round-to-nearest tries: `min_max` or `lp`.
    #[serde(default = "min_max")]
    pub range: String,
    /// Exponent, with `range = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_p: Option<f64>,
    /// Ranges tried, with `range = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_steps: Option<usize>,
    /// The scale where `symmetric`.
    #[serde(default)]
    pub convention: SymmetricScale,
    /// What makes the frozen codes.
    #[serde(default)]
    pub base: FrozenBase,
    /// What GPTQ is told, with `base = "gptq"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gptq: Option<GptqBase>,
    /// Probability with which what the adapter reads is dropped.
    #[serde(default)]
    pub dropout: f32,
    /// Refused: what is merged is not bit for bit what was trained.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read_target")]
    pub target: Option<Format>,
}

/// `[method] name = "qlora"`. The grid is the one that `plumbline merge` rounds to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QloraSettings {
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, alpha / rank.
    #[serde(default = "two")]
    pub lora_scaling: f32,
    /// Consecutive weights, row after row, that share a magnitude.
    #[serde(default = "sixty_four")]
    pub block_size: usize,
    /// Whether the magnitudes are kept in eight bits.
    #[serde(default = "yes")]
    pub double_quantize: bool,
    /// Width of a code of the merged weight.
    pub bits: Bits,
    /// Consecutive inputs that share a scale there; absent for one group per row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// Zero point in the middle of the codes, or where the range puts it.
    #[serde(default)]
    pub symmetric: bool,
    /// Which ranges round-to-nearest tries: `min_max` or `lp`.
    #[serde(default = "min_max")]
    pub range: String,
    /// Exponent, with `range = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_p: Option<f64>,
    /// Ranges tried, with `range = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_steps: Option<usize>,
    /// The scale where `symmetric`.
    #[serde(default)]
    pub convention: SymmetricScale,
    /// Probability with which what the adapter reads is dropped.
    #[serde(default)]
    pub dropout: f32,
    /// Refused: what is merged is not bit for bit what was trained.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read_target")]
    pub target: Option<Format>,
}

fn two() -> f32 {
    2.0
}

fn l4q_rule() -> String {
    "l4q".into()
}

pub(super) fn min_max() -> String {
    "min_max".into()
}

fn sixty_four() -> usize {
    64
}

pub(super) fn yes() -> bool {
    true
}

impl L4qSettings {
    /// The initialisation rule.
    ///
    /// # Errors
    /// `Spec` naming the field.
    pub fn rule(&self) -> Result<InitScaleRule> {
        Ok(InitScaleRule::from_name(&self.init, self.init_p, self.init_steps)?)
    }
}

impl QatSettings {
    /// The initialisation rule.
    ///
    /// # Errors
    /// `Spec` naming the field; `Invalid` for LSQ with a rule that gives an offset.
    pub fn rule(&self) -> Result<InitScaleRule> {
        let rule = InitScaleRule::from_name(&self.init, self.init_p, self.init_steps)?;
        if self.quantizer == QatQuantizer::Lsq {
            refuse_offset(rule, "quantizer lsq")?;
        }
        Ok(rule)
    }
}

impl PeqaSettings {
    /// How round-to-nearest makes the codes.
    ///
    /// # Errors
    /// `Spec` naming the field.
    pub fn rtn(&self) -> Result<RtnSpec> {
        let range = RangeSearch::from_name(&self.range, self.range_p, self.range_steps)?;
        Ok(RtnSpec { symmetric: self.symmetric, range, convention: self.convention })
    }
}

impl QaLoraSettings {
    /// How round-to-nearest makes the codes.
    ///
    /// # Errors
    /// `Spec` naming the field.
    pub fn rtn(&self) -> Result<RtnSpec> {
        let range = RangeSearch::from_name(&self.range, self.range_p, self.range_steps)?;
        Ok(RtnSpec { symmetric: self.symmetric, range, convention: self.convention })
    }

    /// What the adapter sees of a group.
    ///
    /// # Errors
    /// `Spec` for a dialect of a code with the sum.
    pub fn group_pool(&self) -> Result<GroupPool> {
        Ok(GroupPool::new(self.pool, self.dialect)?)
    }
}

impl QloraSettings {
    /// How the merged weight is rounded.
    ///
    /// # Errors
    /// `Spec` naming the field.
    pub fn rtn(&self) -> Result<RtnSpec> {
        let range = RangeSearch::from_name(&self.range, self.range_p, self.range_steps)?;
        Ok(RtnSpec { symmetric: self.symmetric, range, convention: self.convention })
    }

    /// Weights that share a magnitude.
    ///
    /// # Errors
    /// `Spec` naming the field.
    pub fn block_size(&self) -> Result<BlockSize> {
        Ok(BlockSize::new(self.block_size)?)
    }
}

impl MethodSettings {
    /// The value of `name`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::L4q(_) => "l4q",
            Self::Lora(_) => "lora",
            Self::LrQat(_) => "lr_qat",
            Self::Peqa(_) => "peqa",
            Self::QaLora(_) => "qa_lora",
            Self::Qat(_) => "qat",
            Self::QatLora(_) => "qat_lora",
            Self::Qlora(_) => "qlora",
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// `Invalid` or `Spec` naming the field.
    pub fn check(&self) -> Result<()> {
        self.check_target()?;
        match self {
            Self::L4q(settings) => {
                settings.rule()?;
                refuse_dropout("l4q", settings.dropout)?;
                if settings.lora_warmup_steps > 0 && !settings.train_scale {
                    return Err(Error::Invalid(
                        "method.train_scale is false, expected true with method.lora_warmup_steps: \
                         the grid that a warm-up ends with would not be in the checkpoint"
                            .into(),
                    ));
                }
                check_update(settings.rank, settings.lora_scaling)
            }
            Self::QatLora(QatLoraSettings(settings)) => {
                settings.rule()?;
                check_dropout(settings.dropout)?;
                if settings.lora_warmup_steps > 0 {
                    let steps = settings.lora_warmup_steps;
                    let reason = format!(
                        "method.lora_warmup_steps is {steps}, expected 0: only l4q warms up"
                    );
                    return Err(Error::Invalid(reason));
                }
                check_update(settings.rank, settings.lora_scaling)
            }
            Self::Lora(settings) => {
                check_dropout(settings.dropout)?;
                check_update(settings.rank, settings.lora_scaling)
            }
            Self::LrQat(settings) => {
                settings.rule()?;
                // What contradicts itself does so at every width of a layer.
                settings.spec(QuantSpec::new(settings.bits, None, 1)?)?;
                refuse_dropout("lr_qat", settings.dropout)?;
                check_update(settings.rank, settings.lora_scaling)
            }
            Self::Peqa(_) => self.gptq_base().map(|_| ()),
            Self::QaLora(settings) => {
                self.gptq_base()?;
                settings.group_pool()?;
                check_dropout(settings.dropout)?;
                check_update(settings.rank, settings.lora_scaling)
            }
            Self::Qat(settings) => settings.rule().map(|_| ()),
            Self::Qlora(settings) => {
                settings.rtn()?;
                settings.block_size()?;
                check_dropout(settings.dropout)?;
                check_update(settings.rank, settings.lora_scaling)
            }
        }
    }
}

fn check_dropout(dropout: f32) -> Result<()> {
    if !(0.0..1.0).contains(&dropout) {
        let reason = format!("method.dropout is {dropout}, expected at least 0 and below 1");
        return Err(Error::Invalid(reason));
    }
    Ok(())
}

fn refuse_dropout(method: &str, dropout: f32) -> Result<()> {
    if dropout != 0.0 {
        let reason = format!(
            "method.dropout is {dropout}, expected 0: the update of {method} is added to the \
             weight inside the quantizer, so there is no adapter whose input could be dropped"
        );
        return Err(Error::Invalid(reason));
    }
    Ok(())
}

fn check_update(rank: usize, lora_scaling: f32) -> Result<()> {
    if rank == 0 {
        return Err(Error::Invalid("method.rank is 0, expected at least 1".into()));
    }
    if !lora_scaling.is_finite() {
        let reason = format!("method.lora_scaling is {lora_scaling}, expected a number");
        return Err(Error::Invalid(reason));
    }
    Ok(())
}
