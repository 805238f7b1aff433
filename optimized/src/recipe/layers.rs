//! `[method]`: which linear layers a method is on, and where its grid is another.

use plumbline_reference::spec::{Bits, LlamaConfig};
use serde::{Deserialize, Serialize};

use super::MethodSettings;
use crate::error::{Error, Result};
use crate::model::Projection;

/// `[method]`: a method, and the layers that it is on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodRecipe {
    /// The method and its own settings.
    #[serde(flatten)]
    pub settings: MethodSettings,
    /// Patterns of the layers' names; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Grids of their own.
    #[serde(default, rename = "override", skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<GridOverride>,
}

/// `[[method.override]]`: another grid for some layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridOverride {
    /// Of the layers' names.
    pub pattern: String,
    /// Width of a code; absent for the method's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<Bits>,
    /// Consecutive inputs that share a scale, 0 for one group per row; absent for the method's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
}

impl From<MethodSettings> for MethodRecipe {
    fn from(settings: MethodSettings) -> Self {
        Self { settings, targets: None, overrides: Vec::new() }
    }
}

impl MethodRecipe {
    /// Whether the method is on a layer of that name.
    pub fn is_target(&self, name: &str) -> bool {
        let matches = |targets: &Vec<String>| targets.iter().any(|one| matches(one, name));
        self.targets.as_ref().is_none_or(matches)
    }

    /// Width of a code and group size of a layer of that name, where the method's are these. Of
    /// several overrides the last one that matches counts, field by field.
    pub fn grid_of(
        &self,
        name: &str,
        (mut bits, mut group_size): (Bits, Option<usize>),
    ) -> (Bits, Option<usize>) {
        for one in self.overrides.iter().filter(|one| matches(&one.pattern, name)) {
            bits = one.bits.unwrap_or(bits);
            group_size = match one.group_size {
                None => group_size,
                Some(0) => None,
                size => size,
            };
        }
        (bits, group_size)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// `Invalid` or `Spec` naming the field.
    pub fn check(&self) -> Result<()> {
        self.settings.check()?;
        if self.targets.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::Invalid(
                "method.targets is empty, expected at least one pattern".into(),
            ));
        }
        let is_elsewhere = self.targets.is_some() || !self.overrides.is_empty();
        if is_elsewhere && self.settings.gptq_base()?.is_some() {
            let reason = "method.base is gptq, which goes over every layer on one grid: targets and \
                          override are for base rtn";
            return Err(Error::Invalid(reason.into()));
        }
        for GridOverride { pattern, bits, group_size } in &self.overrides {
            let place = format!("method.override with pattern {pattern:?}");
            if bits.is_none() && group_size.is_none() {
                let reason = format!("{place}: has neither bits nor group_size");
                return Err(Error::Invalid(reason));
            }
            if matches!(self.settings, MethodSettings::Lora(_)) {
                return Err(Error::Invalid(format!("{place}: method lora has no codes")));
            }
            if let Some(targeted) = self.settings.targeted()? {
                bits.map_or(Ok(()), |bits| targeted.check_bits(&format!("{place}: bits"), bits))?;
                targeted.check_group(&format!("{place}: group_size"), *group_size)?;
            }
        }
        Ok(())
    }

    /// That every pattern matches a layer of the model, and an override's one under the method; that
    /// the format that is trained for holds the grid of every layer.
    ///
    /// # Errors
    /// `Invalid` naming the pattern or the layer.
    pub fn check_layers(&self, config: &LlamaConfig) -> Result<()> {
        let names: Vec<String> = Projection::all(config).into_iter().map(|one| one.name).collect();
        let last = names.last().map_or("", String::as_str);
        for pattern in self.targets.iter().flatten() {
            if !names.iter().any(|name| matches(pattern, name)) {
                let reason = format!(
                    "method.targets: {pattern:?} matches no linear layer; the last one is {last}"
                );
                return Err(Error::Invalid(reason));
            }
        }
        for GridOverride { pattern, .. } in &self.overrides {
            if !names.iter().any(|name| matches(pattern, name) && self.is_target(name)) {
                let reason = format!(
                    "method.override: pattern {pattern:?} matches no linear layer that the method \
                     is on; the last layer is {last}"
                );
                return Err(Error::Invalid(reason));
            }
        }
        let Some(targeted) = self.settings.targeted()? else { return Ok(()) };
        for linear in Projection::all(config).iter().filter(|one| self.is_target(&one.name)) {
            let (bits, group_size) =
                self.grid_of(&linear.name, (targeted.bits, targeted.group_size));
            targeted.check_bits(&format!("{}: bits", linear.name), bits)?;
            let (size, of) = match group_size {
                Some(size) => (size, "group_size"),
                None => (linear.in_features, "a row, which is one group,"),
            };
            targeted.check_group(&format!("{}: {of}", linear.name), Some(size))?;
        }
        Ok(())
    }
}

/// Whether a pattern is that of a name, or of what follows one of its dots.
fn matches(pattern: &str, name: &str) -> bool {
    let ends = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
    ends.chain([name]).any(|name| glob(pattern.as_bytes(), name.as_bytes()))
}

/// `*` is any number of characters, `?` is one.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where to go on with one more character under the last star.
    let mut star = None;
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(one) if *one == b'?' || *one == name[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((stood, began)) = star else { return false };
                star = Some((stood, began + 1));
                at = stood + 1;
                from = began + 1;
            }
        }
    }
    pattern[at..].iter().all(|one| *one == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_glob_over_the_name_or_over_its_end() {
        let name = "model.layers.10.self_attn.q_proj";
        for pattern in [
            name,
            "q_proj",
            "self_attn.*_proj",
            "*",
            "*.q_proj",
            "layers.10.*",
            "model.layers.1?.*",
            "*attn*proj",
            "model.*.q_*",
            "?_proj",
            "**",
        ] {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in [
            "",
            "proj",
            "_proj",
            "layers.1.*",
            "self_attn",
            "mlp.*",
            "Q_proj",
            "q_proj.*",
            "??_proj",
            "*.k_proj",
            "attn.q_proj",
        ] {
            assert!(!matches(pattern, name), "{pattern}");
        }
    }

    fn recipe(text: &str) -> std::result::Result<MethodRecipe, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn a_recipe_reads_what_it_writes_and_refuses_the_unknown() {
        let text = "name = \"l4q\"\nbits = 4\ngroup_size = 16\nrank = 2\nlora_scaling = 0.1\n\
                    targets = [\"*_proj\"]\n\n[[override]]\npattern = \"down_proj\"\nbits = 8\n\
                    group_size = 0\n";
        let read = recipe(text).unwrap();
        let written = toml::to_string(&read).unwrap();
        assert_eq!(recipe(&written).unwrap(), read);
        assert!(written.contains("lora_scaling = 0.1\n"), "{written}");
        assert!(read.is_target("model.layers.0.mlp.up_proj"));
        let own = (Bits::new(4).unwrap(), Some(16));
        assert_eq!(read.grid_of("model.layers.0.mlp.up_proj", own), own);
        let other = (Bits::new(8).unwrap(), None);
        assert_eq!(read.grid_of("model.layers.0.mlp.down_proj", own), other);
        for (add, field) in
            [("ranks = 3\n", "ranks"), ("target_layers = [\"a\"]\n", "target_layers")]
        {
            let told = recipe(&text.replace("rank = 2\n", &format!("rank = 2\n{add}")));
            let told = told.unwrap_err().to_string();
            assert!(told.contains(&format!("`{field}`")), "{told}");
        }
        let told = recipe(&format!("{text}rank = 3\n")).unwrap_err().to_string();
        assert!(told.contains("`rank`"), "{told}");
    }
}
