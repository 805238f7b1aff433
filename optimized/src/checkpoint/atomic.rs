//! Whole or not at all: write under a temporary name, sync, rename.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How the name of everything begins that is not whole yet.
const UNFINISHED: &str = ".unfinished-";

/// Writes a file so that a reader sees the old content or the new, never a part.
///
/// # Errors
/// `Io` naming the path.
pub fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    write_parts(path, |write| write(content))
}

/// The same of a content that `fill` hands over part by part.
///
/// # Errors
/// `Io` naming the path; whatever `fill` returns.
pub(crate) fn write_parts(
    path: &Path,
    fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let folder = parent(path);
    let io = || Error::io(path, "write");
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder).map_err(io())?;
    fill(&mut |part| file.write_all(part).map_err(io()))?;
    shared(file.path()).and_then(|()| file.as_file().sync_all()).map_err(io())?;
    file.persist(path).map_err(|error| io()(error.error))?;
    sync_folder(folder)
}

/// Makes a folder whose content `fill` writes into a temporary one first. An existing path is
/// refused; after a failure nothing is left.
///
/// # Errors
/// `Invalid` when the path exists; `Io`; whatever `fill` returns.
pub fn new_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.exists() {
        return Err(Error::file(path, "already exists; choose another output or remove it"));
    }
    let temporary = filled(path, fill)?;
    std::fs::rename(temporary.path(), path).map_err(Error::io(path, "rename to"))?;
    // It has its name now; there is nothing to remove.
    let _ = temporary.keep();
    sync_folder(parent(path))
}

/// The same, and with `force` a model's folder that is there is replaced once the new one is whole.
///
/// # Errors
/// As [`new_folder`]; `File` for a path that is there and is no model's folder.
pub fn output_folder(
    path: &Path,
    force: bool,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    check_output(path, force)?;
    if !path.exists() {
        return new_folder(path, fill);
    }
    if !path.join("config.json").is_file() {
        return Err(Error::file(path, "is no model's folder, and is not replaced"));
    }
    let temporary = filled(path, fill)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let doomed = path.with_file_name(format!("{UNFINISHED}{name}"));
    std::fs::rename(path, &doomed).map_err(Error::io(path, "rename"))?;
    std::fs::rename(temporary.path(), path).map_err(Error::io(path, "rename to"))?;
    let _ = temporary.keep();
    sync_folder(parent(path))?;
    std::fs::remove_dir_all(&doomed).map_err(Error::io(path, "remove the old"))
}

/// A file that `fill` writes under another name first; with `force`, in place of one that is there.
///
/// # Errors
/// `File` when the path exists, or is a folder; `Io`; whatever `fill` returns.
pub fn output_file(path: &Path, force: bool, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    check_output(path, force)?;
    if path.is_dir() {
        return Err(Error::file(path, "is a folder, and is not replaced by a file"));
    }
    let temporary =
        filled(path, |folder| fill(&folder.join(path.file_name().unwrap_or_default())))?;
    let file = temporary.path().join(path.file_name().unwrap_or_default());
    std::fs::rename(&file, path).map_err(Error::io(path, "rename to"))?;
    sync_folder(parent(path))
}

fn check_output(path: &Path, force: bool) -> Result<()> {
    match path.exists() && !force {
        true => Err(Error::file(path, "already exists; --force replaces it")),
        false => Ok(()),
    }
}

/// A temporary folder beside a path, filled and on the disk.
fn filled(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<tempfile::TempDir> {
    let parent = parent(path);
    std::fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    let temporary = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(parent)
        .map_err(Error::io(parent, "create a folder in"))?;
    fill(temporary.path())?;
    for entry in std::fs::read_dir(temporary.path()).map_err(Error::io(path, "read"))? {
        let entry = entry.map_err(Error::io(path, "read"))?.path();
        std::fs::File::open(&entry)
            .and_then(|file| file.sync_all())
            .map_err(Error::io(&entry, "sync"))?;
    }
    readable_by_others(temporary.path())?;
    sync_folder(temporary.path())?;
    Ok(temporary)
}

/// Bytes that can still be written where a path would be.
///
/// # Errors
/// `Io` naming the folder.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let there = path.ancestors().skip(1).find(|folder| folder.exists());
    let folder = there.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    free_in(folder).map_err(Error::io(folder, "ask for the free space of"))
}

#[cfg(unix)]
fn free_in(folder: &Path) -> std::io::Result<u64> {
    let space = rustix::fs::statvfs(folder)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Where nothing can be asked, writing tells.
#[cfg(not(unix))]
fn free_in(_folder: &Path) -> std::io::Result<u64> {
    Ok(u64::MAX)
}

/// Removes a folder so that a reader sees all of it or nothing.
///
/// # Errors
/// `Io` naming the path.
pub fn remove_folder(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let doomed = path.with_file_name(format!("{UNFINISHED}{name}"));
    std::fs::rename(path, &doomed).map_err(Error::io(path, "rename"))?;
    std::fs::remove_dir_all(&doomed).map_err(Error::io(path, "remove"))
}

/// Removes what a process that was killed left half-made or half-removed in a folder.
///
/// # Errors
/// `Io` naming the path.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let entry = entry.map_err(Error::io(folder, "read"))?;
        if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            continue;
        }
        let path = entry.path();
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(Error::io(&path, "remove"))?;
    }
    Ok(())
}

/// Temporary folders and files are private; results get what `mkdir` and `creat` would give.
fn readable_by_others(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
                .map_err(Error::io(path, "set permissions of"))
        };
        set(folder, 0o755)?;
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
            let path = entry.map_err(Error::io(folder, "read"))?.path();
            set(&path, if path.is_dir() { 0o755 } else { 0o644 })?;
        }
    }
    Ok(())
}

/// What `creat` gives, where a temporary file is private.
fn shared(_path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(_path, std::fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(folder: &Path) -> Result<()> {
    let folder: PathBuf = folder.into();
    std::fs::File::open(&folder)
        .and_then(|file| file.sync_all())
        .map_err(Error::io(&folder, "sync"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_folder_leaves_nothing_and_an_existing_one_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/out");
        let failed = new_folder(&path, |folder| {
            write_file(&folder.join("half"), b"x")?;
            Err(Error::Invalid("no".into()))
        });
        assert!(failed.is_err() && !path.exists());
        assert_eq!(std::fs::read_dir(root.path().join("deep")).unwrap().count(), 0);
        new_folder(&path, |folder| write_file(&folder.join("whole"), b"x")).unwrap();
        assert_eq!(std::fs::read(path.join("whole")).unwrap(), b"x");
        let refused = new_folder(&path, |_| Ok(())).unwrap_err().to_string();
        assert!(refused.contains("already exists"), "{refused}");
    }
}
