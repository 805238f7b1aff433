//! Checkpoints of other programs whose linear layers are packed integers: what their `config.json`
//! says of them, and the weights that they stand for.
//!
//! A weight is `(code - zero_point) * scale` in f32. With a scale of 16 bits that is exact: the
//! difference has at most 9 bits, the scale 11. Nothing is rounded to a 16-bit type on the way.
//!
//! Nothing here is shared with what writes these formats: files are judged by reading them again.

mod awq;
mod compressed_tensors;
mod gptq;
mod mlx;
mod unpacked;

use serde_json::Value;

pub use unpacked::{Shift, Unpacked};

use super::folder::ModelFolder;
use crate::error::{Error, Result};
use crate::model::Projection;

/// How the linear layers are held.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Packed {
    /// `qweight`, `qzeros`, `scales`, `g_idx`.
    Gptq(gptq::Gptq),
    /// `weight_packed`, `weight_scale`, `weight_zero_point`, `weight_g_idx`.
    CompressedTensors(compressed_tensors::CompressedTensors),
    /// `qweight`, `qzeros`, `scales`, in another order.
    Awq(awq::Awq),
    /// `weight`, `scales`, `biases`.
    Mlx(mlx::Mlx),
}

/// Name and shape of a tensor.
pub(super) type Expected = (String, Vec<usize>);

impl Packed {
    /// Reads a `quantization_config`; `None` where its `quant_method` is none of these.
    ///
    /// # Errors
    /// The field, what it says and what is supported.
    pub(super) fn read(config: &Value) -> Result<Option<Self>, String> {
        match config.get("quant_method").and_then(Value::as_str) {
            Some("gptq") => gptq::Gptq::read(config).map(|format| Some(Self::Gptq(format))),
            Some("compressed-tensors") => compressed_tensors::CompressedTensors::read(config)
                .map(|format| Some(Self::CompressedTensors(format))),
            Some("awq") => awq::Awq::read(config).map(|format| Some(Self::Awq(format))),
            _ => Ok(None),
        }
    }

    /// Reads the `quantization` of MLX, which has a place of its own in `config.json`.
    ///
    /// # Errors
    /// As [`Packed::read`].
    pub(super) fn read_mlx(config: &Value) -> Result<Self, String> {
        mlx::Mlx::read(config).map(Self::Mlx)
    }

    /// What `inspect` calls it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Gptq(_) => "gptq",
            Self::CompressedTensors(_) => "compressed-tensors",
            Self::Awq(_) => "awq",
            Self::Mlx(_) => "mlx",
        }
    }

    /// Width of a code.
    pub(super) fn bits(&self) -> u32 {
        match self {
            Self::Gptq(format) => format.bits,
            Self::CompressedTensors(format) => format.bits,
            Self::Awq(_) => awq::BITS,
            Self::Mlx(format) => format.bits,
        }
    }

    /// The tensors that a layer must have; `found` is the shape of one that is there. A layer that
    /// was left out of the quantization has its weight.
    ///
    /// # Errors
    /// What the layout cannot hold.
    pub(super) fn tensors<'f>(
        &self,
        linear: &Projection,
        found: impl Fn(&str) -> Option<&'f [usize]>,
    ) -> Result<Vec<Expected>, String> {
        if self.is_plain(linear, |name| found(name).is_some()) {
            let shape = vec![linear.out_features, linear.in_features];
            return Ok(vec![(format!("{}.weight", linear.name), shape)]);
        }
        let expected = match self {
            Self::Gptq(format) => format.tensors(linear, found),
            Self::CompressedTensors(format) => format.tensors(linear, found),
            Self::Awq(format) => format.tensors(linear),
            Self::Mlx(format) => format.tensors(linear),
        };
        expected.map_err(|reason| format!("{}: {reason}", linear.name))
    }

    /// Whether a layer was left out of the quantization; `has` tells which tensors are there.
    pub(super) fn is_plain(&self, linear: &Projection, has: impl Fn(&str) -> bool) -> bool {
        match self {
            // What is packed is called `weight` there.
            Self::Mlx(_) => !has(&format!("{}.scales", linear.name)),
            _ => has(&format!("{}.weight", linear.name)),
        }
    }

    /// The integers `[out, in]` of a layer that is packed, and their grid.
    pub(super) fn unpacked(&self, folder: &ModelFolder, linear: &Projection) -> Result<Unpacked> {
        match self {
            Self::Gptq(format) => format.unpacked(folder, linear),
            Self::CompressedTensors(format) => format.unpacked(folder, linear),
            Self::Awq(format) => format.unpacked(folder, linear),
            Self::Mlx(format) => format.unpacked(folder, linear),
        }
    }
}

/// Value `index` of a row of words that holds values of `bits` bits one after the other, from the
/// lowest bit of the first word on, also across words.
pub(super) fn dense(bits: u32, index: usize, word: impl Fn(usize) -> u32) -> u32 {
    let start = index * bits as usize;
    let (at, shift) = (start / 32, start as u32 % 32);
    let low = word(at) >> shift;
    let value = if shift + bits > 32 { low | word(at + 1) << (32 - shift) } else { low };
    value & (u32::MAX >> (32 - bits))
}

/// The group of each input where the file says it: every number must be that of a group.
fn checked_groups(
    folder: &ModelFolder,
    name: &str,
    stored: Vec<u32>,
    groups: usize,
) -> Result<Vec<usize>> {
    let group = |(input, group): (usize, u32)| {
        let index = group as usize;
        if index < groups {
            return Ok(index);
        }
        let (said, most) = (group as i32, groups - 1);
        let reason =
            format!("tensor {name} says group {said} for input {input}, expected 0 to {most}");
        Err(Error::file(folder.path(), reason))
    };
    stored.into_iter().enumerate().map(group).collect()
}

/// Inputs of a group as two of the formats say it; `None` for -1, one group.
fn group_size(said: Option<&Value>) -> Result<Option<usize>, String> {
    match said.and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(size) if size > 0 => Ok(Some(size as usize)),
        other => {
            let said = other.map_or("absent".into(), |size| size.to_string());
            let field = "quantization_config.group_size";
            Err(format!("{field} is {said}, expected -1 or a number of inputs"))
        }
    }
}

/// A field that must say what is supported.
fn supported<T>(field: &str, said: Option<T>, which: &[T]) -> Result<T, String>
where
    T: Copy + PartialEq + std::fmt::Display,
{
    let list = || which.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match said {
        Some(value) if which.contains(&value) => Ok(value),
        Some(value) => {
            Err(format!("quantization_config.{field} is {value}, supported: {}", list()))
        }
        None => Err(format!("quantization_config.{field} is absent, supported: {}", list())),
    }
}

/// A field that must be absent, null, false or empty.
fn unused(field: &str, value: Option<&Value>) -> Result<(), String> {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => Ok(()),
        Some(Value::Object(map)) if map.is_empty() => Ok(()),
        Some(Value::Array(list)) if list.is_empty() => Ok(()),
        Some(value) => {
            Err(format!("quantization_config.{field} is {value}, which is not supported"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three-bit values over three words, each bit set on its own.
    #[test]
    fn values_go_on_across_words() {
        for bits in 2..=8 {
            let values: Vec<u32> = (0..64u32).map(|i| i * 37 % (1 << bits)).collect();
            let mut words = vec![0u32; values.len() * bits as usize / 32];
            for (i, value) in values.iter().enumerate() {
                for bit in (0..bits).filter(|bit| value >> bit & 1 == 1) {
                    let place = i * bits as usize + bit as usize;
                    words[place / 32] |= 1 << (place % 32);
                }
            }
            let read: Vec<u32> = (0..64).map(|i| dense(bits, i, |at| words[at])).collect();
            assert_eq!(read, values, "{bits} bits");
        }
    }
}
