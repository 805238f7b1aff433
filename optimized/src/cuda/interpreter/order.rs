//! The order in which a launch's blocks and warps run.
//!
//! A device promises none. The natural order runs blocks and warps by their index, each warp until
//! it has to wait; a seeded one permutes the blocks, permutes the warps anew each time all had a
//! turn, and ends turns at random.

/// An order. Equal seeds give equal orders, for any number of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    seed: u64,
}

impl Order {
    /// The `index`-th order; 0 is the natural one.
    pub(super) fn new(index: usize) -> Self {
        Self { seed: index as u64 }
    }

    /// A permutation of the blocks.
    pub(super) fn blocks(self, count: u32) -> Vec<u32> {
        let mut blocks: Vec<u32> = (0..count).collect();
        if self.seed != 0 {
            Dice::new(self.seed).shuffle(&mut blocks);
        }
        blocks
    }

    /// Chance inside one block; `None` in the natural order.
    pub(super) fn within(self, block: u32) -> Option<Dice> {
        (self.seed != 0).then(|| Dice::new(self.seed << 32 | u64::from(block)))
    }
}

/// Random numbers: a counter through SplitMix64's mixing function.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ mixed >> 31) % bound
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_permutations_that_repeat() {
        assert_eq!(Order::new(0).blocks(4), [0, 1, 2, 3]);
        let shuffled = Order::new(1).blocks(100);
        assert_ne!(shuffled, Order::new(0).blocks(100));
        assert_ne!(shuffled, Order::new(2).blocks(100));
        assert_eq!(shuffled, Order::new(1).blocks(100));
        let mut sorted = shuffled;
        sorted.sort_unstable();
        assert_eq!(sorted, Order::new(0).blocks(100));
    }
}
