//! A warp's accesses to memory.

use super::block::Block;
use super::code::{Address, Op, Space, Transfer, Update};
use super::fault::Broken;
use super::instruction::Lanes;
use super::memory::Intent;
use super::operands::{LOCAL_WINDOW, SHARED_WINDOW};
use super::race::Actor;
use super::registers::lanes;
use super::shared::Want;
use super::warp::Warp;

type Outcome<T = ()> = Result<T, Box<Broken>>;

/// A lane's access that failed, in words.
type Wrong = String;

impl Warp {
    /// Runs a load, a store, an atomic operation or the start of a copy.
    pub(super) fn memory(&mut self, block: &mut Block<'_>, op: &Op, mask: u32) -> Outcome {
        match op {
            Op::Load(transfer) => self.load(block, transfer, mask),
            Op::Store(transfer) => self.store(block, transfer, mask),
            Op::Atomic { space, update, bytes, d, address, a, b } => {
                let addresses = self.addresses(*address, mask)?;
                let (a, b) = (*self.registers.read(*a, mask)?, *self.registers.read(*b, mask)?);
                let mut old = [0; 32];
                for lane in lanes(mask) {
                    let f = |value| new_value(*update, *bytes, value, a[lane], b[lane]);
                    let actor = self.actor(block, lane);
                    old[lane] = atomic(block, &actor, *space, addresses[lane], *bytes, f)
                        .map_err(|wrong| Broken::new(lane as u32, wrong))?;
                }
                if let Some(d) = d {
                    self.registers.write(*d, mask, &old);
                }
                Ok(())
            }
            Op::Copy { to, from, bytes, present } => {
                let (to, from) = (self.addresses(*to, mask)?, self.addresses(*from, mask)?);
                let present = match present {
                    Some(present) => *self.registers.read(*present, mask)?,
                    None => [*bytes as u64; 32],
                };
                for lane in lanes(mask) {
                    self.start_copy(block, lane, to[lane], from[lane], *bytes, present[lane])
                        .map_err(|wrong| Broken::new(lane as u32, wrong))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn addresses(&self, address: Address, mask: u32) -> Outcome<Lanes> {
        let base = self.registers.read(address.base, mask)?;
        Ok(base.map(|base| base.wrapping_add(address.offset as u64)))
    }

    /// A lane at this moment.
    #[inline(always)]
    pub(super) fn actor(&self, block: &Block<'_>, lane: usize) -> Actor {
        Actor { thread: self.index * 32 + lane as u32, warp_since: self.since, ..block.actor }
    }

    fn load(&mut self, block: &mut Block<'_>, transfer: &Transfer, mask: u32) -> Outcome {
        let addresses = self.addresses(transfer.address, mask)?;
        let mut done = 0;
        if let Transfer { space: Space::Shared, bytes: 4, count: 1, values, .. } = *transfer {
            let (actor, mut out) = (self.actor(block, 0), [0; 32]);
            done = block.shared.read_words(&actor, &addresses, mask, &mut out);
            self.registers.write(values[0], done, &out);
            if done == mask {
                return Ok(());
            }
        }
        let mask = mask & !done;
        let mut out = [[0; 32]; 4];
        // One loop for each space, so that what the lanes share is looked up once.
        match transfer.space {
            Space::Shared => {
                for lane in lanes(mask) {
                    let address = addresses[lane];
                    self.load_lane(block, transfer, (Space::Shared, address), lane, &mut out)?;
                }
            }
            Space::Global => {
                for lane in lanes(mask) {
                    let address = addresses[lane];
                    self.load_lane(block, transfer, (Space::Global, address), lane, &mut out)?;
                }
            }
            space => {
                for lane in lanes(mask) {
                    let place = place(space, addresses[lane]);
                    self.load_lane(block, transfer, place, lane, &mut out)?;
                }
            }
        }
        for (values, register) in out[..transfer.count].iter_mut().zip(transfer.values) {
            if let Some(bits) = transfer.extend {
                let shift = 64 - 8 * transfer.bytes as u32;
                for value in values.iter_mut() {
                    *value = ((*value << shift) as i64 >> shift) as u64 & (u64::MAX >> (64 - bits));
                }
            }
            self.registers.write(register, mask, values);
        }
        Ok(())
    }

    /// One lane's load.
    #[inline(always)]
    fn load_lane(
        &self,
        block: &mut Block<'_>,
        transfer: &Transfer,
        (space, address): (Space, u64),
        lane: usize,
        out: &mut [Lanes; 4],
    ) -> Outcome {
        let Transfer { bytes, count, .. } = *transfer;
        let actor = self.actor(block, lane);
        let wrong = |wrong: Wrong| Broken::new(lane as u32, wrong);
        let values = out[..count].iter_mut().enumerate();
        match space {
            Space::Shared => {
                let place = block.shared.access(&actor, address, bytes * count, Want::Read);
                let place = place.map_err(wrong)?;
                for (i, values) in values {
                    values[lane] = block.shared.load(place + i * bytes, bytes);
                }
            }
            Space::Local => {
                let start = self.own(block, lane, address, bytes * count).map_err(wrong)?;
                for (i, values) in values {
                    let (mut raw, from) = ([0; 8], start + i * bytes);
                    raw[..bytes].copy_from_slice(&self.local[from..from + bytes]);
                    values[lane] = u64::from_le_bytes(raw);
                }
            }
            Space::Global | Space::Generic => {
                let spot = block.global.access(&actor, address, bytes * count, Intent::Read);
                let spot = spot.map_err(wrong)?;
                for (i, values) in values {
                    values[lane] = spot.load(i * bytes, bytes);
                }
            }
        }
        Ok(())
    }

    fn store(&mut self, block: &mut Block<'_>, transfer: &Transfer, mask: u32) -> Outcome {
        let addresses = self.addresses(transfer.address, mask)?;
        let Transfer { bytes, count, .. } = *transfer;
        for register in &transfer.values[..count] {
            self.registers.read(*register, mask)?;
        }
        for lane in lanes(mask) {
            let actor = self.actor(block, lane);
            let wrong = |wrong: Wrong| Broken::new(lane as u32, wrong);
            let address = place(transfer.space, addresses[lane]);
            let mut values = [0; 4];
            for (value, register) in values.iter_mut().zip(&transfer.values[..count]) {
                *value = self.registers.read(*register, 0)?[lane];
            }
            let values = values[..count].iter().enumerate();
            match address {
                (Space::Shared, address) => {
                    let place = block.shared.access(&actor, address, bytes * count, Want::Write);
                    let place = place.map_err(wrong)?;
                    values.for_each(|(i, value)| {
                        block.shared.store(place + i * bytes, bytes, *value)
                    });
                }
                (Space::Local, address) => {
                    let start = self.own(block, lane, address, bytes * count).map_err(wrong)?;
                    for (i, value) in values {
                        let to = start + i * bytes;
                        self.local[to..to + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
                    }
                }
                (_, address) => {
                    let spot = block.global.access(&actor, address, bytes * count, Intent::Write);
                    let spot = spot.map_err(wrong)?;
                    values.for_each(|(i, value)| spot.store(i * bytes, bytes, *value));
                }
            }
        }
        Ok(())
    }

    /// The place of a lane's own memory.
    fn own(
        &self,
        block: &Block<'_>,
        lane: usize,
        address: u64,
        bytes: usize,
    ) -> Result<usize, Wrong> {
        let size = block.code.local_bytes;
        let inside = usize::try_from(address).ok().filter(|start| start + bytes <= size);
        match inside {
            Some(start) if start % bytes == 0 => Ok(lane * size + start),
            _ => Err(format!(
                "out of bounds or misaligned: {bytes} bytes at byte {address} of {size} of a \
                 thread's own memory"
            )),
        }
    }

    fn start_copy(
        &mut self,
        block: &mut Block<'_>,
        lane: usize,
        to: u64,
        from: u64,
        bytes: usize,
        present: u64,
    ) -> Result<(), Wrong> {
        let actor = self.actor(block, lane);
        let present = usize::try_from(present).ok().filter(|present| *present <= bytes);
        let present = present.ok_or("an asynchronous copy of more bytes than it is long")?;
        let place = block.shared.access(&actor, to, bytes, Want::StartCopy)?;
        let mut data = [0; 16];
        if present == bytes {
            let spot = block.global.access(&actor, from, bytes, Intent::Read)?;
            for (i, word) in data[..bytes].chunks_mut(4).enumerate() {
                word.copy_from_slice(&(spot.load(4 * i, 4) as u32).to_le_bytes());
            }
        } else {
            if from & (bytes as u64 - 1) != 0 {
                return Err(format!("misaligned: an asynchronous copy of {bytes} bytes"));
            }
            for (i, byte) in data[..present].iter_mut().enumerate() {
                let spot = block.global.access(&actor, from + i as u64, 1, Intent::Read)?;
                *byte = spot.load(0, 1) as u8;
            }
        }
        self.copies.start(lane as u32, place, bytes, data);
        Ok(())
    }

    /// Lets the copies arrive that the lanes of `mask` wait for.
    pub(super) fn wait_for_copies(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        groups: Option<u32>,
    ) {
        let (index, warp_since) = (self.index, self.since);
        let Block { shared, actor, .. } = block;
        self.copies.wait(mask, groups, |copy| {
            let actor = Actor { thread: index * 32 + copy.lane, warp_since, ..*actor };
            shared.end_copy(&actor, copy.place, &copy.data[..copy.bytes]);
        });
    }
}

/// The memory that an address lies in, and the address there.
#[inline(always)]
fn place(space: Space, address: u64) -> (Space, u64) {
    match space {
        Space::Generic if address & SHARED_WINDOW != 0 => (Space::Shared, address ^ SHARED_WINDOW),
        Space::Generic if address & LOCAL_WINDOW != 0 => (Space::Local, address ^ LOCAL_WINDOW),
        Space::Generic => (Space::Global, address),
        space => (space, address),
    }
}

fn atomic(
    block: &mut Block<'_>,
    actor: &Actor,
    space: Space,
    address: u64,
    bytes: usize,
    f: impl Fn(u64) -> u64,
) -> Result<u64, Wrong> {
    match place(space, address) {
        (Space::Shared, address) => {
            let place = block.shared.access(actor, address, bytes, Want::Atomic)?;
            let old = block.shared.load(place, bytes);
            block.shared.store(place, bytes, f(old));
            Ok(old)
        }
        (Space::Local, _) => Err("an atomic operation on local memory".to_owned()),
        (_, address) => {
            Ok(block.global.access(actor, address, bytes, Intent::Atomic)?.update(bytes, f))
        }
    }
}

/// What an atomic operation of 4 or 8 bytes writes.
fn new_value(update: Update, bytes: usize, old: u64, a: u64, b: u64) -> u64 {
    let wide = bytes == 8;
    let (a, b) = if wide { (a, b) } else { (a & 0xFFFF_FFFF, b & 0xFFFF_FFFF) };
    let signed = |value: u64| if wide { value as i64 } else { i64::from(value as u32 as i32) };
    match update {
        Update::Add => old.wrapping_add(a),
        Update::And => old & a,
        Update::Or => old | a,
        Update::Xor => old ^ a,
        Update::Exchange => a,
        Update::MinUnsigned => old.min(a),
        Update::MaxUnsigned => old.max(a),
        Update::MinSigned => signed(old).min(signed(a)) as u64,
        Update::MaxSigned => signed(old).max(signed(a)) as u64,
        Update::CompareAndSwap => {
            if old == a {
                b
            } else {
                old
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_operations_know_their_width_and_sign() {
        let minus = u64::from(u32::MAX);
        assert_eq!(new_value(Update::MinUnsigned, 4, 5, minus, 0), 5);
        assert_eq!(new_value(Update::MinSigned, 4, 5, minus, 0) as u32, u32::MAX);
        assert_eq!(new_value(Update::MaxSigned, 8, 5, u64::MAX, 0), 5);
        assert_eq!(new_value(Update::Add, 4, minus, 1, 0) as u32, 0);
        assert_eq!(new_value(Update::CompareAndSwap, 4, 7, 7, 9), 9);
        assert_eq!(new_value(Update::CompareAndSwap, 4, 7, 8, 9), 7);
    }
}
