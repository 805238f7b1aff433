//! The optimized crate on this machine's processor.

use std::sync::Arc;

use plumbline::cpu::Cpu;

use super::optimized::Optimized;
use crate::subject::Subject;

/// The subject `cpu`.
pub fn cpu() -> impl Subject {
    Optimized::on(Arc::new(Cpu))
}
