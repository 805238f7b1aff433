//! Where tensors live and what can be done with them.
//!
//! There is one small trait per operation, in `ops/<operation>/mod.rs`, and [`Backend`] is their
//! sum. A model is generic over the backend and never sees a buffer's inside.

use crate::error::Result;
use crate::ops;

/// Buffers of one device. All are flat and row-major; sizes travel in the operations' arguments.
///
/// A buffer may be larger than an operation needs: workspaces are allocated once for the longest
/// sequence and reused, and an operation touches the first elements only.
pub trait Storage: Send + Sync {
    /// 32-bit floats.
    type Floats: Send + Sync;
    /// Codes, a byte each; where they are unsigned or packed, the byte counts and not its sign.
    type Codes: Send + Sync;
    /// The bits of 16-bit floats, for nothing but the operations that they are made for.
    type Halves: Send + Sync;
    /// Token ids.
    type Tokens: Send + Sync;
    /// Sums in f64 that operations write and the host reads all at once.
    type Sums: Send + Sync;

    /// `len` zeros.
    ///
    /// # Errors
    /// When the device has no room.
    fn zeros(&self, len: usize) -> Result<Self::Floats>;
    /// `len` zeros of the type that the backend multiplies: room for an effective weight, which
    /// only the operations that quantize write and only products and downloads read.
    ///
    /// # Errors
    /// When the device has no room.
    fn operand(&self, len: usize) -> Result<Self::Floats> {
        self.zeros(len)
    }
    /// Bytes of each value of such room.
    fn operand_bytes(&self) -> usize {
        4
    }
    /// Copies host values to the device.
    ///
    /// # Errors
    /// When the device has no room.
    fn upload(&self, values: &[f32]) -> Result<Self::Floats>;
    /// The same of values that the host has no more use for.
    ///
    /// # Errors
    /// When the device has no room.
    fn take(&self, values: Vec<f32>) -> Result<Self::Floats> {
        self.upload(&values)
    }
    /// The first `len` values.
    ///
    /// # Errors
    /// When the buffer is shorter, or the device failed.
    fn download(&self, buffer: &Self::Floats, len: usize) -> Result<Vec<f32>>;
    /// Overwrites the first values of a buffer.
    ///
    /// # Errors
    /// When the buffer is shorter than `values`.
    fn write(&self, values: &[f32], buffer: &mut Self::Floats) -> Result<()>;
    /// Copies `len` values between two buffers of the device.
    ///
    /// # Errors
    /// When a range leaves its buffer.
    fn copy(
        &self,
        from: &Self::Floats,
        from_start: usize,
        to: &mut Self::Floats,
        to_start: usize,
        len: usize,
    ) -> Result<()>;
    /// Sets every value of the buffer to zero.
    ///
    /// # Errors
    /// When the device failed.
    fn clear(&self, buffer: &mut Self::Floats) -> Result<()>;
    /// `len` zero codes.
    ///
    /// # Errors
    /// When the device has no room.
    fn zero_codes(&self, len: usize) -> Result<Self::Codes>;
    /// Copies codes to the device.
    ///
    /// # Errors
    /// When the device has no room.
    fn upload_codes(&self, codes: &[i8]) -> Result<Self::Codes>;
    /// All codes of the buffer.
    ///
    /// # Errors
    /// When the device failed.
    fn download_codes(&self, codes: &Self::Codes) -> Result<Vec<i8>>;
    /// Copies the bits of 16-bit floats to the device.
    ///
    /// # Errors
    /// When the device has no room.
    fn upload_halves(&self, halves: &[u16]) -> Result<Self::Halves>;
    /// The first `len` values.
    ///
    /// # Errors
    /// When the buffer is shorter, or the device failed.
    fn download_halves(&self, halves: &Self::Halves, len: usize) -> Result<Vec<u16>>;
    /// Overwrites the first values of a buffer.
    ///
    /// # Errors
    /// When the buffer is shorter than `halves`.
    fn write_halves(&self, halves: &[u16], buffer: &mut Self::Halves) -> Result<()>;
    /// Copies token ids to the device.
    ///
    /// # Errors
    /// When the device has no room.
    fn upload_tokens(&self, tokens: &[i32]) -> Result<Self::Tokens>;
    /// Overwrites the first ids of a buffer; operations on fewer than it holds read those alone.
    ///
    /// # Errors
    /// When the buffer is shorter than `tokens`.
    fn write_tokens(&self, tokens: &[i32], buffer: &mut Self::Tokens) -> Result<()>;
    /// Copies sums to the device.
    ///
    /// # Errors
    /// When the device has no room.
    fn upload_sums(&self, sums: &[f64]) -> Result<Self::Sums>;
    /// Sets every sum to zero.
    ///
    /// # Errors
    /// When the device failed.
    fn clear_sums(&self, sums: &mut Self::Sums) -> Result<()>;
    /// All sums. A device is waited for once, and says what it refused since it was last asked.
    ///
    /// # Errors
    /// `NonFinite` naming an operation's tensor; when the device failed.
    fn read_sums(&self, sums: &mut Self::Sums) -> Result<Vec<f64>>;
}

/// Everything a LLaMA and its methods need of a device.
pub trait Backend:
    Storage
    + ops::adamw::AdamW
    + ops::add::Add
    + ops::affine::Affine
    + ops::attention::Attention
    + ops::cross_entropy::CrossEntropy
    + ops::dropout::Dropout
    + ops::dynamic_quantize::DynamicQuantize
    + ops::embedding::Embedding
    + ops::fake_quantize::FakeQuantize
    + ops::fake_quantize_backward::FakeQuantizeBackward
    + ops::group_pool::GroupPool
    + ops::init_scale::InitScale
    + ops::linear::Linear
    + ops::lr_qat_quantize::LrQatQuantize
    + ops::nf4::Nf4
    + ops::random_weights::RandomWeights
    + ops::rms_norm::RmsNorm
    + ops::rope::Rope
    + ops::round_scale::RoundScale
    + ops::rtn::Rtn
    + ops::squared_norm::SquaredNorm
    + ops::sums::Clip
    + ops::swiglu::Swiglu
    + ops::weight_gradient::WeightGradient
    + ops::widen::Widen
{
    /// The name that `--device` and reports use.
    const NAME: &'static str;
}
