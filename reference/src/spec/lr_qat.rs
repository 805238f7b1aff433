//! Parameters of LR-QAT.

use serde::{Deserialize, Serialize};

use super::{Bits, QuantSpec, SpecError, out_of_range};

/// How the frozen weight is held. Eq. (M4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Downcast {
    /// In the type of the computation: nothing is lost.
    F32,
    /// As bfloat16.
    Bf16,
    /// As IEEE 754 binary16.
    F16,
    /// In a byte with `8 - bits` fractional bits, clipped to the grid.
    Fixed8,
    /// As the nearest code, two in a byte.
    Int,
}

impl Downcast {
    /// # Errors
    /// `OutOfRange` where codes of that width do not fit the stored type.
    pub fn check(self, bits: Bits) -> Result<(), SpecError> {
        let (largest, expected) = match self {
            Self::F32 | Self::Bf16 | Self::F16 => return Ok(()),
            Self::Fixed8 => (7, "2 to 7 with downcast fixed8"),
            Self::Int => (4, "2 to 4 with downcast int, which packs two codes into a byte"),
        };
        if bits.count() > largest {
            out_of_range("bits", bits.count(), expected)?;
        }
        Ok(())
    }
}

/// Which scale divides the frozen weight. Eq. (M5a).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InnerScale {
    /// The one that training began with; the quotient is stored as the downcast says.
    Frozen(Downcast),
    /// The trained one, in every step again.
    Live,
}

impl InnerScale {
    /// Names as the case protocol writes them; absent means `frozen`.
    ///
    /// # Errors
    /// `OutOfRange` for an unknown name, and for `live` with another downcast than `f32`.
    pub fn from_name(name: Option<&str>, downcast: Downcast) -> Result<Self, SpecError> {
        match name {
            None | Some("frozen") => Ok(Self::Frozen(downcast)),
            Some("live") if downcast == Downcast::F32 => Ok(Self::Live),
            Some("live") => {
                match out_of_range("inner_scale", "live", "frozen with a downcast but f32")? {}
            }
            Some(other) => match out_of_range("inner_scale", other, "frozen or live")? {},
        }
    }
}

/// Which elements pass their gradient. Eq. (M6a).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrQatMask {
    /// Those whose rounded argument is on the grid, as in the public code of LR-QAT.
    #[default]
    Rounded,
    /// Those whose argument is on the grid before it is rounded, as in L4Q.
    PreRound,
}

/// What is rounded. Eq. (M5b).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrQatDialect {
    /// The sum of stored weight and update, as the paper writes it.
    #[default]
    Paper,
    /// The update alone, as the public code does for `int`: the other code at some ties.
    LrQatCode,
}

/// Everything that LR-QAT has to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LrQatSpec {
    grid: QuantSpec,
    inner_scale: InnerScale,
    mask: LrQatMask,
    dialect: LrQatDialect,
}

impl LrQatSpec {
    /// # Errors
    /// `OutOfRange` where the downcast does not hold codes of that width, and for a `lr_qat_code`
    /// with another downcast than `int` or another mask than `rounded`.
    pub fn new(
        grid: QuantSpec,
        inner_scale: InnerScale,
        mask: LrQatMask,
        dialect: LrQatDialect,
    ) -> Result<Self, SpecError> {
        if let InnerScale::Frozen(downcast) = inner_scale {
            downcast.check(grid.bits())?;
        }
        let codes_are_stored = inner_scale == InnerScale::Frozen(Downcast::Int);
        if dialect == LrQatDialect::LrQatCode && !(codes_are_stored && mask == LrQatMask::Rounded) {
            out_of_range("dialect", "lr_qat_code", "paper but with downcast int, mask rounded")?;
        }
        Ok(Self { grid, inner_scale, mask, dialect })
    }

    /// Width of the codes and groups.
    pub fn grid(&self) -> &QuantSpec {
        &self.grid
    }

    /// Which scale divides the frozen weight.
    pub fn inner_scale(&self) -> InnerScale {
        self.inner_scale
    }

    /// Which elements pass their gradient.
    pub fn mask(&self) -> LrQatMask {
        self.mask
    }

    /// What is rounded.
    pub fn dialect(&self) -> LrQatDialect {
        self.dialect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_downcast_holds_codes_of_its_widths() {
        for bits in 2..=8 {
            let width = Bits::new(bits).unwrap();
            for downcast in [Downcast::F32, Downcast::Bf16, Downcast::F16] {
                assert!(downcast.check(width).is_ok());
            }
            assert_eq!(Downcast::Fixed8.check(width).is_ok(), bits <= 7);
            assert_eq!(Downcast::Int.check(width).is_ok(), bits <= 4);
        }
    }

    #[test]
    fn options_that_contradict_are_refused() {
        let live = |downcast| InnerScale::from_name(Some("live"), downcast);
        assert_eq!(live(Downcast::F32), Ok(InnerScale::Live));
        assert!(live(Downcast::Bf16).is_err());
        assert!(InnerScale::from_name(Some("thawed"), Downcast::F32).is_err());
        let frozen = InnerScale::from_name(None, Downcast::Int).unwrap();
        assert_eq!(frozen, InnerScale::Frozen(Downcast::Int));

        let grid = QuantSpec::new(Bits::new(4).unwrap(), None, 2).unwrap();
        let new =
            |inner_scale, mask| LrQatSpec::new(grid, inner_scale, mask, LrQatDialect::LrQatCode);
        assert!(new(frozen, LrQatMask::Rounded).is_ok());
        assert!(new(frozen, LrQatMask::PreRound).is_err());
        assert!(new(InnerScale::Live, LrQatMask::Rounded).is_err());
        assert!(new(InnerScale::Frozen(Downcast::Fixed8), LrQatMask::Rounded).is_err());
    }
}
