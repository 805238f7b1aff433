//! Ctrl-C: the step that runs is finished and saved; a second one ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Which signal asked for an end.
pub struct Interrupt {
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Listens to SIGINT, which Ctrl-C sends, and SIGTERM, which job queues send.
    pub fn listen() -> Result<Self> {
        let (signal, is_asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        for number in [SIGINT, SIGTERM] {
            // In this order the first signal only sets the flag that lets the second one end it.
            flag::register_conditional_shutdown(number, exit_code(number), is_asked.clone())
                .and_then(|_| flag::register(number, is_asked.clone()))
                .and_then(|_| flag::register_usize(number, signal.clone(), number as usize))
                .context("cannot listen to signals")?;
        }
        Ok(Self { signal })
    }

    /// The exit code of the signal that came.
    pub fn exit_code(&self) -> Option<u8> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            number => Some(exit_code(number as i32) as u8),
        }
    }
}

/// What a shell reports of a process that a signal ended.
fn exit_code(signal: i32) -> i32 {
    128 + signal
}
