//! Properties of (M1) to (M3).

use ndarray::{Array2, ArrayD};
use plumbline_reference::Real;
use plumbline_reference::linear::{linear, linear_backward};
use plumbline_reference::lora::delta_weight;
use plumbline_reference::methods::l4q::L4q;
use plumbline_reference::quantize::{dequantize, fake_quantize};
use plumbline_reference::spec::{GradScale, MaskRule, QuantSpec, SCALE_FLOOR};
use proptest::prelude::*;

use crate::inputs::{Random, cast, spec};
use crate::proof::{Definition, assert_gradients, matrix, product, weighted_sum, with_gradient};
use crate::straight_through::{any_mask, fake_quantized};

/// The tensors of a layer, and a batch for it.
#[derive(Debug, Clone)]
struct Layer<T> {
    spec: QuantSpec,
    lora_scaling: f64,
    weight: Array2<T>,
    lora_a: Array2<T>,
    lora_b: Array2<T>,
    scale: Array2<T>,
    offset: Array2<T>,
    x: Array2<T>,
    d_y: Array2<T>,
}

impl<T: Real> Layer<T> {
    fn l4q(&self) -> L4q<'_, T> {
        L4q {
            weight: self.weight.view(),
            lora_a: self.lora_a.view(),
            lora_b: self.lora_b.view(),
            scale: self.scale.view(),
            offset: self.offset.view(),
            lora_scaling: self.lora_scaling,
            spec: self.spec,
        }
    }
}

impl Layer<f64> {
    fn cast<T: Real>(&self) -> Layer<T> {
        Layer {
            spec: self.spec,
            lora_scaling: self.lora_scaling,
            weight: cast(&self.weight),
            lora_a: cast(&self.lora_a),
            lora_b: cast(&self.lora_b),
            scale: cast(&self.scale),
            offset: cast(&self.offset),
            x: cast(&self.x),
            d_y: cast(&self.d_y),
        }
    }
}

/// (M1) over any scalar; the frozen weight is part of the definition.
struct Loss<'a>(&'a Layer<f64>, MaskRule);

impl Definition for Loss<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let Layer { spec, lora_scaling, weight, d_y, .. } = self.0;
        let [x, lora_a, lora_b, scale, offset] = [0, 1, 2, 3, 4].map(|k| matrix(&tensors[k]));
        let effective = Array2::from_shape_fn(weight.dim(), |(o, i)| {
            let update: T = (0..lora_a.nrows()).map(|r| lora_b[[o, r]] * lora_a[[r, i]]).sum();
            T::of(weight[[o, i]]) + T::of(*lora_scaling) * update
        });
        let quantized = fake_quantized(&effective, &scale, &offset, spec, self.1);
        weighted_sum(d_y, &product(&x, &quantized))
    }
}

/// Weights reach twice the grid, so that some clip.
fn layer() -> impl Strategy<Value = Layer<f64>> {
    (spec(), 1usize..=3, 1usize..=3, 1usize..=3, any::<u64>()).prop_map(
        |(spec, out, rank, tokens, seed)| {
            let mut random = Random(seed);
            let inputs = spec.in_features();
            let reach = f64::from(2 * spec.qmax());
            Layer {
                spec,
                lora_scaling: 0.75,
                weight: random.array((out, inputs), reach),
                lora_a: random.array((rank, inputs), 1.0),
                lora_b: random.array((out, rank), 1.0),
                scale: random.array((out, spec.groups()), 0.5).mapv(|unit| unit + 1.0),
                offset: random.array((out, spec.groups()), 1.0),
                x: random.array((tokens, inputs), 1.0),
                d_y: random.array((tokens, out), 1.0),
            }
        },
    )
}

/// Short binary fractions: every intermediate result is exact in f32.
fn exact_layer() -> impl Strategy<Value = Layer<f64>> {
    (spec(), 1usize..=3, 1usize..=3, 1usize..=3, -3i32..=0, any::<u64>()).prop_map(
        |(spec, out, rank, tokens, exponent, seed)| {
            let mut random = Random(seed);
            let inputs = spec.in_features();
            let scale = 2.0_f64.powi(exponent);
            Layer {
                spec,
                lora_scaling: 0.5,
                weight: random.lattice((out, inputs), 1.0 / 32.0, 512),
                lora_a: random.lattice((rank, inputs), 0.25, 4),
                lora_b: random.lattice((out, rank), 0.25, 4),
                scale: Array2::from_elem((out, spec.groups()), scale),
                offset: random.lattice((out, spec.groups()), 1.0 / 16.0, 16),
                x: random.lattice((tokens, inputs), 0.25, 8),
                d_y: random.lattice((tokens, out), 0.25, 8),
            }
        },
    )
}

/// Everything the layer computes, as f64.
fn all_results<T: Real>(layer: &Layer<T>) -> (Array2<i8>, Vec<Array2<f64>>) {
    let forward = layer.l4q().forward(layer.x.view()).unwrap();
    let backward = layer.l4q().backward(layer.x.view(), layer.d_y.view(), GradScale::None).unwrap();
    let floats = [
        &forward.y,
        &forward.fake_quantized,
        &backward.d_x,
        &backward.d_lora_a,
        &backward.d_lora_b,
        &backward.d_scale,
        &backward.d_offset,
    ];
    (forward.codes, floats.map(|array| array.mapv(T::value)).to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (M3) C1, in both precisions, with scales below the floor among the others.
    #[test]
    fn merge_dequantises_to_the_weight_of_the_forward(layer in layer(), low in 0usize..4) {
        fn check<T: Real>(mut layer: Layer<T>, low: usize) {
            if let Some(scale) = layer.scale.iter_mut().nth(low) {
                *scale = T::of(-0.5);
            }
            let forward = layer.l4q().forward(layer.x.view()).unwrap();
            let merged = layer.l4q().merge().unwrap();
            assert_eq!(merged.codes, forward.codes);
            assert!(merged.scale.iter().all(|&scale| scale >= T::of(SCALE_FLOOR)));
            let (scale, offset) = (merged.scale.view(), merged.offset.view());
            let weight = dequantize(merged.codes.view(), scale, offset, &layer.spec).unwrap();
            for (merged, trained) in weight.iter().zip(&forward.fake_quantized) {
                assert_eq!(merged.value().to_bits(), trained.value().to_bits());
            }
            assert_eq!(linear(layer.x.view(), weight.view()).unwrap(), forward.y);
        }
        check(layer.clone(), low);
        check(layer.cast::<f32>(), low);
    }

    /// Property of (M1) C2.
    #[test]
    fn without_lora_b_the_layer_is_plain_quantization(mut layer in layer()) {
        layer.lora_b.fill(0.0);
        let forward = layer.l4q().forward(layer.x.view()).unwrap();
        let plain = fake_quantize(
            layer.weight.view(), layer.scale.view(), layer.offset.view(), &layer.spec,
        ).unwrap();
        prop_assert_eq!(&forward.codes, &plain.codes);
        prop_assert_eq!(&forward.fake_quantized, &plain.output);
        prop_assert_eq!(forward.y, linear(layer.x.view(), plain.output.view()).unwrap());
    }

    /// Property of (M1): the update moves the weight and nothing else.
    #[test]
    fn the_update_could_have_been_in_the_weight(layer in layer()) {
        let delta =
            delta_weight(layer.lora_a.view(), layer.lora_b.view(), layer.lora_scaling).unwrap();
        let mut moved = layer.clone();
        moved.weight += &delta;
        moved.lora_b.fill(0.0);
        prop_assert_eq!(
            layer.l4q().forward(layer.x.view()).unwrap(),
            moved.l4q().forward(layer.x.view()).unwrap()
        );
    }

    /// Property of (M1): the unit of the weights does not matter.
    #[test]
    fn scaling_everything_by_a_power_of_two_leaves_codes(layer in layer(), k in -10i32..10) {
        let factor = 2.0_f64.powi(k);
        let mut scaled = layer.clone();
        scaled.weight *= factor;
        scaled.lora_b *= factor;
        scaled.scale *= factor;
        scaled.offset *= factor;
        let plain = layer.l4q().forward(layer.x.view()).unwrap();
        let forward = scaled.l4q().forward(layer.x.view()).unwrap();
        prop_assert_eq!(forward.codes, plain.codes);
        prop_assert_eq!(forward.y, plain.y * factor);
    }

    /// Property of (M2).
    #[test]
    fn gradients_are_those_of_the_definition(layer in layer(), mask in any_mask()) {
        let gradients = layer.l4q().backward(layer.x.view(), layer.d_y.view(), mask).unwrap();
        assert_gradients(&Loss(&layer, mask), &[
            with_gradient("x", &layer.x, &gradients.d_x),
            with_gradient("lora_a", &layer.lora_a, &gradients.d_lora_a),
            with_gradient("lora_b", &layer.lora_b, &gradients.d_lora_b),
            with_gradient("scale", &layer.scale, &gradients.d_scale),
            with_gradient("offset", &layer.offset, &gradients.d_offset),
        ]);
    }

    /// Property of (M2): all it needs from the batch is the gradient of the quantized weight.
    #[test]
    fn parameter_gradients_follow_the_gradient_of_the_weight(layer in layer()) {
        let (x, d_y) = (layer.x.view(), layer.d_y.view());
        let weight = layer.l4q().forward(x).unwrap().fake_quantized;
        let through_linear = linear_backward(x, weight.view(), d_y).unwrap();
        let d_weight = through_linear.d_weight.view();
        let whole = layer.l4q().backward(x, d_y, GradScale::Lsq).unwrap();
        let parts = layer.l4q().parameter_gradients(d_weight, GradScale::Lsq).unwrap();
        prop_assert_eq!(whole.d_x, through_linear.d_x);
        prop_assert_eq!(whole.d_lora_a, parts.d_lora_a);
        prop_assert_eq!(whole.d_lora_b, parts.d_lora_b);
        prop_assert_eq!(whole.d_scale, parts.d_scale);
        prop_assert_eq!(whole.d_offset, parts.d_offset);
    }

    /// Property of (M1) and (M2): where no operation rounds, the precision does not matter.
    #[test]
    fn f32_equals_f64_on_short_binary_fractions(layer in exact_layer()) {
        prop_assert_eq!(all_results(&layer), all_results(&layer.cast::<f32>()));
    }
}
