//! `[method] name = "lr_qat"`.

use plumbline_reference::spec::{
    ActivationSpec, Bits, Downcast, InitScaleRule, InnerScale, LrQatDialect, LrQatMask, LrQatSpec,
    QuantSpec,
};
use serde::{Deserialize, Serialize};

use super::method::{min_max, yes};
use crate::error::Result;
use crate::export::{Format, read_target};
use crate::methods::refuse_offset;

/// The fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrQatSettings {
    /// Width of a code.
    pub bits: Bits,
    /// Consecutive inputs that share a scale; absent for one group per row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// Inner dimension of the update.
    pub rank: usize,
    /// Final multiplier of the update, in units of the grid; 1 / rank as published.
    pub lora_scaling: f32,
    /// How the frozen weight is kept.
    pub downcast: Downcast,
    /// Which scale divides the frozen weight: `frozen` or `live`.
    #[serde(default = "frozen")]
    pub inner_scale: String,
    /// Which elements pass their gradient.
    #[serde(default)]
    pub mask: LrQatMask,
    /// What is rounded.
    #[serde(default)]
    pub dialect: LrQatDialect,
    /// How the scale begins.
    #[serde(default = "min_max")]
    pub init: String,
    /// Exponent, with `init = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_p: Option<f64>,
    /// Ranges tried, with `init = "lp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_steps: Option<usize>,
    /// Whether the scale is trained.
    #[serde(default = "yes")]
    pub train_scale: bool,
    /// Refused unless 0: there is no adapter beside the weight.
    #[serde(default)]
    pub dropout: f32,
    /// How activations are rounded; absent where they stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<ActivationSpec>,
    /// The format that the model is trained for; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read_target")]
    pub target: Option<Format>,
}

fn frozen() -> String {
    "frozen".into()
}

impl LrQatSettings {
    /// The initialisation rule.
    ///
    /// # Errors
    /// `Spec` naming the field; `Invalid` for a rule that gives an offset.
    pub fn rule(&self) -> Result<InitScaleRule> {
        let rule = InitScaleRule::from_name(&self.init, self.init_p, self.init_steps)?;
        refuse_offset(rule, "lr_qat")?;
        Ok(rule)
    }

    /// The method's choices for a layer of that grid.
    ///
    /// # Errors
    /// `Spec` naming the field, also where two of them contradict each other.
    pub fn spec(&self, grid: QuantSpec) -> Result<LrQatSpec> {
        let inner_scale = InnerScale::from_name(Some(&self.inner_scale), self.downcast)?;
        Ok(LrQatSpec::new(grid, inner_scale, self.mask, self.dialect)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::MethodSettings;

    fn settings(more: &str) -> std::result::Result<LrQatSettings, String> {
        let text = format!(
            "name = \"lr_qat\"\nbits = 4\nrank = 2\nlora_scaling = 0.5\ndowncast = \"fixed8\"\n{more}"
        );
        match toml::from_str(&text).map_err(|error| error.to_string())? {
            MethodSettings::LrQat(settings) => Ok(settings),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn activations_are_stated_in_full_and_read_again() {
        let given = settings("activations = { bits = 8, kv_bits = 4 }").unwrap();
        let text = toml::to_string(&MethodSettings::LrQat(given.clone())).unwrap();
        for stated in ["bits = 8", "kv_bits = 4", "zero_point = \"integer\"", "norm_outputs = true"]
        {
            assert!(text.contains(stated), "{text}");
        }
        assert_eq!(toml::from_str::<MethodSettings>(&text).unwrap(), MethodSettings::LrQat(given));
        assert_eq!(settings("").unwrap().activations, None);
    }

    #[test]
    fn activations_that_cannot_be_are_refused_by_name() {
        for (activations, expected) in [
            ("{ bits = 16 }", "activations.bits is 16, expected 2 to 8"),
            ("{ bits = 8, kv_bits = 0 }", "activations.kv_bits is 0, expected 2 to 8"),
            ("{ bits = 8, keys = 4 }", "unknown field `keys`"),
            ("{ bits = 8, zero_point = \"none\" }", "unknown variant `none`"),
        ] {
            let refused = settings(&format!("activations = {activations}")).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
        let other = "name = \"peqa\"\nbits = 4\nactivations = { bits = 8 }";
        let refused = toml::from_str::<MethodSettings>(other).unwrap_err().to_string();
        assert!(refused.contains("unknown field `activations`"), "{refused}");
    }
}
