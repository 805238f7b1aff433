//! How the codes that a method freezes are made.

use plumbline_reference::spec::{Bits, QuantSpec, RtnSpec};
use serde::{Deserialize, Serialize};

use super::method::{MethodSettings, PeqaSettings, QaLoraSettings};
use crate::error::{Error, Result};
use crate::ptq::{GptqOptions, PtqSettings};

/// What makes frozen codes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrozenBase {
    /// Round-to-nearest, of each layer on its own.
    #[default]
    Rtn,
    /// GPTQ, calibrated on the first windows of the training.
    Gptq,
}

/// What GPTQ is told beside the grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GptqBase {
    /// Windows of the training that inputs are measured on.
    pub windows: usize,
    /// The part of the mean of the Hessian's diagonal that is added to the diagonal.
    pub damping: f64,
    /// Columns whose updates reach the columns behind them together.
    pub block_size: usize,
    /// Whether the inputs that matter most are rounded first.
    pub act_order: bool,
}

impl Default for GptqBase {
    fn default() -> Self {
        let GptqOptions { damping, block_size, act_order, .. } = GptqOptions::default();
        Self { windows: 128, damping, block_size, act_order }
    }
}

/// The fields of a method that freezes codes.
struct Fields<'a> {
    bits: Bits,
    group_size: Option<usize>,
    rtn: Result<RtnSpec>,
    base: FrozenBase,
    gptq: &'a mut Option<GptqBase>,
}

impl MethodSettings {
    fn fields(&mut self) -> Option<Fields<'_>> {
        match self {
            Self::Peqa(settings) => {
                let rtn = settings.rtn();
                let PeqaSettings { bits, group_size, base, gptq, .. } = settings;
                Some(Fields { bits: *bits, group_size: *group_size, rtn, base: *base, gptq })
            }
            Self::QaLora(settings) => {
                let rtn = settings.rtn();
                let QaLoraSettings { bits, group_size, base, gptq, .. } = settings;
                Some(Fields { bits: *bits, group_size: *group_size, rtn, base: *base, gptq })
            }
            _ => None,
        }
    }

    /// Fills in what depends on other fields, so that a resolved recipe states it.
    pub fn resolve(&mut self) {
        if let Some(Fields { base: FrozenBase::Gptq, gptq, .. }) = self.fields() {
            gptq.get_or_insert_default();
        }
    }

    /// GPTQ's settings and the windows it is calibrated on, where it makes the frozen codes.
    ///
    /// # Errors
    /// `Invalid` or `Spec` naming the field that does not go with `base`.
    pub fn gptq_base(&self) -> Result<Option<(PtqSettings, usize)>> {
        let mut settings = self.clone();
        let Some(Fields { bits, group_size, rtn, base, gptq }) = settings.fields() else {
            return Ok(None);
        };
        let rtn = rtn?;
        if base == FrozenBase::Rtn {
            return match gptq {
                Some(_) => Err(Error::Invalid("method.gptq is for base gptq, not rtn".into())),
                None => Ok(None),
            };
        }
        if rtn != (RtnSpec { symmetric: rtn.symmetric, ..RtnSpec::default() }) {
            let reason = "method.range and method.convention are for base rtn: gptq has its own";
            return Err(Error::Invalid(reason.into()));
        }
        let GptqBase { windows, damping, block_size, act_order } = gptq.unwrap_or_default();
        if windows == 0 {
            return Err(Error::Invalid("method.gptq.windows is 0, expected at least 1".into()));
        }
        let options = GptqOptions { symmetric: rtn.symmetric, damping, block_size, act_order };
        // Damping and blocks are wrong or right for every width of a layer.
        options.spec(QuantSpec::new(bits, None, 1)?)?;
        Ok(Some((PtqSettings::Gptq { bits, group_size, options }, windows)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(more: &str) -> Result<MethodSettings, String> {
        let text = format!("name = \"peqa\"\nbits = 4\n{more}");
        let mut settings: MethodSettings =
            toml::from_str(&text).map_err(|error| error.to_string())?;
        settings.resolve();
        settings.check().map(|()| settings).map_err(|error| error.to_string())
    }

    #[test]
    fn gptq_is_told_in_its_own_table_and_a_resolved_recipe_states_it() {
        let given = settings("base = \"gptq\"\nsymmetric = true\ngptq.windows = 3").unwrap();
        let (PtqSettings::Gptq { options, .. }, 3) = given.gptq_base().unwrap().unwrap() else {
            panic!("{given:?}");
        };
        assert_eq!((options.symmetric, options.damping, options.block_size), (true, 0.01, 128));
        let text = toml::to_string(&given).unwrap();
        assert!(text.contains("windows = 3") && text.contains("damping = 0.01"), "{text}");
        assert_eq!(toml::from_str::<MethodSettings>(&text).unwrap(), given);
        assert_eq!(settings("").unwrap().gptq_base().unwrap(), None);
    }

    #[test]
    fn what_does_not_go_with_the_base_is_refused() {
        for (more, expected) in [
            ("gptq.windows = 3", "method.gptq is for base gptq"),
            ("base = \"awq\"", "expected `rtn` or `gptq`"),
            ("base = \"gptq\"\ngptq.windows = 0", "method.gptq.windows is 0"),
            ("base = \"gptq\"\ngptq.damping = -1.0", "damping is -1"),
            ("base = \"gptq\"\ngptq.window = 1", "unknown field `window`"),
            ("base = \"gptq\"\nsymmetric = true\nconvention = \"gptq\"", "are for base rtn"),
            (
                "base = \"gptq\"\nrange = \"lp\"\nrange_p = 2.0\nrange_steps = 9",
                "method.range and method.convention are for base rtn",
            ),
        ] {
            let refused = settings(more).unwrap_err();
            assert!(refused.contains(expected), "{more}: {refused}");
        }
    }
}
