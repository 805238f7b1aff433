//! Why an operation was refused.

use crate::spec::SpecError;

/// What an operation refuses, and the name of what it refuses it for.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter outside what the operation is defined for.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A tensor whose shape does not fit the others.
    #[error("{operation}: {tensor} has shape {actual:?}, expected {expected:?}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// The tensor's name.
        tensor: String,
        /// The shape that the other arguments ask for.
        expected: Vec<usize>,
        /// The shape given.
        actual: Vec<usize>,
    },
    /// An infinity or a NaN, in an argument or, by overflow, in a result.
    #[error("{operation}: {tensor}{index:?} is {value}")]
    NonFinite {
        /// The operation.
        operation: &'static str,
        /// The tensor's name.
        tensor: String,
        /// Where in the tensor.
        index: Vec<usize>,
        /// The value there.
        value: f64,
    },
    /// A second moment below zero, which no sequence of gradients gives.
    #[error("{operation}: {tensor}{index:?} is {value}, expected at least 0")]
    Negative {
        /// The operation.
        operation: &'static str,
        /// The tensor's name.
        tensor: String,
        /// Where in the tensor.
        index: Vec<usize>,
        /// The value there.
        value: f64,
    },
    /// A code that the grid does not have.
    #[error("{operation}: codes[{row}, {column}] is {code}, expected {qmin} to {qmax}")]
    CodeOutOfRange {
        /// The operation.
        operation: &'static str,
        /// Output row.
        row: usize,
        /// Input column.
        column: usize,
        /// The code there.
        code: i32,
        /// Smallest code.
        qmin: i32,
        /// Largest code.
        qmax: i32,
    },
    /// A code that does not fit the width it is packed in.
    #[error("pack: codes[{row}, {column}] is {code}, which {bits} bits do not hold")]
    CodeTooWide {
        /// Output row.
        row: usize,
        /// Input column.
        column: usize,
        /// The code there.
        code: i16,
        /// Width of a code.
        bits: usize,
    },
    /// Bits behind the last code of a packed row.
    #[error("unpack: packed row {row} ends in {byte:#04x}, of which only {used} bits hold codes")]
    Padding {
        /// Output row.
        row: usize,
        /// Its last byte.
        byte: u8,
        /// Low bits of the byte that hold codes.
        used: usize,
    },
    /// A zero point that the grid does not have.
    #[error(
        "{operation}: zero_point[{row}, {group}] is {value}, expected an integer, 0 to {largest}"
    )]
    ZeroPoint {
        /// The operation.
        operation: &'static str,
        /// Output row.
        row: usize,
        /// Group of that row.
        group: usize,
        /// The value there.
        value: f64,
        /// Largest code, and so the largest zero point.
        largest: i32,
    },
    /// A code that an unsigned grid or a codebook does not have.
    #[error("{operation}: codes{index:?} is {code}, expected 0 to {largest}")]
    UnsignedCodeOutOfRange {
        /// The operation.
        operation: &'static str,
        /// Where in the codes.
        index: Vec<usize>,
        /// The code there.
        code: u8,
        /// Largest code.
        largest: u8,
    },
    /// A token id that the vocabulary does not have.
    #[error("{operation}: token {token} at {index:?}, expected 0 to {vocab_size} exclusive")]
    TokenOutOfRange {
        /// The operation.
        operation: &'static str,
        /// Where in the token tensor.
        index: Vec<usize>,
        /// The id there.
        token: i64,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// Tensors that a model needs and was not given, or was given and does not have.
    #[error("weights: missing [{}], unexpected [{}]", missing.join(", "), unexpected.join(", "))]
    Weights {
        /// Names that the configuration asks for.
        missing: Vec<String>,
        /// Names that the configuration does not have.
        unexpected: Vec<String>,
    },
    /// Tied embeddings with an output projection of its own.
    #[error("weights: {name} differs from {tied_to}, but the configuration ties them")]
    NotTied {
        /// The tensor that should have been absent or equal.
        name: &'static str,
        /// The tensor that it is tied to.
        tied_to: &'static str,
    },
    /// A decomposition whose iteration does not end.
    #[error("{operation}: the singular value decomposition of weight does not converge")]
    NotConverged {
        /// The operation.
        operation: &'static str,
    },
    /// A matrix that must be symmetric and is not.
    #[error("{operation}: {tensor}[{row}, {column}] differs from {tensor}[{column}, {row}]")]
    NotSymmetric {
        /// The operation.
        operation: &'static str,
        /// The tensor's name.
        tensor: &'static str,
        /// One of the two elements.
        row: usize,
        /// The other.
        column: usize,
    },
    /// A matrix without a Cholesky factor.
    #[error("{operation}: {tensor} is not positive definite with damping {damping}")]
    NotPositiveDefinite {
        /// The operation.
        operation: &'static str,
        /// The tensor's name.
        tensor: &'static str,
        /// What was added to its diagonal, in units of the diagonal's mean.
        damping: f64,
    },
    /// Nothing to compute a mean over.
    #[error("{operation}: {what}")]
    Empty {
        /// The operation.
        operation: &'static str,
        /// What there is none of.
        what: &'static str,
    },
}
