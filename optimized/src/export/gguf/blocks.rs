//! Codes in blocks of 32 with an f16 scale each.

use half::f16;

use super::super::floats::FloatType;
use super::super::format::Format;
use super::super::grid::{Biased, Integers};
use super::super::lack::Lack;
use super::super::layer::CodedLayer;

/// Values of a block.
const VALUES: usize = 32;

/// How a block stands for values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// `d (q - 8)`, q of 4 bits.
    Q4_0,
    /// `d q + m`, q of 4 bits.
    Q4_1,
    /// `d (q - 16)`, q of 5 bits.
    Q5_0,
    /// `d q`, q of 8 signed bits.
    Q8_0,
}

impl Block {
    /// That of the linear layers in a format.
    ///
    /// # Panics
    /// For a format that is no GGUF file.
    pub(super) fn of(format: Format) -> Self {
        match format {
            Format::GgufQ4_0 => Self::Q4_0,
            Format::GgufQ4_1 => Self::Q4_1,
            Format::GgufQ5_0 => Self::Q5_0,
            Format::GgufQ8_0 => Self::Q8_0,
            other => panic!("{other} is no GGUF file"),
        }
    }

    /// Its number in the list of tensors.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q8_0 => 8,
        }
    }

    /// `general.file_type` of a file whose linear layers are such blocks.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 8,
            Self::Q8_0 => 7,
        }
    }

    /// The blocks of a layer, row after row.
    pub(super) fn encode(self, layer: &CodedLayer) -> Result<Vec<u8>, Lack> {
        let (size, columns) = (layer.group_size, layer.in_features);
        if !columns.is_multiple_of(VALUES) {
            return Err(Lack::Side { what: "inputs", length: columns, multiple: VALUES });
        }
        if !size.is_multiple_of(VALUES) {
            return Err(Lack::GroupSize { size, holds: "multiples of 32" });
        }
        FloatType::F16.check_scales(&layer.scale)?;
        match self {
            Self::Q4_0 => centred(layer, 4, |codes, bytes| bytes.extend(nibbles(codes))),
            Self::Q4_1 => biased(layer),
            Self::Q5_0 => centred(layer, 5, |codes, bytes| {
                let high = codes.iter().rev().fold(0u32, |high, q| high << 1 | u32::from(q >> 4));
                bytes.extend(high.to_le_bytes());
                bytes.extend(nibbles(codes));
            }),
            // Signed: the middle is zero.
            Self::Q8_0 => centred(layer, 8, |codes, bytes| {
                bytes.extend(codes.iter().map(|code| code.wrapping_sub(128)));
            }),
        }
    }
}

/// Blocks of a scale and codes of `bits` bits around a zero in the middle, which `write` appends.
fn centred(
    layer: &CodedLayer,
    bits: u32,
    write: impl Fn(&[u8], &mut Vec<u8>),
) -> Result<Vec<u8>, Lack> {
    let Integers { codes, scale, .. } = Integers::centred(layer, bits, VALUES)?;
    let mut bytes = Vec::new();
    for (codes, scale) in codes.chunks(VALUES).zip(scale) {
        bytes.extend(f16::from_f32(scale).to_le_bytes());
        write(codes, &mut bytes);
    }
    Ok(bytes)
}

/// Blocks of a scale, a number that is added, and codes of four bits.
fn biased(layer: &CodedLayer) -> Result<Vec<u8>, Lack> {
    if layer.bits > 4 {
        return Err(Lack::Bits { bits: layer.bits, holds: "4" });
    }
    let Biased { codes, scale, bias } = Biased::new(layer, VALUES, FloatType::F16)?;
    let mut bytes = Vec::new();
    for (codes, (scale, bias)) in codes.chunks(VALUES).zip(scale.into_iter().zip(bias)) {
        bytes.extend(f16::from_f32(scale).to_le_bytes());
        bytes.extend(f16::from_f32(bias).to_le_bytes());
        bytes.extend(nibbles(codes));
    }
    Ok(bytes)
}

/// The low four bits of 32 codes: of code `i` in the lower half of byte `i`, of code `16 + i` in its
/// upper half.
fn nibbles(codes: &[u8]) -> [u8; 16] {
    std::array::from_fn(|i| codes[i] & 15 | (codes[16 + i] & 15) << 4)
}

/// Values as blocks of `d q` where they were such: nothing is rounded, and `None` is for values that
/// no block gives.
pub(super) fn as_q8_0(values: &[f32], columns: usize) -> Option<Vec<u8>> {
    if !columns.is_multiple_of(VALUES) {
        return None;
    }
    let mut bytes = Vec::with_capacity(values.len() / VALUES * 34);
    for block in values.chunks(VALUES) {
        let (d, codes) = steps_of(block)?;
        bytes.extend(d.to_le_bytes());
        bytes.extend(codes.map(|code| code as u8));
    }
    Some(bytes)
}

/// Scale and codes with `d q` equal to every value.
fn steps_of(block: &[f32]) -> Option<(f16, [i8; 32])> {
    let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 {
        return Some((f16::ZERO, [0; 32]));
    }
    // The largest value is some code times the scale; most writers make it the largest code.
    (1..=127u8).rev().find_map(|code| {
        let d = f16::from_f32(largest / f32::from(code));
        let scale = d.to_f32();
        let mut codes = [0i8; 32];
        for (value, code) in block.iter().zip(&mut codes) {
            let steps = (value / scale).round_ties_even();
            if steps.abs() > 127.0 || steps * scale != *value {
                return None;
            }
            *code = steps as i8;
        }
        Some((d, codes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::BlockType;

    #[test]
    fn values_of_blocks_are_found_again_and_others_are_not() {
        let values: Vec<f32> = (0..64)
            .map(|i| f16::from_f32(0.013).to_f32() * ((i * 37 % 200) - 100) as f32)
            .collect();
        let bytes = as_q8_0(&values, 32).unwrap();
        assert_eq!(BlockType::Q8_0.dequantize(&bytes), values);
        assert_eq!(as_q8_0(&[0.0; 32], 32).unwrap(), [0; 34]);
        let mut off = values.clone();
        off[40] *= 1.0 + f32::EPSILON;
        assert!(as_q8_0(&off, 32).is_none());
        assert!(as_q8_0(&values, 16).is_none());
    }
}
