//! Writing model folders.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use plumbline_reference::spec::LlamaConfig;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};

use super::atomic::{write_file, write_parts};
use super::chat_template;
use super::folder::ModelFolder;
use super::quantization::QuantizationConfig;
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::methods::{
    AffineTensors, Dense, LinearMethod, MergedTensors, Parameter, TargetedTensors,
};
use crate::model::{LazyTensor, Llama, tensor_shapes};
use crate::ops::widen::FrozenWeight;

/// A tensor ready to be written: type, shape, little-endian bytes.
pub type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// Storage type of floating-point tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// Rounded to nearest, ties to even.
    Bf16,
}

pub(super) fn store(values: &[f32], shape: &[usize], precision: Precision) -> Stored {
    match precision {
        Precision::F32 => {
            (Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        Precision::Bf16 => {
            let bytes = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
            (Dtype::BF16, shape.to_vec(), bytes)
        }
    }
}

pub(super) fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Stored>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let unusable = |error: safetensors::SafeTensorError| Error::file(path, error);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| {
            Ok((name, TensorView::new(*dtype, shape.clone(), bytes).map_err(unusable)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(unusable)?;
    write_file(path, &bytes)
}

/// A tensor whose bytes are made when they are written.
pub(crate) struct StreamedTensor<'a> {
    /// Name in the file.
    pub name: String,
    /// Type in the file.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Gives the little-endian bytes.
    pub bytes: Box<dyn FnOnce() -> Result<Vec<u8>> + 'a>,
}

/// Writes tensors in the order given: no more than one is there at a time.
pub(crate) fn stream_tensors(
    path: &Path,
    tensors: Vec<StreamedTensor<'_>>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let mut end = 0;
    let infos = tensors.iter().map(|StreamedTensor { name, dtype, shape, .. }| {
        let start = end;
        end += dtype.bitsize() / 8 * shape.iter().product::<usize>();
        let (dtype, shape) = (*dtype, shape.clone());
        (name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let infos = infos.collect();
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let header = Metadata::new(Some(metadata), infos).map_err(|error| Error::file(path, error))?;
    let mut header = serde_json::to_vec(&header).expect("plain data serialises");
    header.resize(header.len().next_multiple_of(8), b' ');
    write_parts(path, |write| {
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        for StreamedTensor { name, dtype, shape, bytes } in tensors {
            let bytes = bytes()?;
            let expected = dtype.bitsize() / 8 * shape.iter().product::<usize>();
            assert_eq!(bytes.len(), expected, "{name}");
            write(&bytes)?;
        }
        Ok(())
    })
}

/// The same of floats that come to the host one after the other, by their names.
pub(super) fn stream_safetensors(
    path: &Path,
    mut tensors: Vec<LazyTensor<'_>>,
    precision: Precision,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let dtype = match precision {
        Precision::F32 => Dtype::F32,
        Precision::Bf16 => Dtype::BF16,
    };
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let streamed = tensors.into_iter().map(|LazyTensor { name, shape, values }| StreamedTensor {
        name,
        dtype,
        shape: shape.clone(),
        bytes: Box::new(move || {
            let (_, _, bytes) = store(&values()?, &shape, precision);
            Ok(bytes)
        }),
    });
    stream_tensors(path, streamed.collect(), metadata)
}

/// Embeddings and norms of a model, by Hugging Face name.
fn base_tensors<B: Backend, L: LinearMethod<B>>(
    model: &Llama<B, L>,
    precision: Precision,
) -> Result<BTreeMap<String, Stored>> {
    let stored = |(name, parameter): (String, &Parameter<B>)| {
        let values = parameter.to_host(model.backend())?;
        Ok((name, store(&values, &parameter.shape, precision)))
    };
    model.base_parameters().into_iter().map(stored).collect()
}

/// Every tensor of a full-precision model, by Hugging Face name, on the host.
///
/// # Errors
/// When the device failed.
pub fn dense_tensors<B: Backend>(model: &Llama<B, Dense<B>>) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut tensors = BTreeMap::new();
    for (name, parameter) in model.base_parameters() {
        tensors.insert(name, parameter.to_host(model.backend())?);
    }
    for (name, linear) in model.linears() {
        tensors.insert(format!("{name}.weight"), linear.weight.to_host(model.backend())?);
    }
    Ok(tensors)
}

/// Writes a full-precision model into an existing folder.
///
/// # Errors
/// `Io` naming the file.
pub fn save_dense<B: Backend>(
    folder: &Path,
    model: &Llama<B, Dense<B>>,
    tokenizer: Option<&[u8]>,
    precision: Precision,
) -> Result<()> {
    let shapes = tensor_shapes(model.config());
    let tensors = dense_tensors(model)?
        .into_iter()
        .map(|(name, values)| {
            let stored = store(&values, &shapes[&name], precision);
            (name, stored)
        })
        .collect();
    write_safetensors(&folder.join("model.safetensors"), &tensors, &[("format", "pt")])?;
    let mut config = model.config().to_value();
    config["torch_dtype"] = match precision {
        Precision::F32 => "float32".into(),
        Precision::Bf16 => "bfloat16".into(),
    };
    save_config(folder, &config, tokenizer)
}

/// Codes and grid of a layer as a folder holds them.
pub trait StoredCodes {
    /// Whether groups have a zero point in place of an offset.
    const ZERO_POINT: bool;

    /// Name, type, shape and bytes of each tensor.
    fn tensors(&self) -> Vec<(&'static str, Stored)>;
}

impl StoredCodes for MergedTensors {
    const ZERO_POINT: bool = false;

    fn tensors(&self) -> Vec<(&'static str, Stored)> {
        let grid = [self.out_features, self.spec.groups()];
        let codes = self.codes.iter().map(|code| *code as u8).collect();
        let shape = vec![self.out_features, self.spec.in_features()];
        vec![
            ("codes", (Dtype::I8, shape, codes)),
            ("scale", store(&self.scale, &grid, Precision::F32)),
            ("offset", store(&self.offset, &grid, Precision::F32)),
        ]
    }
}

impl StoredCodes for AffineTensors {
    const ZERO_POINT: bool = true;

    fn tensors(&self) -> Vec<(&'static str, Stored)> {
        let grid = [self.out_features, self.spec.groups()];
        let shape = vec![self.out_features, self.spec.in_features()];
        vec![
            ("codes", (Dtype::U8, shape, self.codes.clone())),
            ("scale", store(&self.scale, &grid, Precision::F32)),
            ("zero_point", store(&self.zero_point, &grid, Precision::F32)),
        ]
    }
}

impl<T: StoredCodes> StoredCodes for TargetedTensors<T> {
    const ZERO_POINT: bool = T::ZERO_POINT;

    fn tensors(&self) -> Vec<(&'static str, Stored)> {
        match self {
            Self::Codes(codes) => codes.tensors(),
            Self::Frozen { weight, shape } => {
                vec![("weight", stored_weight(weight, &[shape.0, shape.1]))]
            }
        }
    }
}

/// A weight in its own type.
fn stored_weight(weight: &FrozenWeight<Cpu>, shape: &[usize]) -> Stored {
    let bytes = |halves: &[u16]| halves.iter().flat_map(|half| half.to_le_bytes()).collect();
    match weight {
        FrozenWeight::F32(values) => store(values, shape, Precision::F32),
        FrozenWeight::Bf16(halves) => (Dtype::BF16, shape.to_vec(), bytes(halves)),
        FrozenWeight::F16(halves) => (Dtype::F16, shape.to_vec(), bytes(halves)),
    }
}

/// Writes a merged model into an existing folder: codes as bytes, their grid as F32, and the base's
/// embeddings and norms in F32, so that a reload has the merged model's bits; layers that no method
/// was on as the base has them.
///
/// # Errors
/// `Io` naming the file.
pub fn save_merged<B: Backend, L: LinearMethod<B>, T: StoredCodes>(
    folder: &Path,
    model: &Llama<B, L>,
    linears: &BTreeMap<String, T>,
    quantization: &QuantizationConfig,
    base: &ModelFolder,
) -> Result<()> {
    let mut tensors = base_tensors(model, Precision::F32)?;
    for (name, merged) in linears {
        let named = |(tensor, stored)| (format!("{name}.{tensor}"), stored);
        let of_layer = merged.tensors().into_iter().map(named);
        tensors.extend(of_layer);
    }
    let metadata = [("format", "plumbline-merged-1")];
    write_safetensors(&folder.join("model.safetensors"), &tensors, &metadata)?;
    chat_template::write(folder, base.chat_template())?;
    save_config(folder, &merged_config(model.config(), quantization), base.tokenizer_bytes())
}

fn merged_config(config: &LlamaConfig, quantization: &QuantizationConfig) -> serde_json::Value {
    let mut value = config.to_value();
    value["torch_dtype"] = "float32".into();
    value["quantization_config"] = serde_json::json!(quantization);
    value
}

fn save_config(folder: &Path, config: &serde_json::Value, tokenizer: Option<&[u8]>) -> Result<()> {
    let text = format!("{config:#}\n");
    write_file(&folder.join("config.json"), text.as_bytes())?;
    match tokenizer {
        Some(bytes) => write_file(&folder.join("tokenizer.json"), bytes),
        None => Ok(()),
    }
}
