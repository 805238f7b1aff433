//! A new model's first weights.

use std::sync::Arc;

use plumbline_reference::spec::LlamaConfig;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::backend::Backend;
use crate::error::Result;
use crate::methods::Dense;
use crate::model::{Llama, Projection};

/// A model to be trained from scratch: norms 1; tables and matrices uniform with standard deviation
/// `0.5 / sqrt(hidden_size)`; the two matrices that write to the residual stream divided by
/// `sqrt(2 * num_hidden_layers)`, so that the stream's variance does not grow with depth.
///
/// # Errors
/// When the device has no room.
pub fn new_model<B: Backend>(
    backend: Arc<B>,
    config: &LlamaConfig,
    seed: u64,
) -> Result<Llama<B, Dense<B>>> {
    let deviation = 0.5 / (config.hidden_size as f32).sqrt();
    let uniform = |len: usize, deviation: f32, random: &mut ChaCha8Rng| -> Vec<f32> {
        let bound = 3f32.sqrt() * deviation;
        (0..len).map(|_| random.random_range(-bound..bound)).collect()
    };
    let mut tables = ChaCha8Rng::seed_from_u64(seed);
    let mut matrices = ChaCha8Rng::seed_from_u64(seed);
    matrices.set_stream(1);
    let device = backend.clone();
    let residual = 1.0 / (2.0 * config.num_hidden_layers as f32).sqrt();
    Llama::build(
        backend,
        config.clone(),
        true,
        |_, shape| {
            let len = shape.iter().product();
            Ok(if shape.len() == 1 { vec![1.0; len] } else { uniform(len, deviation, &mut tables) })
        },
        |linear: &Projection| {
            let writes = linear.name.ends_with("o_proj") || linear.name.ends_with("down_proj");
            let deviation = if writes { deviation * residual } else { deviation };
            let shape = (linear.out_features, linear.in_features);
            let weight = uniform(shape.0 * shape.1, deviation, &mut matrices);
            Dense::new(&*device, &weight, shape, true)
        },
    )
}
