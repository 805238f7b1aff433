//! Global memory: buffers that check every access.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use super::race::{self, Access, Actor, Cell, Race};

/// Bits of an address that are the place in a buffer; the bits above are the buffer's number.
const PLACE_BITS: u32 = 40;

/// Memory of the interpreted device.
pub struct Buffer {
    /// The content, little-endian. Atomic because blocks run on several threads of the host.
    words: Vec<AtomicU32>,
    bytes: usize,
    /// Elements are `1 << element_shift` bytes; each has a shadow of its own.
    element_shift: u32,
    /// What is known of each element's accesses; made when a kernel first may write here.
    shadow: OnceLock<Box<[Shadow]>>,
    /// The generation of tokens in `shadow`.
    generation: AtomicU32,
    /// Held by atomic operations, which are therefore atomic for every width.
    atomics: Mutex<()>,
    /// Where the bytes of existing buffers are counted.
    counter: Option<Arc<AtomicU64>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(counter) = &self.counter {
            counter.fetch_sub(self.bytes as u64, Relaxed);
        }
    }
}

#[derive(Default)]
struct Shadow {
    write: AtomicU64,
    read: AtomicU64,
}

impl Cell for &Shadow {
    fn write(&self) -> Access {
        Access(self.write.load(SeqCst))
    }
    fn read(&self) -> Access {
        Access(self.read.load(SeqCst))
    }
    fn swap_write(&mut self, new: Access) -> Access {
        Access(self.write.swap(new.0, SeqCst))
    }
    fn swap_read(&mut self, new: Access) -> Access {
        Access(self.read.swap(new.0, SeqCst))
    }
}

impl Buffer {
    pub(crate) fn zeros(len: usize, element_bytes: usize) -> Self {
        let bytes = len * element_bytes;
        Self {
            words: (0..bytes.div_ceil(4)).map(|_| AtomicU32::new(0)).collect(),
            bytes,
            element_shift: element_bytes.trailing_zeros(),
            shadow: OnceLock::new(),
            generation: AtomicU32::new(0),
            atomics: Mutex::new(()),
            counter: None,
        }
    }

    /// The buffer, its bytes counted for as long as it exists.
    pub(crate) fn counted(mut self, counter: Arc<AtomicU64>) -> Self {
        counter.fetch_add(self.bytes as u64, Relaxed);
        self.counter = Some(counter);
        self
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A copy of the content.
    pub(crate) fn snapshot(&self) -> Vec<u32> {
        self.words.iter().map(|word| word.load(Relaxed)).collect()
    }

    /// Takes back a [`Self::snapshot`].
    pub(crate) fn restore(&self, snapshot: &[u32]) {
        for (word, value) in self.words.iter().zip(snapshot) {
            word.store(*value, Relaxed);
        }
    }

    /// Reads bytes that lie inside.
    pub(crate) fn read(&self, start: usize, bytes: &mut [u8]) {
        if start.is_multiple_of(4) {
            let words = &self.words[start / 4..];
            for (chunk, word) in bytes.chunks_mut(4).zip(words) {
                chunk.copy_from_slice(&word.load(Relaxed).to_le_bytes()[..chunk.len()]);
            }
        } else {
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = self.load(start + i, 1) as u8;
            }
        }
    }

    /// Writes bytes that lie inside.
    pub(crate) fn write(&mut self, start: usize, bytes: &[u8]) {
        if start.is_multiple_of(4) {
            let whole = bytes.len() / 4 * 4;
            for (chunk, word) in bytes.chunks_exact(4).zip(&mut self.words[start / 4..]) {
                *word.get_mut() = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            }
            for (i, byte) in bytes[whole..].iter().enumerate() {
                self.store(start + whole + i, 1, u64::from(*byte));
            }
        } else {
            for (i, byte) in bytes.iter().enumerate() {
                self.store(start + i, 1, u64::from(*byte));
            }
        }
    }

    /// The aligned value of 1, 2, 4 or 8 bytes at a place.
    fn load(&self, place: usize, bytes: usize) -> u64 {
        let word = |i: usize| u64::from(self.words[i].load(Relaxed));
        match bytes {
            8 => word(place / 4) | word(place / 4 + 1) << 32,
            4 => word(place / 4),
            2 => word(place / 4) >> (place % 4 * 8) & 0xFFFF,
            _ => word(place / 4) >> (place % 4 * 8) & 0xFF,
        }
    }

    fn store(&self, place: usize, bytes: usize, value: u64) {
        let word = &self.words[place / 4];
        match bytes {
            8 => {
                word.store(value as u32, Relaxed);
                self.words[place / 4 + 1].store((value >> 32) as u32, Relaxed);
            }
            4 => word.store(value as u32, Relaxed),
            _ => {
                // Neighbours in the word may be written by another thread of the host.
                let shift = place % 4 * 8;
                let mask = ((1u32 << (8 * bytes)) - 1) << shift;
                let bits = (value as u32) << shift & mask;
                let _ = word.fetch_update(Relaxed, Relaxed, |old| Some(old & !mask | bits));
            }
        }
    }

    fn shadow(&self) -> &[Shadow] {
        let elements = self.bytes.div_ceil(1 << self.element_shift);
        self.shadow.get_or_init(|| (0..elements).map(|_| Shadow::default()).collect())
    }

    /// Forgets accesses of an older generation of tokens.
    pub(super) fn prepare(&self, generation: u32) {
        if self.generation.swap(generation, Relaxed) != generation
            && let Some(shadow) = self.shadow.get()
        {
            for cell in shadow {
                cell.write.store(0, Relaxed);
                cell.read.store(0, Relaxed);
            }
        }
    }
}

/// A buffer as an argument of a launch.
pub(super) struct View<'a> {
    pub(super) buffer: &'a Buffer,
    pub(super) writable: bool,
    pub(super) name: String,
}

/// The buffers of one launch.
pub(super) struct Global<'a> {
    views: Vec<View<'a>>,
}

/// What an access wants of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    Read,
    Write,
    Atomic,
}

impl Intent {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic operation",
        }
    }
}

/// A checked piece of a buffer.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    buffer: &'a Buffer,
    place: usize,
}

impl Spot<'_> {
    /// The value of `bytes` bytes, `offset` bytes on.
    #[inline]
    pub(super) fn load(&self, offset: usize, bytes: usize) -> u64 {
        self.buffer.load(self.place + offset, bytes)
    }

    #[inline]
    pub(super) fn store(&self, offset: usize, bytes: usize, value: u64) {
        self.buffer.store(self.place + offset, bytes, value);
    }

    /// Replaces a value by a function of it and returns the old one, in one step.
    pub(super) fn update(&self, bytes: usize, f: impl FnOnce(u64) -> u64) -> u64 {
        let _held = self.buffer.atomics.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let old = self.load(0, bytes);
        self.store(0, bytes, f(old));
        old
    }
}

impl<'a> Global<'a> {
    pub(super) fn new(views: Vec<View<'a>>) -> Self {
        Self { views }
    }

    /// The address of the first byte of a buffer.
    pub(super) fn address(index: usize) -> u64 {
        (index as u64 + 1) << PLACE_BITS
    }

    /// Checks an access of `bytes` bytes, a power of two, and notes it.
    #[inline]
    pub(super) fn access(
        &self,
        actor: &Actor,
        address: u64,
        bytes: usize,
        intent: Intent,
    ) -> Result<Spot<'a>, String> {
        let place = (address & ((1 << PLACE_BITS) - 1)) as usize;
        let view = ((address >> PLACE_BITS) as usize)
            .checked_sub(1)
            .and_then(|index| self.views.get(index))
            .filter(|view| place + bytes <= view.buffer.bytes && place & (bytes - 1) == 0);
        let Some(view) = view else {
            return Err(self.outside(address, bytes, intent));
        };
        if intent != Intent::Read && !view.writable {
            return Err(format!("{} through `{}`, which is an input", intent.name(), view.name));
        }
        if view.writable {
            let shadow = view.buffer.shadow();
            let shift = view.buffer.element_shift;
            for cell in &shadow[place >> shift..=(place + bytes - 1) >> shift] {
                note(cell, actor, intent)
                    .map_err(|race| view.describe(place, intent, &race.describe(actor)))?;
            }
        }
        Ok(Spot { buffer: view.buffer, place })
    }

    #[cold]
    fn outside(&self, address: u64, bytes: usize, intent: Intent) -> String {
        let intent = intent.name();
        // An address a little before a buffer belongs to it, not to the end of the one below.
        let number = address.wrapping_add(1 << (PLACE_BITS - 1)) >> PLACE_BITS;
        let place = address.wrapping_sub(number << PLACE_BITS) as i64;
        let view = (number as usize).checked_sub(1).and_then(|index| self.views.get(index));
        match view {
            None => format!("{intent} of {bytes} bytes at address {address:#x}, in no buffer"),
            Some(view) => {
                let (name, length) = (&view.name, view.buffer.bytes);
                let outside = place < 0 || place as usize + bytes > length;
                let how = if outside { "out of bounds" } else { "misaligned" };
                format!(
                    "{how}: {intent} of {bytes} bytes at byte {place} of `{name}` ({length} bytes)"
                )
            }
        }
    }
}

#[inline]
fn note(mut cell: &Shadow, actor: &Actor, intent: Intent) -> Result<(), Race> {
    match intent {
        Intent::Read => race::read(&mut cell, actor),
        Intent::Write => race::write(&mut cell, actor),
        Intent::Atomic => race::atomic(&mut cell, actor),
    }
}

impl View<'_> {
    #[cold]
    fn describe(&self, place: usize, intent: Intent, race: &str) -> String {
        let element = place >> self.buffer.element_shift;
        format!("{} of `{}` element {element}: {race}", intent.name(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(thread: u32) -> Actor {
        Actor { token: 1, first_token: 1, thread, tick: 0, block_since: 0, warp_since: 0 }
    }

    fn view(buffer: &Buffer, writable: bool) -> View<'_> {
        View { buffer, writable, name: "x".to_owned() }
    }

    #[test]
    fn bytes_go_in_and_out_at_any_place() {
        let mut buffer = Buffer::zeros(11, 1);
        buffer.write(3, &[1, 2, 3, 4, 5]);
        buffer.write(8, &[6, 7, 8]);
        let mut bytes = [0; 11];
        buffer.read(0, &mut bytes);
        assert_eq!(bytes, [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let mut bytes = [0; 3];
        buffer.read(5, &mut bytes);
        assert_eq!(bytes, [3, 4, 5]);
    }

    #[test]
    fn values_of_every_width_are_little_endian() {
        let mut buffer = Buffer::zeros(2, 8);
        buffer.write(8, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let global = Global::new(vec![view(&buffer, true)]);
        let at = |place: u64, bytes| {
            let address = Global::address(0) + place;
            global.access(&actor(0), address, bytes, Intent::Write).unwrap()
        };
        assert_eq!(at(8, 8).load(0, 8), 0x0807_0605_0403_0201);
        assert_eq!(at(10, 2).load(0, 2), 0x0403);
        at(10, 1).store(0, 1, 0xAA);
        at(14, 2).store(0, 2, 0xBBCC);
        assert_eq!(at(8, 8).load(0, 8), 0xBBCC_0605_04AA_0201);
    }

    #[test]
    fn accesses_outside_and_askew_are_named() {
        let buffer = Buffer::zeros(10, 4);
        let global = Global::new(vec![view(&buffer, true)]);
        let fails = |place: i64, bytes| {
            let address = Global::address(0).wrapping_add_signed(place);
            global.access(&actor(0), address, bytes, Intent::Read).map(|_| ()).unwrap_err()
        };
        assert!(
            fails(40, 4).contains("out of bounds: read of 4 bytes at byte 40 of `x` (40 bytes)")
        );
        assert!(fails(36, 8).contains("out of bounds"));
        assert!(fails(-4, 4).contains("byte -4 of `x`"));
        assert!(fails(2, 4).contains("misaligned"));
        assert!(global.access(&actor(0), 12, 4, Intent::Read).is_err());
    }

    #[test]
    fn an_input_is_not_written() {
        let buffer = Buffer::zeros(1, 4);
        let global = Global::new(vec![view(&buffer, false)]);
        let at = |intent| global.access(&actor(0), Global::address(0), 4, intent).map(|_| ());
        at(Intent::Read).unwrap();
        assert_eq!(at(Intent::Write).unwrap_err(), "write through `x`, which is an input");
    }

    #[test]
    fn bytes_of_one_word_may_have_two_writers_and_one_element_may_not() {
        let buffer = Buffer::zeros(4, 1);
        let global = Global::new(vec![view(&buffer, true)]);
        let at = |thread, place| {
            let address = Global::address(0) + place;
            global.access(&actor(thread), address, 1, Intent::Write).map(|_| ())
        };
        at(0, 0).unwrap();
        at(1, 1).unwrap();
        assert!(at(2, 1).unwrap_err().contains("element 1: race"));
    }
}
