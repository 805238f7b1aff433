//! The optimized crate's CUDA kernels, on a GPU and interpreted.

use std::sync::Arc;

use plumbline::cuda::{Cuda, Gpu, Interpreter};
use plumbline::error::Error;

use super::optimized::Optimized;
use crate::subject::Subject;

/// The subject `cuda`: the first GPU.
///
/// # Errors
/// When driver, GPU or a library is missing.
pub fn cuda() -> Result<impl Subject, Error> {
    Ok(Optimized::new(Cuda::new(Gpu::new(0)?)?))
}

/// The subject `cuda-host`: the same compiled kernels, interpreted with every check.
///
/// # Errors
/// When the host has no room.
pub fn cuda_host() -> Result<impl Subject, Error> {
    Ok(interpreted(Arc::new(Cuda::new(Interpreter::new())?)))
}

/// The same on an interpreter of the caller's.
pub fn interpreted(backend: Arc<Cuda<Interpreter>>) -> impl Subject {
    Optimized::on(backend)
}
