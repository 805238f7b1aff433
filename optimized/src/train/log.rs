//! A file of a run that grows while the run goes on.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};

/// A file that is only appended to, and cut where a run goes back to a checkpoint.
pub struct Log {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    /// Opens the file behind its last byte; an absent one is made.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(Error::io(path, "open"))?;
        let length = file.seek(SeekFrom::End(0)).map_err(Error::io(path, "read"))?;
        Ok(Self { path: path.to_path_buf(), file, length })
    }

    /// Keeps every other process out until this one ends, however it ends.
    ///
    /// # Errors
    /// `File` when another process has it.
    pub fn lock(&self) -> Result<()> {
        self.file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                Error::file(&self.path, "another process is training into this folder")
            }
            TryLockError::Error(cause) => Error::io(&self.path, "lock")(cause),
        })
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path, "write"))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Appends one line of JSON.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn write_json(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(record).expect("plain data serialises");
        line.push('\n');
        self.write(line.as_bytes())
    }

    /// Its length, once all of it is on the disk.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(Error::io(&self.path, "sync"))?;
        Ok(self.length)
    }

    /// Cuts it to a length that it had; whether it was at least that long.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn cut(&mut self, length: u64) -> Result<bool> {
        let is_long_enough = self.length >= length;
        self.length = self.length.min(length);
        self.file
            .set_len(self.length)
            .and_then(|()| self.file.seek(SeekFrom::End(0)))
            .map_err(Error::io(&self.path, "cut"))?;
        Ok(is_long_enough)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_goes_on_where_it_was_cut_and_belongs_to_one_process() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        let mut log = Log::open(&path).unwrap();
        log.write_json(&1).unwrap();
        let length = log.sync().unwrap();
        log.write(b"half a li").unwrap();
        drop(log);
        let mut log = Log::open(&path).unwrap();
        assert!(log.cut(length).unwrap());
        log.write_json(&2).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n");
        assert!(!log.cut(100).unwrap(), "it was never that long");
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n");
        log.lock().unwrap();
        let other = Log::open(&path).unwrap().lock().unwrap_err().to_string();
        assert!(other.contains("another process"), "{other}");
    }
}
