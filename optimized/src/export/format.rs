//! The formats by name, and what a scale may be in each.

use std::fmt;
use std::str::FromStr;

use plumbline_reference::spec::ScaleRule;
use serde::{Deserialize, Serialize};

/// A layout of files that other programs serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A Hugging Face folder as compressed-tensors writes it, `pack-quantized`.
    CompressedTensors,
    /// A Hugging Face folder in AutoGPTQ's first layout, which stores a zero point less one.
    Gptq,
    /// The second, which stores zero points as they are.
    GptqV2,
    /// A Hugging Face folder in AutoAWQ's layout for its GEMM kernels.
    Awq,
    /// One file for llama.cpp, linear layers `d (q - 8)`.
    #[serde(rename = "gguf-q4_0")]
    GgufQ4_0,
    /// The same with `d q + m`.
    #[serde(rename = "gguf-q4_1")]
    GgufQ4_1,
    /// The same with `d (q - 16)`.
    #[serde(rename = "gguf-q5_0")]
    GgufQ5_0,
    /// The same with `d q`, q of 8 bits.
    #[serde(rename = "gguf-q8_0")]
    GgufQ8_0,
    /// A folder for MLX, linear layers `s q + b`.
    Mlx,
    /// A Hugging Face folder without codes: the weights that they stand for.
    HuggingFace,
    /// This program's own folder with its codes side by side.
    Plumbline,
}

impl Format {
    /// Every format, those first that hold more.
    pub const ALL: [Self; 11] = [
        Self::CompressedTensors,
        Self::Gptq,
        Self::GptqV2,
        Self::Awq,
        Self::GgufQ4_0,
        Self::GgufQ4_1,
        Self::GgufQ5_0,
        Self::GgufQ8_0,
        Self::Mlx,
        Self::HuggingFace,
        Self::Plumbline,
    ];

    /// As recipes and the command line have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CompressedTensors => "compressed-tensors",
            Self::Gptq => "gptq",
            Self::GptqV2 => "gptq-v2",
            Self::Awq => "awq",
            Self::GgufQ4_0 => "gguf-q4_0",
            Self::GgufQ4_1 => "gguf-q4_1",
            Self::GgufQ5_0 => "gguf-q5_0",
            Self::GgufQ8_0 => "gguf-q8_0",
            Self::Mlx => "mlx",
            Self::HuggingFace => "hugging-face",
            Self::Plumbline => "plumbline",
        }
    }

    /// What a scale has to be so that the format, and the kernels that serve it, keep every product
    /// of a scale and a code as it was trained; `None` where any f32 will do.
    pub fn scale_rule(self) -> Option<ScaleRule> {
        match self {
            Self::GgufQ4_0 | Self::GgufQ5_0 | Self::GgufQ8_0 => Some(ScaleRule::F16),
            // Q4_1 also stores a zero point times the scale as an f16: 3 bits and 8.
            Self::GgufQ4_1
            | Self::CompressedTensors
            | Self::Gptq
            | Self::GptqV2
            | Self::Awq
            | Self::Mlx => Some(ScaleRule::Bf16InF16),
            Self::HuggingFace | Self::Plumbline => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
            format!("{name} is no format, expected one of {}", names.join(", "))
        })
    }
}
