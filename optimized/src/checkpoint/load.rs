//! A model folder as a model that runs.

use std::sync::Arc;

use super::folder::ModelFolder;
use crate::backend::Backend;
use crate::error::Result;
use crate::methods::{Affine, Dense, Frozen, Merged, Targeted};
use crate::model::{Llama, Projection};

/// A model for evaluation, in the representation that its folder holds.
pub enum LoadedModel<B: Backend> {
    /// Full precision.
    Dense(Llama<B, Dense<B>>),
    /// Signed codes with an offset.
    Merged(Llama<B, Targeted<B, Merged<B>>>),
    /// Unsigned codes with a zero point.
    Affine(Llama<B, Targeted<B, Affine<B>>>),
}

impl ModelFolder {
    /// The model for evaluation.
    ///
    /// # Errors
    /// `File` naming the tensor that cannot be used.
    pub fn load<B: Backend>(&self, backend: Arc<B>) -> Result<LoadedModel<B>> {
        let config = self.config().clone();
        let tensor = |name: &str, shape: &[usize]| self.tensor(name, shape);
        if let Some(quantization) = self.quantization() {
            let device = backend.clone();
            if quantization.zero_point {
                let linear = |linear: &Projection| {
                    self.targeted(&*device, linear, || Affine::new(&*device, &self.affine(linear)?))
                };
                let model = Llama::build(backend, config, false, tensor, linear)?;
                let model = model.with_activations(quantization.activations);
                return Ok(LoadedModel::Affine(model));
            }
            let linear = |linear: &Projection| {
                self.targeted(&*device, linear, || Merged::new(&*device, &self.merged(linear)?))
            };
            let model = Llama::build(backend, config, false, tensor, linear)?;
            return Ok(LoadedModel::Merged(model.with_activations(quantization.activations)));
        }
        self.load_dense(backend, false).map(LoadedModel::Dense)
    }

    /// A layer of a merged model: of its codes, or of its weight where there are none.
    fn targeted<B: Backend, L>(
        &self,
        backend: &B,
        linear: &Projection,
        codes: impl FnOnce() -> Result<L>,
    ) -> Result<Targeted<B, L>> {
        if self.grid_of(linear).is_some() {
            return codes().map(Targeted::Method);
        }
        let shape = (linear.out_features, linear.in_features);
        Ok(Targeted::Frozen(Frozen::new(backend, &self.weight(linear)?, shape)?))
    }

    /// The full-precision model, trained or frozen.
    ///
    /// # Errors
    /// `File` naming the tensor that cannot be used.
    pub fn load_dense<B: Backend>(
        &self,
        backend: Arc<B>,
        trained: bool,
    ) -> Result<Llama<B, Dense<B>>> {
        let config = self.config().clone();
        let tensor = |name: &str, shape: &[usize]| self.tensor(name, shape);
        let device = backend.clone();
        let linear = |linear: &Projection| {
            let shape = (linear.out_features, linear.in_features);
            Dense::new(&*device, &self.weight(linear)?.into_floats(), shape, trained)
        };
        Llama::build(backend, config, trained, tensor, linear)
    }
}
