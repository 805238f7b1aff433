//! What a format with one folder for a model says of its linear layers.

use serde_json::Value;

use super::floats::FloatType;
use super::format::Format;
use super::grid::FileGrid;
use super::lack::Lack;
use super::layer::CodedLayer;
use super::{awq, compressed_tensors, gptq, mlx};
use crate::checkpoint::Stored;

/// Names of a layer's tensors, without the layer's own, and the tensors.
pub(super) type LayerTensors = Vec<(&'static str, Stored)>;

/// A layout of packed integers in safetensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Zero points less one, or as they are.
    Gptq(gptq::Version),
    /// In the order of its kernels.
    Awq,
    /// Scales of this type.
    CompressedTensors(FloatType),
    /// Scales and biases of this type.
    Mlx(FloatType),
}

impl Layout {
    /// The layout of a format; `None` for one without packed integers in safetensors.
    pub(super) fn of(format: Format, floats: FloatType) -> Option<Self> {
        match format {
            Format::Gptq => Some(Self::Gptq(gptq::Version::One)),
            Format::GptqV2 => Some(Self::Gptq(gptq::Version::Two)),
            Format::Awq => Some(Self::Awq),
            Format::CompressedTensors => Some(Self::CompressedTensors(floats)),
            Format::Mlx => Some(Self::Mlx(floats)),
            _ => None,
        }
    }

    /// The grid of the layout that all layers can be brought to.
    pub(super) fn grid(self, grid: FileGrid) -> Result<FileGrid, Lack> {
        match self {
            Self::Gptq(_) => gptq::grid(grid),
            Self::Awq => awq::grid(grid),
            Self::CompressedTensors(_) => compressed_tensors::grid(grid),
            Self::Mlx(_) => mlx::grid(grid),
        }
    }

    /// A layer on that grid.
    pub(super) fn tensors(self, layer: &CodedLayer, grid: FileGrid) -> Result<LayerTensors, Lack> {
        match self {
            Self::Gptq(version) => gptq::tensors(layer, grid, version),
            Self::Awq => awq::tensors(layer, grid),
            Self::CompressedTensors(floats) => compressed_tensors::tensors(layer, grid, floats),
            Self::Mlx(floats) => mlx::tensors(layer, grid, floats),
        }
    }

    /// Adds to `config.json` what the layers are; `plain` are those without codes.
    pub(super) fn describe(self, config: &mut Value, grid: FileGrid, plain: &[String]) {
        match self {
            Self::Gptq(version) => config["quantization_config"] = gptq::config(grid, version),
            Self::Awq => config["quantization_config"] = awq::config(grid, plain),
            Self::CompressedTensors(_) => {
                config["quantization_config"] = compressed_tensors::config(grid, plain);
            }
            Self::Mlx(_) => {
                // Old and new readers look in one of the two places.
                config["quantization"] = mlx::config(grid);
                config["quantization_config"] = mlx::config(grid);
            }
        }
    }

    /// Whether layers without codes have a place.
    pub(super) fn has_plain_layers(self) -> bool {
        !matches!(self, Self::Gptq(_))
    }
}
