//! The types of floating-point numbers in files.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use safetensors::Dtype;

use super::lack::Lack;
use crate::checkpoint::Stored;

/// Type of the tensors that are no codes, and of what an engine multiplies with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// 32 bits.
    F32,
    /// 16 bits, 11 of them significant.
    F16,
    /// 16 bits, 8 of them significant.
    Bf16,
}

impl FloatType {
    /// Each of them, the widest first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// As the command line and messages have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// As `torch_dtype` of a `config.json` has it.
    pub(super) fn torch(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Whether a number is one of the type.
    pub fn holds(self, value: f32) -> bool {
        let stored = match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        };
        stored.to_bits() == value.to_bits()
    }

    /// The first of some numbers that is not.
    pub fn first_lost(self, values: &[f32]) -> Option<f32> {
        values.iter().find(|value| !self.holds(**value)).copied()
    }

    /// Scales of this type.
    pub(super) fn check_scales(self, scales: &[f32]) -> Result<(), Lack> {
        match self.first_lost(scales) {
            Some(value) => Err(Lack::Scale { value, holds: self }),
            None => Ok(()),
        }
    }

    /// Values of this type.
    pub(super) fn check_values(self, values: &[f32]) -> Result<(), Lack> {
        match self.first_lost(values) {
            Some(value) => Err(Lack::Value { value, holds: self }),
            None => Ok(()),
        }
    }

    /// Little-endian bytes; numbers of the type keep their bits.
    pub(super) fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F16 => {
                values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
            }
            Self::Bf16 => {
                values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
            }
        }
    }

    /// A tensor of safetensors.
    pub(super) fn stored(self, values: &[f32], shape: &[usize]) -> Stored {
        (self.dtype(), shape.to_vec(), self.bytes(values))
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FloatType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| format!("{name} is no type of numbers, expected f32, f16 or bf16"))
    }
}
