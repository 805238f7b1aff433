//! `qat.forward` and `.backward`.

use ndarray::Array2;
use plumbline_reference::Real;
use plumbline_reference::methods::qat::Qat;
use plumbline_reference::spec::QatQuantizer;
use serde_json::json;

use super::Operation;
use super::fake_quantize::GroupSums;
use super::floor;
use super::l4q::{absolute, open_codes, select};
use super::quantizer::Grid;
use super::row::{GROUP_SUM, GROUPS, PRODUCT, WEIGHT, X, Y, bounded, given, optional, runs};
use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::judge::tracked::{self, Outputs};
use crate::params::{Params, Quantizer};
use crate::precision::Scalar;
use crate::sampler::Sampler;
use crate::tensor::Tensors;

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "qat.forward",
        params: &["bits", "group_size", "quantizer"],
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            given("scale", GROUPS),
            optional(given("offset", GROUPS)),
        ],
        outputs: &[bounded("y", Y, PRODUCT)],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: None,
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "qat.backward",
        params: &["bits", "group_size", "quantizer", "grad_scale", "mask"],
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            given("scale", GROUPS),
            optional(given("offset", GROUPS)),
            given("d_y", Y),
        ],
        outputs: &[
            bounded("d_x", X, PRODUCT),
            bounded("d_weight", WEIGHT, "gamma(tokens + 2) * sum |d_y * x|, or 0"),
            bounded("d_scale", GROUPS, GROUP_SUM),
            optional(bounded("d_offset", GROUPS, GROUP_SUM)),
        ],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: |evidence| floor::either_side(evidence, backward_bounds),
        sample: sample_backward,
    },
];

fn quantizer(params: &Params) -> Result<QatQuantizer, String> {
    Ok(params.optional("quantizer")?.unwrap_or_default())
}

/// An offset is there exactly where the quantizer has one.
fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    match (quantizer(&request.params)?, request.inputs.contains_key("offset")) {
        (QatQuantizer::LsqPlus, false) => Err("in.offset is missing, lsq_plus needs it".to_owned()),
        (QatQuantizer::Lsq, true) => Err("in.offset is there, lsq has none".to_owned()),
        _ => super::fake_quantize::sizes(request),
    }
}

/// Owns what the reference borrows.
struct Layer<T> {
    x: Array2<T>,
    weight: Array2<T>,
    scale: Array2<T>,
    offset: Option<Array2<T>>,
}

impl<T: Real> Layer<T> {
    fn read(request: &Request) -> Result<Self, String> {
        sizes(request)?;
        let offset = request.inputs.contains_key("offset").then(|| request.array("offset"));
        Ok(Self {
            x: request.array("x")?,
            weight: request.array("weight")?,
            scale: request.array("scale")?,
            offset: offset.transpose()?,
        })
    }

    fn qat(&self, request: &Request) -> Result<Qat<'_, T>, String> {
        Ok(Qat {
            weight: self.weight.view(),
            scale: self.scale.view(),
            offset: self.offset.as_ref().map(|offset| offset.view()),
            spec: Quantizer::read(&request.params)?.spec(self.weight.ncols())?,
        })
    }
}

fn output<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let layer = Layer::<T>::read(request)?;
    let forward = layer.qat(request)?.forward(layer.x.view()).map_err(|e| e.to_string())?;
    Ok(vec![("y", forward.y.into_dyn())])
}

fn gradients<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let layer = Layer::<T>::read(request)?;
    let d_y = request.array("d_y")?;
    let rules = Quantizer::read(&request.params)?.rules();
    let gradients = layer
        .qat(request)?
        .backward(layer.x.view(), d_y.view(), rules)
        .map_err(|e| e.to_string())?;
    let mut outputs = vec![
        ("d_x", gradients.d_x.into_dyn()),
        ("d_weight", gradients.d_weight.into_dyn()),
        ("d_scale", gradients.d_scale.into_dyn()),
    ];
    outputs.extend(gradients.d_offset.map(|d_offset| ("d_offset", d_offset.into_dyn())));
    Ok(outputs)
}

fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    output::<T>(request).map(super::stored)
}

fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    gradients::<T>(request).map(super::stored)
}

/// With the codes of binary64, and a step more for every weight whose code is open.
fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let bounds = tracked::bounds(evidence, output, output)?;
    widen_for_open_codes(evidence, bounds, "y")
}

/// Adds to `y` or `d_x` what another legal choice of codes, which the answer does not show, moves.
pub(super) fn widen_for_open_codes(
    evidence: &Evidence,
    mut bounds: Bounds,
    output: &'static str,
) -> Result<Bounds, String> {
    let grid = Grid::of_weight(evidence.request, evidence.unit)?;
    let open = open_codes(&grid);
    let moved = match output {
        "y" => absolute(evidence.request, ["x"])?[0].dot(&open.t()),
        _ => absolute(evidence.request, ["d_y"])?[0].dot(&open),
    };
    let roundings = grid.elements.dim().0.max(grid.elements.dim().1) as f64 + 2.0;
    if let Some(allowance) = bounds.remove(output) {
        let slack = 1.0 + evidence.unit.gamma(roundings);
        bounds.insert(output.to_owned(), allowance.plus(&(moved * slack)));
    }
    Ok(bounds)
}

/// The group gradients of a weight whose gradient `d_y^T @ x` carries one rounding per token.
pub(super) fn with_group_sums(evidence: &Evidence, mut bounds: Bounds) -> Result<Bounds, String> {
    let grid = Grid::of_weight(evidence.request, evidence.unit)?;
    let [x, d_y] = absolute(evidence.request, ["x", "d_y"])?;
    let sums = GroupSums {
        grid: &grid,
        grad_scale: Quantizer::read(&evidence.request.params)?.grad_scale,
        magnitude: &d_y.t().dot(&x),
        roundings: x.nrows() as f64,
        unit: evidence.unit,
    };
    let (d_scale, d_offset) = sums.allowances();
    bounds.extend([("d_scale".to_owned(), d_scale), ("d_offset".to_owned(), d_offset)]);
    Ok(bounds)
}

fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let bounds = tracked::bounds(evidence, gradients, gradients)?;
    let bounds = widen_for_open_codes(evidence, bounds, "d_x")?;
    let mut bounds = with_group_sums(evidence, bounds)?;
    let grid = Grid::of_weight(evidence.request, evidence.unit)?;
    let [x, d_y] = absolute(evidence.request, ["x", "d_y"])?;
    let open_masks = select(&grid, &d_y.t().dot(&x), |element| element.at_edge);
    if let Some(d_weight) = bounds.remove("d_weight") {
        let slack = 1.0 + evidence.unit.gamma(x.nrows() as f64);
        bounds.insert("d_weight".to_owned(), d_weight.plus(&(open_masks * slack)));
    }
    Ok(bounds)
}

fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let shape = sampler.quantizer();
    let mut params = shape.params();
    let mut inputs = sampler.quantized_weight(&shape);
    sampler.lower_a_scale(&mut inputs);
    if sampler.chance(0.3) {
        inputs.remove("offset");
        params.0.insert("quantizer".to_owned(), json!(QatQuantizer::Lsq));
    } else if sampler.chance(0.2) {
        params.0.insert("quantizer".to_owned(), json!(QatQuantizer::LsqPlus));
    }
    let x_shape = [sampler.size(1, 6), shape.in_features];
    inputs.insert("x".to_owned(), sampler.normal(&x_shape, 1.0));
    Ok((params, inputs))
}

fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (mut params, mut inputs) = sample_forward(sampler)?;
    sampler.add_grad_scale(&mut params);
    sampler.add_mask(&mut params);
    let shape = [inputs["x"].shape()[0], inputs["weight"].shape()[0]];
    inputs.insert("d_y".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}
