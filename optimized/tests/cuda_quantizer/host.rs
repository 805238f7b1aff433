//! Quantizers on the host, from seeds, and the calls that a backend answers for them.

use plumbline::backend::Storage;
use plumbline::ops::fake_quantize::{FakeQuantize, FakeQuantizeArgs, LowRank};
use plumbline::ops::fake_quantize_backward::{FakeQuantizeBackward, FakeQuantizeGradients};
use plumbline::ops::widen::{FrozenWeight, WeightType};
use plumbline_reference::spec::{Bits, GradScale, QuantSpec};
use rand::Rng;

use crate::numbers::{bits, eighths, floats, random};

/// `(out, in, bits, group_size, rank)`
pub type Shape = (usize, usize, u32, Option<usize>, Option<usize>);

/// One row and one column, widths that are no multiple of 4 or of a tile, groups that cross tiles,
/// several tiles each way, ranks beyond what is staged at once.
pub const SHAPES: &[Shape] = &[
    (1, 1, 2, None, None),
    (1, 7, 4, None, Some(1)),
    (3, 10, 3, Some(5), Some(2)),
    (33, 12, 4, Some(4), Some(3)),
    (4, 160, 4, Some(32), Some(17)),
    (2, 172, 8, None, Some(4)),
    (36, 48, 5, Some(3), None),
    (5, 130, 4, Some(65), Some(16)),
    (2, 64, 7, Some(1), Some(0)),
    (34, 264, 4, Some(132), Some(5)),
    (2, 36, 4, Some(12), Some(256)),
    (65, 33, 6, Some(11), Some(4)),
    (1, 384, 4, Some(128), Some(2)),
];

/// The arguments of a call.
#[derive(Debug, Clone)]
pub struct Host {
    pub spec: QuantSpec,
    pub out: usize,
    pub rank: Option<usize>,
    pub lora_scaling: f32,
    /// What `weight` is uploaded as, which loses nothing of it.
    pub stored: WeightType,
    pub weight: Vec<f32>,
    pub lora_a: Vec<f32>,
    pub lora_b: Vec<f32>,
    pub scale: Vec<f32>,
    pub offset: Vec<f32>,
}

/// What `fake_quantize_backward` leaves, with every gradient asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    pub d_weight: Vec<f32>,
    pub d_scale: Vec<f32>,
    pub d_offset: Vec<f32>,
    pub d_lora_a: Vec<f32>,
    pub d_lora_b: Vec<f32>,
}

impl Host {
    fn empty(shape: Shape) -> Self {
        let (out, width, bits, group_size, rank) = shape;
        let spec = QuantSpec::new(Bits::new(bits).unwrap(), group_size, width).unwrap();
        let none = Vec::new;
        let (weight, lora_a, lora_b, scale, offset) = (none(), none(), none(), none(), none());
        let stored = WeightType::F32;
        Self { spec, out, rank, lora_scaling: 0.5, stored, weight, lora_a, lora_b, scale, offset }
    }

    #[allow(dead_code, reason = "not every test that has this file asks for it")]
    /// The same with its weight rounded to a type and uploaded in it.
    pub fn stored_as(self, stored: WeightType) -> Self {
        let weight = FrozenWeight::rounded(self.weight, stored).into_floats();
        Self { stored, weight, ..self }
    }

    pub fn groups(&self) -> usize {
        self.out * self.spec.groups()
    }

    pub fn len(&self) -> usize {
        self.out * self.spec.in_features()
    }

    /// Arguments anywhere, a third of them beyond the grid; some scales below the floor.
    pub fn rough(shape: Shape, seed: u64) -> Self {
        let (mut host, mut random) = (Self::empty(shape), random(seed));
        let rank = host.rank.unwrap_or(0);
        host.lora_a = floats(&mut random, rank * host.spec.in_features(), 0.3);
        host.lora_b = floats(&mut random, host.out * rank, 0.3);
        host.weight = floats(&mut random, host.len(), 1.0);
        host.offset = floats(&mut random, host.groups(), 0.05);
        let unit = 1.5 / f32::powi(2.0, host.spec.bits().count() as i32);
        host.scale = (0..host.groups())
            .map(|g| match g % 7 {
                5 => [1e-9, 0.0, -0.25, 1e-8][g / 7 % 4],
                _ => unit * random.random_range(0.5..1.5),
            })
            .collect();
        host
    }

    /// Values in eighths on grids of powers of two: arguments are exact, many are ties or lie on an
    /// end, and every sum of the backward pass is exact in any order.
    pub fn dyadic(shape: Shape, seed: u64) -> Self {
        let (mut host, mut random) = (Self::empty(shape), random(seed));
        let rank = host.rank.unwrap_or(0);
        // Whole numbers, so that the update keeps the arguments on a coarse grid.
        let mut whole = |len| (0..len).map(|_| random.random_range(-2..=2i32) as f32).collect();
        host.lora_a = whole(rank * host.spec.in_features());
        host.lora_b = whole(host.out * rank);
        let reach = 16 * host.spec.qmax();
        host.weight = eighths(&mut random, host.len(), reach.max(40));
        host.offset = eighths(&mut random, host.groups(), 8);
        host.scale =
            (0..host.groups()).map(|_| [0.5, 1.0, 2.0][random.random_range(0..3)]).collect();
        host
    }

    /// `v` of every element, by the formula of the trait.
    pub fn arguments(&self) -> Vec<f32> {
        let (width, size) = (self.spec.in_features(), self.spec.group_size());
        let rank = self.rank.unwrap_or(0);
        (0..self.len())
            .map(|e| {
                let (o, i) = (e / width, e % width);
                let mut sum = 0.0f32;
                for r in 0..rank {
                    sum += self.lora_b[o * rank + r] * self.lora_a[r * width + i];
                }
                let combined = match rank {
                    0 => self.weight[e],
                    _ => self.weight[e] + self.lora_scaling * sum,
                };
                let scale = self.scale[e / size];
                (combined - self.offset[e / size]) / if scale < 1e-8 { 1e-8 } else { scale }
            })
            .collect()
    }

    pub fn with<B: Storage, R>(
        &self,
        backend: &B,
        call: impl FnOnce(&FakeQuantizeArgs<'_, B>) -> R,
    ) -> R {
        let up = |values: &[f32]| backend.upload(values).unwrap();
        let weight = FrozenWeight::rounded(self.weight.clone(), self.stored);
        let weight = weight.upload(backend).unwrap();
        let (scale, offset) = (up(&self.scale), up(&self.offset));
        let (lora_a, lora_b) = (up(&self.lora_a), up(&self.lora_b));
        let low_rank = self.rank.map(|rank| LowRank {
            lora_a: &lora_a,
            lora_b: &lora_b,
            rank,
            lora_scaling: self.lora_scaling,
        });
        call(&FakeQuantizeArgs {
            spec: self.spec,
            out_features: self.out,
            weight: weight.view(),
            low_rank,
            scale: &scale,
            offset: &offset,
        })
    }

    /// Output and codes; an error's text, whenever the backend tells it.
    pub fn fake_quantize<B: FakeQuantize>(
        &self,
        backend: &B,
    ) -> Result<(Vec<f32>, Vec<i8>), String> {
        self.with(backend, |args| {
            let mut output = backend.zeros(self.len()).unwrap();
            let mut codes = backend.zero_codes(self.len()).unwrap();
            backend.fake_quantize(args, &mut output, Some(&mut codes))?;
            let quantized = backend.download(&output, self.len())?;
            backend.clear(&mut output)?;
            backend.fake_quantize(args, &mut output, None)?;
            assert_eq!(bits(&backend.download(&output, self.len())?), bits(&quantized));
            Ok((quantized, backend.download_codes(&codes)?))
        })
        .map_err(|error: plumbline::error::Error| error.to_string())
    }

    #[allow(dead_code, reason = "not every test that has this file asks for it")]
    /// All gradients, each added to `start` of its own.
    pub fn backward<B: FakeQuantizeBackward>(
        &self,
        backend: &B,
        grad_scale: GradScale,
        start: &Gradients,
    ) -> Result<Gradients, String> {
        let up = |values: &[f32]| backend.upload(values).unwrap();
        let mut buffers = [
            up(&start.d_weight),
            up(&start.d_scale),
            up(&start.d_offset),
            up(&start.d_lora_a),
            up(&start.d_lora_b),
        ];
        let lens = start.all().map(|values| values.len());
        let done = self.with(backend, |args| {
            let [d_weight, d_scale, d_offset, d_lora_a, d_lora_b] = &mut buffers;
            let d_low_rank = self.rank.map(|_| (d_lora_a, d_lora_b));
            let gradients = FakeQuantizeGradients {
                d_scale: Some(d_scale),
                d_offset: Some(d_offset),
                d_low_rank,
            };
            backend.fake_quantize_backward(args, grad_scale, d_weight, gradients)
        });
        let down = |k: usize| backend.download(&buffers[k], lens[k]);
        done.and_then(|()| {
            Ok(Gradients {
                d_weight: down(0)?,
                d_scale: down(1)?,
                d_offset: down(2)?,
                d_lora_a: down(3)?,
                d_lora_b: down(4)?,
            })
        })
        .map_err(|error| error.to_string())
    }

    /// A gradient of the output and old content of the buffers.
    pub fn start(&self, of: impl Fn(u64, usize) -> Vec<f32>) -> Gradients {
        Gradients {
            d_weight: of(1, self.len()),
            d_scale: of(2, self.groups()),
            d_offset: of(3, self.groups()),
            d_lora_a: of(4, self.lora_a.len()),
            d_lora_b: of(5, self.lora_b.len()),
        }
    }
}

impl Gradients {
    pub fn all(&self) -> [&Vec<f32>; 5] {
        [&self.d_weight, &self.d_scale, &self.d_offset, &self.d_lora_a, &self.d_lora_b]
    }
}
