//! Shared memory of one block: bounds by variable, writes before reads, races, copies on their way.

use super::instruction::Lanes;
use super::race::{self, Actor, Cell, Shadow};
use super::registers::lanes;

/// A shared variable of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    /// First byte.
    pub(super) start: usize,
    /// Bytes; what the launch asked for where the kernel left it open.
    pub(super) bytes: usize,
}

/// The memory, used by one block of a launch after the other.
pub(super) struct Shared {
    variables: Vec<Variable>,
    bytes: Vec<u8>,
    /// One for every `1 << shift` bytes.
    shadow: Vec<Shadow>,
    shift: u32,
    /// The variable that the last access hit.
    last: usize,
}

/// What an access wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Read,
    Write,
    Atomic,
    StartCopy,
}

impl Shared {
    /// `cell_bytes`: the narrowest access that the kernel makes.
    pub(super) fn new(variables: Vec<Variable>, cell_bytes: usize) -> Self {
        let end = variables.iter().map(|variable| variable.start + variable.bytes).max();
        let len = end.unwrap_or(0).next_multiple_of(16);
        let shift = cell_bytes.trailing_zeros();
        let shadow = vec![Shadow::default(); len >> shift];
        Self { variables, bytes: vec![0; len], shadow, shift, last: 0 }
    }

    /// Makes `last` the variable that an access lies in, if there is one.
    #[inline(always)]
    fn locate(&mut self, place: usize, bytes: usize) -> bool {
        let inside = |variable: &Variable| {
            place >= variable.start && place + bytes <= variable.start + variable.bytes
        };
        if self.variables.get(self.last).is_some_and(inside) {
            return true;
        }
        let found = self.variables.iter().position(inside);
        self.last = found.unwrap_or(self.last);
        found.is_some()
    }

    /// Reads words for the lanes of a warp whose reads are plainly in order; which they are.
    ///
    /// Most of what kernels do with shared memory is to read what was written before a barrier.
    /// `actor` is the warp's first lane.
    #[inline]
    pub(super) fn read_words(
        &mut self,
        actor: &Actor,
        addresses: &Lanes,
        mask: u32,
        out: &mut Lanes,
    ) -> u32 {
        let first = addresses[mask.trailing_zeros() as usize & 31] as u32 as usize;
        if self.shift != 2 || !self.locate(first, 4) {
            return 0;
        }
        let variable = &self.variables[self.last];
        let (start, end) = (variable.start, variable.start + variable.bytes);
        let mut done = 0;
        for lane in lanes(mask) {
            let place = addresses[lane] as u32 as usize;
            if place < start || place + 4 > end || place & 3 != 0 {
                continue;
            }
            let cell = &mut self.shadow[place / 4];
            let reader = Actor { thread: actor.thread + lane as u32, ..*actor };
            if let Some(read) = reader.quick_read(cell.write(), cell.read()) {
                cell.read = read.0;
                out[lane] = self.load(place, 4);
                done |= 1 << lane;
            }
        }
        done
    }

    /// Checks an access and notes it; the place of its first byte.
    #[inline(always)]
    pub(super) fn access(
        &mut self,
        actor: &Actor,
        address: u64,
        bytes: usize,
        want: Want,
    ) -> Result<usize, String> {
        let place = address as u32 as usize;
        if !self.locate(place, bytes) {
            return Err(self.outside(place, bytes));
        }
        // A power of two; a division would cost more than all the rest.
        if place & (bytes - 1) != 0 {
            return Err(self.askew(place, bytes));
        }
        for index in place >> self.shift..=(place + bytes - 1) >> self.shift {
            let cell = &mut self.shadow[index];
            // What other blocks did is forgotten when a block first comes by.
            let unwritten = cell.write().older_than(actor.token);
            if unwritten {
                cell.write = 0;
            }
            if cell.read().older_than(actor.token) {
                cell.read = 0;
            }
            let result = match want {
                Want::Read | Want::Atomic if unwritten => return Err(self.unwritten(place)),
                Want::Read => race::read(cell, actor),
                Want::Write => race::write(cell, actor),
                Want::Atomic => race::atomic(cell, actor),
                Want::StartCopy => race::start_copy(cell, actor),
            };
            if let Err(race) = result {
                return Err(self.describe(index << self.shift, want, &race.describe(actor)));
            }
        }
        Ok(place)
    }

    /// Ends an asynchronous copy: its bytes are there.
    pub(super) fn end_copy(&mut self, actor: &Actor, place: usize, bytes: &[u8]) {
        self.bytes[place..place + bytes.len()].copy_from_slice(bytes);
        for cell in &mut self.shadow[place >> self.shift..=(place + bytes.len() - 1) >> self.shift]
        {
            race::end_copy(cell, actor);
        }
    }

    /// The value at a checked place.
    #[inline]
    pub(super) fn load(&self, place: usize, bytes: usize) -> u64 {
        let from = &self.bytes[place..place + bytes];
        match *from {
            [a] => u64::from(a),
            [a, b] => u64::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => unreachable!("decoded accesses have 1, 2, 4 or 8 bytes"),
        }
    }

    #[inline]
    pub(super) fn store(&mut self, place: usize, bytes: usize, value: u64) {
        self.bytes[place..place + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }

    #[cold]
    fn askew(&self, place: usize, bytes: usize) -> String {
        format!("misaligned access of {bytes} bytes to shared {}", self.name(place))
    }

    #[cold]
    fn unwritten(&self, place: usize) -> String {
        format!("use of shared {} before it was written", self.name(place))
    }

    #[cold]
    fn describe(&self, place: usize, want: Want, race: &str) -> String {
        let verb = match want {
            Want::Read => "read",
            Want::Write => "write",
            Want::Atomic => "atomic operation",
            Want::StartCopy => "asynchronous write",
        };
        format!("{verb} of shared {}: {race}", self.name(place))
    }

    /// A place in words.
    fn name(&self, place: usize) -> String {
        let found = self.variables.iter().rev().find(|variable| variable.start <= place);
        match found {
            Some(variable) => format!("`{}` byte {}", variable.name, place - variable.start),
            None => format!("byte {place}"),
        }
    }

    #[cold]
    fn outside(&self, place: usize, bytes: usize) -> String {
        let sizes: Vec<String> = self
            .variables
            .iter()
            .map(|variable| format!("`{}` {} bytes", variable.name, variable.bytes))
            .collect();
        let sizes = if sizes.is_empty() { "none".to_owned() } else { sizes.join(", ") };
        let name = self.name(place);
        format!("out of bounds: access of {bytes} bytes at shared {name} (declared: {sizes})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(thread: u32) -> Actor {
        Actor { token: 1, first_token: 1, thread, tick: 0, block_since: 0, warp_since: 0 }
    }

    fn shared() -> Shared {
        let variable = |name: &str, start, bytes| Variable { name: name.into(), start, bytes };
        Shared::new(vec![variable("a", 0, 24), variable("b", 32, 16)], 2)
    }

    #[test]
    fn accesses_stay_inside_one_variable() {
        let mut shared = shared();
        assert!(shared.access(&actor(0), 20, 4, Want::Write).is_ok());
        let message = shared.access(&actor(0), 24, 4, Want::Write).unwrap_err();
        assert!(message.contains("out of bounds: access of 4 bytes at shared `a` byte 24"));
        assert!(shared.access(&actor(0), 16, 16, Want::Write).is_err());
        assert!(shared.access(&actor(0), 48, 2, Want::Write).is_err());
        assert!(shared.access(&actor(0), 34, 4, Want::Write).unwrap_err().contains("misaligned"));
    }

    #[test]
    fn memory_is_written_before_it_is_used_by_every_block_anew() {
        let mut shared = shared();
        assert!(shared.access(&actor(0), 0, 4, Want::Read).unwrap_err().contains("before"));
        let place = shared.access(&actor(0), 0, 4, Want::Write).unwrap();
        shared.store(place, 4, 0x0102_0304);
        let place = shared.access(&actor(0), 2, 2, Want::Read).unwrap();
        assert_eq!(shared.load(place, 2), 0x0102);
        let next_block = Actor { token: 2, ..actor(0) };
        assert!(shared.access(&next_block, 0, 4, Want::Read).is_err());
    }

    #[test]
    fn races_name_the_other_thread() {
        let mut shared = shared();
        shared.access(&actor(3), 4, 4, Want::Write).unwrap();
        let message = shared.access(&actor(9), 4, 2, Want::Read).unwrap_err();
        assert!(message.contains("`a` byte 4") && message.contains("by thread 3"), "{message}");
    }
}
