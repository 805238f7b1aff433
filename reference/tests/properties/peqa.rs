//! Properties of (M15) and (M16).

use ndarray::{Array2, ArrayD};
use plumbline_reference::Real;
use plumbline_reference::affine::affine_dequantize;
use plumbline_reference::linear::linear;
use plumbline_reference::methods::peqa::Peqa;
use plumbline_reference::spec::{QuantSpec, SCALE_FLOOR};
use proptest::prelude::*;

use crate::inputs::{Random, cast, spec};
use crate::proof::{Definition, assert_gradients, matrix, product, weighted_sum, with_gradient};

#[derive(Debug, Clone)]
struct Layer<T> {
    spec: QuantSpec,
    codes: Array2<u8>,
    scale: Array2<T>,
    zero_point: Array2<T>,
    x: Array2<T>,
    d_y: Array2<T>,
}

impl<T: Real> Layer<T> {
    fn peqa(&self) -> Peqa<'_, T> {
        Peqa {
            codes: self.codes.view(),
            scale: self.scale.view(),
            zero_point: self.zero_point.view(),
            spec: self.spec,
        }
    }
}

/// Zero points are integers of the grid; one scale may be below the floor.
fn layer() -> impl Strategy<Value = Layer<f64>> {
    (spec(), 1usize..=3, 1usize..=3, 0usize..6, any::<u64>()).prop_map(
        |(spec, out, tokens, low, seed)| {
            let mut random = Random(seed);
            let mut scale = random.array((out, spec.groups()), 0.5) + 1.0;
            if let Some(scale) = scale.iter_mut().nth(low) {
                *scale = -0.5;
            }
            Layer {
                spec,
                codes: random.codes((out, spec.in_features()), &spec),
                scale,
                zero_point: random.codes((out, spec.groups()), &spec).mapv(f64::from),
                x: random.array((tokens, spec.in_features()), 1.0),
                d_y: random.array((tokens, out), 1.0),
            }
        },
    )
}

/// (M15) over any scalar; the codes and zero points are part of the definition.
struct Loss<'a>(&'a Layer<f64>);

impl Definition for Loss<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let Layer { spec, codes, zero_point, d_y, .. } = self.0;
        let [x, scale] = [0, 1].map(|k| matrix(&tensors[k]));
        let weight = Array2::from_shape_fn(codes.dim(), |(o, i)| {
            let place = [o, i / spec.group_size()];
            let steps = f64::from(codes[[o, i]]) - zero_point[place];
            scale[place].max(T::of(SCALE_FLOOR)) * T::of(steps)
        });
        weighted_sum(d_y, &product(&x, &weight))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (M16).
    #[test]
    fn gradients_are_those_of_the_definition(layer in layer()) {
        let gradients = layer.peqa().backward(layer.x.view(), layer.d_y.view()).unwrap();
        assert_gradients(&Loss(&layer), &[
            with_gradient("x", &layer.x, &gradients.d_x),
            with_gradient("scale", &layer.scale, &gradients.d_scale),
        ]);
    }

    /// Property of (M15): the layer is a linear layer with the dequantized weight, in both
    /// precisions, bit for bit.
    #[test]
    fn the_layer_is_its_dequantized_weight(layer in layer()) {
        fn check<T: Real>(layer: &Layer<T>) {
            let weight = affine_dequantize(
                layer.codes.view(), layer.scale.view(), layer.zero_point.view(), &layer.spec,
            ).unwrap();
            let y = layer.peqa().forward(layer.x.view()).unwrap();
            assert_eq!(y, linear(layer.x.view(), weight.view()).unwrap());
        }
        check(&layer);
        let Layer { spec, codes, scale, zero_point, x, d_y } = layer;
        let [scale, zero_point, x, d_y] = [scale, zero_point, x, d_y].map(|t| cast::<f32, _>(&t));
        check(&Layer { spec, codes, scale, zero_point, x, d_y });
    }

    /// Property of (M16): the output is linear in the scales above the floor, so that they and
    /// their gradient give back the loss. Each side adds `in * out * tokens` products of at most
    /// four factors below `2^bits` together.
    #[test]
    fn scales_times_their_gradients_are_the_loss(mut layer in layer()) {
        layer.scale.mapv_inplace(f64::abs);
        let y = layer.peqa().forward(layer.x.view()).unwrap();
        let gradients = layer.peqa().backward(layer.x.view(), layer.d_y.view()).unwrap();
        let (loss, by_scale) = ((&y * &layer.d_y).sum(), (&layer.scale * &gradients.d_scale).sum());
        let terms = (layer.codes.len() * layer.x.nrows()) as f64;
        let largest = 1.5 * f64::from(layer.spec.unsigned_max());
        let bound = 2.0 * (terms + 6.0) * f64::EPSILON / 2.0 * terms * largest;
        prop_assert!((loss - by_scale).abs() <= bound, "{loss} and {by_scale}");
    }
}
