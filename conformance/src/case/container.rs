//! The binary form of a case: a safetensors file.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use crate::error::Error;
use crate::tensor::{Data, Tensor, Tensors};

/// A safetensors file in memory.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Container {
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Every tensor under its full name.
    pub tensors: Tensors,
}

/// Parses the bytes of a safetensors file.
///
/// # Errors
/// One line on what is wrong; truncated or inconsistent bytes never panic.
pub fn parse(bytes: &[u8]) -> Result<Container, String> {
    let (_, header) = SafeTensors::read_metadata(bytes)
        .map_err(|e| format!("not a safetensors file, or a truncated one: {e}"))?;
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let views = SafeTensors::deserialize(bytes)
        .map_err(|e| format!("not a safetensors file, or a truncated one: {e}"))?;
    let mut tensors = Tensors::new();
    for (name, view) in views.iter() {
        let data = elements(view.dtype(), view.data()).ok_or_else(|| {
            format!("tensor {name} has dtype {}, which no case uses", view.dtype())
        })?;
        let tensor = Tensor::new(view.shape().to_vec(), data)
            .map_err(|problem| format!("tensor {name}: {problem}"))?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(Container { metadata, tensors })
}

fn elements(dtype: Dtype, bytes: &[u8]) -> Option<Data> {
    fn decode<const N: usize, T>(bytes: &[u8], decode: fn([u8; N]) -> T) -> Vec<T> {
        let (chunks, _) = bytes.as_chunks::<N>();
        chunks.iter().map(|chunk| decode(*chunk)).collect()
    }
    Some(match dtype {
        Dtype::F64 => Data::F64(decode(bytes, f64::from_le_bytes)),
        Dtype::F32 => Data::F32(decode(bytes, f32::from_le_bytes)),
        Dtype::F16 => Data::F16(decode(bytes, f16::from_le_bytes)),
        Dtype::BF16 => Data::Bf16(decode(bytes, bf16::from_le_bytes)),
        Dtype::I8 => Data::I8(decode(bytes, i8::from_le_bytes)),
        Dtype::U8 => Data::U8(bytes.to_vec()),
        Dtype::I32 => Data::I32(decode(bytes, i32::from_le_bytes)),
        _ => return None,
    })
}

fn bytes_of(data: &Data) -> Vec<u8> {
    match data {
        Data::F64(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::F32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::F16(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::Bf16(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::I8(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::U8(x) => x.clone(),
        Data::I32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// The bytes of the file. The same container always gives the same bytes: safetensors' own writer
/// keeps its metadata in a hash map, whose order changes from run to run.
pub fn bytes(container: &Container) -> Vec<u8> {
    let mut tensors: Vec<_> = container.tensors.iter().collect();
    // Widest elements first, so that every tensor lies at a multiple of its element size.
    tensors.sort_by_key(|(name, tensor)| (std::cmp::Reverse(tensor.dtype().bitsize()), *name));
    let mut header = serde_json::Map::new();
    if !container.metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(container.metadata));
    }
    let mut body = Vec::new();
    for (name, tensor) in tensors {
        let start = body.len();
        body.extend(bytes_of(tensor.data()));
        let entry = serde_json::json!({
            "dtype": tensor.dtype().to_string(),
            "shape": tensor.shape(),
            "data_offsets": [start, body.len()],
        });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(body);
    file
}

/// Writes the file under a temporary name, syncs it and renames it: it is whole or not there.
///
/// # Errors
/// Where the folder cannot be written.
pub fn write(path: &Path, container: &Container) -> Result<(), Error> {
    write_bytes(path, &bytes(container))
}

/// As [`write()`], for any bytes.
///
/// # Errors
/// Where the folder cannot be written.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let attempt = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        // Temporary files are private by default; this one becomes an ordinary file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut temporary = builder.prefix(".conform-").tempfile_in(folder)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    attempt().map_err(|source| Error::io(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_type() -> Container {
        let tensors = [
            ("in.f64", vec![2], Data::F64(vec![0.1, f64::MIN_POSITIVE])),
            ("in.f32", vec![1, 2], Data::F32(vec![0.1, -0.0])),
            ("in.f16", vec![1], Data::F16(vec![f16::from_f32(0.5)])),
            ("in.bf16", vec![1], Data::Bf16(vec![bf16::from_f32(3.0)])),
            ("in.i8", vec![3], Data::I8(vec![-128, 0, 127])),
            ("in.u8", vec![2], Data::U8(vec![0, 255])),
            ("in.i32", vec![], Data::I32(vec![i32::MIN])),
            ("in.none", vec![0, 4], Data::F32(vec![])),
        ];
        Container {
            metadata: [("format", "plumbline-case-1"), ("note", "quotes \" and\nlines")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            tensors: tensors
                .map(|(name, shape, data)| (name.to_owned(), Tensor::new(shape, data).unwrap()))
                .into(),
        }
    }

    #[test]
    fn every_type_survives_the_round_trip() {
        let container = every_type();
        assert_eq!(parse(&bytes(&container)).unwrap(), container);
        assert_eq!(bytes(&container), bytes(&container.clone()));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = bytes(&every_type());
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
        }
    }
}
