//! `nf4`: a weight as 4-bit codes of a table of 16 levels, in blocks with one magnitude each.
//! Eqs. (Q18), (Q19).

mod cpu;
mod cuda;
mod quantize;

use plumbline_reference::spec::BlockSize;

use crate::backend::Storage;
use crate::error::Result;

/// Levels of the table.
const LEVELS: usize = 16;

/// Values that a magnitude in eight bits may have.
const MAGNITUDES: usize = 256;

/// Magnitudes in eight bits that share one scale.
const ABSMAX_BLOCK: usize = 256;

/// A frozen weight of `len` elements as it is kept between steps. It is made once, on the host, for
/// every backend.
pub struct Nf4Weight<B: Storage + ?Sized> {
    len: usize,
    block_size: BlockSize,
    /// Two codes to a byte, the first of a pair in the high half.
    codes: B::Codes,
    absmax: Absmax<B>,
    /// The levels, and after them the values of [`MAGNITUDES`] codes in ascending order.
    tables: B::Floats,
}

/// The largest magnitude of every block.
enum Absmax<B: Storage + ?Sized> {
    /// As it is.
    F32(B::Floats),
    /// In eight bits. Eq. (Q19).
    Double(DoubleAbsmax<B>),
}

/// Magnitudes less their mean, as codes with a scale for [`ABSMAX_BLOCK`] of them. Eq. (Q19).
pub struct DoubleAbsmax<B: Storage + ?Sized> {
    /// `[blocks]`.
    pub codes: B::Codes,
    /// `[ceil(blocks / 256)]`.
    pub scale: B::Floats,
    /// The mean that was taken off.
    pub offset: f32,
}

impl<B: Storage + ?Sized> Nf4Weight<B> {
    /// Elements of the weight.
    pub fn elements(&self) -> usize {
        self.len
    }

    fn blocks(&self) -> usize {
        self.block_size.blocks(self.len)
    }
}

/// Bytes of all that is kept of a weight of `len` elements.
pub fn kept_bytes(len: usize, block_size: BlockSize, double_quantize: bool) -> usize {
    let blocks = block_size.blocks(len);
    let absmax = match double_quantize {
        false => 4 * blocks,
        true => blocks + 4 * blocks.div_ceil(ABSMAX_BLOCK) + 4,
    };
    len.div_ceil(2) + absmax + 4 * (LEVELS + MAGNITUDES)
}

/// Reads what [`Nf4Weight`] keeps.
pub trait Nf4: Storage {
    /// `output[n] = level[codes[n]] * absmax[n / block_size]`, where a magnitude in eight bits is
    /// `map[absmax_codes[b]] * absmax_scale[b / 256] + absmax_offset`, two roundings. Eqs. (Q18b),
    /// (Q19c).
    ///
    /// # Shapes
    /// -> `output`, the weight's elements in their order
    ///
    /// # Errors
    /// `NonFinite` naming the output; `Length`.
    fn nf4_dequantize(&self, weight: &Nf4Weight<Self>, output: &mut Self::Floats) -> Result<()>;
}
