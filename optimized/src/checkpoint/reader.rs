//! One file of tensors, safetensors or GGUF: its header checked against its length, its tensors read
//! one at a time from where they are.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::gguf::{BlockType, GgufModel};
use super::mapped::{Bytes, map};
use super::packed::{Shift, Unpacked};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::ops::widen::FrozenWeight;

pub use safetensors::Dtype;

/// A header larger than this is not one.
const LARGEST_HEADER: u64 = 100_000_000;

/// Where the bytes are.
#[derive(Debug, Clone)]
enum Source {
    Disk(Arc<File>),
    Memory(Arc<[u8]>),
}

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// A type of safetensors.
    Safetensors(Dtype),
    /// A type of GGUF.
    Gguf {
        /// Plain or in blocks.
        block: BlockType,
        /// Heads whose rows stand in the order of pairs that are turned together: queries and keys.
        rotated: Option<usize>,
    },
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Safetensors(dtype) => write!(f, "{dtype:?}"),
            Self::Gguf { block, .. } => write!(f, "{block}"),
        }
    }
}

/// Type, shape and place of a tensor.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Storage type.
    pub storage: Storage,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Bytes from the start of the file.
    range: Range<u64>,
}

impl TensorInfo {
    pub(super) fn new(storage: Storage, shape: Vec<usize>, range: Range<u64>) -> Self {
        Self { storage, shape, range }
    }

    /// Bytes of the tensor in its file.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// An opened file of tensors.
#[derive(Debug, Clone)]
pub struct TensorFile {
    path: PathBuf,
    source: Source,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Reads and checks the header of a file on disk.
    ///
    /// # Errors
    /// `Io`; `File` for a file that is damaged or cut short.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path, "open"))?;
        let length = file.metadata().map_err(Error::io(path, "read"))?.len();
        let header = read_header(path, &mut file, length)?;
        Self::parse(path, Source::Disk(Arc::new(file)), &header, length)
    }

    /// The same for bytes in memory; `path` is only for messages.
    ///
    /// # Errors
    /// `File` for bytes that are damaged or cut short.
    pub fn from_bytes(path: &Path, bytes: Arc<[u8]>) -> Result<Self> {
        let length = bytes.len() as u64;
        let header = read_header(path, &mut &bytes[..], length)?;
        Self::parse(path, Source::Memory(bytes), &header, length)
    }

    /// The weights of a GGUF file.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn gguf(path: &Path, model: &GgufModel) -> Result<Self> {
        let (tensors, metadata) = (model.tensors.clone(), BTreeMap::new());
        let source = Source::Disk(Arc::new(File::open(path).map_err(Error::io(path, "open"))?));
        Ok(Self { path: path.to_path_buf(), source, tensors, metadata })
    }

    fn parse(path: &Path, source: Source, header: &[u8], length: u64) -> Result<Self> {
        // The library checks that offsets are contiguous and fit their shapes.
        let parsed: safetensors::tensor::Metadata = serde_json::from_slice(&header[8..])
            .map_err(|error| Error::file(path, format!("not a safetensors file: {error}")))?;
        let data_start = header.len() as u64;
        let mut end = data_start;
        let mut tensors = BTreeMap::new();
        for (name, info) in parsed.tensors() {
            let (from, to) = info.data_offsets;
            let range = data_start + from as u64..data_start + to as u64;
            end = end.max(range.end);
            let storage = Storage::Safetensors(info.dtype);
            tensors.insert(name, TensorInfo::new(storage, info.shape.clone(), range));
        }
        if end != length {
            let reason =
                format!("is {length} bytes long, its header describes {end}: damaged or cut short");
            return Err(Error::file(path, reason));
        }
        let metadata = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { path: path.to_path_buf(), source, tensors, metadata })
    }

    /// The file's name, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The header's `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// A tensor of the expected shape as f32; F32, F16 and BF16 convert without loss, the quantized
    /// types of GGUF are dequantized in f32.
    ///
    /// # Errors
    /// As [`TensorFile::weight`].
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.weight(name, shape)?.into_floats())
    }

    /// A tensor of the expected shape as it is stored: F32, F16 or BF16.
    ///
    /// # Errors
    /// `File` naming tensor, shape or type; `NonFinite`-like `File` for NaN and infinities.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<FrozenWeight<Cpu>> {
        let info = self.expect(name, shape)?;
        let bytes = self.bytes(info)?;
        let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        let weight = match info.storage {
            Storage::Safetensors(Dtype::F32) => {
                FrozenWeight::F32(BlockType::F32.dequantize(&bytes))
            }
            Storage::Safetensors(Dtype::F16) => FrozenWeight::F16(halves()),
            Storage::Safetensors(Dtype::BF16) => FrozenWeight::Bf16(halves()),
            Storage::Gguf { block, rotated: None } => FrozenWeight::F32(block.dequantize(&bytes)),
            Storage::Gguf { block, rotated: Some(heads) } => {
                let values = block.dequantize(&bytes);
                FrozenWeight::F32(self.halves_together(name, &values, shape, heads)?)
            }
            Storage::Safetensors(other) => {
                let reason = format!("tensor {name} is {other:?}, expected F32, F16 or BF16");
                return Err(Error::file(&self.path, reason));
            }
        };
        match weight.first_non_finite() {
            Some((index, value)) => {
                let reason = format!("tensor {name} is {value} at flat index {index}");
                Err(Error::file(&self.path, reason))
            }
            None => Ok(weight),
        }
    }

    /// Integers and grid of a tensor `[out, in]` in blocks; `None` for one of another type.
    ///
    /// # Errors
    /// `File` naming tensor or shape.
    pub(super) fn unpacked(&self, name: &str, shape: &[usize; 2]) -> Result<Option<Unpacked>> {
        let info = self.expect(name, shape)?;
        let Storage::Gguf { block, rotated } = info.storage else { return Ok(None) };
        let Some(mut unpacked) = block.unpack(&self.bytes(info)?, shape[1]) else {
            return Ok(None);
        };
        if let Some(heads) = rotated {
            let groups = [shape[0], unpacked.groups()];
            unpacked.codes = self.halves_together(name, &unpacked.codes, shape, heads)?;
            unpacked.scale = self.halves_together(name, &unpacked.scale, &groups, heads)?;
            unpacked.shift = match unpacked.shift {
                Shift::ZeroPoint(zeros) => {
                    Shift::ZeroPoint(self.halves_together(name, &zeros, &groups, heads)?)
                }
                Shift::Bias(bias) => {
                    Shift::Bias(self.halves_together(name, &bias, &groups, heads)?)
                }
            };
        }
        Ok(Some(unpacked))
    }

    /// Rows of a turned projection in the order of Hugging Face.
    fn halves_together<T: Copy>(
        &self,
        name: &str,
        values: &[T],
        shape: &[usize],
        heads: usize,
    ) -> Result<Vec<T>> {
        halves_together(values, shape, heads).ok_or_else(|| {
            let reason = format!("tensor {name} of {shape:?} has no {heads} even heads");
            Error::file(&self.path, reason)
        })
    }

    /// An F32 or BF16 tensor of the expected shape, whatever its values are.
    ///
    /// # Errors
    /// `File` naming tensor, shape or type.
    pub(super) fn bits(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        if self.expect(name, shape)?.storage == Storage::Safetensors(Dtype::BF16) {
            let bytes = self.bytes_of(name, shape, Dtype::BF16)?;
            let wide = |b: &[u8]| f32::from_le_bytes([0, 0, b[0], b[1]]);
            return Ok(bytes.chunks_exact(2).map(wide).collect());
        }
        let bytes = self.bytes_of(name, shape, Dtype::F32)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// An I8 tensor of the expected shape.
    ///
    /// # Errors
    /// `File` naming tensor, shape or type.
    pub fn codes(&self, name: &str, shape: &[usize]) -> Result<Vec<i8>> {
        let bytes = self.bytes_of(name, shape, Dtype::I8)?;
        Ok(bytes.iter().map(|byte| *byte as i8).collect())
    }

    /// A U8 tensor of the expected shape.
    ///
    /// # Errors
    /// `File` naming tensor, shape or type.
    pub fn unsigned_codes(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
        Ok(self.bytes_of(name, shape, Dtype::U8)?.to_vec())
    }

    /// An I32 or U32 tensor of the expected shape, bit for bit.
    ///
    /// # Errors
    /// `File` naming tensor, shape or type.
    pub(super) fn words(&self, name: &str, shape: &[usize]) -> Result<Vec<u32>> {
        let unsigned = self.expect(name, shape)?.storage == Storage::Safetensors(Dtype::U32);
        let dtype = if unsigned { Dtype::U32 } else { Dtype::I32 };
        let bytes = self.bytes_of(name, shape, dtype)?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// An I64 or I32 tensor of any shape.
    ///
    /// # Errors
    /// `File` naming the tensor and its type.
    pub(super) fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let bytes = self.raw(name)?;
        match self.tensors[name].storage {
            Storage::Safetensors(Dtype::I64) => {
                let (numbers, _) = bytes.as_chunks();
                Ok(numbers.iter().map(|number| i64::from_le_bytes(*number)).collect())
            }
            Storage::Safetensors(Dtype::I32) => {
                let (numbers, _) = bytes.as_chunks();
                Ok(numbers.iter().map(|number| i32::from_le_bytes(*number).into()).collect())
            }
            other => {
                Err(Error::file(&self.path, format!("tensor {name} is {other}, expected I64")))
            }
        }
    }

    fn bytes_of(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Bytes<'_>> {
        let info = self.expect(name, shape)?;
        if info.storage != Storage::Safetensors(dtype) {
            let reason = format!("tensor {name} is {}, expected {dtype:?}", info.storage);
            return Err(Error::file(&self.path, reason));
        }
        self.bytes(info)
    }

    /// A tensor that must be there with this shape.
    ///
    /// # Errors
    /// `File` naming the tensor.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let Some(info) = self.tensors.get(name) else {
            return Err(Error::file(&self.path, format!("has no tensor {name}")));
        };
        if info.shape != shape {
            let reason = format!("tensor {name} has shape {:?}, expected {shape:?}", info.shape);
            return Err(Error::file(&self.path, reason));
        }
        Ok(info)
    }

    /// The stored bytes of a tensor.
    ///
    /// # Errors
    /// `File` when it is not there; `Io`.
    pub(super) fn raw(&self, name: &str) -> Result<Bytes<'_>> {
        match self.tensors.get(name) {
            Some(info) => self.bytes(info),
            None => Err(Error::file(&self.path, format!("has no tensor {name}"))),
        }
    }

    fn bytes(&self, info: &TensorInfo) -> Result<Bytes<'_>> {
        match &self.source {
            Source::Memory(bytes) => {
                let range = info.range.start as usize..info.range.end as usize;
                Ok(Bytes::Memory(&bytes[range]))
            }
            Source::Disk(file) => map(file, &info.range).map_err(Error::io(&self.path, "read")),
        }
    }
}

/// The rows `[out, in]` of `heads` heads from the order of turned pairs, `2 i` and `2 i + 1`, to that
/// of Hugging Face, `i` and `head_dim / 2 + i`.
fn halves_together<T: Copy>(values: &[T], shape: &[usize], heads: usize) -> Option<Vec<T>> {
    let &[out, width] = shape else { return None };
    let head_dim = out.checked_div(heads).filter(|dim| dim * heads == out && dim % 2 == 0)?;
    let mut moved = Vec::with_capacity(values.len());
    for head in 0..heads {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = head * head_dim + 2 * pair + half;
                moved.extend_from_slice(&values[row * width..][..width]);
            }
        }
    }
    Some(moved)
}

/// The eight length bytes and the header that they announce.
fn read_header(path: &Path, from: &mut impl Read, length: u64) -> Result<Vec<u8>> {
    let short = || Error::file(path, format!("is {length} bytes long, too short for its header"));
    let mut header = vec![0; 8];
    from.read_exact(&mut header).map_err(|_| short())?;
    let announced = u64::from_le_bytes(header[..8].try_into().expect("eight bytes were read"));
    if announced > LARGEST_HEADER {
        return Err(Error::file(
            path,
            format!("not a safetensors file: header of {announced} bytes"),
        ));
    }
    if announced + 8 > length {
        return Err(short());
    }
    header.resize(8 + announced as usize, 0);
    from.read_exact(&mut header[8..]).map_err(|_| short())?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_pairs_become_rows_of_halves() {
        // Two heads of four rows and one input.
        let pairs = [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
        let halves: Vec<f32> = (0..8u8).map(f32::from).collect();
        assert_eq!(halves_together(&pairs, &[8, 1], 2).unwrap(), halves);
        assert!(halves_together(&pairs, &[8, 1], 3).is_none());
        assert!(halves_together(&pairs, &[8, 1], 8).is_none());
    }
}
