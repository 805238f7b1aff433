//! A model folder in Hugging Face layout: `config.json`, one or many safetensors, and usually a
//! `tokenizer.json`. A merged model is such a folder with codes instead of linear weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plumbline_reference::spec::{Bits, LlamaConfig, QuantSpec};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::chat_template;
use super::gguf;
use super::hash::hex;
use super::packed::{Packed, Unpacked, dense};
use super::quantization::{Linears, QuantizationConfig, linears, specs, specs_of};
use super::reader::TensorFile;
use super::tokenizer::Tokenizer;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::methods::{AffineTensors, MergedTensors};
use crate::model::{Projection, tensor_shapes};
use crate::ops::widen::FrozenWeight;

/// An opened model folder: everything checked but the values, which are read tensor by tensor.
#[derive(Clone)]
pub struct ModelFolder {
    path: PathBuf,
    config: LlamaConfig,
    quantization: Option<QuantizationConfig>,
    /// How another program packed the linear layers, where one did.
    packed: Option<Packed>,
    /// Which file holds which tensor.
    files: BTreeMap<String, Arc<TensorFile>>,
    texts: Texts,
}

/// What a model's folder has beside the model.
#[derive(Clone)]
struct Texts {
    /// The text of `tokenizer.json`, or why there is none.
    tokenizer: std::result::Result<Vec<u8>, String>,
    chat_template: Option<String>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl ModelFolder {
    /// Opens a folder, or a GGUF file as if it were one, and checks that it holds exactly the tensors
    /// of its configuration.
    ///
    /// # Errors
    /// `Io` and `File` naming the file, the field or tensor, and what was found there.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            let model = gguf::open(path)?;
            let files = by_tensor(Arc::new(TensorFile::gguf(path, &model)?));
            let config =
                LlamaConfig::from_value(&model.config).map_err(|error| Error::file(path, error))?;
            let texts = Texts { tokenizer: model.tokenizer, chat_template: model.chat_template };
            return Self::checked(path, config, Linears::Plain, files, texts);
        }
        let config_path = path.join("config.json");
        let config =
            std::fs::read_to_string(&config_path).map_err(Error::io(&config_path, "read"))?;
        let tokenizer_path = path.join("tokenizer.json");
        let tokenizer = match std::fs::read(&tokenizer_path) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err("is missing: give token ids instead of text".into())
            }
            Err(error) => return Err(Error::io(&tokenizer_path, "read")(error)),
        };
        let texts = Texts { tokenizer, chat_template: chat_template::read(path)? };
        let index_path = path.join("model.safetensors.index.json");
        let single = path.join("model.safetensors");
        let files = if !single.exists() && index_path.exists() {
            open_shards(path, &index_path)?
        } else {
            by_tensor(Arc::new(TensorFile::open(&single)?))
        };
        Self::described(path, &config, files, texts)
    }

    /// The same for files in memory, such as those inside this program.
    ///
    /// # Errors
    /// As [`ModelFolder::open`].
    pub fn from_bytes(
        name: &Path,
        config: &str,
        weights: &'static [u8],
        tokenizer: &[u8],
    ) -> Result<Self> {
        let file = TensorFile::from_bytes(&name.join("model.safetensors"), weights.into())?;
        let texts = Texts { tokenizer: Ok(tokenizer.to_vec()), chat_template: None };
        Self::described(name, config, by_tensor(Arc::new(file)), texts)
    }

    fn described(
        path: &Path,
        config_text: &str,
        files: BTreeMap<String, Arc<TensorFile>>,
        texts: Texts,
    ) -> Result<Self> {
        let config_path = path.join("config.json");
        let config = LlamaConfig::from_json(config_text)
            .map_err(|error| Error::file(&config_path, error))?;
        let linears = linears(&config_path, config_text)?;
        Self::checked(path, config, linears, files, texts)
    }

    fn checked(
        path: &Path,
        config: LlamaConfig,
        linears: Linears,
        files: BTreeMap<String, Arc<TensorFile>>,
        texts: Texts,
    ) -> Result<Self> {
        let (quantization, packed) = match linears {
            Linears::Plain => (None, None),
            Linears::Merged(quantization) => (Some(quantization), None),
            Linears::Packed(packed) => (None, Some(packed)),
        };
        // Before anything is made for each block.
        if config.num_hidden_layers > files.len() {
            let (blocks, tensors) = (config.num_hidden_layers, files.len());
            let reason =
                format!("num_hidden_layers is {blocks}, there are {tensors} tensors in all");
            return Err(Error::file(path, reason));
        }
        let path = path.to_path_buf();
        let folder = Self { path, config, quantization, packed, files, texts };
        folder.check_tensors()?;
        Ok(folder)
    }

    /// Every expected tensor is there with its shape, and there is no other.
    fn check_tensors(&self) -> Result<()> {
        let expected = self.expected_shapes()?;
        for (name, shape) in &expected {
            self.file(name)?.expect(name, shape)?;
        }
        // Buffers that some writers store beside the parameters, and the tied projection's copy.
        let harmless = |name: &str| {
            name.ends_with(".rotary_emb.inv_freq")
                || (name == "lm_head.weight" && self.config.tie_word_embeddings)
        };
        for (name, file) in &self.files {
            if !expected.contains_key(name) && !harmless(name) {
                let reason = format!("tensor {name} does not belong to this LLaMA configuration");
                return Err(Error::file(file.path(), reason));
            }
        }
        Ok(())
    }

    fn expected_shapes(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        let mut shapes = tensor_shapes(&self.config);
        if let Some(packed) = &self.packed {
            for linear in Projection::all(&self.config).into_iter().chain(self.tables()) {
                shapes.remove(&format!("{}.weight", linear.name));
                let found = |name: &str| Some(&*self.files.get(name)?.tensors()[name].shape);
                let expected = packed.tensors(&linear, found);
                shapes.extend(expected.map_err(|reason| Error::file(&self.path, reason))?);
            }
        }
        let Some(quantization) = &self.quantization else { return Ok(shapes) };
        self.check_names(quantization)?;
        let specs = specs_of(&self.config, |linear| quantization.grid_of(&linear.name))?;
        for (linear, spec) in Projection::all(&self.config).into_iter().zip(specs) {
            let Some(spec) = spec else { continue };
            shapes.remove(&format!("{}.weight", linear.name));
            let row = match quantization.packed {
                true => (linear.in_features * spec.bits().count() as usize).div_ceil(32),
                false => linear.in_features,
            };
            let codes = vec![linear.out_features, row];
            let grid = vec![linear.out_features, spec.groups()];
            shapes.insert(format!("{}.codes", linear.name), codes);
            shapes.insert(format!("{}.scale", linear.name), grid.clone());
            let shift = if quantization.zero_point { "zero_point" } else { "offset" };
            shapes.insert(format!("{}.{shift}", linear.name), grid);
        }
        Ok(shapes)
    }

    /// The embedding and the output projection, which MLX packs as it does linear layers.
    fn tables(&self) -> Vec<Projection> {
        if !matches!(self.packed, Some(Packed::Mlx(_))) {
            return Vec::new();
        }
        let table = |name: &str| Projection {
            name: name.into(),
            out_features: self.config.vocab_size,
            in_features: self.config.hidden_size,
        };
        let output = (!self.config.tie_word_embeddings).then(|| table("lm_head"));
        std::iter::once(table("model.embed_tokens")).chain(output).collect()
    }

    /// That the layers which `config.json` singles out exist.
    fn check_names(&self, quantization: &QuantizationConfig) -> Result<()> {
        let all: BTreeSet<String> =
            Projection::all(&self.config).into_iter().map(|linear| linear.name).collect();
        let fields = [
            ("layers", quantization.layers.keys().find(|name| !all.contains(*name))),
            ("unquantized", quantization.unquantized.iter().find(|name| !all.contains(*name))),
        ];
        match fields.into_iter().find_map(|(field, name)| Some((field, name?))) {
            Some((field, name)) => {
                let reason = format!("quantization_config.{field}: {name} is no linear layer");
                Err(Error::file(self.path.join("config.json"), reason))
            }
            None => Ok(()),
        }
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Shape and constants of the model.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Bits and groups of a merged model.
    pub fn quantization(&self) -> Option<&QuantizationConfig> {
        self.quantization.as_ref()
    }

    /// Whose packed integers the linear layers are, and how wide, where another program quantized
    /// them. They are dequantized as they are read.
    pub fn packed(&self) -> Option<(&'static str, u32)> {
        self.packed.as_ref().map(|packed| (packed.name(), packed.bits()))
    }

    /// Files, each once, in the order of their names.
    pub fn files(&self) -> Vec<&TensorFile> {
        let mut seen = BTreeSet::new();
        self.files.values().filter(|f| seen.insert(f.path())).map(|file| &**file).collect()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `File` when there is none, or the library cannot use it.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let path =
            if self.path.is_file() { self.path.clone() } else { self.path.join("tokenizer.json") };
        match &self.texts.tokenizer {
            Ok(bytes) => Tokenizer::from_bytes(&path, bytes),
            Err(reason) => Err(Error::file(&path, reason)),
        }
    }

    /// The text of `tokenizer.json`, where there is one.
    pub fn tokenizer_bytes(&self) -> Option<&[u8]> {
        self.texts.tokenizer.as_deref().ok()
    }

    /// How a chat becomes a text, in the template language of transformers, where the folder says so.
    pub fn chat_template(&self) -> Option<&str> {
        self.texts.chat_template.as_deref()
    }

    /// A tensor as f32; a packed embedding is dequantized.
    ///
    /// # Errors
    /// `File` naming tensor and file.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let table = self
            .tables()
            .into_iter()
            .find(|table| name.strip_suffix(".weight").is_some_and(|of| of == table.name));
        if let Some(table) = table
            && let Some(packed) = self.packed_layer(&table)
        {
            return Ok(packed.unpacked(self, &table)?.weight());
        }
        self.file(name)?.floats(name, shape)
    }

    /// The weight of a linear layer, `[out, in]`, in the type that the file has it in; packed
    /// integers are dequantized in f32.
    ///
    /// # Errors
    /// `File` naming tensor and file, also when the folder holds codes of it.
    pub fn weight(&self, linear: &Projection) -> Result<FrozenWeight<Cpu>> {
        if self.grid_of(linear).is_some() {
            let reason = "holds a merged model; training starts from a full-precision one";
            return Err(Error::file(&self.path, reason));
        }
        if self.packed_layer(linear).is_some() {
            let unpacked = self.unpacked(linear)?;
            return Ok(FrozenWeight::F32(unpacked.expect("a packed layer has codes").weight()));
        }
        let name = format!("{}.weight", linear.name);
        self.file(&name)?.weight(&name, &[linear.out_features, linear.in_features])
    }

    /// The layout of a layer that another program packed.
    fn packed_layer(&self, linear: &Projection) -> Option<&Packed> {
        self.packed.as_ref().filter(|packed| !packed.is_plain(linear, |name| self.has(name)))
    }

    /// Integers and grid of a layer that another program packed, or that a GGUF file has in blocks;
    /// `None` for one that is a weight, or codes of this program's.
    ///
    /// # Errors
    /// `File` naming tensor and file.
    pub fn unpacked(&self, linear: &Projection) -> Result<Option<Unpacked>> {
        if let Some(packed) = self.packed_layer(linear) {
            return packed.unpacked(self, linear).map(Some);
        }
        let name = format!("{}.weight", linear.name);
        match self.files.get(&name) {
            Some(file) => file.unpacked(&name, &[linear.out_features, linear.in_features]),
            None => Ok(None),
        }
    }

    /// Bits and groups of a layer that is codes here.
    pub(super) fn grid_of(&self, linear: &Projection) -> Option<(Bits, Option<usize>)> {
        self.quantization.as_ref()?.grid_of(&linear.name)
    }

    /// The same for the width of the layer.
    fn spec_of(&self, linear: &Projection) -> Result<QuantSpec> {
        let Some((bits, group_size)) = self.grid_of(linear) else {
            let reason = format!("does not hold codes of {}", linear.name);
            return Err(Error::file(&self.path, reason));
        };
        Ok(QuantSpec::new(bits, group_size, linear.in_features)?)
    }

    /// Codes and grid of a merged linear layer.
    ///
    /// # Errors
    /// `File` naming tensor and file; a code outside its range or a scale that is not positive.
    pub fn merged(&self, linear: &Projection) -> Result<MergedTensors> {
        let (out_features, width) = (linear.out_features, linear.in_features);
        let spec = self.spec_of(linear)?;
        let name = |tensor: &str| format!("{}.{tensor}", linear.name);
        let grid = [out_features, spec.groups()];
        let codes_name = name("codes");
        let file = self.file(&codes_name)?;
        let codes = match self.side_by_side(linear, spec)? {
            Some(codes) => {
                codes.into_iter().map(|code| (code as i32 + spec.qmin()) as i8).collect()
            }
            None => file.codes(&codes_name, &[out_features, width])?,
        };
        let range = spec.qmin()..=spec.qmax();
        if let Some(index) = codes.iter().position(|code| !range.contains(&i32::from(*code))) {
            let reason = format!(
                "tensor {codes_name} holds {} at flat index {index}, expected {} to {}",
                codes[index],
                spec.qmin(),
                spec.qmax()
            );
            return Err(Error::file(file.path(), reason));
        }
        let scale = self.positive(&name("scale"), &grid)?;
        let offset = self.tensor(&name("offset"), &grid)?;
        Ok(MergedTensors { spec, out_features, codes, scale, offset })
    }

    /// Unsigned codes and grid of a merged linear layer.
    ///
    /// # Errors
    /// As [`ModelFolder::merged`].
    pub fn affine(&self, linear: &Projection) -> Result<AffineTensors> {
        let (out_features, width) = (linear.out_features, linear.in_features);
        let spec = self.spec_of(linear)?;
        let name = |tensor: &str| format!("{}.{tensor}", linear.name);
        let grid = [out_features, spec.groups()];
        let file = self.file(&name("codes"))?;
        let tensors = AffineTensors {
            spec,
            out_features,
            codes: match self.side_by_side(linear, spec)? {
                Some(codes) => codes.into_iter().map(|code| code as u8).collect(),
                None => file.unsigned_codes(&name("codes"), &[out_features, width])?,
            },
            scale: self.positive(&name("scale"), &grid)?,
            zero_point: self.tensor(&name("zero_point"), &grid)?,
        };
        let place = |error| Error::file(file.path(), format!("{}: {error}", linear.name));
        tensors.check().map_err(place)?;
        Ok(tensors)
    }

    /// Unsigned codes `[out, in]` of a merged layer that stand side by side.
    fn side_by_side(&self, linear: &Projection, spec: QuantSpec) -> Result<Option<Vec<u32>>> {
        if !self.quantization.as_ref().is_some_and(|quantization| quantization.packed) {
            return Ok(None);
        }
        let (rows, columns) = (linear.out_features, linear.in_features);
        let width = (columns * spec.bits().count() as usize).div_ceil(32);
        let words = self.words(&format!("{}.codes", linear.name), &[rows, width])?;
        let code = |at: usize| {
            let (row, column) = (at / columns, at % columns);
            dense(spec.bits().count(), column, |word| words[row * width + word])
        };
        Ok(Some((0..rows * columns).map(code).collect()))
    }

    /// Scales, which are above zero.
    fn positive(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let scale = self.tensor(name, shape)?;
        match scale.iter().position(|scale| *scale <= 0.0) {
            Some(index) => {
                let value = scale[index];
                let reason =
                    format!("tensor {name} is {value} at flat index {index}, not positive");
                Err(Error::file(self.file(name)?.path(), reason))
            }
            None => Ok(scale),
        }
    }

    /// Bits and groups of every linear layer, in the order of [`Projection::all`].
    ///
    /// # Errors
    /// `Invalid` listing every layer that the group size does not divide.
    pub fn specs(&self, bits: Bits, group_size: Option<usize>) -> Result<Vec<QuantSpec>> {
        specs(&self.config, bits, group_size)
    }

    /// Bits that the tensors of the model have in its files: those of linear layers, and the others.
    ///
    /// # Errors
    /// `File` for a tensor that is missing.
    pub fn stored_bits(&self) -> Result<(u64, u64)> {
        let linears: BTreeSet<String> =
            Projection::all(&self.config).into_iter().map(|linear| linear.name).collect();
        let (mut of_linears, mut of_others) = (0, 0);
        for name in self.expected_shapes()?.keys() {
            let bits = 8 * self.file(name)?.tensors()[name].bytes();
            let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
            *if linears.contains(layer) { &mut of_linears } else { &mut of_others } += bits;
        }
        Ok((of_linears, of_others))
    }

    /// SHA-256 over names, types, shapes and bytes of all tensors: an adapter remembers what it was
    /// trained on.
    ///
    /// # Errors
    /// `Io` when a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for (name, file) in &self.files {
            let info = &file.tensors()[name];
            hash.update(format!("{name} {} {:?}\n", info.storage, info.shape));
            hash.update(&*file.raw(name)?);
        }
        Ok(hex(hash))
    }

    /// Whether there is such a tensor.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.files.contains_key(tensor)
    }

    /// The shape of a tensor.
    pub(super) fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.file(name)?.tensors()[name].shape)
    }

    /// An I32 or U32 tensor, bit for bit.
    pub(super) fn words(&self, name: &str, shape: &[usize]) -> Result<Vec<u32>> {
        self.file(name)?.words(name, shape)
    }

    /// A list of I64 or I32 numbers.
    pub(super) fn integers(&self, name: &str) -> Result<Vec<i64>> {
        self.file(name)?.integers(name)
    }

    fn file(&self, tensor: &str) -> Result<&TensorFile> {
        let missing = || Error::file(&self.path, format!("has no tensor {tensor}"));
        self.files.get(tensor).map(|file| &**file).ok_or_else(missing)
    }
}

fn by_tensor(file: Arc<TensorFile>) -> BTreeMap<String, Arc<TensorFile>> {
    file.tensors().keys().map(|name| (name.clone(), file.clone())).collect()
}

fn open_shards(folder: &Path, index_path: &Path) -> Result<BTreeMap<String, Arc<TensorFile>>> {
    let text = std::fs::read_to_string(index_path).map_err(Error::io(index_path, "read"))?;
    let index: ShardIndex =
        serde_json::from_str(&text).map_err(|error| Error::file(index_path, error))?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let mut shards = BTreeMap::new();
    for name in names {
        if name.contains(['/', '\\']) {
            return Err(Error::file(index_path, format!("shard {name} is outside the folder")));
        }
        shards.insert(name, Arc::new(TensorFile::open(&folder.join(name))?));
    }
    let mut files = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        let file = &shards[shard];
        if !file.tensors().contains_key(tensor) {
            let reason = format!("has no tensor {tensor}, which {} promises", index_path.display());
            return Err(Error::file(file.path(), reason));
        }
        files.insert(tensor.clone(), file.clone());
    }
    Ok(files)
}
