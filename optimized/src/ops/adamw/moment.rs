//! A moment of one tensor, in either of the types that it may be kept in.

use half::bf16;
use serde::{Deserialize, Serialize};

use crate::backend::Storage;
use crate::error::{Error, Result};

/// Type that the optimizer's state is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateType {
    /// 4 bytes a value.
    #[default]
    F32,
    /// 2 bytes, rounded up or down by chance. A second moment moves by a thousandth of itself in a
    /// step, which is less than half the distance of two bf16 numbers: rounded to nearest it would
    /// stand still.
    Bf16,
}

impl StateType {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A moment of one tensor.
pub enum Moment<B: Storage> {
    /// As it was computed.
    F32(B::Floats),
    /// Rounded by chance.
    Bf16(B::Halves),
}

impl<B: Storage> Moment<B> {
    /// `len` zeros.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn zeros(backend: &B, len: usize, state: StateType) -> Result<Self> {
        Ok(match state {
            StateType::F32 => Self::F32(backend.zeros(len)?),
            StateType::Bf16 => Self::Bf16(backend.upload_halves(&vec![0; len])?),
        })
    }

    /// Values from the host; to bf16 rounded to nearest, which changes nothing that was bf16.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn upload(backend: &B, values: &[f32], state: StateType) -> Result<Self> {
        Ok(match state {
            StateType::F32 => Self::F32(backend.upload(values)?),
            StateType::Bf16 => Self::Bf16(backend.upload_halves(&halves(values))?),
        })
    }

    /// Overwrites the first values, as [`Moment::upload`].
    ///
    /// # Errors
    /// When there are fewer.
    pub fn write(&mut self, backend: &B, values: &[f32]) -> Result<()> {
        match self {
            Self::F32(buffer) => backend.write(values, buffer),
            Self::Bf16(buffer) => backend.write_halves(&halves(values), buffer),
        }
    }

    /// The first `len` values.
    ///
    /// # Errors
    /// When there are fewer; when the device failed.
    pub fn to_host(&self, backend: &B, len: usize) -> Result<Vec<f32>> {
        match self {
            Self::F32(buffer) => backend.download(buffer, len),
            Self::Bf16(buffer) => {
                let halves = backend.download_halves(buffer, len)?;
                Ok(halves.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect())
            }
        }
    }
}

fn halves(values: &[f32]) -> Vec<u16> {
    values.iter().map(|value| bf16::from_f32(*value).to_bits()).collect()
}

/// What a backend says of moments that are not what the arguments state.
pub(super) fn other_type(name: &str) -> Error {
    Error::Invalid(format!("adamw: the moments of {name} are of another type than the optimizer's"))
}
