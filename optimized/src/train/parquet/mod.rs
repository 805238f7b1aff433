//! Strings out of Parquet files, some rows at a time: a file may be larger than memory.

mod column;

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

use self::column::{Column, ColumnReader};
use crate::checkpoint::Tokenizer;
use crate::error::{Error, Result};

/// What a Parquet file begins with.
const MAGIC: [u8; 4] = *b"PAR1";

/// Rows that are taken out of each column together.
const BATCH: usize = 256;

/// Whether a file is one, by what it begins with; not where it cannot be read.
pub fn is_parquet(path: &Path) -> bool {
    let mut first = [0; MAGIC.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == MAGIC
}

/// A column that a table should have.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: ColumnKind,
    /// Whether a table without it is refused.
    pub is_required: bool,
}

/// What a column holds.
#[derive(Debug, Clone, Copy)]
pub enum ColumnKind {
    /// A string on each row.
    Strings,
    /// On each row a list of structs, of which these fields are strings.
    Structs(&'static [&'static str]),
}

/// The rows of a file as JSON objects of the columns that are wanted. Null stays null.
pub struct ParquetRows {
    path: PathBuf,
    file: SerializedFileReader<File>,
    columns: Vec<Column>,
    /// The row group to open next.
    group: usize,
    readers: Vec<ColumnReader>,
    /// Rows of the open row group that are not read yet.
    left: usize,
    /// Rows read so far.
    row: usize,
    ready: std::vec::IntoIter<Map<String, Value>>,
}

impl ParquetRows {
    /// Opens a file and finds its columns.
    ///
    /// # Errors
    /// `Io`; `File` naming the column that is missing or holds something else.
    pub fn open(path: &Path, wanted: &[Wanted]) -> Result<Self> {
        guarded(path, || Self::find(path, wanted))
    }

    fn find(path: &Path, wanted: &[Wanted]) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let unreadable = |error| Error::file(path, format!("damaged Parquet file: {error}"));
        let file = SerializedFileReader::new(file).map_err(unreadable)?;
        let schema = file.metadata().file_metadata().schema_descr();
        let mut columns = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            match Column::find(schema, wanted).map_err(|reason| Error::file(path, reason))? {
                Some(column) => columns.push(column),
                None if !wanted.is_required => {}
                None => {
                    let there = schema.root_schema().get_fields().iter();
                    let there: Vec<&str> = there.map(|field| field.name()).collect();
                    let (name, there) = (wanted.name, there.join(", "));
                    let reason = format!("has no column {name}; its columns are {there}");
                    return Err(Error::file(path, reason));
                }
            }
        }
        let (readers, ready) = (Vec::new(), Vec::new().into_iter());
        let path = path.to_path_buf();
        Ok(Self { path, file, columns, group: 0, readers, left: 0, row: 0, ready })
    }

    /// The next row where none is ready.
    fn advance(&mut self) -> Result<Option<Map<String, Value>>> {
        while self.ready.len() == 0 {
            if self.left == 0 && !self.next_group()? {
                return Ok(None);
            }
            self.read()?;
        }
        Ok(self.ready.next())
    }

    /// Opens the next row group that has rows; whether there is one.
    fn next_group(&mut self) -> Result<bool> {
        while self.group < self.file.num_row_groups() {
            let number = self.group;
            let damaged =
                |reason: String| Error::file(&self.path, format!("row group {number}: {reason}"));
            let group = self.file.get_row_group(number).map_err(|e| damaged(e.to_string()))?;
            let rows = group.metadata().num_rows();
            self.left = usize::try_from(rows).map_err(|_| damaged(format!("has {rows} rows")))?;
            let open = |column: &Column| column.open(&*group);
            self.readers =
                self.columns.iter().map(open).collect::<Result<_, _>>().map_err(damaged)?;
            self.group += 1;
            if self.left > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads the next rows of every column.
    fn read(&mut self) -> Result<()> {
        let rows = self.left.min(BATCH);
        let mut ready = vec![Map::new(); rows];
        for reader in &mut self.readers {
            let values = reader.read(rows, self.row + 1);
            let values = values.map_err(|reason| Error::file(&self.path, reason))?;
            for (row, value) in ready.iter_mut().zip(values) {
                row.insert(reader.name().to_owned(), value);
            }
        }
        self.left -= rows;
        self.row += rows;
        self.ready = ready.into_iter();
        Ok(())
    }
}

/// Errors are `File` with column and row, after which there is no more to read.
impl Iterator for ParquetRows {
    type Item = Result<Map<String, Value>>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(row) = self.ready.next() {
            return Some(Ok(row));
        }
        let path = self.path.clone();
        guarded(&path, || self.advance()).transpose()
    }
}

/// What is made of a file. Some damage makes the library panic, which here is one more answer that
/// the file is damaged.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    // What was being read is not used again: errors end it.
    let read = catch_unwind(AssertUnwindSafe(read));
    read.unwrap_or_else(|_| Err(Error::file(path, "damaged Parquet file: it contradicts itself")))
}

/// The strings of the column `text`, row by row.
///
/// # Errors
/// As [`ParquetRows::open`]. A row without a text is an error of the iterator.
pub fn texts(path: &Path) -> Result<impl Iterator<Item = Result<String>>> {
    let text = Wanted { name: "text", kind: ColumnKind::Strings, is_required: true };
    let rows = ParquetRows::open(path, &[text])?;
    let path = path.to_path_buf();
    Ok(rows.enumerate().map(move |(index, row)| match row?.remove("text") {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Error::file(&path, format!("row {}: text is null", index + 1))),
    }))
}

/// Token ids of the texts of a file one after the other, each encoded alone; an empty one has none.
///
/// # Errors
/// As [`texts`]; `File` where all are empty; `Invalid` when the tokenizer fails.
pub fn token_ids(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<i32>> {
    let mut tokens = Vec::new();
    for text in texts(path)? {
        let text = text?;
        if !text.is_empty() {
            tokens.extend(tokenizer.encode(&text)?);
        }
    }
    if tokens.is_empty() {
        return Err(Error::file(path, "the text is empty"));
    }
    Ok(tokens)
}
