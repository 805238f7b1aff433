//! Properties of (Q11) and (Q12).

use ndarray::Array2;
use plumbline_reference::affine::{affine_dequantize, affine_quantize};
use plumbline_reference::quantize::{fake_quantize, quantize};
use plumbline_reference::spec::QuantSpec;
use proptest::prelude::*;

use crate::inputs::{Quantizer, Random, cast, quantizer};

/// An integer zero point for every group.
fn zero_points(spec: &QuantSpec, rows: usize, seed: u64) -> Array2<f64> {
    Random(seed).codes((rows, spec.groups()), spec).mapv(f64::from)
}

proptest! {
    /// Property of (Q11) C2: the codes of weights that are on the grid are their own.
    #[test]
    fn every_code_survives(q in quantizer(), seed: u64) {
        let Quantizer { spec, scale, .. } = q;
        let zero_point = zero_points(&spec, scale.nrows(), seed);
        let codes = Random(seed ^ 1).codes((scale.nrows(), spec.in_features()), &spec);
        let (scale, zero_point) = (scale.view(), zero_point.view());
        let weight = affine_dequantize(codes.view(), scale, zero_point, &spec).unwrap();
        prop_assert_eq!(affine_quantize(weight.view(), scale, zero_point, &spec).unwrap(), codes);
    }

    /// Property of (Q11) and (Q12): with the zero point in the middle they are (Q2) and (Q3) with
    /// an offset of 0, moved by `2^(bits-1)`, in both precisions.
    #[test]
    fn with_the_zero_point_in_the_middle_the_grid_is_the_signed_one(q in quantizer()) {
        let Quantizer { spec, weight, scale, .. } = q;
        let middle = Array2::from_elem(scale.dim(), -f64::from(spec.qmin()));
        let offset = Array2::zeros(scale.dim());
        let signed = fake_quantize(weight.view(), scale.view(), offset.view(), &spec).unwrap();
        let codes = affine_quantize(weight.view(), scale.view(), middle.view(), &spec).unwrap();
        let moved = |code: i8| (i32::from(code) - spec.qmin()) as u8;
        prop_assert_eq!(&codes, &signed.codes.mapv(moved));
        let output = affine_dequantize(codes.view(), scale.view(), middle.view(), &spec).unwrap();
        prop_assert_eq!(output, signed.output);

        let [weight, scale, middle] = [weight, scale, middle].map(|t| cast::<f32, _>(&t));
        let offset = Array2::zeros(scale.dim());
        let signed = quantize(weight.view(), scale.view(), offset.view(), &spec).unwrap();
        let codes = affine_quantize(weight.view(), scale.view(), middle.view(), &spec).unwrap();
        prop_assert_eq!(codes, signed.mapv(moved));
    }

    /// Property of (Q11) and (Q12): an element that does not clip is off by half a step at most;
    /// one that clips gets the end of the grid. Quotient, product and difference round.
    #[test]
    fn the_weight_is_within_half_a_step(q in quantizer(), seed: u64) {
        let Quantizer { spec, weight, scale, .. } = q;
        let zero_point = zero_points(&spec, scale.nrows(), seed);
        let codes = affine_quantize(weight.view(), scale.view(), zero_point.view(), &spec).unwrap();
        let output =
            affine_dequantize(codes.view(), scale.view(), zero_point.view(), &spec).unwrap();
        for ((o, i), &w) in weight.indexed_iter() {
            let place = [o, i / spec.group_size()];
            let (scale, zero_point) = (scale[place], zero_point[place]);
            let largest = f64::from(spec.unsigned_max());
            let nearest = w.clamp(-zero_point * scale, (largest - zero_point) * scale);
            let slack = 2.0 * f64::EPSILON * (w.abs() + scale * largest);
            prop_assert!((output[[o, i]] - nearest).abs() <= 0.5 * scale + slack);
        }
    }
}
