//! What can be wrong with the files and the arguments of a run.

use std::path::{Path, PathBuf};

/// Why the tool could not even judge. What a subject does wrong is in its
/// [`crate::judge::report::CaseReport`] instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A case file is malformed.
    #[error("{}: {problem}", file.display())]
    Case {
        /// The file.
        file: PathBuf,
        /// The case and the field, what it holds and what was expected.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A name on the command line means nothing.
    #[error("{0}")]
    Usage(String),
    /// A subject whose hardware this machine does not have.
    #[error("IGNORED subject {subject}: {why}")]
    Absent {
        /// Its name.
        subject: &'static str,
        /// What it needs.
        why: String,
    },
    /// The reference refused a case that the tool itself generated.
    #[error("generated case {case}: {problem}")]
    Generated {
        /// Name the case would have had.
        case: String,
        /// What the reference said.
        problem: String,
    },
}

impl Error {
    pub(crate) fn case(file: &Path, problem: impl Into<String>) -> Self {
        // One line each: file contents may hold anything, and reports are read line by line.
        let problem = problem.into().split_whitespace().collect::<Vec<_>>().join(" ");
        Self::Case { file: file.to_owned(), problem }
    }

    pub(crate) fn io(file: &Path, source: std::io::Error) -> Self {
        Self::Io { file: file.to_owned(), source }
    }
}
