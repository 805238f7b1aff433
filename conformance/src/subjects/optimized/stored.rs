//! Weights as they are stored, by the crate's own operations. They are made on the host, for every
//! backend.

use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::ops::nf4::Nf4Weight;

use super::{Call, Refused, scalar};
use crate::params;
use crate::tensor::{Data, Tensor, Tensors};

impl<B: Backend> Call<'_, B> {
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
