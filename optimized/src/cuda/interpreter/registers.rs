//! The registers of one warp, and which lanes of each were ever written.

use super::code::{ALWAYS, Code, Predicate, Register};
use super::fault::Broken;
use super::instruction::Lanes;

/// All lanes.
pub(super) const FULL: u32 = u32::MAX;

/// The lanes of a mask.
pub(super) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}

pub(super) struct Registers {
    values: Vec<Lanes>,
    written: Vec<u32>,
    predicates: Vec<u32>,
    predicates_written: Vec<u32>,
}

impl Registers {
    pub(super) fn new(code: &Code) -> Self {
        Self {
            values: vec![[0; 32]; code.registers],
            written: vec![0; code.registers],
            predicates: vec![0; code.predicates],
            predicates_written: vec![0; code.predicates],
        }
    }

    /// Forgets what was written; constants are set anew.
    pub(super) fn clear(&mut self) {
        self.written.fill(0);
        self.predicates_written.fill(0);
        self.predicates[usize::from(ALWAYS.index)] = FULL;
        self.predicates_written[usize::from(ALWAYS.index)] = FULL;
    }

    /// Sets a register of all lanes.
    pub(super) fn set(&mut self, register: Register, value: impl Fn(usize) -> u64) {
        self.values[usize::from(register)] = std::array::from_fn(value);
        self.written[usize::from(register)] = FULL;
    }

    /// A register that the lanes of `mask` have written.
    #[inline(always)]
    pub(super) fn read(&self, register: Register, mask: u32) -> Result<&Lanes, Box<Broken>> {
        let register = usize::from(register);
        let missing = mask & !self.written[register];
        if missing != 0 { Err(unwritten(missing)) } else { Ok(&self.values[register]) }
    }

    #[inline(always)]
    pub(super) fn write(&mut self, register: Register, mask: u32, values: &Lanes) {
        let register = usize::from(register);
        self.written[register] |= mask;
        let to = &mut self.values[register];
        if mask == FULL {
            *to = *values;
        } else {
            for lane in lanes(mask) {
                to[lane] = values[lane];
            }
        }
    }

    /// The lanes of `mask` in which a predicate is true.
    #[inline(always)]
    pub(super) fn holds(&self, predicate: Predicate, mask: u32) -> Result<u32, Box<Broken>> {
        let index = usize::from(predicate.index);
        let missing = mask & !self.predicates_written[index];
        if missing != 0 {
            return Err(unwritten(missing));
        }
        let value = self.predicates[index];
        Ok(mask & if predicate.negated { !value } else { value })
    }

    #[inline(always)]
    pub(super) fn decide(&mut self, predicate: u16, mask: u32, value: u32) {
        let index = usize::from(predicate);
        self.predicates_written[index] |= mask;
        self.predicates[index] = (self.predicates[index] & !mask) | (value & mask);
    }
}

#[cold]
fn unwritten(missing: u32) -> Box<Broken> {
    Broken::first(missing, "use of a register that was never written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_of_a_mask_ascend() {
        assert_eq!(lanes(0b1010_0001).collect::<Vec<_>>(), [0, 5, 7]);
        assert_eq!(lanes(1 << 31).collect::<Vec<_>>(), [31]);
        assert_eq!(lanes(0).count(), 0);
        assert_eq!(lanes(FULL).count(), 32);
    }
}
