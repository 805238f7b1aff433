//! The tensors that a quantizer is made of, for the faults that compute it once more.

use ndarray::Array2;
use plumbline_reference::lora::delta_weight;
use plumbline_reference::quantize::{argument, dequantize, quantize};
use plumbline_reference::spec::QuantSpec;

use super::edits::{input, spec};
use crate::case::Request;
use crate::params;

/// The tensors of a quantizer, and of L4Q around it.
pub(super) struct Grid {
    pub(super) weight: Array2<f32>,
    pub(super) scale: Array2<f32>,
    pub(super) offset: Array2<f32>,
    pub(super) spec: QuantSpec,
}

impl Grid {
    /// With the update added to the weight, where there is one.
    pub(super) fn of(request: &Request) -> Result<Self, String> {
        let mut weight = input(request, "weight")?;
        if request.inputs.contains_key("lora_a") {
            let (lora_a, lora_b) = (input(request, "lora_a")?, input(request, "lora_b")?);
            let lora_scaling = params::lora_scaling(&request.params)?;
            let delta = delta_weight(lora_a.view(), lora_b.view(), lora_scaling);
            weight += &delta.map_err(|e| e.to_string())?;
        }
        let (scale, offset) = (input(request, "scale")?, input(request, "offset")?);
        Ok(Self { weight, scale, offset, spec: spec(request)? })
    }

    /// The weight on the grid.
    pub(super) fn quantized(&self) -> Result<Array2<f32>, String> {
        let (scale, offset) = (self.scale.view(), self.offset.view());
        quantize(self.weight.view(), scale, offset, &self.spec)
            .and_then(|codes| dequantize(codes.view(), scale, offset, &self.spec))
            .map_err(|e| e.to_string())
    }

    /// Something of every element's argument, scale and offset.
    pub(super) fn map(&self, f: impl Fn(f32, f32, f32) -> f32) -> Array2<f32> {
        Array2::from_shape_fn(self.weight.dim(), |(o, i)| {
            let g = i / self.spec.group_size();
            let (scale, offset) = (self.scale[[o, g]].max(1e-8), self.offset[[o, g]]);
            f(argument(self.weight[[o, i]], scale, offset), scale, offset)
        })
    }

    /// Smallest and largest code.
    pub(super) fn ends(&self) -> (f32, f32) {
        (self.spec.qmin() as f32, self.spec.qmax() as f32)
    }

    /// One sum for each scale.
    pub(super) fn group_sums(&self, terms: &Array2<f32>) -> Array2<f32> {
        let mut sums = Array2::zeros(self.scale.dim());
        for ((o, i), term) in terms.indexed_iter() {
            sums[[o, i / self.spec.group_size()]] += term;
        }
        sums
    }
}
