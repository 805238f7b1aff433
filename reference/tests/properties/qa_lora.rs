//! Properties of (M8) to (M10).

use ndarray::{Array2, ArrayD};
use plumbline_reference::Real;
use plumbline_reference::affine::affine_dequantize;
use plumbline_reference::linear::linear;
use plumbline_reference::lora::lora_forward;
use plumbline_reference::methods::qa_lora::QaLora;
use plumbline_reference::spec::{GroupPool, Pool, QaLoraDialect, QuantSpec, SCALE_FLOOR};
use proptest::prelude::*;

use crate::inputs::{Random, cast, spec};
use crate::proof::{Definition, assert_gradients, matrix, product, weighted_sum, with_gradient};

const POOLS: [(Pool, QaLoraDialect); 4] = [
    (Pool::Sum, QaLoraDialect::Paper),
    (Pool::Mean, QaLoraDialect::Paper),
    (Pool::Mean, QaLoraDialect::QaLoraCode),
    (Pool::Mean, QaLoraDialect::HfPeftQalora),
];

#[derive(Debug, Clone)]
struct Layer<T> {
    spec: QuantSpec,
    pool: GroupPool,
    lora_scaling: f64,
    codes: Array2<u8>,
    scale: Array2<T>,
    zero_point: Array2<T>,
    lora_a: Array2<T>,
    lora_b: Array2<T>,
    x: Array2<T>,
    d_y: Array2<T>,
}

impl<T: Real> Layer<T> {
    fn qa_lora(&self) -> QaLora<'_, T> {
        QaLora {
            codes: self.codes.view(),
            scale: self.scale.view(),
            zero_point: self.zero_point.view(),
            lora_a: self.lora_a.view(),
            lora_b: self.lora_b.view(),
            lora_scaling: self.lora_scaling,
            pool: self.pool,
            spec: self.spec,
        }
    }

    fn weight(&self, zero_point: &Array2<T>) -> Array2<T> {
        let (codes, scale) = (self.codes.view(), self.scale.view());
        affine_dequantize(codes, scale, zero_point.view(), &self.spec).unwrap()
    }
}

impl Layer<f64> {
    fn cast<T: Real>(&self) -> Layer<T> {
        Layer {
            spec: self.spec,
            pool: self.pool,
            lora_scaling: self.lora_scaling,
            codes: self.codes.clone(),
            scale: cast(&self.scale),
            zero_point: cast(&self.zero_point),
            lora_a: cast(&self.lora_a),
            lora_b: cast(&self.lora_b),
            x: cast(&self.x),
            d_y: cast(&self.d_y),
        }
    }

    /// The factor of a group's sum of inputs.
    fn pool_factor(&self) -> f64 {
        let (group_size, groups) = (self.spec.group_size() as f64, self.spec.groups() as f64);
        match (self.pool.pool(), self.pool.dialect()) {
            (Pool::Sum, _) => 1.0,
            (Pool::Mean, QaLoraDialect::HfPeftQalora) => groups / group_size,
            (Pool::Mean, _) => 1.0 / group_size,
        }
    }
}

fn layer() -> impl Strategy<Value = Layer<f64>> {
    (spec(), 0usize..4, 1usize..=3, 1usize..=3, 1usize..=3, any::<u64>()).prop_map(
        |(spec, pool, out, rank, tokens, seed)| {
            let mut random = Random(seed);
            let groups = spec.groups();
            let (pool, dialect) = POOLS[pool];
            Layer {
                spec,
                pool: GroupPool::new(pool, dialect).unwrap(),
                lora_scaling: 0.75,
                codes: random.codes((out, spec.in_features()), &spec),
                scale: random.array((out, groups), 0.5) + 1.0,
                zero_point: random.array((out, groups), f64::from(spec.unsigned_max())),
                lora_a: random.array((rank, groups), 1.0),
                lora_b: random.array((out, rank), 1.0),
                x: random.array((tokens, spec.in_features()), 1.0),
                d_y: random.array((tokens, out), 1.0),
            }
        },
    )
}

/// (M8) over any scalar, with the adapter as a weight that repeats over each group.
struct Loss<'a>(&'a Layer<f64>);

impl Definition for Loss<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let Layer { spec, lora_scaling, codes, d_y, .. } = self.0;
        let [x, lora_a, lora_b] = [0, 1, 2].map(|k| matrix(&tensors[k]));
        let weight = Array2::from_shape_fn(codes.dim(), |(o, i)| {
            let place = [o, i / spec.group_size()];
            let steps = f64::from(codes[[o, i]]) - self.0.zero_point[place];
            let base = self.0.scale[place].max(SCALE_FLOOR) * steps;
            let update: T =
                (0..lora_a.nrows()).map(|r| lora_b[[o, r]] * lora_a[[r, place[1]]]).sum();
            T::of(base) + T::of(lora_scaling * self.0.pool_factor()) * update
        });
        weighted_sum(d_y, &product(&x, &weight))
    }
}

/// `|terms|` of every element of the output, as (M8) adds them up.
fn magnitude(layer: &Layer<f64>, zero_point: &Array2<f64>) -> Array2<f64> {
    let weight = Array2::from_shape_fn(layer.codes.dim(), |(o, i)| {
        let place = [o, i / layer.spec.group_size()];
        let update: f64 = (0..layer.lora_a.nrows())
            .map(|r| (layer.lora_b[[o, r]] * layer.lora_a[[r, place[1]]]).abs())
            .sum();
        let steps = f64::from(layer.codes[[o, i]]) + zero_point[place].abs();
        layer.scale[place] * steps + layer.lora_scaling * layer.pool_factor() * update
    });
    linear(layer.x.mapv(f64::abs).view(), weight.view()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property of (M10) C1: the layer without its adapter computes the same function. No path from
    /// an input to an output rounds more than `in + groups + group_size + rank + 12` times: sums of
    /// a group, of the groups, of the rank and of the inputs; the zero point, twice, and the rest.
    #[test]
    fn the_merged_layer_is_the_adapted_one(layer in layer()) {
        prop_assume!(layer.pool.dialect() != QaLoraDialect::HfPeftQalora);
        let merged = layer.qa_lora().merge().unwrap();
        let y = layer.qa_lora().forward(layer.x.view()).unwrap();
        let without = linear(layer.x.view(), layer.weight(&merged).view()).unwrap();
        let spec = layer.spec;
        let roundings = spec.in_features() + spec.groups() + spec.group_size()
            + layer.lora_a.nrows() + 12;
        let unit = roundings as f64 * f64::EPSILON / 2.0 * 1.01;
        let magnitude = magnitude(&layer, &layer.zero_point) + magnitude(&layer, &merged);
        for ((y, without), magnitude) in y.iter().zip(&without).zip(&magnitude) {
            prop_assert!((y - without).abs() <= unit * magnitude, "{y} and {without}");
        }
    }

    /// Property of (M10) C1: where no operation rounds, adapted and merged layer are equal, in
    /// both precisions. Scales and sizes are powers of two and everything else is a short fraction.
    #[test]
    fn on_short_binary_fractions_merging_is_exact(
        bits in 2u32..=8, size in 0u32..=2, groups in 0u32..=1, pool in 0usize..3, seed: u64,
    ) {
        let mut random = Random(seed);
        let (group_size, groups) = (1 << size, 1 << groups);
        let bits = plumbline_reference::spec::Bits::new(bits).unwrap();
        let spec = QuantSpec::new(bits, Some(group_size), group_size * groups).unwrap();
        let (pool, dialect) = POOLS[pool];
        let layer = Layer {
            spec,
            pool: GroupPool::new(pool, dialect).unwrap(),
            lora_scaling: 0.5,
            codes: random.codes((3, spec.in_features()), &spec),
            scale: random.lattice((3, groups), 1.0, 1).mapv(f64::exp2),
            zero_point: random.lattice((3, groups), 0.25, 64),
            lora_a: random.lattice((2, groups), 0.25, 4),
            lora_b: random.lattice((3, 2), 0.25, 4),
            x: random.lattice((2, spec.in_features()), 0.25, 8),
            d_y: Array2::zeros((2, 3)),
        };
        fn check<T: Real>(layer: &Layer<T>) {
            let merged = layer.qa_lora().merge().unwrap();
            let y = layer.qa_lora().forward(layer.x.view()).unwrap();
            assert_eq!(y, linear(layer.x.view(), layer.weight(&merged).view()).unwrap());
        }
        check(&layer);
        check(&layer.cast::<f32>());
    }

    /// Property of (M9).
    #[test]
    fn gradients_are_those_of_the_definition(layer in layer()) {
        let gradients = layer.qa_lora().backward(layer.x.view(), layer.d_y.view()).unwrap();
        assert_gradients(&Loss(&layer), &[
            with_gradient("x", &layer.x, &gradients.d_x),
            with_gradient("lora_a", &layer.lora_a, &gradients.d_lora_a),
            with_gradient("lora_b", &layer.lora_b, &gradients.d_lora_b),
        ]);
    }

    /// Property of (M8): at its start, `lora_b = 0`, the layer is the quantized one.
    #[test]
    fn without_lora_b_the_layer_is_its_dequantized_weight(mut layer in layer()) {
        layer.lora_b.fill(0.0);
        let y = layer.qa_lora().forward(layer.x.view()).unwrap();
        let weight = layer.weight(&layer.zero_point);
        prop_assert_eq!(y, linear(layer.x.view(), weight.view()).unwrap());
        if layer.pool.dialect() != QaLoraDialect::HfPeftQalora {
            prop_assert_eq!(layer.qa_lora().merge().unwrap(), layer.zero_point);
        }
    }

    /// Property of (M8): with groups of one input it is LoRA, (A2), beside the dequantized weight.
    #[test]
    fn with_groups_of_one_it_is_lora(mut layer in layer(), seed: u64) {
        let inputs = layer.spec.in_features();
        let mut random = Random(seed);
        let weight = layer.weight(&layer.zero_point);
        layer.spec = QuantSpec::new(layer.spec.bits(), Some(1), inputs).unwrap();
        layer.pool = GroupPool::default();
        let (out, rank) = layer.lora_b.dim();
        layer.lora_a = random.array((rank, inputs), 1.0);
        // The zero point moves into a weight of which every input is a group.
        layer.codes.fill(0);
        layer.scale = Array2::ones((out, inputs));
        layer.zero_point = -weight.clone();
        let y = layer.qa_lora().forward(layer.x.view()).unwrap();
        let lora = lora_forward(
            layer.x.view(), weight.view(), layer.lora_a.view(), layer.lora_b.view(), 0.75,
        ).unwrap();
        prop_assert_eq!(y, lora);
    }

    /// Property of (M8): the mean with `group_size` times the multiplier is the sum, and the PEFT
    /// variant is the mean with `groups` times the multiplier, exactly where those are powers of
    /// two.
    #[test]
    fn dialects_differ_by_a_constant(mut layer in layer()) {
        let factor = |n: usize| n.is_power_of_two().then_some(n as f64);
        let spec = layer.spec;
        let (Some(group_size), Some(groups)) = (factor(spec.group_size()), factor(spec.groups()))
        else { return Ok(()); };
        let mut y = |pool, dialect, lora_scaling| {
            layer.pool = GroupPool::new(pool, dialect).unwrap();
            layer.lora_scaling = lora_scaling;
            layer.qa_lora().forward(layer.x.view()).unwrap()
        };
        let sum = y(Pool::Sum, QaLoraDialect::Paper, 0.75);
        prop_assert_eq!(&sum, &y(Pool::Mean, QaLoraDialect::Paper, 0.75 * group_size));
        prop_assert_eq!(&sum, &y(Pool::Mean, QaLoraDialect::QaLoraCode, 0.75 * group_size));
        let peft = y(Pool::Mean, QaLoraDialect::HfPeftQalora, 0.75 * group_size);
        prop_assert_eq!(peft, y(Pool::Mean, QaLoraDialect::Paper, 0.75 * group_size * groups));
    }
}
