//! `affine.quantize` and `affine.dequantize`.

use ndarray::Array2;
use plumbline_reference::Real;
use plumbline_reference::affine::{affine_dequantize, affine_quantize};
use plumbline_reference::spec::{QuantSpec, SCALE_FLOOR};

use super::Operation;
use super::quantizer::{Element, Ends, Grid, Steps};
use super::row::{GROUPS, TRACKED, WEIGHT, bounded, given, given_codes, runs, unsigned_codes};
use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::judge::tracked::{self, Outputs};
use crate::params::{Params, Quantizer};
use crate::precision::{Precision, Scalar, Unit};
use crate::sampler::{QuantizerShape, Sampler};
use crate::tensor::{Data, Tensor, Tensors};

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "affine.quantize",
        params: &["bits", "group_size"],
        inputs: &[given("weight", WEIGHT), given("scale", GROUPS), given("zero_point", GROUPS)],
        outputs: &[unsigned_codes(WEIGHT)],
        weights: None,
        sizes: super::fake_quantize::sizes,
        run: runs!(quantize),
        grid: Some(grid),
        bounds: |_| Ok(Bounds::new()),
        sample: sample_quantize,
    },
    Operation {
        name: "affine.dequantize",
        params: &["bits", "group_size"],
        inputs: &[given_codes(), given("scale", GROUPS), given("zero_point", GROUPS)],
        outputs: &[bounded("output", WEIGHT, TRACKED)],
        weights: None,
        sizes: sizes_of_codes,
        run: runs!(dequantize),
        grid: None,
        bounds: dequantize_bounds,
        sample: sample_dequantize,
    },
];

/// The codes fix the sizes that the other tensors must fit.
pub(super) fn sizes_of_codes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let [out_features, in_features] = request.sizes("codes")?;
    let groups = Quantizer::read(&request.params)?.spec(in_features)?.groups();
    Ok(vec![("out", out_features), ("in", in_features), ("groups", groups)])
}

fn quantize<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let weight: Array2<T> = request.array("weight")?;
    let (scale, zero_point) = (request.array("scale")?, request.array("zero_point")?);
    let spec = Quantizer::read(&request.params)?.spec(weight.ncols())?;
    let codes = affine_quantize(weight.view(), scale.view(), zero_point.view(), &spec)
        .map_err(|e| e.to_string())?;
    Ok(super::tensors([("codes", Tensor::unsigned(&codes))]))
}

fn dequantized<T: Real>(request: &Request) -> Result<Outputs<T>, String> {
    let codes: Array2<u8> = request.unsigned("codes")?;
    let (scale, zero_point): (Array2<T>, _) =
        (request.array("scale")?, request.array("zero_point")?);
    let spec = Quantizer::read(&request.params)?.spec(codes.ncols())?;
    let output = affine_dequantize(codes.view(), scale.view(), zero_point.view(), &spec)
        .map_err(|e| e.to_string())?;
    Ok(vec![("output", output.into_dyn())])
}

fn dequantize<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    dequantized::<T>(request).map(super::stored)
}

/// Multiplying out, `scale * code - scale * zero_point`, rounds no more of the same terms.
fn dequantize_bounds(evidence: &Evidence) -> Result<Bounds, String> {
    tracked::bounds(evidence, dequantized, dequantized)
}

/// The codes of `weight` on the grid of `scale` and `zero_point`.
///
/// It is the quotient `weight / scale` that is rounded; the zero point is added to the integer.
pub(super) fn grid(request: &Request, unit: Unit) -> Result<Grid, String> {
    let weight: Array2<f64> = request.array("weight")?;
    let spec = Quantizer::read(&request.params)?.spec(weight.ncols())?;
    let given_scale: Array2<f64> = request.array("scale")?;
    let zero_point: Array2<f64> = request.array("zero_point")?;
    let raised = given_scale.mapv(|scale| scale < SCALE_FLOOR);
    let scale = given_scale.mapv(|scale| scale.max(SCALE_FLOOR));
    let ends = Ends::unsigned(&spec);
    let elements = Array2::from_shape_fn(weight.dim(), |(o, i)| {
        let place = [o, i / spec.group_size()];
        let roundings = if raised[place] { 2.0 } else { 1.0 };
        let quotient = Steps::start(weight[[o, i]]).over(Steps::start(scale[place]));
        element(quotient, zero_point[place], roundings, ends, unit)
    });
    let offset = Array2::zeros(scale.dim());
    Ok(Grid { spec, ends, scale, offset, raised, elements, zero_points: None })
}

fn element(quotient: Steps, zero_point: f64, roundings: f64, ends: Ends, unit: Unit) -> Element {
    let argument = quotient.value;
    let error = if quotient.exact_in_f32 {
        0.0
    } else {
        unit.gamma(roundings) * argument.abs() + unit.tiny
    };
    let (low, high) = (ends.low - zero_point, ends.high - zero_point);
    let to_edge = (argument - low).abs().min((argument - high).abs());
    Element {
        argument,
        error,
        zero_point,
        code: (argument.round_ties_even() + zero_point).clamp(ends.low, ends.high),
        in_range: (low..=high).contains(&argument),
        at_edge: error > 0.0 && to_edge <= error,
    }
}

/// Zero points that are codes, one of them at an end.
fn integer_zero_points(sampler: &mut Sampler, groups: &[usize; 2], spec: &QuantSpec) -> Tensor {
    let largest = spec.unsigned_max() as usize;
    let values: Vec<f64> = (0..groups[0] * groups[1])
        .map(|_| {
            let anywhere = sampler.size(0, largest);
            sampler.pick(&[0, largest, anywhere, anywhere, anywhere]) as f64
        })
        .collect();
    Tensor::from_f64s(groups.to_vec(), values.into_iter(), Precision::F32)
}

/// Some elements beyond the grid, and in every fourth case exact ties.
fn sample_quantize(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let shape = sampler.quantizer();
    let spec = spec_of(&shape)?;
    let mut inputs = sampler.quantized_weight(&shape);
    inputs.remove("offset");
    let groups = [shape.out_features, spec.groups()];
    inputs.insert("zero_point".to_owned(), integer_zero_points(sampler, &groups, &spec));
    Ok((shape.params(), inputs))
}

pub(super) fn spec_of(shape: &QuantizerShape) -> Result<QuantSpec, String> {
    Quantizer::read(&shape.params())?.spec(shape.in_features)
}

/// `codes, scale, zero_point`: zero points inside the codes and outside, in half of the cases
/// integers, and now and then a scale below the floor.
pub(super) fn sample_layer(sampler: &mut Sampler, shape: &QuantizerShape) -> Tensors {
    let spec = spec_of(shape).expect("the sampler's groups divide its rows");
    let largest = spec.unsigned_max() as usize;
    let groups = [shape.out_features, spec.groups()];
    let codes = (0..shape.out_features * shape.in_features).map(|_| sampler.size(0, largest) as u8);
    let codes = Tensor::new(shape.weight_shape().to_vec(), Data::U8(codes.collect()));
    let mut scale = sampler.around(&groups, 0.02, 0.004);
    if let (Data::F32(scales), true) = (scale.data_mut(), sampler.chance(0.1)) {
        scales[0] = sampler.pick(&[0.0, -0.01, 1e-9]);
    }
    let zero_point = if sampler.chance(0.5) {
        integer_zero_points(sampler, &groups, &spec)
    } else {
        sampler.around(&groups, largest as f64 / 2.0, largest as f64 / 2.0)
    };
    let codes = codes.expect("one code for each element");
    super::tensors([("codes", codes), ("scale", scale), ("zero_point", zero_point)])
}

fn sample_dequantize(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let shape = sampler.quantizer();
    Ok((shape.params(), sample_layer(sampler, &shape)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR_BITS: Ends = Ends { low: 0.0, high: 15.0 };

    fn at(weight: f64, scale: f64, zero_point: f64) -> Element {
        let quotient = Steps::start(weight).over(Steps::start(scale));
        element(quotient, zero_point, 1.0, FOUR_BITS, Unit::of(Precision::F32))
    }

    #[test]
    fn the_parity_of_a_tie_is_that_of_the_quotient() {
        for (zero_point, code, other) in [(7.0, 9.0, 10.0), (8.0, 10.0, 11.0)] {
            let tie = at(1.25, 0.5, zero_point);
            assert_eq!((tie.error, tie.code), (0.0, code));
            assert_eq!(tie.nearest_tie(FOUR_BITS), (0.0, other));
            assert!(!tie.at_tie(FOUR_BITS));
        }
    }

    #[test]
    fn an_inexact_quotient_beside_a_tie_may_go_either_way() {
        // 0.1 is rounded up: the quotient lies 4e-8 below the tie, less than half an ulp.
        let (weight, scale) = (0.25, f64::from(0.1_f32));
        assert_eq!(at(weight, scale, 7.0).nearest_tie(FOUR_BITS).1, 10.0);
        assert!(at(weight, scale, 7.0).at_tie(FOUR_BITS));
        assert!(!at(weight * 1.01, scale, 7.0).at_tie(FOUR_BITS));
        // At zero point 13 the code above the tie is none of the grid.
        assert_eq!(at(weight, scale, 13.0).code, 15.0);
        assert!(!at(weight, scale, 13.0).at_tie(FOUR_BITS));
    }
}
