//! `affine`: weights on an unsigned grid with a zero point, and the gradient of their scales.
//! Eqs. (Q11), (Q12), (M16).

mod cpu;
mod cuda;
mod packed;

use plumbline_reference::spec::QuantSpec;

use crate::backend::Storage;
use crate::error::Result;

pub(crate) use cpu::affine_code;
pub use packed::{PackedCodes, packed_bits, packed_row_bytes};

/// The grid of a weight.
pub struct AffineGrid<'a, B: Storage + ?Sized> {
    /// Bits and groups; codes run from 0 to `2^bits - 1`.
    pub spec: QuantSpec,
    /// Rows of the weight.
    pub out_features: usize,
    /// `[out, groups]`.
    pub scale: &'a B::Floats,
    /// `[out, groups]`, in units of the code.
    pub zero_point: &'a B::Floats,
}

/// Between weights and unsigned codes. A new code is a byte of `Codes`, from 0 to 255; what is kept
/// between steps is packed.
pub trait Affine: Storage {
    /// `codes = clamp(round_half_even(weight / max(scale, 1e-8)) + zero_point, 0, 2^bits - 1)`.
    /// Eq. (Q11). Zero points are codes of the grid.
    ///
    /// # Shapes
    /// `weight [out, in]` -> `codes [out, in]`
    ///
    /// # Errors
    /// `NonFinite` naming the tensor; `Length`.
    fn affine_quantize(
        &self,
        grid: &AffineGrid<'_, Self>,
        weight: &Self::Floats,
        codes: &mut Self::Codes,
    ) -> Result<()>;

    /// `output = max(scale, 1e-8) * (codes - zero_point)`: the difference, then the product.
    /// Eq. (Q12). A scale of NaN or infinity reaches the output.
    ///
    /// # Shapes
    /// `codes [out, in]` -> `output [out, in]`
    ///
    /// # Errors
    /// `NonFinite` naming the output; `Length`; `Invalid` for codes of another shape.
    fn affine_dequantize(
        &self,
        grid: &AffineGrid<'_, Self>,
        codes: &PackedCodes<Self>,
        output: &mut Self::Floats,
    ) -> Result<()>;

    /// `d_scale += sum_(i in g) d_output * (codes - zero_point)`, nothing where `scale < 1e-8`.
    /// Eq. (M16).
    ///
    /// # Shapes
    /// `codes, d_output [out, in]` -> `d_scale [out, groups]`
    ///
    /// # Errors
    /// `Length`; `Invalid` for codes of another shape.
    fn affine_dequantize_backward(
        &self,
        grid: &AffineGrid<'_, Self>,
        codes: &PackedCodes<Self>,
        d_output: &Self::Floats,
        d_scale: &mut Self::Floats,
    ) -> Result<()>;
}
