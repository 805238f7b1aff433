//! The part of a GGUF file before the weights: metadata and the list of tensors.

use std::collections::BTreeMap;
use std::io::Read;

use super::blocks::BlockType;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
}

/// A tensor as the file describes it.
#[derive(Debug)]
pub(super) struct Tensor {
    pub name: String,
    pub block: BlockType,
    /// Row-major, slowest first: the file has the fastest first.
    pub shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub start: u64,
    pub bytes: u64,
}

/// Metadata and tensors.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<Tensor>,
}

/// Most dimensions of a tensor.
const DIMENSIONS: u32 = 4;
/// Lists within lists that are followed.
const DEPTH: usize = 4;

impl Header {
    /// Reads a header from a file of `length` bytes.
    pub(super) fn read(from: &mut impl Read, length: u64) -> Result<Self, String> {
        let mut bytes = Bytes { from, length, at: 0 };
        if &bytes.array::<4>()? != b"GGUF" {
            return Err("not a GGUF file: it does not begin with GGUF".into());
        }
        let version = bytes.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("GGUF version {version}, supported: 2 and 3"));
        }
        let (tensors, values) = (bytes.u64()?, bytes.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..values {
            let key = bytes.text()?;
            let kind = bytes.u32()?;
            let value = bytes.value(kind, DEPTH).map_err(|e| format!("metadata {key}: {e}"))?;
            metadata.insert(key, value);
        }
        let mut list = Vec::new();
        for _ in 0..tensors {
            list.push(bytes.tensor()?);
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Unsigned(value)) if value.is_power_of_two() => *value,
            Some(value) => return Err(format!("general.alignment is {value:?}")),
        };
        let data = bytes.at.next_multiple_of(alignment);
        for tensor in &mut list {
            // Offsets count from the data's first byte.
            let place = data.checked_add(tensor.start);
            let end = place.and_then(|place| place.checked_add(tensor.bytes));
            match (place, end) {
                (Some(place), Some(end)) if end <= length => tensor.start = place,
                _ => {
                    let Tensor { name, start, bytes, .. } = tensor;
                    return Err(format!(
                        "tensor {name} of {bytes} bytes at {start} ends behind the file's {length} \
                         bytes: damaged or cut short"
                    ));
                }
            }
        }
        Ok(Self { metadata, tensors: list })
    }
}

/// Reads numbers and knows how much is left.
struct Bytes<'a, R> {
    from: &'a mut R,
    length: u64,
    at: u64,
}

impl<R: Read> Bytes<'_, R> {
    /// Nothing is set aside for a length that the file cannot hold.
    fn take(&mut self, count: u64) -> Result<(), String> {
        if count > self.length - self.at {
            let Self { at, length, .. } = self;
            return Err(format!("ends at byte {length} where {count} more follow byte {at}"));
        }
        self.at += count;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, String> {
        let count = self.u64()?;
        self.take(count)?;
        let mut bytes = vec![0; count as usize];
        self.from.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        String::from_utf8(bytes).map_err(|_| format!("text before byte {} is not UTF-8", self.at))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array()?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 if depth > 0 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let mut list = Vec::new();
                for _ in 0..count {
                    list.push(self.value(kind, depth - 1)?);
                }
                Value::List(list)
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("a value of type {kind} is not one")),
        })
    }

    fn tensor(&mut self) -> Result<Tensor, String> {
        let name = self.text()?;
        let place = |reason: String| format!("tensor {name}: {reason}");
        let dimensions = self.u32().map_err(place)?;
        if !(1..=DIMENSIONS).contains(&dimensions) {
            return Err(place(format!("{dimensions} dimensions, expected 1 to {DIMENSIONS}")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64().map_err(place)? as usize);
        }
        let block = BlockType::new(self.u32().map_err(place)?).map_err(place)?;
        let start = self.u64().map_err(place)?;
        let values = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        let bytes = values
            .filter(|_| shape[0].is_multiple_of(block.values()))
            .and_then(|values| (values / block.values()).checked_mul(block.bytes()))
            .ok_or_else(|| place(format!("no tensor of {block} has the shape {shape:?}")))?;
        shape.reverse();
        Ok(Tensor { name, block, shape, start, bytes: bytes as u64 })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// A file with one number in its metadata and one tensor of two Q8_0 rows.
    fn file() -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(
            [text("answer"), 4u32.to_le_bytes().into(), 42u32.to_le_bytes().into()].concat(),
        );
        bytes.extend([text("t"), 2u32.to_le_bytes().into()].concat());
        bytes.extend([32u64.to_le_bytes(), 2u64.to_le_bytes()].concat());
        bytes.extend([8u32.to_le_bytes().to_vec(), 0u64.to_le_bytes().to_vec()].concat());
        bytes.resize(bytes.len().next_multiple_of(32) + 2 * 34, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Header, String> {
        Header::read(&mut &bytes[..], bytes.len() as u64)
    }

    #[test]
    fn a_header_is_read() {
        let header = read(&file()).unwrap();
        assert_eq!(header.metadata["answer"], Value::Unsigned(42));
        let [tensor] = &header.tensors[..] else { panic!("{:?}", header.tensors) };
        assert_eq!(
            (tensor.name.as_str(), &tensor.shape[..], tensor.bytes),
            ("t", &[2, 32][..], 68)
        );
        assert_eq!(tensor.start + tensor.bytes, file().len() as u64);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let whole = file();
        for length in 0..whole.len() {
            read(&whole[..length]).unwrap_err();
        }
    }

    #[test]
    fn no_byte_of_a_header_can_make_it_panic_or_ask_for_more_memory_than_the_file() {
        let whole = file();
        for place in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[place] ^= 1 << bit;
                let _either = read(&bytes);
            }
            let mut bytes = whole.clone();
            bytes[place..].fill(0xff);
            let _either = read(&bytes);
        }
    }
}
