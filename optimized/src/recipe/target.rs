//! `method.target`: the format that a method trains for, and what it asks of the other fields.

use plumbline_reference::spec::{Bits, QatQuantizer};

use super::method::{MethodSettings, QatLoraSettings};
use crate::error::{Error, Result};
use crate::export::{Format, Grid};
use crate::methods::refuse_offset;

impl MethodSettings {
    /// The format that is trained for.
    pub fn target(&self) -> Option<Format> {
        match self {
            Self::L4q(settings) | Self::QatLora(QatLoraSettings(settings)) => settings.target,
            Self::Lora(settings) => settings.target,
            Self::LrQat(settings) => settings.target,
            Self::Peqa(settings) => settings.target,
            Self::QaLora(settings) => settings.target,
            Self::Qat(settings) => settings.target,
            Self::Qlora(settings) => settings.target,
        }
    }

    /// The format with the grid that it has to hold, where one is trained for.
    ///
    /// # Errors
    /// `Invalid` for a method that does not end in codes which are what it trained.
    pub(super) fn targeted(&self) -> Result<Option<Targeted>> {
        let Some(target) = self.target() else { return Ok(None) };
        let refused = |why: &str| {
            let name = self.name();
            let reason =
                format!("method.target is {target}, which method.name {name} has not: {why}");
            Err(Error::Invalid(reason))
        };
        let (grid, bits, group_size) = match self {
            Self::L4q(settings) => (Grid::Symmetric, settings.bits, settings.group_size),
            Self::LrQat(settings) => (Grid::Symmetric, settings.bits, settings.group_size),
            Self::Qat(settings) => (Grid::Symmetric, settings.bits, settings.group_size),
            Self::Peqa(settings) => {
                let grid = if settings.symmetric { Grid::Symmetric } else { Grid::ZeroPoint };
                (grid, settings.bits, settings.group_size)
            }
            Self::Lora(_) => return refused("it has no codes"),
            Self::QaLora(_) => return refused("its merged zero points are real numbers"),
            Self::QatLora(_) => return refused("its update stays beside the codes"),
            Self::Qlora(_) => return refused("its merged weight is rounded anew after training"),
        };
        Ok(Some(Targeted { target, grid, bits, group_size }))
    }

    /// Checks the other fields against the format that is trained for.
    ///
    /// # Errors
    /// `Invalid` naming the field that does not go with it.
    pub(super) fn check_target(&self) -> Result<()> {
        let Some(targeted) = self.targeted()? else { return Ok(()) };
        let target = targeted.target;
        if target.scale_rule().is_some() {
            match self {
                Self::L4q(settings) => {
                    refuse_offset(settings.rule()?, &format!("method.target {target}"))?;
                }
                Self::Qat(settings) => {
                    refuse_offset(settings.rule()?, &format!("method.target {target}"))?;
                    if settings.quantizer == QatQuantizer::LsqPlus {
                        let reason = format!(
                            "method.quantizer is lsq_plus, which has an offset; method.target \
                             {target} has none: expected lsq"
                        );
                        return Err(Error::Invalid(reason));
                    }
                }
                _ => {}
            }
        }
        targeted.check_bits("method.bits", targeted.bits)?;
        targeted.check_group("method.group_size", targeted.group_size)
    }
}

/// A format that is trained for, and what it has to hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Targeted {
    target: Format,
    grid: Grid,
    pub(super) bits: Bits,
    pub(super) group_size: Option<usize>,
}

impl Targeted {
    /// That the format holds codes of the width that `field` states.
    pub(super) fn check_bits(&self, field: &str, bits: Bits) -> Result<()> {
        named("method.target", field, self.target.check_bits(self.grid, bits))
    }

    /// That it holds groups of the size that `field` states; a whole row depends on the model.
    pub(super) fn check_group(&self, field: &str, group_size: Option<usize>) -> Result<()> {
        let Some(size) = group_size.filter(|size| *size > 0) else { return Ok(()) };
        named("method.target", field, self.target.check_group(size))
    }
}

fn named(by: &str, field: &str, checked: Result<(), String>) -> Result<()> {
    checked.map_err(|reason| Error::Invalid(format!("{by}: {field} {reason}")))
}

#[cfg(test)]
mod tests {
    use crate::recipe::MethodRecipe;

    fn checked(text: &str) -> Result<MethodRecipe, String> {
        let recipe: MethodRecipe = toml::from_str(text).map_err(|error| error.to_string())?;
        recipe.check().map(|()| recipe).map_err(|error| error.to_string())
    }

    const L4Q: &str = "name = \"l4q\"\nbits = 4\ngroup_size = 32\nrank = 2\n";
    const LR_QAT: &str = "name = \"lr_qat\"\nbits = 4\nrank = 2\nlora_scaling = 0.5\n\
                          downcast = \"fixed8\"\n";

    #[test]
    fn a_target_is_read_and_written_and_absent_where_there_is_none() {
        let recipe = checked(&format!("{L4Q}target = \"gguf-q4_0\"")).unwrap();
        let text = toml::to_string(&recipe).unwrap();
        assert!(text.contains("target = \"gguf-q4_0\""), "{text}");
        assert_eq!(toml::from_str::<MethodRecipe>(&text).unwrap(), recipe);
        let none = toml::to_string(&checked(L4Q).unwrap()).unwrap();
        assert!(!none.contains("target"), "{none}");
        for text in [
            format!("{LR_QAT}target = \"awq\""),
            "name = \"qat\"\nbits = 8\nquantizer = \"lsq\"\ntarget = \"gptq\"".into(),
            "name = \"peqa\"\nbits = 3\ngroup_size = 32\ntarget = \"gguf-q4_0\"".into(),
            "name = \"peqa\"\nbits = 4\nsymmetric = true\ntarget = \"gguf-q4_1\"".into(),
            // Any f32 will do there, and any offset.
            "name = \"qat\"\nbits = 7\ngroup_size = 3\ntarget = \"plumbline\"".into(),
            format!("{L4Q}init = \"asymmetric\"\ntarget = \"hugging-face\""),
        ] {
            assert!(checked(&text).is_ok(), "{text}: {:?}", checked(&text));
        }
    }

    #[test]
    fn what_a_format_does_not_hold_is_refused_by_field_and_value() {
        for (text, expected) in [
            (format!("{L4Q}target = \"gguf\""), "target: gguf is no format"),
            (
                format!("{}target = \"gguf-q4_0\"", L4Q.replace("bits = 4", "bits = 5")),
                "method.bits is 5, gguf-q4_0 holds symmetric codes of 2, 3, 4 bits",
            ),
            (
                format!("{}target = \"gguf-q4_0\"", L4Q.replace("32", "48")),
                "method.group_size is 48, gguf-q4_0 holds groups of a multiple of 32",
            ),
            (
                format!("{L4Q}init = \"asymmetric\"\ntarget = \"mlx\""),
                "method.init is asymmetric, which has an offset; method.target mlx has none",
            ),
            (
                "name = \"qat\"\nbits = 4\ntarget = \"awq\"".into(),
                "method.quantizer is lsq_plus, which has an offset; method.target awq has none",
            ),
            (
                "name = \"peqa\"\nbits = 4\ntarget = \"gguf-q4_0\"".into(),
                "method.bits is 4, gguf-q4_0 holds codes with a zero point of 2, 3 bits",
            ),
            (
                format!(
                    "{LR_QAT}target = \"gguf-q8_0\"\n[[override]]\npattern = \"*\"\nbits = 8\n\
                         group_size = 16"
                ),
                "method.override with pattern \"*\": group_size is 16, gguf-q8_0",
            ),
            (
                format!("{L4Q}target = \"awq\"\n[[override]]\npattern = \"*\"\nbits = 8"),
                "method.override with pattern \"*\": bits is 8, awq holds",
            ),
            (
                "name = \"qa_lora\"\nbits = 4\nrank = 2\ntarget = \"mlx\"".into(),
                "method.target is mlx, which method.name qa_lora has not: its merged zero points",
            ),
            (
                "name = \"lora\"\nrank = 2\ntarget = \"awq\"".into(),
                "method.target is awq, which method.name lora has not: it has no codes",
            ),
            (
                "name = \"qlora\"\nbits = 4\nrank = 2\ntarget = \"awq\"".into(),
                "which method.name qlora has not: its merged weight is rounded anew",
            ),
            (
                format!("{}target = \"awq\"", L4Q.replace("l4q", "qat_lora")),
                "which method.name qat_lora has not: its update stays beside the codes",
            ),
        ] {
            let refused = checked(&text).unwrap_err();
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }
}
