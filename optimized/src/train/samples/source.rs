//! The records of a file, whatever it is written in, and the file where each is read again.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::format::SampleFormat;
use super::records::{Record, Records};
use crate::error::{Error, Result};
use crate::train::parquet::{ColumnKind, ParquetRows, Wanted, is_parquet};

/// A file that is being read for the first time.
pub enum Opened {
    /// Objects as text.
    Json(Records),
    /// Rows of a table.
    Parquet(Spooled),
}

/// Rows of a table, each written to a temporary file as an object: a table has no place where one
/// row could be read again.
pub struct Spooled {
    rows: ParquetRows,
    spool: BufWriter<File>,
    offset: u64,
    row: usize,
}

impl Opened {
    /// Opens a file of records of a format.
    ///
    /// # Errors
    /// As [`Records::open`] and [`ParquetRows::open`].
    pub fn new(path: &Path, format: &SampleFormat) -> Result<Self> {
        if !is_parquet(path) {
            return Ok(Self::Json(Records::open(path)?));
        }
        let rows = ParquetRows::open(path, columns(format))?;
        let spool = tempfile::tempfile().map_err(Error::io(std::env::temp_dir(), "write into"))?;
        let spool = BufWriter::with_capacity(1 << 16, spool);
        Ok(Self::Parquet(Spooled { rows, spool, offset: 0, row: 0 }))
    }

    /// What messages call the place of a record.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Json(_) => "line",
            Self::Parquet(_) => "row",
        }
    }

    /// Where the bytes of its records stand.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn into_file(self, path: &Path) -> Result<File> {
        match self {
            Self::Json(_) => File::open(path).map_err(Error::io(path, "read")),
            Self::Parquet(Spooled { spool, .. }) => {
                let spool = spool.into_inner().map_err(|error| error.into_error());
                spool.map_err(Error::io(std::env::temp_dir(), "write into"))
            }
        }
    }
}

/// The columns that a record of a format is made of.
fn columns(format: &SampleFormat) -> &'static [Wanted] {
    const fn strings(name: &'static str, is_required: bool) -> Wanted {
        Wanted { name, kind: ColumnKind::Strings, is_required }
    }
    const ALPACA: &[Wanted] =
        &[strings("instruction", true), strings("input", false), strings("output", true)];
    const TURNS: ColumnKind = ColumnKind::Structs(&["role", "content"]);
    const MESSAGES: &[Wanted] = &[Wanted { name: "messages", kind: TURNS, is_required: true }];
    match format {
        SampleFormat::Alpaca { .. } => ALPACA,
        SampleFormat::Messages { .. } => MESSAGES,
    }
}

impl Spooled {
    fn write(&mut self, row: serde_json::Map<String, serde_json::Value>) -> Result<Record> {
        let bytes = serde_json::Value::Object(row).to_string().into_bytes();
        self.spool.write_all(&bytes).map_err(Error::io(std::env::temp_dir(), "write into"))?;
        let record = Record { offset: self.offset, line: self.row + 1, bytes };
        self.offset += record.bytes.len() as u64;
        self.row += 1;
        Ok(record)
    }
}

impl Iterator for Opened {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Json(records) => records.next(),
            Self::Parquet(spooled) => {
                let row = spooled.rows.next()?;
                Some(row.and_then(|row| spooled.write(row)))
            }
        }
    }
}
