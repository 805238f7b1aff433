//! `l4q.forward`, `.backward` and `.merge`.

use ndarray::Array2;
use plumbline_reference::methods::l4q::L4q;

use super::Operation;
use super::fake_quantize::{GroupSums, dequantized_allowance};
use super::floor;
use super::quantizer::Grid;
use super::row::{
    DEQUANTIZED, GROUP_SUM, GROUPS, LORA_A, LORA_B, LOW_RANK, PRODUCT, WEIGHT, X, Y, bounded,
    bounded_factor, codes, given, runs,
};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::params::{self, Params, Quantizer};
use crate::precision::{Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "l4q.forward",
        params: &["bits", "group_size", "lora_scaling"],
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("scale", GROUPS),
            given("offset", GROUPS),
        ],
        outputs: &[bounded("y", Y, PRODUCT), codes(), bounded_factor(DEQUANTIZED)],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: Some(grid),
        bounds: forward_bounds,
        sample: sample_forward,
    },
    Operation {
        name: "l4q.backward",
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
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: |evidence| floor::either_side(evidence, backward_bounds),
        sample: sample_backward,
    },
    Operation {
        name: "l4q.merge",
        params: &["bits", "group_size", "lora_scaling"],
        inputs: &[
            given("weight", WEIGHT),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("scale", GROUPS),
            given("offset", GROUPS),
        ],
        outputs: &[
            codes(),
            bounded("scale", GROUPS, "0; one rounding where the scale was raised to its floor"),
            bounded("offset", GROUPS, "0: a copy"),
        ],
        weights: None,
        sizes,
        run: runs!(merge),
        grid: Some(grid),
        bounds: merge_bounds,
        sample: sample_merge,
    },
];

pub(super) fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    params::lora_scaling(&request.params)?;
    super::fake_quantize::sizes(request)
}

/// Owns what the reference borrows.
struct Layer<T> {
    weight: Array2<T>,
    lora_a: Array2<T>,
    lora_b: Array2<T>,
    scale: Array2<T>,
    offset: Array2<T>,
}

impl<T: Scalar> Layer<T> {
    fn read(request: &Request) -> Result<Self, String> {
        Ok(Self {
            weight: request.array("weight")?,
            lora_a: request.array("lora_a")?,
            lora_b: request.array("lora_b")?,
            scale: request.array("scale")?,
            offset: request.array("offset")?,
        })
    }

    fn l4q(&self, request: &Request) -> Result<L4q<'_, T>, String> {
        Ok(L4q {
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

pub(super) fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let layer = Layer::<T>::read(request)?;
    let x: Array2<T> = request.array("x")?;
    let forward = layer.l4q(request)?.forward(x.view()).map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("y", Tensor::floats(&forward.y)),
        ("codes", Tensor::codes(&forward.codes)),
        ("fake_quantized", Tensor::floats(&forward.fake_quantized)),
    ]))
}

pub(super) fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let layer = Layer::<T>::read(request)?;
    let (x, d_y): (Array2<T>, Array2<T>) = (request.array("x")?, request.array("d_y")?);
    let rules = Quantizer::read(&request.params)?.rules();
    let gradients =
        layer.l4q(request)?.backward(x.view(), d_y.view(), rules).map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("d_x", Tensor::floats(&gradients.d_x)),
        ("d_lora_a", Tensor::floats(&gradients.d_lora_a)),
        ("d_lora_b", Tensor::floats(&gradients.d_lora_b)),
        ("d_scale", Tensor::floats(&gradients.d_scale)),
        ("d_offset", Tensor::floats(&gradients.d_offset)),
    ]))
}

pub(super) fn merge<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let layer = Layer::<T>::read(request)?;
    let merged = layer.l4q(request)?.merge().map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("codes", Tensor::codes(&merged.codes)),
        ("scale", Tensor::floats(&merged.scale)),
        ("offset", Tensor::floats(&merged.offset)),
    ]))
}

pub(super) fn grid(request: &Request, unit: Unit) -> Result<Grid, String> {
    Grid::new(request, unit)
}

/// `y = x @ fake_quantized^T`: `in` products and sums on values of two or three roundings.
pub(super) fn forward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, codes, .. } = *evidence;
    let grid = Grid::new(request, unit)?;
    let x: Array2<f64> = request.array("x")?;
    let roundings = x.ncols() as f64 + grid.dequantize_roundings();
    let condition = x.mapv(f64::abs).dot(&grid.dequantized_magnitude(codes).t());
    let mut y = Allowance::of(&condition, roundings, unit);
    if codes.is_some() {
        let own = grid.dequantized(codes);
        let expected = grid.dequantized(evidence.expected_codes().as_deref());
        let with_own = x.dot(&own.t());
        for ((t, o), value) in with_own.indexed_iter() {
            if own.row(o) != expected.row(o) {
                y.replaced.push((t * own.nrows() + o, *value));
            }
        }
    }
    Ok(named([("y", y), ("fake_quantized", dequantized_allowance(&grid, evidence))]))
}

/// `d = d_y^T @ x` carries one rounding per token; the low-rank gradients contract the masked `d`
/// over `out` or `in`, times `lora_scaling` (its constant and the product).
pub(super) fn backward_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let grid = Grid::new(request, unit)?;
    let quantizer = Quantizer::read(&request.params)?;
    let lora_scaling = params::lora_scaling(&request.params)?.abs();
    let [x, d_y, lora_a, lora_b] = absolute(request, ["x", "d_y", "lora_a", "lora_b"])?;
    let tokens = x.nrows() as f64;
    let (out_features, in_features) = grid.elements.dim();
    let open_codes = open_codes(&grid);
    let d_x_roundings = out_features as f64 + grid.dequantize_roundings();
    let d_x = Allowance::of(&d_y.dot(&grid.dequantized_magnitude(None)), d_x_roundings, unit)
        .plus(&(d_y.dot(&open_codes) * (1.0 + unit.gamma(d_x_roundings))));

    let magnitude = d_y.t().dot(&x);
    let passing = select(&grid, &magnitude, |element| element.in_range || element.at_edge);
    let open_masks = select(&grid, &magnitude, |element| element.at_edge);
    let low_rank = |contract: &dyn Fn(&Array2<f64>) -> Array2<f64>, features: usize| {
        let roundings = tokens + features as f64 + 2.0;
        Allowance::of(&(contract(&passing) * lora_scaling), roundings, unit)
            .plus(&(contract(&open_masks) * lora_scaling))
    };
    let sums = GroupSums {
        grid: &grid,
        grad_scale: quantizer.grad_scale,
        magnitude: &magnitude,
        roundings: tokens,
        unit,
    };
    let (d_scale, d_offset) = sums.allowances();
    Ok(named([
        ("d_x", Allowance { open: d_scale.open, ..d_x }),
        ("d_lora_a", low_rank(&|d| lora_b.t().dot(d), out_features)),
        ("d_lora_b", low_rank(&|d| d.dot(&lora_a.t()), in_features)),
        ("d_scale", d_scale),
        ("d_offset", d_offset),
    ]))
}

/// One step of the grid where the code is open, else nothing: what a dequantized weight may be off
/// by beside its rounding errors, where the codes themselves are not shown.
pub(super) fn open_codes(grid: &Grid) -> Array2<f64> {
    Array2::from_shape_fn(grid.elements.dim(), |(o, i)| {
        let scale = grid.scale[[o, i / grid.spec.group_size()]];
        if grid.elements[[o, i]].at_tie(grid.ends) { scale } else { 0.0 }
    })
}

pub(super) fn select(
    grid: &Grid,
    magnitude: &Array2<f64>,
    keep: fn(&super::quantizer::Element) -> bool,
) -> Array2<f64> {
    let mut kept = magnitude.clone();
    kept.zip_mut_with(&grid.elements, |d, element| {
        if !keep(element) {
            *d = 0.0;
        }
    });
    kept
}

/// Inputs as matrices of absolute values.
pub(super) fn absolute<const N: usize>(
    request: &Request,
    names: [&str; N],
) -> Result<[Array2<f64>; N], String> {
    let mut arrays = names.map(|_| Array2::zeros((0, 0)));
    for (array, name) in arrays.iter_mut().zip(names) {
        *array = request.array::<f64, ndarray::Ix2>(name)?.mapv(f64::abs);
    }
    Ok(arrays)
}

pub(super) fn merge_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let grid = Grid::new(evidence.request, evidence.unit)?;
    let scale = grid
        .scale
        .iter()
        .zip(&grid.raised)
        .map(|(scale, raised)| if *raised { evidence.unit.roundoff * scale } else { 0.0 });
    let offset = std::iter::repeat_n(0.0, grid.offset.len());
    Ok(named([("scale", Allowance::absolute(scale)), ("offset", Allowance::absolute(offset))]))
}

fn sample(sampler: &mut Sampler, with_x: bool) -> (Params, Tensors) {
    let quantizer = sampler.quantizer();
    let mut params = quantizer.params();
    let mut inputs = sampler.quantized_weight(&quantizer);
    sampler.lower_a_scale(&mut inputs);
    sampler.add_low_rank(&quantizer.weight_shape(), &mut params, &mut inputs);
    if with_x {
        let shape = [sampler.size(1, 6), quantizer.in_features];
        inputs.insert("x".to_owned(), sampler.normal(&shape, 1.0));
    }
    (params, inputs)
}

pub(super) fn sample_forward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    Ok(sample(sampler, true))
}

pub(super) fn sample_backward(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let (mut params, mut inputs) = sample(sampler, true);
    sampler.add_grad_scale(&mut params);
    sampler.add_mask(&mut params);
    let shape = [inputs["x"].shape()[0], inputs["weight"].shape()[0]];
    inputs.insert("d_y".to_owned(), sampler.normal(&shape, 1.0));
    Ok((params, inputs))
}

pub(super) fn sample_merge(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    Ok(sample(sampler, false))
}
