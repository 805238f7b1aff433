//! What the methods beside L4Q ask of the device, beside the cpu backend: their operations one by
//! one, and every method's layer forward and backward.

mod affine;
mod layers;
mod lr_qat;
mod nf4;
#[path = "../common/numbers.rs"]
mod numbers;

use numbers::random;
use plumbline::cuda::{Cuda, Interpreter};
use plumbline_reference::spec::{Bits, QuantSpec};
use rand::Rng;

/// A fresh one each time, so that no buffer is larger than its shape asks for.
fn cuda() -> Cuda<Interpreter> {
    Cuda::new(Interpreter::with_orders(3)).unwrap()
}

fn spec(width: usize, group_size: usize, count: u32) -> QuantSpec {
    QuantSpec::new(Bits::new(count).unwrap(), Some(group_size), width).unwrap()
}

/// `(out, in, bits, group_size)`: one row and one column, widths that are no multiple of 4 or of a
/// tile, groups that cross tiles, several tiles each way, groups of more weights than half a warp.
const SHAPES: &[(usize, usize, u32, usize)] = &[
    (1, 1, 2, 1),
    (3, 10, 3, 5),
    (33, 12, 4, 4),
    (4, 160, 4, 32),
    (2, 172, 8, 172),
    (36, 48, 5, 3),
    (5, 130, 4, 65),
    (2, 64, 7, 1),
    (34, 264, 2, 132),
    (2, 1100, 4, 20),
    (3, 301, 3, 7),
];

/// Codes of the grid, as floats; odd ones turn a tie where they are added too early.
fn zero_points(seed: u64, len: usize, spec: QuantSpec) -> Vec<f32> {
    let mut random = random(seed);
    (0..len).map(|_| random.random_range(0..=spec.unsigned_max()) as f32).collect()
}

/// Scales around `unit`; some at, below or far below the floor.
fn scales(seed: u64, len: usize, unit: f32) -> Vec<f32> {
    let mut random = random(seed);
    let mut scale = |g: usize| match g % 7 {
        5 => [1e-9, 0.0, -0.25, 1e-8][g / 7 % 4],
        _ => unit * random.random_range(0.5..1.5),
    };
    (0..len).map(&mut scale).collect()
}

/// Powers of two, by which quotients and products are exact.
fn powers(seed: u64, len: usize) -> Vec<f32> {
    let mut random = random(seed);
    (0..len).map(|_| [0.5, 1.0, 2.0][random.random_range(0..3)]).collect()
}
