//! Properties of (M11) to (M14).

use ndarray::{Array2, ArrayD};
use plumbline_reference::Real;
use plumbline_reference::linear::linear;
use plumbline_reference::lora::lora_forward;
use plumbline_reference::methods::l4q::L4q;
use plumbline_reference::methods::qat::Qat;
use plumbline_reference::methods::qat_lora::QatLora;
use plumbline_reference::quantize::dequantize;
use plumbline_reference::spec::{GradScale, MaskRule, QuantSpec, StraightThrough};
use proptest::prelude::*;

use crate::inputs::{Random, cast, spec};
use crate::proof::{
    Definition, assert_gradients, constant, matrix, product, weighted_sum, with_gradient,
};
use crate::straight_through::{any_mask, fake_quantized};

/// The tensors of a layer, and a batch for it.
#[derive(Debug, Clone)]
struct Layer<T> {
    spec: QuantSpec,
    mask: MaskRule,
    weight: Array2<T>,
    lora_a: Array2<T>,
    lora_b: Array2<T>,
    scale: Array2<T>,
    offset: Array2<T>,
    x: Array2<T>,
    d_y: Array2<T>,
}

const SCALING: f64 = 0.75;

impl<T: Real> Layer<T> {
    fn qat(&self) -> Qat<'_, T> {
        Qat {
            weight: self.weight.view(),
            scale: self.scale.view(),
            offset: Some(self.offset.view()),
            spec: self.spec,
        }
    }

    fn qat_lora(&self) -> QatLora<'_, T> {
        QatLora {
            weight: self.weight.view(),
            lora_a: self.lora_a.view(),
            lora_b: self.lora_b.view(),
            scale: self.scale.view(),
            offset: self.offset.view(),
            lora_scaling: SCALING,
            spec: self.spec,
        }
    }

    fn rules(&self) -> StraightThrough {
        self.mask.into()
    }
}

impl Layer<f64> {
    fn cast<T: Real>(&self) -> Layer<T> {
        Layer {
            spec: self.spec,
            mask: self.mask,
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

/// Weights reach twice the grid; every fourth lies on its ends or on the ties beyond them.
fn layer() -> impl Strategy<Value = Layer<f64>> {
    (spec(), any_mask(), 1usize..=3, 1usize..=3, 1usize..=3, any::<u64>()).prop_map(
        |(spec, mask, out, rank, tokens, seed)| {
            let mut random = Random(seed);
            let inputs = spec.in_features();
            let reach = f64::from(2 * spec.qmax());
            let ends = random.lattice((out, inputs), 0.5, 3);
            let mut layer = Layer {
                spec,
                mask,
                weight: random.array((out, inputs), reach),
                lora_a: random.array((rank, inputs), 1.0),
                lora_b: random.array((out, rank), 1.0),
                scale: random.lattice((out, spec.groups()), 0.25, 2).mapv(|unit| unit + 1.0),
                offset: random.lattice((out, spec.groups()), 0.5, 2),
                x: random.array((tokens, inputs), 1.0),
                d_y: random.array((tokens, out), 1.0),
            };
            for ((o, i), weight) in layer.weight.indexed_iter_mut() {
                let place = [o, i / spec.group_size()];
                let end = f64::from(if ends[[o, i]] > 0.0 { spec.qmax() } else { spec.qmin() });
                if (o + i) % 4 == 0 {
                    let away = ends[[o, i]].abs() - 0.5;
                    *weight = layer.offset[place]
                        + layer.scale[place] * (end + away.max(0.0) * end.signum());
                }
            }
            layer
        },
    )
}

/// (M11) over any scalar.
struct QatLoss<'a>(&'a Layer<f64>);

impl Definition for QatLoss<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let Layer { spec, mask, d_y, .. } = self.0;
        let [x, weight, scale, offset] = [0, 1, 2, 3].map(|k| matrix(&tensors[k]));
        let quantized = fake_quantized(&weight, &scale, &offset, spec, *mask);
        weighted_sum(d_y, &product(&x, &quantized))
    }
}

/// (M13) over any scalar; the frozen weight is part of the definition.
struct QatLoraLoss<'a>(&'a Layer<f64>);

impl Definition for QatLoraLoss<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let Layer { spec, mask, weight, d_y, .. } = self.0;
        let [x, lora_a, lora_b, scale, offset] = [0, 1, 2, 3, 4].map(|k| matrix(&tensors[k]));
        let quantized = fake_quantized(&weight.mapv(T::of), &scale, &offset, spec, *mask);
        let update = product(&product(&x, &lora_a), &lora_b);
        weighted_sum(d_y, &product(&x, &quantized)) + T::of(SCALING) * weighted_sum(d_y, &update)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (M12).
    #[test]
    fn qat_gradients_are_those_of_the_definition(layer in layer()) {
        let gradients =
            layer.qat().backward(layer.x.view(), layer.d_y.view(), layer.rules()).unwrap();
        assert_gradients(&QatLoss(&layer), &[
            with_gradient("x", &layer.x, &gradients.d_x),
            with_gradient("weight", &layer.weight, &gradients.d_weight),
            with_gradient("scale", &layer.scale, &gradients.d_scale),
            with_gradient("offset", &layer.offset, &gradients.d_offset.unwrap()),
        ]);
        let zero = Array2::zeros(layer.offset.dim());
        let lsq = Qat { offset: None, ..layer.qat() };
        let gradients = lsq.backward(layer.x.view(), layer.d_y.view(), layer.rules()).unwrap();
        assert_gradients(&QatLoss(&layer), &[
            with_gradient("x", &layer.x, &gradients.d_x),
            with_gradient("weight", &layer.weight, &gradients.d_weight),
            with_gradient("scale", &layer.scale, &gradients.d_scale),
            constant("offset", &zero),
        ]);
        prop_assert!(gradients.d_offset.is_none());
    }

    /// Property of (M14).
    #[test]
    fn qat_lora_gradients_are_those_of_the_definition(layer in layer()) {
        let gradients =
            layer.qat_lora().backward(layer.x.view(), layer.d_y.view(), layer.rules()).unwrap();
        assert_gradients(&QatLoraLoss(&layer), &[
            with_gradient("x", &layer.x, &gradients.d_x),
            with_gradient("lora_a", &layer.lora_a, &gradients.d_lora_a),
            with_gradient("lora_b", &layer.lora_b, &gradients.d_lora_b),
            with_gradient("scale", &layer.scale, &gradients.d_scale),
            with_gradient("offset", &layer.offset, &gradients.d_offset),
        ]);
    }

    /// Property of (M11) and (M13): the codes are all that the quantized weight is, bit for bit.
    #[test]
    fn codes_stand_for_the_weight_of_the_forward(layer in layer()) {
        fn check<T: Real>(layer: &Layer<T>) {
            let (scale, offset) = (layer.scale.view(), layer.offset.view());
            let x = layer.x.view();
            let forward = layer.qat().forward(x).unwrap();
            let weight = dequantize(forward.codes.view(), scale, offset, &layer.spec).unwrap();
            assert_eq!(weight, forward.fake_quantized);
            assert_eq!(linear(x, weight.view()).unwrap(), forward.y);
            let beside = layer.qat_lora().forward(x).unwrap();
            assert_eq!((&beside.codes, &beside.fake_quantized), (&forward.codes, &weight));
            let (lora_a, lora_b) = (layer.lora_a.view(), layer.lora_b.view());
            let y = lora_forward(x, weight.view(), lora_a, lora_b, SCALING).unwrap();
            assert_eq!(beside.y, y);
        }
        check(&layer);
        check(&layer.cast::<f32>());
    }

    /// Property of (M11) to (M14): where `lora_b` is zero, the three methods are one layer, and
    /// differ only in what they train.
    #[test]
    fn without_lora_b_the_methods_agree(mut layer in layer()) {
        layer.lora_b.fill(0.0);
        let QatLora { weight, lora_a, lora_b, scale, offset, lora_scaling, spec } =
            layer.qat_lora();
        let l4q = L4q { weight, lora_a, lora_b, scale, offset, lora_scaling, spec };
        let (x, d_y, rules) = (layer.x.view(), layer.d_y.view(), layer.rules());
        let y = layer.qat().forward(x).unwrap().y;
        prop_assert_eq!(&l4q.forward(x).unwrap().y, &y);
        prop_assert_eq!(&layer.qat_lora().forward(x).unwrap().y, &y);
        let inside = l4q.backward(x, d_y, rules).unwrap();
        let beside = layer.qat_lora().backward(x, d_y, rules).unwrap();
        let full = layer.qat().backward(x, d_y, rules).unwrap();
        for gradients in [(&inside.d_x, &inside.d_scale, &inside.d_offset),
                          (&beside.d_x, &beside.d_scale, &beside.d_offset)] {
            prop_assert_eq!(gradients, (&full.d_x, &full.d_scale, full.d_offset.as_ref().unwrap()));
        }
    }

    /// Property of (M12): without an offset the layer is the one with an offset of zero.
    #[test]
    fn lsq_is_lsq_plus_with_an_offset_of_zero(mut layer in layer()) {
        layer.offset.fill(0.0);
        let lsq = Qat { offset: None, ..layer.qat() };
        let (x, d_y) = (layer.x.view(), layer.d_y.view());
        prop_assert_eq!(lsq.forward(x).unwrap(), layer.qat().forward(x).unwrap());
        let without = lsq.backward(x, d_y, GradScale::Lsq).unwrap();
        let with = layer.qat().backward(x, d_y, GradScale::Lsq).unwrap();
        prop_assert_eq!(
            (without.d_x, without.d_weight, without.d_scale),
            (with.d_x, with.d_weight, with.d_scale)
        );
    }
}
