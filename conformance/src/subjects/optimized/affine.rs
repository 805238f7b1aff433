//! Unsigned grids, by the crate's own operations.

use plumbline::backend::Backend;
use plumbline::methods::AffineTensors;
use plumbline::ops::affine::{AffineGrid, PackedCodes, packed_bits};
use plumbline::ptq::gptq_quantize;
use plumbline_reference::spec::QuantSpec;

use super::{Call, Refused};
use crate::params;
use crate::tensor::{Data, Tensor, Tensors};

impl<B: Backend> Call<'_, B> {
    pub(super) fn unsigned_codes(
        &self,
        codes: &B::Codes,
        shape: [usize; 2],
    ) -> Result<Tensor, Refused> {
        let codes = self.backend.download_codes(codes)?.into_iter().map(|code| code as u8);
        Ok(Tensor::new(shape.to_vec(), Data::U8(codes.collect()))?)
    }

    /// The codes as a layer keeps them.
    fn packed(&self, codes: &[u8], spec: QuantSpec) -> Result<PackedCodes<B>, Refused> {
        let packed = PackedCodes::pack(codes, spec.in_features(), packed_bits(spec.bits()))?;
        Ok(packed.upload(&**self.backend)?)
    }

    pub(super) fn affine_quantize(&self) -> Result<Tensors, Refused> {
        let (_, spec, shape) = self.quantizer()?;
        let largest = spec.unsigned_max() as f32;
        let is_code = |z: &f32| *z == z.trunc() && (0.0..=largest).contains(z);
        if let Some(value) = self.host("zero_point")?.iter().find(|z| !is_code(z)) {
            let expected = format!("expected an integer, 0 to {largest}");
            return Err(Refused(format!("zero_point holds {value}, {expected}")));
        }
        let (scale, zero_point) = (self.floats("scale")?, self.floats("zero_point")?);
        let out_features = shape[0];
        let grid = AffineGrid { spec, out_features, scale: &scale, zero_point: &zero_point };
        let mut codes = self.backend.zero_codes(shape[0] * shape[1])?;
        self.backend.affine_quantize(&grid, &self.floats("weight")?, &mut codes)?;
        Ok(crate::ops::tensors([("codes", self.unsigned_codes(&codes, shape)?)]))
    }

    pub(super) fn affine_dequantize(&self) -> Result<Tensors, Refused> {
        let (shape, layer) = (self.weight_shape()?, self.layer().affine()?);
        layer.check()?;
        let (scale, zero_point) = (self.floats("scale")?, self.floats("zero_point")?);
        let grid = AffineGrid {
            spec: layer.spec,
            out_features: layer.out_features,
            scale: &scale,
            zero_point: &zero_point,
        };
        let codes = self.packed(&layer.codes, layer.spec)?;
        let mut output = self.backend.zeros(shape[0] * shape[1])?;
        self.backend.affine_dequantize(&grid, &codes, &mut output)?;
        Ok(crate::ops::tensors([("output", self.download(&output, &shape)?)]))
    }

    pub(super) fn rtn(&self) -> Result<Tensors, Refused> {
        let (_, spec, shape) = self.quantizer()?;
        let (out_features, len) = (shape[0], shape[0] * shape[1]);
        let groups = [out_features, spec.groups()];
        let weight = self.floats("weight")?;
        let mut scale = self.backend.zeros(groups[0] * groups[1])?;
        let mut zero_point = self.backend.zeros(groups[0] * groups[1])?;
        let rtn = params::rtn(&self.request.params)?;
        self.backend.rtn(spec, rtn, out_features, &weight, &mut scale, &mut zero_point)?;
        let grid = AffineGrid { spec, out_features, scale: &scale, zero_point: &zero_point };
        let (mut codes, mut output) = (self.backend.zero_codes(len)?, self.backend.zeros(len)?);
        self.backend.affine_quantize(&grid, &weight, &mut codes)?;
        let codes = self.unsigned_codes(&codes, shape)?;
        let Data::U8(bytes) = codes.data() else { return Err(Refused("not U8".to_owned())) };
        let packed = self.packed(bytes, spec)?;
        self.backend.affine_dequantize(&grid, &packed, &mut output)?;
        Ok(crate::ops::tensors([
            ("codes", codes),
            ("scale", self.download(&scale, &groups)?),
            ("zero_point", self.download(&zero_point, &groups)?),
            ("output", self.download(&output, &shape)?),
        ]))
    }

    pub(super) fn gptq(&self) -> Result<Tensors, Refused> {
        let shape: [usize; 2] = self.request.sizes("weight")?;
        let spec = params::gptq(&self.request.params, shape[1])?;
        let hessian: Vec<f64> = self.host("hessian")?.into_iter().map(f64::from).collect();
        let quantized = gptq_quantize(&self.host("weight")?, &hessian, &spec)?;
        let AffineTensors { codes, scale, zero_point, .. } = quantized.tensors;
        let groups = vec![shape[0], spec.quant.groups()];
        let mut outputs = crate::ops::tensors([
            ("codes", Tensor::new(shape.to_vec(), Data::U8(codes))?),
            ("scale", Tensor::new(groups.clone(), Data::F32(scale))?),
            ("zero_point", Tensor::new(groups, Data::F32(zero_point))?),
            ("output", Tensor::new(shape.to_vec(), Data::F32(quantized.output))?),
        ]);
        if spec.act_order && !spec.static_groups {
            let index = quantized.group_index.iter().map(|group| *group as i32).collect();
            let index = Tensor::new(vec![shape[1]], Data::I32(index))?;
            outputs.insert("group_index".to_owned(), index);
        }
        Ok(outputs)
    }
}
