//! Weights as they are stored, by the crate's own operations. They are made on the host, for every
//! backend.

use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::ops::affine::PackedCodes;
use plumbline::ops::nf4::Nf4Weight;

use super::{Call, Refused, scalar};
use crate::params;
use crate::tensor::{Data, Tensor, Tensors};

impl<B: Backend> Call<'_, B> {
    pub(super) fn pack(&self) -> Result<Tensors, Refused> {
        let [rows, width] = self.request.sizes("codes")?;
        let bits = params::packed_bits(&self.request.params)?;
        let packed = PackedCodes::pack(&self.unsigned("codes")?, width, bits)?;
        let shape = vec![rows, packed.row_bytes()];
        let packed = Tensor::new(shape, Data::U8(packed.packed().to_vec()))?;
        Ok(crate::ops::tensors([("packed", packed)]))
    }

    pub(super) fn unpack(&self) -> Result<Tensors, Refused> {
        let [rows, _] = self.request.sizes("packed")?;
        let width = self.request.params.required("in_features")?;
        let bits = params::packed_bits(&self.request.params)?;
        let packed = PackedCodes::from_bytes(&self.unsigned("packed")?, rows, width, bits)?;
        let codes = Tensor::new(vec![rows, width], Data::U8(packed.unpack()))?;
        Ok(crate::ops::tensors([("codes", codes)]))
    }

    pub(super) fn nf4(&self) -> Result<Tensors, Refused> {
        let (block_size, double_quantize) = params::nf4(&self.request.params)?;
        let shape = self.shape("weight")?;
        let weight =
            Nf4Weight::<Cpu>::quantize(&self.host("weight")?, block_size, double_quantize)?;
        let mut output = self.like("weight")?;
        self.backend.nf4_dequantize(&weight.upload(&**self.backend)?, &mut output)?;
        let absmax = weight.absmax();
        let blocks = vec![absmax.len()];
        let mut outputs = crate::ops::tensors([
            ("codes", Tensor::new(shape.to_vec(), Data::U8(weight.codes()))?),
            ("absmax", Tensor::new(blocks.clone(), Data::F32(absmax))?),
            ("output", self.download(&output, shape)?),
        ]);
        if let Some(stored) = weight.double_absmax() {
            let codes = stored.codes.iter().map(|code| *code as u8).collect();
            let scales = vec![stored.scale.len()];
            outputs.extend(crate::ops::tensors([
                ("absmax_codes", Tensor::new(blocks, Data::U8(codes))?),
                ("absmax_scale", Tensor::new(scales, Data::F32(stored.scale.clone()))?),
                ("absmax_offset", scalar(stored.offset.into())),
            ]));
        }
        Ok(outputs)
    }
}
