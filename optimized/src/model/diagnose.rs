//! Where a run that diverged went wrong.

use super::activations::Workspace;
use super::llama::Llama;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;

impl<B: Backend, L: LinearMethod<B>> Llama<B, L> {
    /// Adds to a [`Error::NonFinite`] the place where numbers first stop being finite: a trained
    /// tensor, or else a layer that cannot make its codes, or else a block in the last forward on
    /// `workspace`. Any other error stays.
    pub fn locate(&mut self, error: Error, workspace: &Workspace<B>) -> Error {
        match error {
            Error::NonFinite { tensor, index, value } => {
                let tensor = match self.first_nonfinite(workspace) {
                    Ok(Some(place)) if !tensor.contains(&place) => format!("{place}: {tensor}"),
                    _ => tensor,
                };
                Error::NonFinite { tensor, index, value }
            }
            other => other,
        }
    }

    fn first_nonfinite(&mut self, workspace: &Workspace<B>) -> Result<Option<String>> {
        let backend = self.shared_backend();
        let is_bad = |buffer: &B::Floats, len: usize| -> Result<bool> {
            Ok(backend.download(buffer, len)?.iter().any(|value| !value.is_finite()))
        };
        for tensor in self.trainable() {
            if is_bad(tensor.value, tensor.len)? {
                return Ok(Some(tensor.name));
            }
        }
        for (name, linear) in self.linears() {
            let made = linear.code_use(&backend);
            // A device says only where it is asked what it found wrong.
            let asked =
                backend.upload_sums(&[0.0]).and_then(|mut sums| backend.read_sums(&mut sums));
            let found = [made.err(), asked.err()];
            if found.into_iter().flatten().any(|error| matches!(error, Error::NonFinite { .. })) {
                return Ok(Some(name));
            }
        }
        let len = workspace.tokens * self.config.hidden_size;
        for (index, hidden) in workspace.activations.hidden.iter().enumerate() {
            if is_bad(hidden, len)? {
                return Ok(Some(match index.checked_sub(1) {
                    None => "output of model.embed_tokens".to_owned(),
                    Some(block) => format!("output of model.layers.{block}"),
                }));
            }
        }
        Ok(None)
    }
}
