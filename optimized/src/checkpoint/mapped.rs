#![allow(unsafe_code)] // the mapping of a file; reasons at the call

//! The bytes of a tensor where they are: the only unsafe code of this folder.
//!
//! A tensor's part of its file is mapped while the tensor is made from it and given back right after,
//! so what is resident is one tensor, however large the files are.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};

use memmap2::{Mmap, MmapOptions};

/// Bytes in memory, or of a file as long as this lives.
pub(super) enum Bytes<'a> {
    Memory(&'a [u8]),
    File(Mmap),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::File(map) => map,
        }
    }
}

/// Maps a part of a file.
///
/// The file must stay as it is for as long as the result lives, for less than it takes to read one
/// tensor. This program never changes a file in place, it puts a new one under the name, which an
/// open file does not notice. Another program that overwrites the file in that time makes the tensor
/// a mixture of both contents, and one that shortens it makes the operating system end this process.
///
/// # Errors
/// `UnexpectedEof` when the file has become shorter than the part; what the system says.
pub(super) fn map(file: &File, part: &Range<u64>) -> io::Result<Bytes<'static>> {
    if part.is_empty() {
        return Ok(Bytes::Memory(&[]));
    }
    let length = file.metadata()?.len();
    if length < part.end {
        let reason = format!("has become {length} bytes long, a tensor ends at {}", part.end);
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
    }
    let len = usize::try_from(part.end - part.start)
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    // SAFETY: bounds: the part is inside the file, which was just asked for its length. Aliasing: the
    // mapping is read-only, and the contract above keeps others from writing. Lifetime: the mapping
    // owns its pages and lends them out for no longer than it lives.
    let map = unsafe { MmapOptions::new().offset(part.start).len(len).map(file)? };
    Ok(Bytes::File(map))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn any_part_of_a_file_is_there_and_nothing_beyond_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..10_000).map(|index| (index % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        for part in [0..1, 4095..4097, 8191..10_000, 10_000..10_000] {
            let range = part.start as usize..part.end as usize;
            assert_eq!(&map(&file, &part).unwrap()[..], &bytes[range]);
        }
        file.set_len(5000).unwrap();
        let refused = map(&file, &(4000..6000)).err().unwrap();
        assert_eq!(refused.to_string(), "has become 5000 bytes long, a tensor ends at 6000");
    }
}
