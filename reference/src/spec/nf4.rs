//! Parameters of block-wise codebooks.

use super::{SpecError, out_of_range};

/// Elements that share one `absmax`, counted over the flattened weight; at least 1. Eq. (Q18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize(usize);

impl BlockSize {
    /// Accepts 1 and more.
    ///
    /// # Errors
    /// `OutOfRange` for 0.
    pub fn new(block_size: usize) -> Result<Self, SpecError> {
        if block_size == 0 {
            out_of_range("block_size", block_size, "at least 1")?;
        }
        Ok(Self(block_size))
    }

    /// The number of elements.
    pub fn get(self) -> usize {
        self.0
    }

    /// Blocks of so many elements; the last one may be short.
    pub fn blocks(self, elements: usize) -> usize {
        elements.div_ceil(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_may_be_short() {
        let three = BlockSize::new(3).unwrap();
        assert_eq!([0, 1, 3, 4].map(|elements| three.blocks(elements)), [0, 1, 1, 2]);
        let refused = BlockSize::new(0).unwrap_err();
        assert_eq!(refused.to_string(), "block_size is 0, expected at least 1");
    }
}
