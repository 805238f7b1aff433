//! Unsigned codes, scales and zero points: what PEQA and QA-LoRA start from and merge to.
//! Eqs. (Q11) to (Q13).

use plumbline_reference::spec::{QuantSpec, RtnSpec};

use super::{BackwardCall, LayerCost, LinearMethod, Scratch, Trainable, codes_cost};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::ops::affine::{AffineGrid, PackedCodes, packed_bits};
use crate::ops::linear::LinearArgs;
use crate::ops::refuse_non_finite;

/// Codes and grid of one layer, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct AffineTensors {
    /// Bits and groups.
    pub spec: QuantSpec,
    /// Rows of the weight.
    pub out_features: usize,
    /// `[out, in]`, from 0 to `2^bits - 1`.
    pub codes: Vec<u8>,
    /// `[out, groups]`.
    pub scale: Vec<f32>,
    /// `[out, groups]`, in units of the code; real where an adapter was merged into it.
    pub zero_point: Vec<f32>,
}

impl AffineTensors {
    /// A full-precision `weight [out, in]`, rounded to nearest. Eq. (Q13).
    ///
    /// # Errors
    /// `NonFinite` for a bad weight.
    pub fn round_to_nearest<B: Backend>(
        backend: &B,
        weight: &[f32],
        out_features: usize,
        spec: QuantSpec,
        rtn: RtnSpec,
    ) -> Result<Self> {
        let groups = out_features * spec.groups();
        let (mut scale, mut zero_point) = (backend.zeros(groups)?, backend.zeros(groups)?);
        let mut codes = backend.zero_codes(weight.len())?;
        let weight = backend.upload(weight)?;
        backend.rtn(spec, rtn, out_features, &weight, &mut scale, &mut zero_point)?;
        let grid = AffineGrid { spec, out_features, scale: &scale, zero_point: &zero_point };
        backend.affine_quantize(&grid, &weight, &mut codes)?;
        let codes = backend.download_codes(&codes)?.into_iter().map(|code| code as u8).collect();
        let (scale, zero_point) =
            (backend.download(&scale, groups)?, backend.download(&zero_point, groups)?);
        Ok(Self { spec, out_features, codes, scale, zero_point })
    }

    /// Refuses a code that the grid does not have, and values that are no numbers.
    ///
    /// # Errors
    /// `Invalid`; `NonFinite`.
    ///
    /// # Panics
    /// When a tensor's length is not what the sizes say.
    pub fn check(&self) -> Result<()> {
        let groups = self.out_features * self.spec.groups();
        assert_eq!(self.codes.len(), self.out_features * self.spec.in_features(), "codes");
        assert_eq!((self.scale.len(), self.zero_point.len()), (groups, groups), "groups");
        refuse_non_finite("affine", "scale", &self.scale)?;
        refuse_non_finite("affine", "zero_point", &self.zero_point)?;
        let largest = self.spec.unsigned_max();
        match self.codes.iter().position(|code| i32::from(*code) > largest) {
            Some(index) => {
                let code = self.codes[index];
                let reason =
                    format!("codes holds {code} at flat index {index}, expected 0 to {largest}");
                Err(Error::Invalid(reason))
            }
            None => Ok(()),
        }
    }

    /// The codes on a device, packed.
    ///
    /// # Errors
    /// When the device has no room.
    pub(super) fn upload_codes<B: Backend>(&self, backend: &B) -> Result<PackedCodes<B>> {
        let Self { spec, codes, .. } = self;
        PackedCodes::pack(codes, spec.in_features(), packed_bits(spec.bits()))?.upload(backend)
    }
}

/// `y = x @ (scale * (codes - zero_point))^T`, with nothing trained.
pub struct Affine<B: Backend> {
    spec: QuantSpec,
    out_features: usize,
    codes: PackedCodes<B>,
    scale: B::Floats,
    zero_point: B::Floats,
}

impl<B: Backend> Affine<B> {
    /// Uploads a layer.
    ///
    /// # Errors
    /// `Invalid` for a code that the grid does not have; `NonFinite`; when the device has no room.
    pub fn new(backend: &B, tensors: &AffineTensors) -> Result<Self> {
        tensors.check()?;
        Ok(Self {
            spec: tensors.spec,
            out_features: tensors.out_features,
            codes: tensors.upload_codes(backend)?,
            scale: backend.upload(&tensors.scale)?,
            zero_point: backend.upload(&tensors.zero_point)?,
        })
    }

    fn dequantize(&self, backend: &B, output: &mut B::Floats) -> Result<()> {
        let Self { spec, out_features, scale, zero_point, .. } = self;
        let grid = AffineGrid { spec: *spec, out_features: *out_features, scale, zero_point };
        backend.affine_dequantize(&grid, &self.codes, output)
    }

    fn linear_args(&self, tokens: usize) -> LinearArgs {
        LinearArgs::new(tokens, self.spec.in_features(), self.out_features)
    }

    /// The tensors of the layer again, on the host.
    pub(super) fn to_host(&self, backend: &B) -> Result<AffineTensors> {
        let Self { spec, out_features, codes, scale, zero_point } = self;
        let groups = out_features * spec.groups();
        Ok(AffineTensors {
            spec: *spec,
            out_features: *out_features,
            codes: codes.download(backend)?.unpack(),
            scale: backend.download(scale, groups)?,
            zero_point: backend.download(zero_point, groups)?,
        })
    }
}

impl<B: Backend> LinearMethod<B> for Affine<B> {
    fn cost(&self) -> LayerCost {
        codes_cost(self.spec, self.out_features, self.codes.row_bytes())
    }

    fn forward(
        &self,
        backend: &B,
        tokens: usize,
        x: &B::Floats,
        y: &mut B::Floats,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.dequantize(backend, &mut scratch.effective)?;
        backend.linear(self.linear_args(tokens), x, &scratch.effective, y)
    }

    fn backward(
        &mut self,
        backend: &B,
        call: BackwardCall<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.dequantize(backend, &mut scratch.effective)?;
        let args = LinearArgs { write: call.write, ..self.linear_args(call.tokens) };
        backend.linear_input_gradient(args, call.d_y, &scratch.effective, call.d_x)
    }

    fn trainable(&mut self) -> Vec<Trainable<'_, B>> {
        Vec::new()
    }
}
