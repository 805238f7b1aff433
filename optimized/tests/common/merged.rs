//! Merged models as the methods would leave them, on any grid.
#![allow(dead_code)] // each test takes some of it

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use plumbline::checkpoint::QuantizationConfig;
use plumbline::model::{Projection, tensor_shapes};
use plumbline_reference::spec::{Bits, LlamaConfig};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Sides of 32, 96 and 160 values: words of three bits and blocks of 32 are whole, and no side is a
/// power of two but the smallest.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 1,
        "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 40,
        "max_position_embeddings": 64, "tie_word_embeddings": true, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5, "bos_token_id": null, "eos_token_id": null,
    })
}

/// Where the codes of a model have their zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// In the middle.
    Symmetric,
    /// At any code, each somewhere.
    ZeroPoint,
    /// Signed codes and an offset in weight units.
    Offset,
    /// At any number.
    RealZero,
}

/// A merged model as a method would leave it.
#[derive(Debug, Clone, Copy)]
pub struct Trained {
    pub kind: Kind,
    pub bits: u32,
    /// `None` for one group per row.
    pub group_size: Option<usize>,
    /// Significant bits of a scale: 8 or 11 as targets leave them, 24 for any f32.
    pub significant: u32,
}

impl Trained {
    pub const fn new(kind: Kind, bits: u32, group_size: Option<usize>) -> Self {
        Self { kind, bits, group_size, significant: 8 }
    }

    /// Cut to so many bits; the last of them is set in some.
    fn scale(self, at: usize) -> f32 {
        let any = 0.001 + (at * 7919 % 1009) as f32 * 3.1e-6;
        f32::from_bits(any.to_bits() & (u32::MAX << (24 - self.significant)))
    }

    /// Writes the model's folder.
    pub fn write(self, folder: &Path, mut config: Value) {
        let parsed = LlamaConfig::from_value(&config).unwrap();
        let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
        let float = |values: Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        for (name, shape) in tensor_shapes(&parsed) {
            if name.ends_with("proj.weight") {
                continue;
            }
            let len: usize = shape.iter().product();
            let value = |at: usize| if shape.len() == 1 { 1.25 } else { (at % 89) as f32 / 512.0 };
            tensors.insert(name, (Dtype::F32, shape.clone(), float((0..len).map(value).collect())));
        }
        let signed = matches!(self.kind, Kind::Symmetric | Kind::Offset);
        let (lowest, most) = (-(1i32 << (self.bits - 1)), (1i32 << self.bits) - 1);
        for linear in Projection::all(&parsed) {
            let (rows, columns) = (linear.out_features, linear.in_features);
            let groups = self.group_size.map_or(1, |size| columns / size);
            let size = columns / groups;
            // Neighbouring groups go through all pairs of a code and a zero point.
            let code = |at: usize| {
                let (group, place) = (at / size, at % size);
                ((place * 5 + group * 3) as i32 & most) + if signed { lowest } else { 0 }
            };
            let bytes = (0..rows * columns).map(|at| code(at) as u8).collect();
            let dtype = if signed { Dtype::I8 } else { Dtype::U8 };
            let name = |tensor: &str| format!("{}.{tensor}", linear.name);
            tensors.insert(name("codes"), (dtype, vec![rows, columns], bytes));
            let grid = |value: &dyn Fn(usize) -> f32| {
                let values = (0..rows * groups).map(value).collect();
                (Dtype::F32, vec![rows, groups], float(values))
            };
            tensors.insert(name("scale"), grid(&|at| self.scale(at)));
            let (tensor, shift) = match self.kind {
                Kind::Symmetric => ("offset", grid(&|_| 0.0)),
                Kind::Offset => ("offset", grid(&|at| (at % 13) as f32 * 1.1e-4)),
                Kind::ZeroPoint => ("zero_point", grid(&|at| (at as i32 & most) as f32)),
                Kind::RealZero => ("zero_point", grid(&|at| (at as i32 & most) as f32 + 0.3)),
            };
            tensors.insert(name(tensor), shift);
        }
        let bits = Bits::new(self.bits).unwrap();
        let quantization = QuantizationConfig::new((bits, self.group_size), !signed, []);
        config["quantization_config"] = json!(quantization);
        save(folder, &config, &tensors);
    }
}

pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub fn save(folder: &Path, config: &Value, tensors: &Tensors) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
}

/// A tokenizer of LLaMA 2's kind: all pairs of each piece, in the order of the pieces. Runs of blanks
/// have one score there, so that their pairs stand by their lengths.
pub fn sentence_pieces() -> Value {
    let pieces = ["\u{2581}t", "he", "in", "\u{2581}the", "er", "re", "the", "\u{2581}th", "here"];
    let runs: Vec<String> = (2..=5).map(|length| "\u{2581}".repeat(length)).collect();
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let characters = ["\u{2581}", "t", "h", "e", "i", "n", "r", "a", "\u{ef}"];
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let mut tokens = owned(&["<unk>", "<s>", "</s>"]);
    tokens.extend(bytes.chain(runs.clone()).chain(owned(&pieces)).chain(owned(&characters)));
    let pairs = |piece: &str| -> Vec<(String, String)> {
        let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let known = |text: &str| tokens.iter().any(|token| token == text);
        let cuts = cuts.filter(|(left, right)| known(left) && known(right));
        cuts.map(|(left, right)| (left.to_owned(), right.to_owned())).collect()
    };
    let mut merges: Vec<_> = pieces.iter().flat_map(|piece| pairs(piece)).collect();
    let mut of_runs: Vec<_> = runs.iter().flat_map(|run| pairs(run)).collect();
    of_runs.sort_by_key(|(left, right)| std::cmp::Reverse((left.len(), right.len())));
    merges.extend(of_runs);
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added = |id: usize| {
        json!({
            "id": id, "content": tokens[id], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        })
    };
    let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0), added(1), added(2)],
        "normalizer": {
            "type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, blanks],
        },
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": merges,
        },
    })
}
