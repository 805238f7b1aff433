//! One file for llama.cpp. Layout: the GGUF specification, version 3, of the ggml project.

mod blocks;
mod metadata;
mod tokenizer;

use std::collections::BTreeSet;
use std::path::Path;

use super::floats::FloatType;
use super::format::Format;
use super::lack::{Lack, Refused};
use super::layer::{CodedLayer, Zero};
use crate::checkpoint::{ModelFolder, write_parts};
use crate::error::{Error, Result};
use crate::model::{Projection, tensor_shapes};
use blocks::{Block, as_q8_0};
use metadata::Metadata;

/// Tensors begin at multiples of this.
const ALIGNMENT: u64 = 32;

/// Divisors of the rotary frequencies.
const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// A file that can be written: every tensor was tried.
pub(super) struct GgufPlan<'a> {
    source: &'a ModelFolder,
    block: Block,
    metadata: Metadata,
    tensors: Vec<Planned>,
}

/// Where a tensor comes from.
enum From {
    /// A linear layer, and the heads whose rows go into another order.
    Linear(Projection, Option<usize>),
    /// An embedding or a norm.
    Other { name: String, shape: Vec<usize> },
    /// The divisors of the rotary frequencies.
    Frequencies(Vec<f32>),
}

/// A tensor to be written.
struct Planned {
    from: From,
    name: String,
    kind: Kind,
    /// Row-major.
    shape: Vec<usize>,
    bytes: u64,
}

/// A storage type of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Float(FloatType),
    Block(Block),
}

impl Kind {
    /// Its number in the file.
    fn number(self) -> u32 {
        match self {
            Self::Float(FloatType::F32) => 0,
            Self::Float(FloatType::F16) => 1,
            Self::Float(FloatType::Bf16) => 30,
            Self::Block(block) => block.number(),
        }
    }
}

impl<'a> GgufPlan<'a> {
    /// Tries every tensor of the model.
    pub(super) fn new(source: &'a ModelFolder, format: Format) -> Result<Self, Refused> {
        let config = source.config();
        let block = Block::of(format);
        let refused = |lack| Refused::lack("the model", lack);
        let metadata = metadata::of(source, block).map_err(refused)?;
        let mut plan = Self { source, block, metadata, tensors: Vec::new() };
        let all = Projection::all(config);
        let names: BTreeSet<String> =
            all.iter().map(|linear| format!("{}.weight", linear.name)).collect();
        for (name, shape) in tensor_shapes(config) {
            if !names.contains(&name) {
                plan.add(From::Other { name, shape })?;
            }
        }
        for linear in all {
            let heads = match &linear.name {
                name if name.ends_with("q_proj") => Some(config.num_attention_heads),
                name if name.ends_with("k_proj") => Some(config.num_key_value_heads),
                _ => None,
            };
            plan.add(From::Linear(linear, heads))?;
        }
        if let Some(divisors) = metadata::frequency_divisors(config) {
            plan.add(From::Frequencies(divisors))?;
        }
        Ok(plan)
    }

    fn add(&mut self, from: From) -> Result<(), Refused> {
        let (kind, bytes) = self.encode(&from)?;
        let (name, shape) = match &from {
            From::Linear(linear, _) => (
                ggml_name(&format!("{}.weight", linear.name)),
                vec![linear.out_features, linear.in_features],
            ),
            From::Other { name, shape } => (ggml_name(name), shape.clone()),
            From::Frequencies(divisors) => (ROPE_FREQUENCIES.to_owned(), vec![divisors.len()]),
        };
        self.tensors.push(Planned { from, name, kind, shape, bytes: bytes.len() as u64 });
        Ok(())
    }

    /// Type and bytes of a tensor.
    fn encode(&self, from: &From) -> Result<(Kind, Vec<u8>), Refused> {
        match from {
            From::Frequencies(divisors) => {
                Ok((Kind::Float(FloatType::F32), FloatType::F32.bytes(divisors)))
            }
            From::Other { name, shape } => {
                let values = self.source.tensor(name, shape)?;
                Ok(match shape[..] {
                    // Norms are f32 wherever llama.cpp multiplies with them.
                    [_] => (Kind::Float(FloatType::F32), FloatType::F32.bytes(&values)),
                    _ => exact(&values, shape[shape.len() - 1]),
                })
            }
            From::Linear(linear, heads) => {
                let lack = |lack| Refused::lack(&linear.name, lack);
                let head_dim = self.source.config().head_dim;
                let rows = match heads {
                    Some(heads) => pairs_together(*heads, head_dim),
                    None => (0..linear.out_features).collect(),
                };
                match CodedLayer::read(self.source, linear)? {
                    Some(layer) => {
                        let bytes = self.block.encode(&in_order(&layer, &rows)).map_err(lack)?;
                        Ok((Kind::Block(self.block), bytes))
                    }
                    None => {
                        let weight = self.source.weight(linear)?.into_floats();
                        let weight = rows_of(&weight, linear.in_features, &rows);
                        Ok(exact(&weight, linear.in_features))
                    }
                }
            }
        }
    }

    /// What llama.cpp will do otherwise than with the model's own folder.
    pub(super) fn notes(&self) -> Vec<String> {
        self.metadata.notes.clone()
    }

    /// Bytes of the file, but for its header.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes.next_multiple_of(ALIGNMENT)).sum()
    }

    /// Number of tensors.
    pub(super) fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Writes the file; `wrote` is told after every tensor.
    pub(super) fn write(&self, path: &Path, wrote: &dyn Fn()) -> Result<()> {
        let mut header = self.metadata.header(self.tensors.len() as u64);
        let mut start = 0u64;
        for Planned { name, kind, shape, bytes, .. } in &self.tensors {
            metadata::text(&mut header, name);
            header.extend((shape.len() as u32).to_le_bytes());
            // The fastest dimension first.
            header.extend(shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes()));
            header.extend(kind.number().to_le_bytes());
            header.extend(start.to_le_bytes());
            start += bytes.next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        write_parts(path, |write| {
            write(&header)?;
            for tensor in &self.tensors {
                let (kind, mut bytes) = self.encode(&tensor.from)?;
                if (kind, bytes.len() as u64) != (tensor.kind, tensor.bytes) {
                    let reason = format!("{} changed while it was exported", tensor.name);
                    return Err(Error::file(self.source.path(), reason));
                }
                bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
                write(&bytes)?;
                wrote();
            }
            Ok(())
        })
    }
}

/// Rows of values in the narrowest type that holds each of them.
fn exact(values: &[f32], columns: usize) -> (Kind, Vec<u8>) {
    let float = |kind: FloatType| (Kind::Float(kind), kind.bytes(values));
    if FloatType::F16.first_lost(values).is_none() {
        return float(FloatType::F16);
    }
    if let Some(bytes) = as_q8_0(values, columns) {
        return (Kind::Block(Block::Q8_0), bytes);
    }
    match FloatType::Bf16.first_lost(values) {
        None => float(FloatType::Bf16),
        Some(_) => float(FloatType::F32),
    }
}

/// Which row of Hugging Face's order, `i` and `head_dim / 2 + i` turned together, stands at each
/// place of llama.cpp's, `2 i` and `2 i + 1`.
fn pairs_together(heads: usize, head_dim: usize) -> Vec<usize> {
    let half = head_dim / 2;
    let row = |head: usize, at: usize| head * head_dim + at % 2 * half + at / 2;
    (0..heads).flat_map(|head| (0..head_dim).map(move |at| row(head, at))).collect()
}

fn rows_of<T: Copy>(values: &[T], width: usize, rows: &[usize]) -> Vec<T> {
    rows.iter().flat_map(|row| values[row * width..][..width].iter().copied()).collect()
}

/// A layer with its rows in another order.
fn in_order(layer: &CodedLayer, rows: &[usize]) -> CodedLayer {
    let groups = layer.groups();
    CodedLayer {
        codes: rows_of(&layer.codes, layer.in_features, rows),
        scale: rows_of(&layer.scale, groups, rows),
        zero: match &layer.zero {
            Zero::Codes(zeros) => Zero::Codes(rows_of(zeros, groups, rows)),
            Zero::Real(zeros) => Zero::Real(rows_of(zeros, groups, rows)),
            Zero::Offset(offset) => Zero::Offset(rows_of(offset, groups, rows)),
        },
        ..*layer
    }
}

/// llama.cpp's name of a tensor.
fn ggml_name(name: &str) -> String {
    let whole = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "lm_head.weight" => Some("output.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return whole.into();
    }
    let in_block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let (block, rest) = in_block.expect("a LLaMA has no other tensors");
    let part = match rest {
        "input_layernorm.weight" => "attn_norm",
        "post_attention_layernorm.weight" => "ffn_norm",
        "self_attn.q_proj.weight" => "attn_q",
        "self_attn.k_proj.weight" => "attn_k",
        "self_attn.v_proj.weight" => "attn_v",
        "self_attn.o_proj.weight" => "attn_output",
        "mlp.gate_proj.weight" => "ffn_gate",
        "mlp.up_proj.weight" => "ffn_up",
        "mlp.down_proj.weight" => "ffn_down",
        other => unreachable!("a LLaMA has no tensor {other}"),
    };
    format!("blk.{block}.{part}.weight")
}

/// What the metadata cannot say of a model.
fn lack(reason: impl Into<String>) -> Lack {
    Lack::Model(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_turn_together_stand_together() {
        assert_eq!(pairs_together(2, 4), [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
