//! `fake_quantize.forward` and `.backward`.

use ndarray::Array2;
use plumbline_reference::quantize::fake_quantize;
use plumbline_reference::spec::GradScale;
use plumbline_reference::straight_through::{fake_quantize_backward, grad_scale_factor};

use super::Operation;
use super::floor;
use super::quantizer::Grid;
use super::row::{DEQUANTIZED, GROUP_SUM, GROUPS, WEIGHT, bounded, codes, given, runs};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::params::{Params, Quantizer};
use crate::precision::{Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "fake_quantize.forward",
        params: &["bits", "group_size"],
        inputs: &[given("weight", WEIGHT), given("scale", GROUPS), given("offset", GROUPS)],
        outputs: &[codes(), bounded("output", WEIGHT, DEQUANTIZED)],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: Some(grid),
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "fake_quantize.backward",
        params: &["bits", "group_size", "grad_scale", "mask"],
        inputs: &[
            given("weight", WEIGHT),
            given("scale", GROUPS),
            given("offset", GROUPS),
            given("d_output", WEIGHT),
        ],
        outputs: &[
            bounded("d_weight", WEIGHT, "0: a copy of d_output, or zero"),
            bounded("d_scale", GROUPS, GROUP_SUM),
            bounded("d_offset", GROUPS, GROUP_SUM),
        ],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: |evidence| floor::either_side(evidence, backward_bounds),
        sample: sample_backward,
    },
];

/// The weight fixes the sizes that the other tensors must fit.
pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let quantizer = Quantizer::read(&request.params)?;
    let [out_features, in_features] = request.sizes("weight")?;
    let groups = quantizer.spec(in_features)?.groups();
    Ok(vec![("out", out_features), ("in", in_features), ("groups", groups)])
}

pub(super) fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let weight: Array2<T> = request.array("weight")?;
    let (scale, offset) = (request.array("scale")?, request.array("offset")?);
    let spec = Quantizer::read(&request.params)?.spec(weight.ncols())?;
    let quantized = fake_quantize(weight.view(), scale.view(), offset.view(), &spec)
        .map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("codes", Tensor::codes(&quantized.codes)),
        ("output", Tensor::floats(&quantized.output)),
    ]))
}

pub(super) fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let weight: Array2<T> = request.array("weight")?;
    let (scale, offset) = (request.array("scale")?, request.array("offset")?);
    let d_output = request.array("d_output")?;
    let quantizer = Quantizer::read(&request.params)?;
    let gradients = fake_quantize_backward(
        weight.view(),
        scale.view(),
        offset.view(),
        d_output.view(),
        &quantizer.spec(weight.ncols())?,
        quantizer.rules(),
    )
    .map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("d_weight", Tensor::floats(&gradients.d_weight)),
        ("d_scale", Tensor::floats(&gradients.d_scale)),
        ("d_offset", Tensor::floats(&gradients.d_offset)),
    ]))
}

pub(super) fn grid(request: &Request, unit: Unit) -> Result<Grid, String> {
    Grid::new(request, unit)
}

pub(super) fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let grid = Grid::new(evidence.request, evidence.unit)?;
    Ok(named([("output", dequantized_allowance(&grid, evidence))]))
}

/// `code * scale + offset`: a product and a sum. Where the subject's code is a legal neighbour,
/// the expected value is that code's.
pub(super) fn dequantized_allowance(grid: &Grid, evidence: &Evidence) -> Allowance {
    let magnitude = grid.dequantized_magnitude(evidence.codes);
    let mut allowance = Allowance::of(&magnitude, grid.dequantize_roundings(), evidence.unit);
    if evidence.codes.is_some() {
        let with_own = grid.dequantized(evidence.codes);
        let without = grid.dequantized(evidence.expected_codes().as_deref());
        for (index, (own, expected)) in with_own.iter().zip(&without).enumerate() {
            if own != expected {
                allowance.replaced.push((index, *own));
            }
        }
    }
    allowance
}

pub(super) fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let grid = Grid::new(request, unit)?;
    let d_output: Array2<f64> = request.array("d_output")?;
    let grad_scale = Quantizer::read(&request.params)?.grad_scale;
    let d_weight = copied_where_in_range(&grid, &d_output);
    let magnitude = d_output.mapv(f64::abs);
    let sums = GroupSums { grid: &grid, grad_scale, magnitude: &magnitude, roundings: 0.0, unit };
    let (d_scale, d_offset) = sums.allowances();
    Ok(named([("d_weight", d_weight), ("d_scale", d_scale), ("d_offset", d_offset)]))
}

/// A gradient that is copied where the mask passes it and zero elsewhere; either, where it is open.
pub(super) fn copied_where_in_range(grid: &Grid, d_output: &Array2<f64>) -> Allowance {
    let mut copied = Allowance::absolute(std::iter::repeat_n(0.0, d_output.len()));
    for (index, (element, d)) in grid.elements.iter().zip(d_output).enumerate() {
        if element.at_edge {
            copied.alternatives.extend([(index, 0.0), (index, *d)]);
            copied.open += 1;
        }
    }
    copied
}

/// The group sums `d_scale = factor * sum d * h`, `h = code - argument` in range and `code`
/// outside, and `d_offset = factor * sum d` over the elements outside.
pub(super) struct GroupSums<'a> {
    pub grid: &'a Grid,
    pub grad_scale: GradScale,
    /// `|d|`, or the sum of the absolute terms that `d` was computed from.
    pub magnitude: &'a Array2<f64>,
    /// Roundings that `d` already carries, relative to its magnitude.
    pub roundings: f64,
    pub unit: Unit,
}

impl GroupSums<'_> {
    /// Roundings: `h` 1, product 1, sum `group_size - 1`, factor 1 and up to 3 for its own value.
    /// An argument's error goes into `h` as it is. Where the code is open, `h` may be 1 more or
    /// less; where the mask is open, `h` may lack the argument and `d_offset` gain the element.
    pub(super) fn allowances(&self) -> (Allowance, Allowance) {
        let Self { grid, magnitude, unit, .. } = self;
        let spec = &grid.spec;
        let factor = grad_scale_factor(spec, self.grad_scale);
        let factor_roundings = if self.grad_scale == GradScale::None { 0.0 } else { 4.0 };
        let roundings = self.roundings + spec.group_size() as f64 + 1.0 + factor_roundings;
        let mut scale_condition = Array2::zeros(grid.scale.dim());
        let mut scale_extra = Array2::zeros(grid.scale.dim());
        let mut offset_condition = Array2::zeros(grid.scale.dim());
        let mut offset_extra = Array2::zeros(grid.scale.dim());
        let mut open = 0;
        for ((o, i), element) in grid.elements.indexed_iter() {
            let place = [o, i / spec.group_size()];
            let d = factor * magnitude[[o, i]];
            let masked = if element.in_range { element.argument } else { 0.0 };
            // A raised scale gets no gradient at all, whatever its elements do.
            let moves = if grid.raised[place] { 0.0 } else { d };
            scale_condition[place] += moves * (element.code - masked).abs();
            if element.in_range || element.at_edge {
                scale_extra[place] += moves * element.error;
            }
            if !element.in_range {
                offset_condition[place] += d;
            }
            if element.at_tie(grid.ends) {
                scale_extra[place] += moves;
            }
            if element.at_edge {
                scale_extra[place] += moves * (element.argument.abs() + element.error);
                offset_extra[place] += d * (1.0 + unit.gamma(roundings));
            }
            open += usize::from(element.at_edge || element.at_tie(grid.ends));
        }
        let allowance = |condition, extra: &Array2<f64>| {
            let allowance = Allowance::of(condition, roundings, *unit).plus(extra);
            Allowance { open, ..allowance }
        };
        (
            allowance(&scale_condition, &(scale_extra * (1.0 + unit.gamma(roundings)))),
            allowance(&offset_condition, &offset_extra),
        )
    }
}

pub(super) fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let quantizer = sampler.quantizer();
    let mut inputs = sampler.quantized_weight(&quantizer);
    sampler.lower_a_scale(&mut inputs);
    Ok((quantizer.params(), inputs))
}

pub(super) fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let quantizer = sampler.quantizer();
    let mut params = quantizer.params();
    sampler.add_grad_scale(&mut params);
    sampler.add_mask(&mut params);
    let mut inputs = sampler.quantized_weight(&quantizer);
    sampler.lower_a_scale(&mut inputs);
    inputs.insert("d_output".to_owned(), sampler.normal(&quantizer.weight_shape(), 1.0));
    Ok((params, inputs))
}
