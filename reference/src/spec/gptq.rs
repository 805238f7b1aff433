//! Parameters of GPTQ.

use super::{QuantSpec, SpecError, out_of_range};

/// What GPTQ decides besides the codes. Eq. (Q20).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqSpec {
    /// Width and groups; codes are unsigned.
    pub quant: QuantSpec,
    /// One zero point in the middle of the grid, or the one that fits the range.
    pub symmetric: bool,
    /// Whether the inputs that matter most are rounded first.
    pub act_order: bool,
    /// Whether every grid is found before the first column.
    pub static_groups: bool,
    damping: f64,
    block_size: usize,
}

impl GptqSpec {
    /// Inputs in ascending order, groups found on the way, damping 0.01, blocks of 128.
    pub fn new(quant: QuantSpec, symmetric: bool) -> Self {
        Self {
            quant,
            symmetric,
            act_order: false,
            static_groups: false,
            damping: 0.01,
            block_size: 128,
        }
    }

    /// The part of the mean of the Hessian's diagonal that is added to the diagonal.
    ///
    /// # Errors
    /// `OutOfRange` for a negative number, an infinity or a NaN.
    pub fn with_damping(mut self, damping: f64) -> Result<Self, SpecError> {
        if !(damping >= 0.0 && damping.is_finite()) {
            out_of_range("damping", damping, "at least 0")?;
        }
        self.damping = damping;
        Ok(self)
    }

    /// Columns whose updates reach the columns behind them together.
    ///
    /// # Errors
    /// `OutOfRange` for 0.
    pub fn with_block_size(mut self, block_size: usize) -> Result<Self, SpecError> {
        if block_size == 0 {
            out_of_range("block_size", block_size, "at least 1")?;
        }
        self.block_size = block_size;
        Ok(self)
    }

    /// The part of the mean of the Hessian's diagonal that is added to the diagonal.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Columns whose updates reach the columns behind them together.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Largest code.
    pub fn maxq(&self) -> i32 {
        self.quant.bits().unsigned_max()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Bits;
    use super::*;

    #[test]
    fn damping_and_blocks_have_their_ranges() {
        let quant = QuantSpec::new(Bits::new(4).unwrap(), None, 8).unwrap();
        let spec = GptqSpec::new(quant, true);
        assert_eq!((spec.damping(), spec.block_size(), spec.maxq()), (0.01, 128, 15));
        assert_eq!(spec.with_damping(0.0).unwrap().damping(), 0.0);
        for damping in [-0.1, f64::NAN, f64::INFINITY] {
            let refused = spec.with_damping(damping).unwrap_err().to_string();
            assert!(refused.ends_with("expected at least 0"), "{refused}");
        }
        assert_eq!(
            spec.with_block_size(0).unwrap_err().to_string(),
            "block_size is 0, expected at least 1"
        );
    }
}
