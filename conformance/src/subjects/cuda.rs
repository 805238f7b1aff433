//! The optimized crate's CUDA kernels, on a GPU and interpreted.

use std::sync::Arc;

use plumbline::cuda::{Compute, Cuda, Gpu, Interpreter};
use plumbline::error::Error;

use super::optimized::Optimized;
use crate::subject::Subject;

/// The subjects `cuda` and `cuda-bf16`: the first GPU.
///
/// # Errors
/// When driver, GPU or a library is missing.
pub fn cuda(compute: Compute) -> Result<impl Subject, Error> {
    let backend = Cuda::with_compute(Gpu::new(0)?, compute)?;
    Ok(Optimized::on(Arc::new(backend)))
}

/// The subjects `cuda-host` and `cuda-host-bf16`: the same compiled kernels, interpreted with every
/// check.
///
/// # Errors
/// When the host has no room.
pub fn cuda_host(compute: Compute) -> Result<impl Subject, Error> {
    let backend = Cuda::with_compute(Interpreter::new(), compute)?;
    Ok(Optimized::on(Arc::new(backend)))
}

/// The same on an interpreter of the caller's.
pub fn interpreted(backend: Arc<Cuda<Interpreter>>) -> impl Subject {
    Optimized::on(backend)
}
