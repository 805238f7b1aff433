//! `qat_lora.forward` and `.backward`.

use ndarray::Array2;
use plumbline_reference::Real;
use plumbline_reference::methods::qat_lora::QatLora;

use super::Operation;
use super::floor;
use super::qat::{widen_for_open_codes, with_group_sums};
use super::row::{
    GROUP_SUM, GROUPS, LORA_A, LORA_B, LOW_RANK, PRODUCT, WEIGHT, X, Y, bounded, given, runs,
};
use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::judge::tracked::{self, Outputs};
use crate::params::{self, Params, Quantizer};
use crate::precision::Scalar;
use crate::sampler::Sampler;
use crate::tensor::Tensors;

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "qat_lora.forward",
        params: &["bits", "group_size", "lora_scaling"],
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("scale", GROUPS),
            given("offset", GROUPS),
        ],
        outputs: &[bounded("y", Y, PRODUCT)],
        weights: None,
        sizes: super::l4q::sizes,
        run: runs!(forward),
        grid: None,
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "qat_lora.backward",
        params: &["bits", "group_size", "lora_scaling", "grad_scale", "mask"],
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("scale", GROUPS),
            given("offset", GROUPS),
            given("d_y", Y),
        ],
        outputs: &[
            bounded("d_x", X, PRODUCT),
            bounded("d_lora_a", LORA_A, LOW_RANK),
            bounded("d_lora_b", LORA_B, LOW_RANK),
            bounded("d_scale", GROUPS, GROUP_SUM),
            bounded("d_offset", GROUPS, GROUP_SUM),
        ],
        weights: None,
        sizes: super::l4q::sizes,
        run: runs!(backward),
        grid: None,
        bounds: |evidence| floor::either_side(evidence, backward_bounds),
        sample: sample_backward,
    },
];

/// Owns what the reference borrows.
struct Layer<T> {
    x: Array2<T>,
    weight: Array2<T>,
    lora_a: Array2<T>,
    lora_b: Array2<T>,
    scale: Array2<T>,
    offset: Array2<T>,
}

impl<T: Real> Layer<T> {
    fn read(request: &Request) -> Result<Self, String> {
        Ok(Self {
            x: request.array("x")?,
            weight: request.array("weight")?,
            lora_a: request.array("lora_a")?,
            lora_b: request.array("lora_b")?,
            scale: request.array("scale")?,
            offset: request.array("offset")?,
        })
    }

    fn qat_lora(&self, request: &Request) -> Result<QatLora<'_, T>, String> {
        Ok(QatLora {
            weight: self.weight.view(),
            lora_a: self.lora_a.view(),
            lora_b: self.lora_b.view(),
            scale: self.scale.view(),
            offset: self.offset.view(),
            lora_scaling: params::lora_scaling(&request.params)?,
            spec: Quantizer::read(&request.params)?.spec(self.weight.ncols())?,
        })
    }
}

fn output<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let layer = Layer::<T>::read(request)?;
    let forward = layer.qat_lora(request)?.forward(layer.x.view()).map_err(|e| e.to_string())?;
    Ok(vec![("y", forward.y.into_dyn())])
}

fn gradients<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let layer = Layer::<T>::read(request)?;
    let d_y = request.array("d_y")?;
    let rules = Quantizer::read(&request.params)?.rules();
    let gradients = layer
        .qat_lora(request)?
        .backward(layer.x.view(), d_y.view(), rules)
        .map_err(|e| e.to_string())?;
    Ok(vec![
        ("d_x", gradients.d_x.into_dyn()),
        ("d_lora_a", gradients.d_lora_a.into_dyn()),
        ("d_lora_b", gradients.d_lora_b.into_dyn()),
        ("d_scale", gradients.d_scale.into_dyn()),
        ("d_offset", gradients.d_offset.into_dyn()),
    ])
}

fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    output::<T>(request).map(super::stored)
}

fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    gradients::<T>(request).map(super::stored)
}

fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    widen_for_open_codes(evidence, tracked::bounds(evidence, output, output)?, "y")
}

fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let bounds = tracked::bounds(evidence, gradients, gradients)?;
    with_group_sums(evidence, widen_for_open_codes(evidence, bounds, "d_x")?)
}

fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    super::l4q::sample_forward(sampler)
}

fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    super::l4q::sample_backward(sampler)
}
