//! The crate's one error type.

use std::path::{Path, PathBuf};

use plumbline_reference::spec::SpecError;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong; every message names the file or operation, the field and the value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter is outside what its operation is defined for.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A buffer does not hold what the sizes of the call say.
    #[error("{operation}: {tensor} holds {actual} values, expected {expected}")]
    Length {
        /// Operation that was called.
        operation: &'static str,
        /// Argument of the call.
        tensor: &'static str,
        /// Values the sizes ask for.
        expected: usize,
        /// Values it holds.
        actual: usize,
    },
    /// A NaN or an infinity where the maths needs a number.
    #[error("{tensor} is not finite: {value} at flat index {index}")]
    NonFinite {
        /// Tensor or quantity.
        tensor: String,
        /// Flat row-major index.
        index: usize,
        /// The value found there.
        value: f32,
    },
    /// A token id that the model has no row for.
    #[error("token {token} at position {position} is outside 0..{vocab_size}")]
    TokenOutOfRange {
        /// The id.
        token: i64,
        /// Where in the sequence.
        position: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A file whose content cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Field, value and what was expected.
        reason: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {cause}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        cause: std::io::Error,
    },
    /// A device that is not there, or does not do what it was asked.
    #[error("{device}: {reason}")]
    Device {
        /// The device.
        device: &'static str,
        /// What is missing or went wrong.
        reason: String,
    },
    /// A kernel that broke a rule of its machine, or that the machine cannot run.
    #[error("kernel {kernel}: {message}")]
    Kernel {
        /// Its entry.
        kernel: &'static str,
        /// The place, block and thread, and what happened there.
        message: String,
    },
    /// A request that contradicts itself or the model.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// A [`Error::File`].
    pub fn file(path: impl AsRef<Path>, reason: impl ToString) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }

    /// Wraps an [`std::io::Error`], for `map_err`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |cause| Self::Io { path, action, cause }
    }
}
