//! Random inputs for generated cases: always f32 numbers, always the same for the same seed.

use plumbline_reference::spec::{Bits, GradScale, MaskRule};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::params::Params;
use crate::precision::Precision;
use crate::tensor::{Data, Tensor, Tensors};

/// A seeded source of shapes, parameters and tensors.
pub struct Sampler {
    rng: ChaCha8Rng,
}

/// The shape of a quantized weight.
#[derive(Debug, Clone, Copy)]
pub struct QuantizerShape {
    /// Width of a code.
    pub bits: Bits,
    /// Output rows.
    pub out_features: usize,
    /// Inputs, a multiple of the group size.
    pub in_features: usize,
    /// Consecutive inputs that share a scale.
    pub group_size: usize,
    /// Whether the case leaves `group_size` out: one group per row.
    pub per_row: bool,
}

impl QuantizerShape {
    /// `bits` and, where a row has several groups, `group_size`.
    pub fn params(&self) -> Params {
        let group_size = if self.per_row { Value::Null } else { json!(self.group_size) };
        Params::from_iter([("bits", json!(self.bits.count())), ("group_size", group_size)])
    }

    /// `[out, in]`
    pub fn weight_shape(&self) -> [usize; 2] {
        [self.out_features, self.in_features]
    }
}

impl Sampler {
    /// The case `index` of an operation is the same whatever else is generated beside it.
    pub fn new(seed: u64, operation: &str, index: u64) -> Self {
        let mut key = [0_u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.to_le_bytes());
        // FNV-1a, so that operations draw from different streams.
        let hash = operation.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        key[16..24].copy_from_slice(&hash.to_le_bytes());
        Self { rng: ChaCha8Rng::from_seed(key) }
    }

    /// From `low` to `high`, both included.
    pub fn size(&mut self, low: usize, high: usize) -> usize {
        self.rng.random_range(low..=high)
    }

    /// One of the choices.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.random_range(0..choices.len())]
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.rng.random_range(0.0..1.0) < probability
    }

    /// One draw from the standard normal distribution.
    fn draw(&mut self) -> f64 {
        // Box and Muller; 1 - u keeps the logarithm away from 0.
        let (u, v): (f64, f64) = (self.rng.random_range(0.0..1.0), self.rng.random_range(0.0..1.0));
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Normally distributed around zero.
    pub fn normal(&mut self, shape: &[usize], deviation: f64) -> Tensor {
        self.around(shape, 0.0, deviation)
    }

    /// Normally distributed around a mean.
    pub fn around(&mut self, shape: &[usize], mean: f64, deviation: f64) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f64> = (0..count).map(|_| mean + deviation * self.draw()).collect();
        Tensor::from_f64s(shape.to_vec(), values.into_iter(), Precision::F32)
    }

    /// Any width, rows of one to four groups, groups of one to sixteen.
    pub fn quantizer(&mut self) -> QuantizerShape {
        let bits = Bits::new(self.size(2, 8) as u32).expect("2 to 8 bits");
        let group_size = self.pick(&[1, 2, 3, 4, 5, 8, 16]);
        let per_row = self.chance(0.2);
        let groups = if per_row { 1 } else { self.size(1, 4) };
        let in_features = group_size * groups;
        let out_features = self.size(1, 5);
        QuantizerShape { bits, out_features, in_features, group_size, per_row }
    }

    /// `weight, scale, offset`: some elements beyond the grid, offsets that are not zero, and in
    /// every fourth case a lattice on which arguments are exact ties and exact ends of the grid.
    pub fn quantized_weight(&mut self, shape: &QuantizerShape) -> Tensors {
        let groups = [shape.out_features, shape.in_features / shape.group_size];
        let mut weight = self.normal(&shape.weight_shape(), 0.05);
        let qmax = f64::from(shape.bits.qmax());
        let lattice = self.chance(0.25);
        let scales: Vec<f64> = (0..groups[0] * groups[1])
            .map(|_| {
                let reach = 0.1 / qmax * self.rng.random_range(0.4..1.2);
                if lattice { 2_f64.powi(reach.log2().floor() as i32) } else { reach }
            })
            .collect();
        let scale = Tensor::from_f64s(groups.to_vec(), scales.into_iter(), Precision::F32);
        let offsets: Vec<f64> = (0..scale.len())
            .map(|group| {
                let steps = if lattice {
                    0.25 * self.rng.random_range(-8..=8) as f64
                } else {
                    0.4 * qmax * self.draw()
                };
                steps * scale.value(group)
            })
            .collect();
        let offset = Tensor::from_f64s(groups.to_vec(), offsets.into_iter(), Precision::F32);
        if let Data::F32(weights) = weight.data_mut() {
            for (index, weight) in weights.iter_mut().enumerate() {
                let group = index / shape.group_size;
                let (scale, offset) = (scale.value(group), offset.value(group));
                if lattice {
                    let quarters = self.rng.random_range(-5.0 * qmax..=5.0 * qmax).floor();
                    *weight = (offset + 0.25 * quarters * scale) as f32;
                } else if index == 0 || self.chance(0.05) {
                    // Beyond the end of the grid, whatever the draw was.
                    let sign = self.pick(&[-1.0, 1.0]);
                    *weight = (offset + sign * scale * (qmax + 2.0 + self.draw().abs())) as f32;
                }
            }
        }
        crate::ops::tensors([("weight", weight), ("scale", scale), ("offset", offset)])
    }

    /// In every tenth case one scale of a quantizer is below the floor.
    pub fn lower_a_scale(&mut self, inputs: &mut Tensors) {
        if !self.chance(0.1) {
            return;
        }
        if let Some(Data::F32(scales)) = inputs.get_mut("scale").map(Tensor::data_mut) {
            let group = self.rng.random_range(0..scales.len());
            scales[group] = self.pick(&[0.0, -0.01, 1e-9]);
        }
    }

    /// `lora_a, lora_b` for a weight, and `lora_scaling`.
    pub fn add_low_rank(
        &mut self,
        [out_features, in_features]: &[usize; 2],
        params: &mut Params,
        inputs: &mut Tensors,
    ) {
        let rank = self.pick(&[1, 2, 4, 8]);
        // 0.3 is not a binary32: subjects round the constant once.
        let lora_scaling = self.pick(&[2.0, 0.5, 1.0, 0.3]);
        params.0.insert("lora_scaling".to_owned(), json!(lora_scaling));
        inputs.insert("lora_a".to_owned(), self.normal(&[rank, *in_features], 0.1));
        // At the start of training the update is zero, and exact ties stay exact.
        let deviation = if self.chance(0.2) { 0.0 } else { 0.1 };
        inputs.insert("lora_b".to_owned(), self.normal(&[*out_features, rank], deviation));
    }

    /// `grad_scale`, or nothing, which means `none`.
    pub fn add_grad_scale(&mut self, params: &mut Params) {
        use GradScale::{LitGpt, Lsq, None as Plain, Peft};
        if self.chance(0.8) {
            let grad_scale = self.pick(&[Plain, Lsq, LitGpt, Peft]);
            params.0.insert("grad_scale".to_owned(), json!(grad_scale));
        }
    }

    /// `mask`, or nothing, which means `pre_round`.
    pub fn add_mask(&mut self, params: &mut Params) {
        if self.chance(0.4) {
            let mask = self.pick(&MaskRule::ALL);
            params.0.insert("mask".to_owned(), json!(mask));
        }
    }

    /// One group whose extremes are a whole number of steps apart, a power of two each, and whose
    /// elements are quarters of a step: every quotient is exact, ties and ends among them. The range
    /// is wider than the grid by the factor `reach`.
    pub fn stepped_group(&mut self, size: usize, bits: Bits, reach: f64) -> Vec<f32> {
        let steps = f64::from(bits.unsigned_max());
        let step = 2_f64.powi(self.rng.random_range(-8..=1));
        // Half steps below zero put the zero point on a tie.
        let low = 0.5 * self.rng.random_range(0..=2 * bits.unsigned_max()) as f64;
        let (low, high) = (-low * reach, (steps - low) * reach);
        let mut group: Vec<f64> =
            (0..size).map(|_| (self.rng.random_range(low..=high) * 4.0).floor() / 4.0).collect();
        group[0] = low;
        group[size - 1] = high;
        group.into_iter().map(|element| (element * step) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plumbline_reference::spec::SCALE_FLOOR;

    #[test]
    fn a_seed_gives_the_same_numbers_and_another_seed_others() {
        let draw = |seed, operation, index| Sampler::new(seed, operation, index).normal(&[8], 1.0);
        assert_eq!(draw(1, "rope.forward", 0), draw(1, "rope.forward", 0));
        assert_ne!(draw(1, "rope.forward", 0), draw(2, "rope.forward", 0));
        assert_ne!(draw(1, "rope.forward", 0), draw(1, "rope.forward", 1));
        assert_ne!(draw(1, "rope.forward", 0), draw(1, "rope.backward", 0));
    }

    #[test]
    fn quantized_weights_leave_the_grid_somewhere_and_offsets_are_not_zero() {
        let mut below = 0;
        for index in 0..40 {
            let mut sampler = Sampler::new(3, "test", index);
            let shape = sampler.quantizer();
            let mut tensors = sampler.quantized_weight(&shape);
            assert!(tensors["scale"].values().all(|scale| scale > 0.0));
            sampler.lower_a_scale(&mut tensors);
            below += tensors["scale"].values().filter(|scale| *scale < SCALE_FLOOR).count();
            assert!(tensors["offset"].values().any(|offset| offset != 0.0));
            assert_eq!(tensors["weight"].first_not_f32(), None);
        }
        assert!(below > 0, "some scale is below the floor");
    }
}
