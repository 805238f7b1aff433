//! Why a format cannot hold a result.

use std::fmt;

use super::floats::FloatType;

use crate::error::Error;

/// Why an export was not planned.
#[derive(Debug)]
pub(super) enum Refused {
    /// The format cannot hold this.
    Lack {
        /// A layer, a tensor or the model.
        of: String,
        /// What is missing.
        lack: Lack,
    },
    /// The model cannot be read.
    Error(Error),
}

impl Refused {
    pub(super) fn lack(of: &str, lack: Lack) -> Self {
        Self::Lack { of: of.into(), lack }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Lack { of, lack } => Self::Invalid(format!("{of}: {lack}")),
            Refused::Error(error) => error,
        }
    }
}

/// The property that is missing.
#[derive(Debug, Clone, PartialEq)]
pub enum Lack {
    /// Codes are wider than the format's.
    Bits {
        /// Of the model.
        bits: u32,
        /// Of the format.
        holds: &'static str,
    },
    /// A group has an offset and the format adds none, or adds it to other products.
    Offset {
        /// One that is there.
        value: f32,
    },
    /// A group's zero point is no code.
    RealZeroPoint {
        /// One that is there.
        value: f32,
    },
    /// The format cannot store this zero point.
    ZeroPoint {
        /// One that is there.
        value: u8,
        /// What it stores.
        holds: &'static str,
    },
    /// The format's zero is in the middle, and a code is too far from its own zero for that.
    Steps {
        /// Code less zero point.
        steps: i32,
        /// Width of the format's codes.
        bits: u32,
    },
    /// Inputs that share a scale.
    GroupSize {
        /// Of the model.
        size: usize,
        /// Of the format.
        holds: &'static str,
    },
    /// A side of the weight does not fill whole words or blocks.
    Side {
        /// Which.
        what: &'static str,
        /// Its length.
        length: usize,
        /// What it must be a multiple of.
        multiple: usize,
    },
    /// A scale that the format rounds.
    Scale {
        /// One that is there.
        value: f32,
        /// Its type in the format.
        holds: FloatType,
    },
    /// A value that the format rounds.
    Value {
        /// One that is there.
        value: f32,
        /// Its type in the format.
        holds: FloatType,
    },
    /// A layer that no method was on.
    Plain,
    /// Activations were rounded in training.
    Activations,
    /// The tokenizer is of another kind.
    Tokenizer(String),
    /// Something else of the model.
    Model(String),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits { bits, holds } => write!(f, "codes of {bits} bits, it has {holds}"),
            Self::Offset { value } => {
                write!(f, "a group has the offset {value:e}, which it does not add as training did")
            }
            Self::RealZeroPoint { value } => {
                write!(f, "a group has the zero point {value}, which is no code")
            }
            Self::ZeroPoint { value, holds } => {
                write!(f, "a group has the zero point {value}, it stores {holds}")
            }
            Self::Steps { steps, bits } => write!(
                f,
                "a code is {steps} steps from its zero point, {bits} bits around zero do not reach it"
            ),
            Self::GroupSize { size, holds } => write!(f, "groups of {size} inputs, it has {holds}"),
            Self::Side { what, length, multiple } => {
                write!(f, "{length} {what}, expected a multiple of {multiple}")
            }
            Self::Scale { value, holds } => {
                write!(
                    f,
                    "a scale is {value:e}, which is no {holds}; train with this format as method.target"
                )
            }
            Self::Value { value, holds } => write!(f, "a value is {value:e}, which is no {holds}"),
            Self::Plain => write!(f, "it has no codes, every layer needs them"),
            Self::Activations => write!(
                f,
                "activations were rounded in training, which it cannot tell whoever serves the model"
            ),
            Self::Tokenizer(reason) => write!(f, "tokenizer: {reason}"),
            Self::Model(reason) => f.write_str(reason),
        }
    }
}
