//! Properties of (M4) to (M7).

use ndarray::{Array2, ArrayD};
use plumbline_reference::Real;
use plumbline_reference::linear::linear;
use plumbline_reference::lora::delta_weight;
use plumbline_reference::methods::l4q::L4q;
use plumbline_reference::methods::lr_qat::{Downcasted, LrQat, Stored, downcast};
use plumbline_reference::pack::{unpack, unpack_signed};
use plumbline_reference::spec::{
    Bits, Downcast, GradScale, InnerScale, LrQatDialect, LrQatMask, LrQatSpec, PackedBits,
    QuantSpec, SCALE_FLOOR,
};
use proptest::prelude::*;

use crate::inputs::{Random, cast, spec};
use crate::proof::{Definition, assert_gradients, matrix, product, weighted_sum, with_gradient};

/// The tensors of a layer, and a batch for it.
#[derive(Debug, Clone)]
struct Layer<T> {
    spec: LrQatSpec,
    weight: Array2<T>,
    initial_scale: Option<Array2<T>>,
    zero_point: Option<Array2<T>>,
    lora_a: Array2<T>,
    lora_b: Array2<T>,
    scale: Array2<T>,
    x: Array2<T>,
    d_y: Array2<T>,
}

const LORA_SCALING: f64 = 0.75;

impl<T: Real> Layer<T> {
    fn lr_qat(&self) -> LrQat<'_, T> {
        LrQat {
            weight: self.weight.view(),
            initial_scale: self.initial_scale.as_ref().map(|scale| scale.view()),
            zero_point: self.zero_point.as_ref().map(|zero_point| zero_point.view()),
            lora_a: self.lora_a.view(),
            lora_b: self.lora_b.view(),
            scale: self.scale.view(),
            lora_scaling: LORA_SCALING,
            spec: self.spec,
        }
    }

    /// Width of the codes, first code and last code of every group.
    fn ends(&self) -> (Array2<f64>, Array2<f64>) {
        let grid = self.spec.grid();
        let low = match &self.zero_point {
            Some(zero_point) => zero_point.mapv(|zero_point| -zero_point.value()),
            None => Array2::from_elem(self.scale.dim(), f64::from(grid.qmin())),
        };
        (low.clone(), low + f64::from(grid.bits().unsigned_max()))
    }
}

impl Layer<f64> {
    fn cast<T: Real>(&self) -> Layer<T> {
        Layer {
            spec: self.spec,
            weight: cast(&self.weight),
            initial_scale: self.initial_scale.as_ref().map(cast),
            zero_point: self.zero_point.as_ref().map(cast),
            lora_a: cast(&self.lora_a),
            lora_b: cast(&self.lora_b),
            scale: cast(&self.scale),
            x: cast(&self.x),
            d_y: cast(&self.d_y),
        }
    }

    fn phi(&self) -> Array2<f64> {
        let InnerScale::Frozen(kind) = self.spec.inner_scale() else { panic!("nothing is frozen") };
        let initial_scale = self.initial_scale.as_ref().unwrap().view();
        let zero_point = self.zero_point.as_ref().map(|zero_point| zero_point.view());
        downcast(self.weight.view(), initial_scale, zero_point, self.spec.grid(), kind).unwrap().phi
    }
}

/// (M5) over any scalar, as LR-QAT Eq. 4, 5 and 8 print it; what is frozen is a constant.
struct Loss<'a>(&'a Layer<f64>);

impl Definition for Loss<'_> {
    fn loss<T: Real>(&self, tensors: &[ArrayD<T>]) -> T {
        let Layer { spec, weight, d_y, .. } = self.0;
        let [x, lora_a, lora_b, scale] = [0, 1, 2, 3].map(|k| matrix(&tensors[k]));
        let (low, high) = self.0.ends();
        let phi = self.0.initial_scale.is_some().then(|| self.0.phi());
        let fake_quantized = Array2::from_shape_fn(weight.dim(), |(o, i)| {
            let at = [o, i / spec.grid().group_size()];
            let scale = scale[at].max(T::of(SCALE_FLOOR));
            let inner = match &phi {
                Some(phi) => T::of(phi[[o, i]]),
                None => T::of(weight[[o, i]]) / scale,
            };
            let update: T = (0..lora_a.nrows()).map(|r| lora_b[[o, r]] * lora_a[[r, i]]).sum();
            let update = T::of(LORA_SCALING) * update;
            let [low, high] = [T::of(low[at]), T::of(high[at])];
            let code = match (spec.dialect(), spec.mask()) {
                (LrQatDialect::LrQatCode, _) => {
                    (inner + update.round_half_even()).max(low).min(high)
                }
                (_, LrQatMask::Rounded) => (inner + update).round_half_even().max(low).min(high),
                (_, LrQatMask::PreRound) => (inner + update).max(low).min(high).round_half_even(),
            };
            code * scale
        });
        weighted_sum(d_y, &product(&x, &fake_quantized))
    }
}

/// Every combination of options that a grid allows.
fn options(grid: QuantSpec) -> Vec<LrQatSpec> {
    use Downcast::{Bf16, F16, F32, Fixed8, Int};
    let inner = [F32, Bf16, F16, Fixed8, Int].map(InnerScale::Frozen);
    let inner = inner.into_iter().chain([InnerScale::Live]);
    let masks = [LrQatMask::Rounded, LrQatMask::PreRound];
    let dialects = [LrQatDialect::Paper, LrQatDialect::LrQatCode];
    inner
        .flat_map(|inner| masks.map(|mask| (inner, mask)))
        .flat_map(|(inner, mask)| dialects.map(|dialect| (inner, mask, dialect)))
        .filter_map(|(inner, mask, dialect)| LrQatSpec::new(grid, inner, mask, dialect).ok())
        .collect()
}

/// Weights reach twice the grid, so that some clip; some layers have zero-points.
fn layer() -> impl Strategy<Value = Layer<f64>> {
    let sizes = (1usize..=3, 1usize..=3, 1usize..=3);
    (spec(), sizes, any::<prop::sample::Index>(), any::<bool>(), any::<u64>()).prop_map(
        |(grid, (out, rank, tokens), choice, shifted, seed)| {
            let spec = *choice.get(&options(grid));
            let mut random = Random(seed);
            let (inputs, groups) = (grid.in_features(), grid.groups());
            let reach = f64::from(2 * grid.qmax() + 1);
            let mut scales = || random.array((out, groups), 0.5).mapv(|unit| unit + 1.0);
            let (initial_scale, scale) = (scales(), scales());
            let largest = f64::from(grid.bits().unsigned_max());
            let zero_point = random
                .array((out, groups), 0.5)
                .mapv(|unit| ((unit + 0.5) * (largest + 1.0)).floor().clamp(0.0, largest));
            Layer {
                spec,
                weight: random.array((out, inputs), reach),
                initial_scale: (spec.inner_scale() != InnerScale::Live).then_some(initial_scale),
                zero_point: (shifted && grid.bits().count() < 8).then_some(zero_point),
                lora_a: random.array((rank, inputs), 1.5),
                lora_b: random.array((out, rank), 1.5),
                scale,
                x: random.array((tokens, inputs), 1.0),
                d_y: random.array((tokens, out), 1.0),
            }
        },
    )
}

/// Short binary fractions: every intermediate result is exact in f32, and many are ties.
fn exact_layer() -> impl Strategy<Value = Layer<f64>> {
    (layer(), -2i32..=1, any::<u64>()).prop_map(|(mut layer, exponent, seed)| {
        let mut random = Random(seed);
        let scale = 2.0_f64.powi(exponent);
        layer.weight = random.lattice(layer.weight.dim(), scale / 16.0, 256);
        if let Some(initial_scale) = &mut layer.initial_scale {
            initial_scale.fill(scale);
        }
        layer.scale.fill(scale);
        layer.lora_a = random.lattice(layer.lora_a.dim(), 0.5, 4);
        layer.lora_b = random.lattice(layer.lora_b.dim(), 0.5, 4);
        layer.x = random.lattice(layer.x.dim(), 0.25, 8);
        layer.d_y = random.lattice(layer.d_y.dim(), 0.25, 8);
        layer
    })
}

/// Everything the layer computes, as f64.
fn all_results<T: Real>(layer: &Layer<T>) -> (Array2<i8>, Vec<Array2<f64>>) {
    let forward = layer.lr_qat().forward(layer.x.view()).unwrap();
    let backward = layer.lr_qat().backward(layer.x.view(), layer.d_y.view()).unwrap();
    let floats = [
        &forward.y,
        &forward.fake_quantized,
        &backward.d_x,
        &backward.d_lora_a,
        &backward.d_lora_b,
        &backward.d_scale,
    ];
    (forward.codes, floats.map(|array| array.mapv(T::value)).to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Property of (M6), for every combination of options.
    #[test]
    fn gradients_are_those_of_the_definition(layer in layer()) {
        let gradients = layer.lr_qat().backward(layer.x.view(), layer.d_y.view()).unwrap();
        assert_gradients(&Loss(&layer), &[
            with_gradient("x", &layer.x, &gradients.d_x),
            with_gradient("lora_a", &layer.lora_a, &gradients.d_lora_a),
            with_gradient("lora_b", &layer.lora_b, &gradients.d_lora_b),
            with_gradient("scale", &layer.scale, &gradients.d_scale),
        ]);
    }

    /// Property of (M7) C1, in both precisions, with scales below the floor among the others.
    #[test]
    fn merge_gives_the_weight_of_the_forward(layer in layer(), low in 0usize..4) {
        fn check<T: Real>(mut layer: Layer<T>, low: usize) {
            if let (Some(scale), true) =
                (layer.scale.iter_mut().nth(low), layer.initial_scale.is_some())
            {
                *scale = T::of(-0.5);
            }
            let forward = layer.lr_qat().forward(layer.x.view()).unwrap();
            let merged = layer.lr_qat().merge().unwrap();
            assert_eq!(merged.codes, forward.codes);
            assert!(merged.scale.iter().all(|&scale| scale >= T::of(SCALE_FLOOR)));
            let weight = Array2::from_shape_fn(merged.codes.dim(), |(o, i)| {
                let scale = merged.scale[[o, i / layer.spec.grid().group_size()]];
                T::of(f64::from(merged.codes[[o, i]])) * scale
            });
            for (merged, trained) in weight.iter().zip(&forward.fake_quantized) {
                assert_eq!(merged.value().to_bits(), trained.value().to_bits());
            }
            assert_eq!(linear(layer.x.view(), weight.view()).unwrap(), forward.y);
        }
        check(layer.clone(), low);
        check(layer.cast::<f32>(), low);
    }

    /// Property of (M5) C1: codes are those of the grid, and reach no further than a byte.
    #[test]
    fn codes_stay_on_the_grid(layer in layer()) {
        let codes = layer.lr_qat().merge().unwrap().codes;
        let (low, high) = layer.ends();
        for ((o, i), &code) in codes.indexed_iter() {
            let at = [o, i / layer.spec.grid().group_size()];
            prop_assert!((low[at]..=high[at]).contains(&f64::from(code)));
        }
    }

    /// Property of (M4) C2 to C4: what is stored gives phi back, within half a unit of the clipped
    /// argument.
    #[test]
    fn what_is_stored_gives_phi_back(layer in layer()) {
        let grid = layer.spec.grid();
        let (low, high) = layer.ends();
        for kind in [Downcast::Fixed8, Downcast::Int] {
            let scale = layer.scale.view();
            let zero_point = layer.zero_point.as_ref().map(|zero_point| zero_point.view());
            let result = downcast(layer.weight.view(), scale, zero_point, grid, kind);
            let Ok(Downcasted { phi, stored: Some(stored) }) = result else {
                prop_assert!(kind.check(grid.bits()).is_err());
                continue;
            };
            let (bytes, unit) = match stored {
                Stored::Fixed8(bytes) => (bytes, f64::from(1 << (8 - grid.bits().count()))),
                Stored::Int(packed) => {
                    let nibbles = PackedBits::new(4).unwrap();
                    (unpack_signed(packed.view(), nibbles, grid.in_features()).unwrap(), 1.0)
                }
            };
            for ((o, i), &byte) in bytes.indexed_iter() {
                let at = [o, i / grid.group_size()];
                let shift = low[at] - f64::from(grid.qmin());
                prop_assert_eq!(f64::from(byte) / unit + shift, phi[[o, i]]);
                let argument = layer.weight[[o, i]] / layer.scale[at];
                let clipped = argument.clamp(low[at], high[at]);
                prop_assert!((phi[[o, i]] - clipped).abs() <= 0.5 / unit);
            }
        }
    }

    /// Property of (M4) C3: the zero-point in the middle is the signed grid, in every result and
    /// in what is stored.
    #[test]
    fn the_zero_point_in_the_middle_is_the_signed_grid(mut layer in layer()) {
        let grid = *layer.spec.grid();
        prop_assume!(grid.bits().count() < 8);
        layer.zero_point = None;
        let mut middle = layer.clone();
        middle.zero_point = Some(Array2::from_elem(layer.scale.dim(), f64::from(-grid.qmin())));
        prop_assert_eq!(all_results(&layer), all_results(&middle));
        for kind in [Downcast::Fixed8, Downcast::Int] {
            let scale = layer.scale.view();
            let zero_point = middle.zero_point.as_ref().map(|zero_point| zero_point.view());
            let signed = downcast(layer.weight.view(), scale, None, &grid, kind);
            let shifted = downcast(layer.weight.view(), scale, zero_point, &grid, kind);
            prop_assert_eq!(signed.ok(), shifted.ok());
        }
    }

    /// Property of (M5) C3: the dialects differ by one step, and where the update is a tie only.
    #[test]
    fn dialects_differ_at_ties_of_the_update_alone(layer in exact_layer()) {
        let grid = *layer.spec.grid();
        prop_assume!(grid.bits().count() <= 4 && layer.initial_scale.is_some());
        let codes = |dialect| {
            let inner = InnerScale::Frozen(Downcast::Int);
            let spec = LrQatSpec::new(grid, inner, LrQatMask::Rounded, dialect).unwrap();
            Layer { spec, ..layer.clone() }.lr_qat().merge().unwrap().codes
        };
        let (paper, code) = (codes(LrQatDialect::Paper), codes(LrQatDialect::LrQatCode));
        let update =
            delta_weight(layer.lora_a.view(), layer.lora_b.view(), LORA_SCALING).unwrap();
        for ((paper, code), update) in paper.iter().zip(&code).zip(&update) {
            prop_assert!(paper == code || update.fract().abs() == 0.5);
            prop_assert!((paper - code).abs() <= 1);
        }
    }

    /// Property of (M5) and (M6): with a live inner scale and no update, LR-QAT is L4Q without an
    /// offset, and the mask before rounding is its mask.
    #[test]
    fn without_an_update_a_live_layer_is_l4q(mut layer in layer()) {
        let grid = *layer.spec.grid();
        layer.spec =
            LrQatSpec::new(grid, InnerScale::Live, LrQatMask::PreRound, LrQatDialect::Paper).unwrap();
        (layer.initial_scale, layer.zero_point) = (None, None);
        layer.lora_b.fill(0.0);
        let offset = Array2::zeros(layer.scale.dim());
        let l4q = L4q {
            weight: layer.weight.view(),
            lora_a: layer.lora_a.view(),
            lora_b: layer.lora_b.view(),
            scale: layer.scale.view(),
            offset: offset.view(),
            lora_scaling: LORA_SCALING,
            spec: grid,
        };
        let (codes, floats) = all_results(&layer);
        let forward = l4q.forward(layer.x.view()).unwrap();
        let backward = l4q.backward(layer.x.view(), layer.d_y.view(), GradScale::None).unwrap();
        prop_assert_eq!(codes, forward.codes);
        prop_assert_eq!(&floats[..3], [forward.y, forward.fake_quantized, backward.d_x]);
        prop_assert_eq!(&floats[5], &backward.d_scale);
    }

    /// Property of (M5) C4: the trained scale moves the output in proportion and no code.
    #[test]
    fn the_trained_scale_is_a_factor(layer in layer(), k in -8i32..8) {
        prop_assume!(layer.initial_scale.is_some());
        let factor = 2.0_f64.powi(k);
        let mut scaled = layer.clone();
        scaled.scale *= factor;
        let plain = layer.lr_qat().forward(layer.x.view()).unwrap();
        let forward = scaled.lr_qat().forward(layer.x.view()).unwrap();
        prop_assert_eq!(forward.codes, plain.codes);
        prop_assert_eq!(forward.y, plain.y * factor);
        let plain = layer.lr_qat().backward(layer.x.view(), layer.d_y.view()).unwrap();
        let backward = scaled.lr_qat().backward(layer.x.view(), layer.d_y.view()).unwrap();
        prop_assert_eq!(backward.d_lora_a, plain.d_lora_a * factor);
        prop_assert_eq!(backward.d_scale, plain.d_scale);
    }

    /// Property of (M4) to (M6): where no operation rounds, the precision does not matter.
    #[test]
    fn f32_equals_f64_on_short_binary_fractions(layer in exact_layer()) {
        prop_assert_eq!(all_results(&layer), all_results(&layer.cast::<f32>()));
    }

    /// Property of (Q10): nibbles of two rows never meet.
    #[test]
    fn rows_are_stored_apart(seed: u64, inputs in 1usize..8) {
        let grid = QuantSpec::new(Bits::new(4).unwrap(), None, inputs).unwrap();
        let weight = Random(seed).array((3, inputs), 12.0);
        let run = |weight: &Array2<f64>| {
            let scale = Array2::ones((weight.nrows(), 1));
            let result = downcast(weight.view(), scale.view(), None, &grid, Downcast::Int).unwrap();
            let Some(Stored::Int(packed)) = result.stored else { panic!("no nibbles") };
            packed
        };
        let packed = run(&weight);
        for (o, row) in weight.rows().into_iter().enumerate() {
            let alone = run(&row.to_owned().insert_axis(ndarray::Axis(0)));
            prop_assert_eq!(alone.row(0), packed.row(o));
        }
        let nibbles = unpack(packed.view(), PackedBits::new(4).unwrap(), inputs).unwrap();
        prop_assert_eq!(nibbles.dim(), weight.dim());
    }
}
