//! `quantization_config` of `config.json`: which linear layers are codes, and on which grids.

use std::collections::BTreeMap;
use std::path::Path;

use plumbline_reference::spec::{ActivationSpec, Bits, LlamaConfig, QuantSpec};
use serde::{Deserialize, Serialize};

use super::packed::Packed;
use crate::error::{Error, Result};
use crate::export::{Format, read_target};
use crate::model::Projection;

/// How `config.json` says that the linear layers are codes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantizationConfig {
    /// Always `plumbline`.
    pub quant_method: String,
    /// Width of a code.
    pub bits: Bits,
    /// Consecutive inputs that share a scale; null for one group per row.
    pub group_size: Option<usize>,
    /// Codes are unsigned and groups have a zero point in place of an offset; absent means not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero_point: bool,
    /// Codes stand side by side in words of 32 bits, all of them unsigned; absent means a byte each.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub packed: bool,
    /// Linear layers with another grid, by name; absent where there are none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, LayerGrid>,
    /// Linear layers that are a weight as they were; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unquantized: Vec<String>,
    /// How activations were rounded in training, and must be where the model is used; absent where
    /// they stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<ActivationSpec>,
    /// The format that the model was trained for, whose numbers its scales are; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read_target")]
    pub target: Option<Format>,
}

/// Bits and groups of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerGrid {
    /// Width of a code.
    pub bits: Bits,
    /// Consecutive inputs that share a scale; null for one group per row.
    pub group_size: Option<usize>,
}

impl QuantizationConfig {
    /// A model on the grid `(bits, group_size)` but for the layers whose own is another, or `None`.
    pub fn new(
        (bits, group_size): (Bits, Option<usize>),
        zero_point: bool,
        grids: impl IntoIterator<Item = (String, Option<(Bits, Option<usize>)>)>,
    ) -> Self {
        let (mut layers, mut unquantized) = (BTreeMap::new(), Vec::new());
        for (name, grid) in grids {
            match grid {
                None => unquantized.push(name),
                Some(grid) if grid == (bits, group_size) => {}
                Some((bits, group_size)) => {
                    layers.insert(name, LayerGrid { bits, group_size });
                }
            }
        }
        let quant_method = "plumbline".to_owned();
        Self {
            quant_method,
            bits,
            group_size,
            zero_point,
            packed: false,
            layers,
            unquantized,
            activations: None,
            target: None,
        }
    }

    /// The same with activations rounded, or not.
    #[must_use]
    pub fn with_activations(self, activations: Option<ActivationSpec>) -> Self {
        Self { activations, ..self }
    }

    /// The same of a model that was trained for a format, or for none.
    #[must_use]
    pub fn with_target(self, target: Option<Format>) -> Self {
        Self { target, ..self }
    }

    /// Bits and groups of a layer; `None` for one that is a weight as it was.
    pub fn grid_of(&self, name: &str) -> Option<(Bits, Option<usize>)> {
        if self.unquantized.iter().any(|one| one == name) {
            return None;
        }
        let own = self.layers.get(name).map(|grid| (grid.bits, grid.group_size));
        Some(own.unwrap_or((self.bits, self.group_size)))
    }
}

/// What a folder has of its linear layers.
pub(super) enum Linears {
    /// Their weights.
    Plain,
    /// Codes that this program wrote.
    Merged(QuantizationConfig),
    /// Packed integers of another program.
    Packed(Packed),
}

/// What `config.json` states of the linear layers, refused where it cannot be read.
pub(super) fn linears(path: &Path, text: &str) -> Result<Linears> {
    #[derive(Deserialize)]
    struct Stated {
        quantization: Option<serde_json::Value>,
        quantization_config: Option<serde_json::Value>,
    }
    let stated: Stated = serde_json::from_str(text).map_err(|error| Error::file(path, error))?;
    if let Some(mlx) = stated.quantization.filter(|value| !value.is_null()) {
        let packed = Packed::read_mlx(&mlx).map_err(|reason| Error::file(path, reason))?;
        return Ok(Linears::Packed(packed));
    }
    let Some(value) = stated.quantization_config.filter(|value| !value.is_null()) else {
        return Ok(Linears::Plain);
    };
    if let Some(packed) = Packed::read(&value).map_err(|reason| Error::file(path, reason))? {
        return Ok(Linears::Packed(packed));
    }
    let method = value.get("quant_method").and_then(|method| method.as_str()).unwrap_or("absent");
    if method != "plumbline" {
        let reason = format!(
            "quantization_config.quant_method is {method}, supported: plumbline, gptq, \
             compressed-tensors, awq"
        );
        return Err(Error::file(path, reason));
    }
    serde_json::from_value(value)
        .map(Linears::Merged)
        .map_err(|error| Error::file(path, format!("quantization_config: {error}")))
}

/// Bits and groups of every linear layer where all have the same.
///
/// # Errors
/// As [`specs_of`].
pub(super) fn specs(
    config: &LlamaConfig,
    bits: Bits,
    group_size: Option<usize>,
) -> Result<Vec<QuantSpec>> {
    let specs = specs_of(config, |_| Some((bits, group_size)))?;
    Ok(specs.into_iter().map(|spec| spec.expect("every layer was given a grid")).collect())
}

/// Bits and groups of every linear layer where `grid_of` gives each its own, or none.
///
/// # Errors
/// `Invalid` listing every layer that its group size does not divide.
pub(crate) fn specs_of(
    config: &LlamaConfig,
    grid_of: impl Fn(&Projection) -> Option<(Bits, Option<usize>)>,
) -> Result<Vec<Option<QuantSpec>>> {
    let mut specs = Vec::new();
    let mut refused: BTreeMap<Option<usize>, Vec<String>> = BTreeMap::new();
    for linear in Projection::all(config) {
        let Some((bits, group_size)) = grid_of(&linear) else {
            specs.push(None);
            continue;
        };
        match QuantSpec::new(bits, group_size, linear.in_features) {
            Ok(spec) => specs.push(Some(spec)),
            Err(_) => {
                let layer = format!("{} ({} inputs)", linear.name, linear.in_features);
                refused.entry(group_size).or_default().push(layer);
            }
        }
    }
    if refused.is_empty() {
        return Ok(specs);
    }
    let told = refused.into_iter().map(|(group_size, layers)| {
        let group_size = group_size.map_or("null".to_owned(), |size| size.to_string());
        format!("group_size {group_size} does not divide the inputs of {}", layers.join(", "))
    });
    Err(Error::Invalid(told.collect::<Vec<_>>().join("; ")))
}
