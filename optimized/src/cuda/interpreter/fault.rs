//! What a kernel did wrong, and where.

use std::fmt;

/// A broken rule inside one warp: which lane, and what it did. [`Fault`] adds the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) lane: u32,
    pub(super) what: String,
}

impl Broken {
    pub(super) fn new(lane: u32, what: impl Into<String>) -> Box<Self> {
        Box::new(Self { lane, what: what.into() })
    }

    /// The same, of the lowest lane of a mask.
    pub(super) fn first(lanes: u32, what: impl Into<String>) -> Box<Self> {
        Self::new(lanes.trailing_zeros() & 31, what)
    }
}

/// A rule of the machine that a kernel broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Block along x, y and z.
    pub block: [u32; 3],
    /// Thread of the block along x, y and z.
    pub thread: [u32; 3],
    /// Line of the compiled module, counted from 1.
    pub ptx_line: u32,
    /// File and line of the source, as the compiler tells them.
    pub source: String,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(
            f,
            "{} (PTX line {}), block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz}): {}",
            self.source, self.ptx_line, self.what
        )
    }
}

/// Coordinates of the `index`-th of `sizes`, x fastest.
pub(super) fn coordinates(index: u32, sizes: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = sizes;
    [index % x, index / x % y, index / x / y]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_run_along_x_first() {
        assert_eq!(coordinates(0, [4, 3, 2]), [0, 0, 0]);
        assert_eq!(coordinates(5, [4, 3, 2]), [1, 1, 0]);
        assert_eq!(coordinates(23, [4, 3, 2]), [3, 2, 1]);
    }
}
