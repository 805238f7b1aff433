//! Finds the case files under the paths of a command line.

use std::path::{Path, PathBuf};

use crate::case::{self, Case};
use crate::error::Error;

/// Cases that were read, and what could not be read.
#[derive(Debug, Default)]
pub struct Collected {
    /// Every readable case, in the order of paths and names.
    pub cases: Vec<Case>,
    /// One error per unreadable file or folder.
    pub errors: Vec<Error>,
}

/// Reads every case under the paths.
///
/// A file named on its own must be a case. In a folder, every `*.safetensors` and every `*.toml`
/// must be one, except `MANIFEST.toml` and `schema.toml`, which describe cases; other files and
/// names that begin with a dot are not looked at.
pub fn collect(paths: &[PathBuf]) -> Collected {
    let mut collected = Collected::default();
    for path in paths {
        match files_under(path) {
            Err(error) => collected.errors.push(error),
            Ok(files) => files.iter().for_each(|file| match case::load(file) {
                Ok(cases) => collected.cases.extend(cases),
                Err(error) => collected.errors.push(error),
            }),
        }
    }
    collected
}

fn files_under(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|source| Error::io(path, source))?;
    let mut entries = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::io(path, source))?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        if entry.is_dir() && !is_hidden(&entry) {
            files.extend(files_under(&entry)?);
        } else if is_case_file(&entry) {
            files.push(entry);
        }
    }
    Ok(files)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn is_case_file(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let descriptions = ["MANIFEST.toml", "schema.toml"];
    let extension = path.extension().and_then(|extension| extension.to_str());
    !is_hidden(path)
        && !descriptions.contains(&name.as_str())
        && matches!(extension, Some("toml" | "safetensors"))
}
