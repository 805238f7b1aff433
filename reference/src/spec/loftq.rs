//! The quantizer inside LoftQ.

use super::{QuantSpec, SpecError, out_of_range};

/// What LoftQ rounds with in every turn. Eq. (A5a).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoftqQuantizer {
    /// The signed grid with offset 0 and the scale of rule `min_max`.
    Uniform(QuantSpec),
}

impl LoftqQuantizer {
    /// Names as the case protocol writes them.
    ///
    /// # Errors
    /// `OutOfRange` for an unknown name.
    pub fn from_name(name: &str, spec: QuantSpec) -> Result<Self, SpecError> {
        Ok(match name {
            "uniform" => Self::Uniform(spec),
            other => match out_of_range("quantizer", other, "uniform")? {},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Bits;

    #[test]
    fn an_unknown_quantizer_is_named() {
        let spec = QuantSpec::new(Bits::new(4).unwrap(), None, 2).unwrap();
        assert_eq!(LoftqQuantizer::from_name("uniform", spec), Ok(LoftqQuantizer::Uniform(spec)));
        let refused = LoftqQuantizer::from_name("nf5", spec).unwrap_err();
        assert_eq!(refused.to_string(), "quantizer is nf5, expected uniform");
    }
}
