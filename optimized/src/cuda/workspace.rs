//! Memory that the kernels of one call hand on to each other.

use std::sync::Mutex;

use super::launch::Launcher;
use crate::error::Result;

/// One buffer for all operations; it grows to the largest need and stays.
///
/// Work is done in the order of the calls, so an operation's kernels are done with the buffer
/// before those of the next one start. What it holds at first is left over from another operation.
pub struct Workspace<L: Launcher> {
    element_bytes: usize,
    words: Mutex<Option<(L::Buffer, usize)>>,
}

impl<L: Launcher> Workspace<L> {
    /// `element_bytes` of the narrowest values that kernels write there, up to 8.
    pub(super) fn new(element_bytes: usize) -> Self {
        Self { element_bytes, words: Mutex::new(None) }
    }

    /// Its size now.
    pub(super) fn bytes(&self) -> usize {
        self.words.lock().expect("no launch panics").as_ref().map_or(0, |(_, words)| 8 * words)
    }

    /// Runs `launches` with a buffer of at least `words` times 8 bytes that nobody else uses
    /// meanwhile.
    ///
    /// # Errors
    /// When there is no room; those of `launches`.
    pub(crate) fn with<R>(
        &self,
        launcher: &L,
        words: usize,
        launches: impl FnOnce(&mut L::Buffer) -> Result<R>,
    ) -> Result<R> {
        let mut kept = self.words.lock().expect("no launch panics");
        if kept.as_ref().is_none_or(|(_, len)| *len < words) {
            // The old one goes before the new one comes.
            *kept = None;
            // Elements so narrow that those of a word may be several threads'.
            let bytes = self.element_bytes;
            *kept = Some((launcher.zeros(words * 8 / bytes, bytes)?, words));
        }
        let (buffer, _) = kept.as_mut().expect("it was just filled");
        launches(buffer)
    }
}
