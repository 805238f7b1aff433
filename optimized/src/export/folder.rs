//! Folders in Hugging Face's layout: what goes into each tensor, and writing them one by one.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::floats::FloatType;
use super::format::Format;
use super::grid::FileGrid;
use super::lack::{Lack, Refused};
use super::layer::{CodedLayer, Zero};
use super::layout::{LayerTensors, Layout};
use super::pack::{pack_rows, stored};
use crate::checkpoint::{
    ModelFolder, QuantizationConfig, Stored, StreamedTensor, Tokenizer, chat_template,
    stream_tensors, write_file,
};
use crate::error::Result;
use crate::model::{Projection, tensor_shapes};

/// What the linear layers become.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Linears {
    /// Packed integers of another program, on one grid.
    Packed(Layout, FileGrid),
    /// Weights.
    Plain,
    /// This program's codes, side by side.
    Own,
}

/// A folder that can be written: every layer was tried.
pub(super) struct FolderPlan<'a> {
    source: &'a ModelFolder,
    linears: Linears,
    floats: FloatType,
    tensors: Vec<Planned>,
}

/// A tensor to be written.
struct Planned {
    /// The layer it belongs to, by place; `None` for one of the others.
    layer: Option<usize>,
    /// Name without the layer's.
    suffix: String,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
}

impl Planned {
    fn new(layer: Option<usize>, of: &str, suffix: &str, stored: &Stored) -> Self {
        let (dtype, shape, bytes) = stored;
        let name = if suffix.is_empty() { of.to_owned() } else { format!("{of}.{suffix}") };
        let (dtype, shape, bytes) = (*dtype, shape.clone(), bytes.len());
        Self { layer, suffix: suffix.into(), name, dtype, shape, bytes }
    }
}

impl<'a> FolderPlan<'a> {
    /// Tries every tensor of the model.
    pub(super) fn new(
        source: &'a ModelFolder,
        format: Format,
        floats: FloatType,
    ) -> Result<Self, Refused> {
        let all = Projection::all(source.config());
        let linears = match Layout::of(format, floats) {
            Some(layout) => {
                let mut grid: Option<FileGrid> = None;
                for linear in &all {
                    if let Some(layer) = CodedLayer::read(source, linear)? {
                        let common = grid.map(|grid| grid.with(&layer));
                        grid = Some(common.unwrap_or_else(|| FileGrid::of(&layer)));
                    }
                }
                let grid = grid.ok_or_else(|| Refused::lack("the model", Lack::Plain))?;
                let grid = layout.grid(grid).map_err(|lack| Refused::lack("the model", lack))?;
                Linears::Packed(layout, grid)
            }
            None if format == Format::Plumbline => Linears::Own,
            None => Linears::Plain,
        };
        // Scales, offsets and everything else of this program's are f32.
        let floats = if linears == Linears::Own { FloatType::F32 } else { floats };
        let mut plan = Self { source, linears, floats, tensors: Vec::new() };
        let names: BTreeSet<String> =
            all.iter().map(|linear| format!("{}.weight", linear.name)).collect();
        for (name, shape) in tensor_shapes(source.config()) {
            if !names.contains(&name) {
                let stored = plan.other(&name, &shape)?;
                plan.tensors.push(Planned::new(None, &name, "", &stored));
            }
        }
        for (place, linear) in all.iter().enumerate() {
            for (suffix, stored) in plan.layer(linear)? {
                plan.tensors.push(Planned::new(Some(place), &linear.name, suffix, &stored));
            }
        }
        // Wide types first, so that every tensor begins at a multiple of its width.
        plan.tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
        Ok(plan)
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes as u64).sum()
    }

    /// Number of tensors.
    pub(super) fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// A tensor that is no linear layer.
    fn other(&self, name: &str, shape: &[usize]) -> Result<Stored, Refused> {
        let values = self.source.tensor(name, shape)?;
        self.floats.check_values(&values).map_err(|lack| Refused::lack(name, lack))?;
        Ok(self.floats.stored(&values, shape))
    }

    /// The tensors of a linear layer.
    fn layer(&self, linear: &Projection) -> Result<LayerTensors, Refused> {
        let lack = |lack| Refused::lack(&linear.name, lack);
        let shape = [linear.out_features, linear.in_features];
        let weight = |values: &[f32]| {
            self.floats.check_values(values).map_err(lack)?;
            Ok(vec![("weight", self.floats.stored(values, &shape))])
        };
        let Some(layer) = CodedLayer::read(self.source, linear)? else {
            if let Linears::Packed(layout, _) = self.linears
                && !layout.has_plain_layers()
            {
                return Err(lack(Lack::Plain));
            }
            return weight(&self.source.weight(linear)?.into_floats());
        };
        match self.linears {
            Linears::Plain => weight(&layer.weight()),
            Linears::Own => Ok(self.own(layer)),
            Linears::Packed(layout, grid) => {
                // An engine that computes in this type has to make the values that were trained.
                if self.floats != FloatType::F32 {
                    self.floats.check_values(&layer.weight()).map_err(lack)?;
                }
                layout.tensors(&layer, grid).map_err(lack)
            }
        }
    }

    fn own(&self, layer: CodedLayer) -> LayerTensors {
        let (rows, grid) = (layer.out_features, [layer.out_features, layer.groups()]);
        let codes = pack_rows(&layer.codes, layer.in_features, layer.bits);
        let has_zero_point =
            self.source.quantization().is_some_and(|quantization| quantization.zero_point);
        let shift: Vec<f32> = match layer.zero {
            Zero::Codes(zeros) if has_zero_point => zeros.into_iter().map(f32::from).collect(),
            Zero::Codes(zeros) => vec![0.0; zeros.len()],
            Zero::Real(shift) | Zero::Offset(shift) => shift,
        };
        vec![
            ("codes", stored(&codes, [rows, codes.len() / rows], Dtype::U32)),
            ("scale", FloatType::F32.stored(&layer.scale, &grid)),
            (
                if has_zero_point { "zero_point" } else { "offset" },
                FloatType::F32.stored(&shift, &grid),
            ),
        ]
    }

    /// Writes the folder; `wrote` is told after every tensor.
    pub(super) fn write(&self, folder: &Path, wrote: &dyn Fn()) -> Result<()> {
        let all = Projection::all(self.source.config());
        // The tensors of a layer of one width follow each other.
        let last: RefCell<Option<(usize, LayerTensors)>> = RefCell::new(None);
        let last = &last;
        let bytes_of = |tensor: &Planned| -> Result<Vec<u8>> {
            let Some(place) = tensor.layer else {
                let (_, _, bytes) = self.other(&tensor.name, &tensor.shape)?;
                return Ok(bytes);
            };
            let mut last = last.borrow_mut();
            if last.as_ref().is_none_or(|(of, _)| *of != place) {
                *last = Some((place, self.layer(&all[place])?));
            }
            let (_, tensors) = last.as_ref().expect("the layer was just made");
            let found = tensors.iter().find(|(suffix, _)| *suffix == tensor.suffix);
            Ok(found.expect("a layer has the tensors that it had").1.2.clone())
        };
        let bytes_of = &bytes_of;
        let streamed = self.tensors.iter().map(|tensor| StreamedTensor {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            bytes: Box::new(move || {
                let bytes = bytes_of(tensor);
                wrote();
                bytes
            }),
        });
        let metadata = [("format", "pt")];
        stream_tensors(&folder.join("model.safetensors"), streamed.collect(), &metadata)?;
        let config = format!("{:#}\n", self.config());
        write_file(&folder.join("config.json"), config.as_bytes())?;
        if let Some(tokenizer) = self.source.tokenizer_bytes() {
            write_file(&folder.join("tokenizer.json"), tokenizer)?;
            let config = format!("{:#}\n", self.tokenizer_config(&self.source.tokenizer()?));
            write_file(&folder.join("tokenizer_config.json"), config.as_bytes())?;
            chat_template::write(folder, self.source.chat_template())?;
        }
        Ok(())
    }

    fn config(&self) -> Value {
        let mut config = self.source.config().to_value();
        config["torch_dtype"] = self.floats.torch().into();
        let quantization = self.source.quantization();
        match self.linears {
            Linears::Plain => {}
            Linears::Own => {
                let own = quantization.map(|quantization| QuantizationConfig {
                    packed: true,
                    ..quantization.clone()
                });
                config["quantization_config"] = json!(own);
            }
            Linears::Packed(layout, grid) => {
                let plain = quantization.map(|quantization| &*quantization.unquantized);
                layout.describe(&mut config, grid, plain.unwrap_or_default());
            }
        }
        config
    }

    /// What makes transformers read `tokenizer.json` and nothing else.
    fn tokenizer_config(&self, tokenizer: &Tokenizer) -> Value {
        let config = self.source.config();
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": token(config.bos_token_id),
            "eos_token": token(config.eos_token_ids.first().copied()),
            "model_max_length": config.max_position_embeddings,
            "clean_up_tokenization_spaces": false,
        })
    }
}
