//! Generated tensors.

use ndarray::{Array, Array2, ArrayView, Dimension, ShapeBuilder};
use plumbline_reference::Real;
use plumbline_reference::spec::{Bits, Llama3Scaling, QuantSpec, RopeScaling, RopeSpec};
use proptest::collection::vec;
use proptest::prelude::*;

/// Values that depend on a seed alone (SplitMix64).
pub struct Random(pub u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `-amplitude..amplitude`, exactly representable in f32.
    pub fn array<D: Dimension>(
        &mut self,
        shape: impl ShapeBuilder<Dim = D>,
        amplitude: f64,
    ) -> Array<f64, D> {
        Array::from_shape_simple_fn(shape, || {
            let unit = (self.bits() >> 40) as f64 / (1u64 << 23) as f64 - 1.0;
            f64::from((amplitude * unit) as f32)
        })
    }

    /// Multiples of `unit` from `-count * unit` to `count * unit`.
    pub fn lattice(&mut self, shape: (usize, usize), unit: f64, count: u64) -> Array2<f64> {
        Array2::from_shape_simple_fn(shape, || {
            ((self.bits() % (2 * count + 1)) as f64 - count as f64) * unit
        })
    }

    /// Codes of an unsigned grid.
    pub fn codes(&mut self, shape: (usize, usize), spec: &QuantSpec) -> Array2<u8> {
        let count = spec.unsigned_max() as u64 + 1;
        Array2::from_shape_simple_fn(shape, || (self.bits() % count) as u8)
    }

    /// Token ids below `vocab`.
    pub fn tokens(&mut self, shape: (usize, usize), vocab: u64) -> Array2<i32> {
        Array2::from_shape_simple_fn(shape, || (self.bits() % vocab) as i32)
    }
}

/// The same values in another precision.
pub fn cast<T: Real, D: Dimension>(array: &Array<f64, D>) -> Array<T, D> {
    array.mapv(T::of)
}

/// A matrix of any shape as the view that an operation takes.
pub fn dynamic<T, D: Dimension>(array: &Array<T, D>) -> ArrayView<'_, T, ndarray::IxDyn> {
    array.view().into_dyn()
}

pub fn matrix(
    rows: usize,
    columns: usize,
    range: std::ops::Range<f64>,
) -> impl Strategy<Value = Array2<f64>> {
    vec(range, rows * columns)
        .prop_map(move |values| Array2::from_shape_vec((rows, columns), values).unwrap())
}

/// A quantizer with weights, of which some clip at every width.
#[derive(Debug, Clone)]
pub struct Quantizer {
    pub spec: QuantSpec,
    pub weight: Array2<f64>,
    pub scale: Array2<f64>,
    pub offset: Array2<f64>,
    pub d_output: Array2<f64>,
}

pub fn spec() -> impl Strategy<Value = QuantSpec> {
    (2u32..=8, 1usize..=4, 1usize..=3).prop_map(|(bits, group_size, groups)| {
        QuantSpec::new(Bits::new(bits).unwrap(), Some(group_size), group_size * groups).unwrap()
    })
}

/// Rotary frequencies of every type of scaling; of the last, some pairs are slow, some fast.
pub fn rope_spec() -> impl Strategy<Value = RopeSpec> {
    let llama3 = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 256,
    };
    let linear = RopeScaling::Linear { factor: 4.0 };
    prop_oneof![Just(RopeScaling::Default), Just(linear), Just(RopeScaling::Llama3(llama3))]
        .prop_map(|scaling| RopeSpec::new(1e4).unwrap().with_scaling(scaling).unwrap())
}

pub fn quantizer() -> impl Strategy<Value = Quantizer> {
    (spec(), 1usize..=3).prop_flat_map(|(spec, rows)| {
        let steps = f64::from(2 * spec.qmax());
        (
            matrix(rows, spec.in_features(), -steps..steps),
            matrix(rows, spec.groups(), 0.25..2.0),
            matrix(rows, spec.groups(), -2.0..2.0),
            matrix(rows, spec.in_features(), -1.0..1.0),
        )
            .prop_map(move |(weight, scale, offset, d_output)| Quantizer {
                spec,
                weight,
                scale,
                offset,
                d_output,
            })
    })
}
