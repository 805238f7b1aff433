//! How a GGUF file stores values: plain, or in blocks that share a scale.

use std::fmt;

use half::{bf16, f16};

use crate::checkpoint::packed::{Shift, Unpacked};

/// A storage type. The quantized ones keep 32 consecutive values in a block with an f16 scale `d`,
/// and an f16 minimum `m` where the value is `d q + m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockType {
    /// One f32.
    F32,
    /// One f16.
    F16,
    /// One bf16.
    Bf16,
    /// `d (q - 8)`, q of 4 bits.
    Q4_0,
    /// `d q + m`, q of 4 bits.
    Q4_1,
    /// `d (q - 16)`, q of 5 bits.
    Q5_0,
    /// `d q + m`, q of 5 bits.
    Q5_1,
    /// `d q`, q of 8 signed bits.
    Q8_0,
}

impl BlockType {
    /// By its number in the file.
    pub(super) fn new(number: u32) -> Result<Self, String> {
        Ok(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            30 => Self::Bf16,
            _ => {
                let supported = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0";
                return Err(format!("storage type {number}, supported: {supported}"));
            }
        })
    }

    /// Values of a block.
    pub(super) fn values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
        }
    }

    /// Integers and grid of rows of `columns` values; `None` for a type without them.
    pub(crate) fn unpack(self, bytes: &[u8], columns: usize) -> Option<Unpacked> {
        let blocks = bytes.chunks_exact(self.bytes());
        let (mut codes, mut scale) = (Vec::new(), Vec::new());
        let (mut zeros, mut bias) = (Vec::new(), Vec::new());
        for block in blocks {
            let (q, zero) = match self {
                Self::F32 | Self::F16 | Self::Bf16 => return None,
                Self::Q4_0 => (nibbles(&block[2..]), 8),
                Self::Q4_1 => (nibbles(&block[4..]), 0),
                Self::Q5_0 => (fifth_bits(&block[2..], 0), 16),
                Self::Q5_1 => (fifth_bits(&block[4..], 0), 0),
                Self::Q8_0 => (std::array::from_fn(|i| i32::from(block[2 + i] as i8)), 0),
            };
            codes.extend(q.map(|code| code as i16));
            scale.push(half(block));
            zeros.push(zero);
            bias.push(half(&block[2..]));
        }
        let shift = match self {
            Self::Q4_1 | Self::Q5_1 => Shift::Bias(bias),
            _ => Shift::ZeroPoint(zeros),
        };
        Some(Unpacked { codes, scale, shift, group_of: (0..columns).map(|i| i / 32).collect() })
    }

    /// The values of whole blocks. Products and sums are rounded to f32 one after the other.
    pub(crate) fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        let blocks = bytes.chunks_exact(self.bytes());
        match self {
            Self::F32 => blocks.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Self::F16 => blocks.map(half).collect(),
            Self::Bf16 => blocks.map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Self::Q4_0 => values(blocks, |b| (half(b), 0.0, nibbles(&b[2..]).map(|q| q - 8))),
            Self::Q4_1 => values(blocks, |b| (half(b), half(&b[2..]), nibbles(&b[4..]))),
            Self::Q5_0 => values(blocks, |b| (half(b), 0.0, fifth_bits(&b[2..], -16))),
            Self::Q5_1 => values(blocks, |b| (half(b), half(&b[2..]), fifth_bits(&b[4..], 0))),
            Self::Q8_0 => values(blocks, |b| {
                (half(b), 0.0, std::array::from_fn(|i| i32::from(b[2 + i] as i8)))
            }),
        }
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bf16 => write!(f, "BF16"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// `d q + m` of every value of every block, from `d`, `m` and the block's codes.
fn values<'a>(
    blocks: impl Iterator<Item = &'a [u8]>,
    block: impl Fn(&[u8]) -> (f32, f32, [i32; 32]),
) -> Vec<f32> {
    let of_block = |bytes| {
        let (d, m, codes) = block(bytes);
        codes.map(|code| d * code as f32 + m)
    };
    blocks.flat_map(of_block).collect()
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Value `i` is the low half of byte `i`, value `16 + i` the high half.
fn nibbles(bytes: &[u8]) -> [i32; 32] {
    std::array::from_fn(|i| i32::from(if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 }))
}

/// Four bytes with the fifth bit of each value, then the nibbles.
fn fifth_bits(bytes: &[u8], shift: i32) -> [i32; 32] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let low = nibbles(&bytes[4..]);
    std::array::from_fn(|i| (low[i] | ((high >> i & 1) << 4) as i32) + shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One block of each kind by hand: d = 0.5, m = -1.
    #[test]
    fn a_block_of_every_type() {
        let d = f16::from_f32(0.5).to_le_bytes();
        let m = f16::from_f32(-1.0).to_le_bytes();
        // Codes: value i of the first half is i, of the second half 15 - i.
        let packed: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let code = |i: usize| (if i < 16 { i } else { 31 - i }) as f32;
        let expect = |block: BlockType, bytes: Vec<u8>, value: &dyn Fn(usize) -> f32| {
            assert_eq!(bytes.len(), block.bytes());
            let expected: Vec<f32> = (0..32).map(value).collect();
            assert_eq!(block.dequantize(&bytes), expected, "{block}");
            let unpacked = block.unpack(&bytes, 32).unwrap();
            assert_eq!((unpacked.weight(), unpacked.groups()), (expected, 1), "{block}");
        };
        expect(BlockType::Q4_0, [&d[..], &packed].concat(), &|i| 0.5 * (code(i) - 8.0));
        expect(BlockType::Q4_1, [&d[..], &m, &packed].concat(), &|i| 0.5 * code(i) - 1.0);
        // The fifth bit of the odd values.
        let high = 0xaaaa_aaaa_u32.to_le_bytes();
        let five = |i: usize| code(i) + if i % 2 == 1 { 16.0 } else { 0.0 };
        expect(BlockType::Q5_0, [&d[..], &high, &packed].concat(), &|i| 0.5 * (five(i) - 16.0));
        expect(BlockType::Q5_1, [&d[..], &m, &high, &packed].concat(), &|i| 0.5 * five(i) - 1.0);
        let bytes: Vec<u8> = (0..32).map(|i| (i * 8 - 128) as i8 as u8).collect();
        expect(BlockType::Q8_0, [&d[..], &bytes].concat(), &|i| 0.5 * (i as f32 * 8.0 - 128.0));
    }
}
