//! One JSON object after the other out of a file that may be larger than memory: a line each, or
//! the elements of one array.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// An object as it stands in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Byte where it begins.
    pub offset: u64,
    /// Line where it begins, from 1.
    pub line: usize,
    /// The object, unparsed.
    pub bytes: Vec<u8>,
}

/// What the next byte outside of every object may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// An object or, in an empty array, its end.
    First,
    /// An object: a comma stands before it.
    Next,
    /// A comma or the end of the array.
    Separator,
    /// Nothing: the array is over.
    Nothing,
}

/// Reads the records of one file in order.
pub struct Records {
    path: PathBuf,
    reader: BufReader<File>,
    offset: u64,
    line: usize,
    /// Absent for a record on each line.
    array: Option<Expect>,
}

impl Records {
    /// Opens a file. It is an array if its first character is `[`.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let (path, reader) = (path.to_path_buf(), BufReader::with_capacity(1 << 16, file));
        let mut records = Self { path, reader, offset: 0, line: 1, array: None };
        if records.peek_text()? == Some(b'[') {
            records.take_byte()?;
            records.array = Some(Expect::First);
        }
        Ok(records)
    }

    fn next_line(&mut self) -> Result<Option<Record>> {
        if self.peek_text()?.is_none() {
            return Ok(None);
        }
        let (offset, line, mut bytes) = (self.offset, self.line, Vec::new());
        let read = self.reader.read_until(b'\n', &mut bytes);
        self.offset += read.map_err(Error::io(&self.path, "read"))? as u64;
        self.line += 1;
        bytes.truncate(bytes.trim_ascii_end().len());
        Ok(Some(Record { offset, line, bytes }))
    }

    fn next_element(&mut self, expect: Expect) -> Result<Option<Record>> {
        let next = self.peek_text()?;
        match (expect, next) {
            (Expect::Nothing, None) => Ok(None),
            (Expect::First | Expect::Separator, Some(b']')) => {
                self.take_byte()?;
                self.array = Some(Expect::Nothing);
                self.next_element(Expect::Nothing)
            }
            (Expect::Separator, Some(b',')) => {
                self.take_byte()?;
                self.array = Some(Expect::Next);
                self.next_element(Expect::Next)
            }
            (Expect::First | Expect::Next, Some(b'{')) => {
                self.array = Some(Expect::Separator);
                self.object().map(Some)
            }
            (expect, found) => {
                let expected = match expect {
                    Expect::First | Expect::Next => "an object",
                    Expect::Separator => "a comma or the end of the array",
                    Expect::Nothing => "nothing after the array",
                };
                let found = found.map_or("the end of the file".to_owned(), |byte| {
                    format!("{:?}", char::from(byte))
                });
                Err(self.at(self.line, format!("expected {expected}, found {found}")))
            }
        }
    }

    /// From its brace to the brace that closes it.
    fn object(&mut self) -> Result<Record> {
        let (offset, line, mut bytes) = (self.offset, self.line, Vec::new());
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        while let Some(byte) = self.take_byte()? {
            bytes.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(Record { offset, line, bytes });
            }
        }
        Err(self.at(line, "the object that begins here has no end".to_owned()))
    }

    /// The next byte that is no white space, which is passed over.
    fn peek_text(&mut self) -> Result<Option<u8>> {
        loop {
            match self.peek_byte()? {
                Some(byte) if byte.is_ascii_whitespace() => self.take_byte()?,
                other => return Ok(other),
            };
        }
    }

    fn peek_byte(&mut self) -> Result<Option<u8>> {
        let bytes = self.reader.fill_buf().map_err(Error::io(&self.path, "read"))?;
        Ok(bytes.first().copied())
    }

    fn take_byte(&mut self) -> Result<Option<u8>> {
        let next = self.peek_byte()?;
        if let Some(byte) = next {
            self.reader.consume(1);
            self.offset += 1;
            self.line += usize::from(byte == b'\n');
        }
        Ok(next)
    }

    fn at(&self, line: usize, reason: String) -> Error {
        Error::file(&self.path, format!("line {line}: {reason}"))
    }
}

/// Errors are `Io`, and `File` with the line where the text is not what was expected.
impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        let next = match self.array {
            None => self.next_line(),
            Some(expect) => self.next_element(expect),
        };
        next.transpose()
    }
}

/// The bytes of a record that was found before.
///
/// # Errors
/// `Io`; a file that has become shorter is one.
pub fn read_again(path: &Path, file: &mut File, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(Error::io(path, "read again"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &str) -> Result<Vec<Record>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut found = Vec::new();
        for record in Records::open(file.path())? {
            let record = record?;
            let mut again = File::open(file.path()).unwrap();
            let bytes = read_again(file.path(), &mut again, record.offset, record.bytes.len());
            assert_eq!(bytes.unwrap(), record.bytes);
            found.push(record);
        }
        Ok(found)
    }

    fn texts(text: &str) -> Vec<(usize, String)> {
        let text_of = |record: Record| (record.line, String::from_utf8(record.bytes).unwrap());
        records(text).unwrap().into_iter().map(text_of).collect()
    }

    #[test]
    fn lines_and_arrays_give_the_same_objects_with_their_lines() {
        let pair = |line: usize, text: &str| (line, text.to_owned());
        let lines = "\n{\"a\": 1}\r\n\n  {\"b\": \"]}\"}  \n";
        assert_eq!(texts(lines), [pair(2, "{\"a\": 1}"), pair(4, "{\"b\": \"]}\"}")]);
        let array = "[\n {\"a\": [{}]},\n\n{\"b\": \"\\\"}\\\\\"}]\n";
        assert_eq!(texts(array), [pair(2, "{\"a\": [{}]}"), pair(4, "{\"b\": \"\\\"}\\\\\"}")]);
        assert_eq!(texts("[ ]\n"), []);
        assert_eq!(texts("  \n"), []);
    }

    #[test]
    fn a_broken_array_is_refused_with_its_line() {
        for (text, expected) in [
            ("[{}\n{}]", "line 2: expected a comma or the end of the array, found '{'"),
            ("[{},\n]", "line 2: expected an object, found ']'"),
            ("[\n7]", "line 2: expected an object, found '7'"),
            ("[{}]\n{}", "line 2: expected nothing after the array, found '{'"),
            ("[{},{}\n", "line 2: expected a comma or the end of the array, found the end"),
            ("[{},\n{\"a\": \"}", "line 2: the object that begins here has no end"),
        ] {
            let error = records(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
