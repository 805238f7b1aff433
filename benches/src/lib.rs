//! The shapes that every measurement uses, the seeded numbers in them, and the layer that is timed.
//!
//! The layer is one amid its training: `lora_b` is no longer zero, offsets are no longer zero, and
//! a few weights are clipped, so that no branch of the backward is idle. The peers in `peers/` draw
//! their numbers from the same distributions.

use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::error::Result;
use plumbline::methods::{
    AffineTensors, BackwardCall, L4q, L4qOptions, L4qTensors, LinearMethod, LrQat, LrQatOptions,
    LrQatTensors, QaLora, QaLoraOptions, Scratch,
};
use plumbline::ops::Write;
use plumbline::ops::init_scale::InitScale;
use plumbline::ops::widen::FrozenWeight;
use plumbline_reference::spec::{
    Bits, Downcast, GradScale, GroupPool, InitScaleRule, InnerScale, LrQatDialect, LrQatMask,
    LrQatSpec, Pool, QaLoraDialect, QuantSpec, RangeSearch, RtnSpec, SpecError, SymmetricScale,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Final multiplier of the update, alpha / rank.
pub const LORA_SCALING: f32 = 2.0;

/// How far `lora_b` has moved from its start at zero.
const LORA_B_DEVIATION: f32 = 0.002;

/// Seed of every number.
const SEED: u64 = 1;

/// Sizes of one linear layer and of what passes through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of `x`.
    pub tokens: usize,
    /// Columns of `x` and of the weight.
    pub in_features: usize,
    /// Rows of the weight.
    pub out_features: usize,
    /// Inner dimension of the update.
    pub rank: usize,
    /// Consecutive inputs that share a scale.
    pub group_size: usize,
    /// Width of a code.
    pub bits: u32,
}

/// The L4Q linear layers that are measured, the smaller one first.
pub const L4Q_LINEAR: [Shape; 2] = [
    Shape { tokens: 512, in_features: 576, out_features: 1536, rank: 16, group_size: 64, bits: 4 },
    Shape {
        tokens: 512,
        in_features: 2048,
        out_features: 2048,
        rank: 16,
        group_size: 128,
        bits: 4,
    },
];

/// Projections of LLaMA-2 7B, for GPUs.
pub const LLAMA_2_7B: [Shape; 2] = [
    Shape {
        tokens: 2048,
        in_features: 4096,
        out_features: 4096,
        rank: 16,
        group_size: 128,
        bits: 4,
    },
    Shape {
        tokens: 2048,
        in_features: 4096,
        out_features: 11008,
        rank: 16,
        group_size: 128,
        bits: 4,
    },
];

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}_group_{}", self.in_features, self.out_features, self.group_size)
    }
}

impl Shape {
    /// The layer's grid.
    ///
    /// # Errors
    /// For a width that there is not, or a group that would cross a row.
    pub fn spec(&self) -> Result<QuantSpec, SpecError> {
        QuantSpec::new(Bits::new(self.bits)?, Some(self.group_size), self.in_features)
    }
}

/// Every tensor of one step of a layer, on the host. The same shape gives the same numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// Sizes.
    pub shape: Shape,
    /// Bits and groups.
    pub spec: QuantSpec,
    /// `[tokens, in]`.
    pub x: Vec<f32>,
    /// `[out, in]`.
    pub weight: Vec<f32>,
    /// `lora_a, lora_b, scale, offset`.
    pub trained: L4qTensors,
    /// `[tokens, out]`.
    pub d_y: Vec<f32>,
}

impl Inputs {
    /// Draws the tensors. `scale` is what rule `l4q` gives for the weight alone, so the grid's ends
    /// are the group's extremes, and the update pushes about half of those out of range.
    ///
    /// # Errors
    /// As [`Shape::spec`].
    pub fn new(shape: Shape) -> Result<Self> {
        let Shape { tokens, in_features, out_features, rank, .. } = shape;
        let spec = shape.spec()?;
        let groups = out_features * spec.groups();
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let x = normal(tokens * in_features, 1.0, &mut random);
        let weight = normal(out_features * in_features, 0.02, &mut random);
        let (mut scale, mut offset) = (vec![0.0; groups], vec![0.0; groups]);
        Cpu.init_scale(spec, InitScaleRule::L4q, out_features, &weight, &mut scale, &mut offset)?;
        let trained = L4qTensors {
            lora_a: normal(rank * in_features, 1.0 / (in_features as f32).sqrt(), &mut random),
            lora_b: normal(out_features * rank, LORA_B_DEVIATION, &mut random),
            scale,
            offset: normal(groups, 0.001, &mut random),
        };
        let d_y = normal(tokens * out_features, 1.0, &mut random);
        Ok(Self { shape, spec, x, weight, trained, d_y })
    }
}

/// Normally distributed around zero, by the transformation of Box and Muller.
fn normal(len: usize, deviation: f32, random: &mut impl Rng) -> Vec<f32> {
    let mut draw = || {
        let (u, angle) = (random.random::<f32>(), std::f32::consts::TAU * random.random::<f32>());
        // 1 - u keeps the logarithm away from 0.
        deviation * (-2.0 * (1.0 - u).ln()).sqrt() * angle.cos()
    };
    (0..len).map(|_| draw()).collect()
}

impl Inputs {
    /// The L4Q layer.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn l4q<B: Backend>(&self, backend: &B) -> Result<L4q<B>> {
        let options = L4qOptions {
            spec: self.spec,
            rank: self.shape.rank,
            lora_scaling: LORA_SCALING,
            init: InitScaleRule::L4q,
            grad_scale: GradScale::None,
            scale_rule: None,
        };
        let weight = FrozenWeight::F32(self.weight.clone());
        L4q::from_tensors(backend, &weight, self.shape.out_features, options, &self.trained)
    }

    /// The LR-QAT layer, its frozen weight in a byte (`fixed8`).
    ///
    /// # Errors
    /// For 8 bits, which `fixed8` has no fraction for; when the device has no room.
    pub fn lr_qat<B: Backend>(&self, backend: &B) -> Result<LrQat<B>> {
        let Shape { in_features, out_features, rank, .. } = self.shape;
        let inner_scale = InnerScale::Frozen(Downcast::Fixed8);
        let spec =
            LrQatSpec::new(self.spec, inner_scale, LrQatMask::default(), LrQatDialect::default())?;
        let init = InitScaleRule::L4q;
        let scale_rule = None;
        let options = LrQatOptions { spec, rank, lora_scaling: LORA_SCALING, init, scale_rule };
        let scale = self.trained.scale.clone();
        // The update is in steps of the grid; this one moves a weight by about a fifth of one.
        let in_steps = 0.025 * (in_features as f32).sqrt() / LORA_B_DEVIATION;
        let tensors = LrQatTensors {
            initial_scale: Some(scale.clone()),
            zero_point: None,
            lora_a: self.trained.lora_a.clone(),
            lora_b: self.trained.lora_b.iter().map(|b| in_steps * b).collect(),
            scale,
        };
        LrQat::from_tensors(backend, &self.weight, out_features, options, &tensors)
    }

    /// The QA-LoRA layer on the weight rounded to nearest.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn qa_lora<B: Backend>(&self, backend: &B) -> Result<QaLora<B>> {
        let Shape { out_features, rank, group_size, .. } = self.shape;
        let convention = SymmetricScale::default();
        let rtn = RtnSpec { symmetric: false, range: RangeSearch::MinMax, convention };
        let base =
            AffineTensors::round_to_nearest(&Cpu, &self.weight, out_features, self.spec, rtn)?;
        let pool = GroupPool::new(Pool::Sum, QaLoraDialect::default())?;
        let options = QaLoraOptions { rank, lora_scaling: LORA_SCALING, pool };
        // As wide as the groups are many, and so much larger.
        let larger = (group_size as f32).sqrt();
        let drawn = &self.trained.lora_a[..rank * self.spec.groups()];
        let lora_a: Vec<f32> = drawn.iter().map(|a| larger * a).collect();
        QaLora::from_tensors(backend, &base, options, &lora_a, &self.trained.lora_b)
    }
}

/// A layer on a backend with all the memory of its step, as a model in training holds it.
pub struct Layer<B: Backend, M> {
    backend: B,
    tokens: usize,
    layer: M,
    scratch: Scratch<B>,
    x: B::Floats,
    y: B::Floats,
    d_y: B::Floats,
    d_x: B::Floats,
}

impl<B: Backend, M: LinearMethod<B>> Layer<B, M> {
    /// Moves the inputs to the backend with the layer that `make` makes of them, as
    /// [`Inputs::l4q`] does; nothing of them stays on the host.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        backend: B,
        inputs: Inputs,
        make: impl FnOnce(&Inputs, &B) -> Result<M>,
    ) -> Result<Self> {
        let layer = make(&inputs, &backend)?;
        let Inputs { shape, spec: _, x, weight, trained, d_y } = inputs;
        drop((weight, trained));
        let (x, d_y) = (upload(&backend, x)?, upload(&backend, d_y)?);
        Ok(Self {
            tokens: shape.tokens,
            scratch: layer.scratch_need().allocate(&backend, shape.tokens)?,
            y: backend.zeros(shape.tokens * shape.out_features)?,
            d_x: backend.zeros(shape.tokens * shape.in_features)?,
            backend,
            layer,
            x,
            d_y,
        })
    }

    /// `y` from `x`.
    ///
    /// # Errors
    /// When the device failed.
    pub fn forward(&mut self) -> Result<()> {
        let Self { backend, tokens, layer, scratch, x, y, .. } = self;
        layer.forward(backend, *tokens, x, y, scratch)
    }

    /// `d_x` from `d_y`; the gradients of the trained tensors are added to their buffers, as
    /// in the micro-batches of one optimizer step.
    ///
    /// # Errors
    /// When the device failed.
    pub fn backward(&mut self) -> Result<()> {
        let Self { backend, tokens, layer, scratch, x, d_y, d_x, .. } = self;
        let call = BackwardCall::new(*tokens, x, d_y, d_x, Write::Replace);
        layer.backward(backend, call, scratch)
    }

    /// Returns when the device has done everything that it was asked so far.
    ///
    /// # Errors
    /// When the device failed.
    pub fn wait(&self) -> Result<()> {
        self.backend.download(&self.y, 1)?;
        Ok(())
    }

    /// Sets the gradients of the trained tensors to zero, as an optimizer step does.
    ///
    /// # Errors
    /// When the device failed.
    pub fn clear_gradients(&mut self) -> Result<()> {
        for trained in self.layer.trainable() {
            self.backend.clear(trained.gradient)?;
        }
        Ok(())
    }
}

/// Takes the host's copy, so that it is gone before the next buffer is made.
fn upload<B: Backend>(backend: &B, values: Vec<f32>) -> Result<B::Floats> {
    backend.upload(&values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, ArrayView2};
    use plumbline_reference::lora::delta_weight;
    use plumbline_reference::straight_through::fake_quantize_backward;

    const SMALL: Shape =
        Shape { tokens: 3, in_features: 192, out_features: 40, rank: 4, group_size: 64, bits: 4 };

    fn matrix(values: &[f32], rows: usize) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape((rows, values.len() / rows), values).unwrap()
    }

    #[test]
    fn a_few_weights_clip_in_every_shape() {
        for shape in [SMALL, L4Q_LINEAR[0]] {
            let Inputs { spec, weight, trained, .. } = Inputs::new(shape).unwrap();
            let out = shape.out_features;
            let lora_a = matrix(&trained.lora_a, shape.rank);
            let delta = delta_weight(lora_a, matrix(&trained.lora_b, out), LORA_SCALING.into());
            let combined = &matrix(&weight, out) + &delta.unwrap();
            // The gradient of a clipped weight is zero, that of any other is passed on.
            let passed = fake_quantize_backward(
                combined.view(),
                matrix(&trained.scale, out),
                matrix(&trained.offset, out),
                Array2::ones(combined.dim()).view(),
                &spec,
                GradScale::None,
            );
            let clipped = passed.unwrap().d_weight.iter().filter(|d| **d == 0.0).count();
            let share = clipped as f64 / combined.len() as f64;
            assert!((0.001..0.05).contains(&share), "{shape}: {share} of the weights clip");
        }
    }

    /// What is trained, after a step that must have moved every gradient.
    fn step<M: LinearMethod<Cpu>>(mut layer: Layer<Cpu, M>) -> Vec<String> {
        layer.forward().unwrap();
        layer.backward().unwrap();
        assert!(layer.y.iter().all(|y| *y != 0.0));
        assert!(layer.d_x.iter().all(|d| *d != 0.0));
        let idle = |d: &&f32| **d == 0.0;
        let names: Vec<String> = layer
            .layer
            .trainable()
            .into_iter()
            .map(|trained| {
                let zeros = trained.gradient.iter().filter(idle).count();
                // A group without a clipped weight has an offset without a gradient.
                let allowed = if trained.name == "offset" { trained.len - 1 } else { 0 };
                assert!(zeros <= allowed, "{}: {zeros} of {} zeros", trained.name, trained.len);
                trained.name
            })
            .collect();
        layer.clear_gradients().unwrap();
        for trained in layer.layer.trainable() {
            assert!(trained.gradient.iter().all(|d| *d == 0.0), "{}", trained.name);
        }
        names
    }

    #[test]
    fn a_step_makes_every_gradient_and_clearing_forgets_them() {
        let inputs = || Inputs::new(SMALL).unwrap();
        let l4q = step(Layer::new(Cpu, inputs(), Inputs::l4q).unwrap());
        assert_eq!(l4q, ["lora_a", "lora_b", "scale", "offset"]);
        let lr_qat = step(Layer::new(Cpu, inputs(), Inputs::lr_qat).unwrap());
        assert_eq!(lr_qat, ["lora_a", "lora_b", "scale"]);
        let qa_lora = step(Layer::new(Cpu, inputs(), Inputs::qa_lora).unwrap());
        assert_eq!(qa_lora, ["lora_a", "lora_b"]);
    }
}
