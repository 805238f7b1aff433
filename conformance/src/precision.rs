//! The two precisions a subject computes in, and the rounding errors they promise.

use plumbline_reference::Real;

/// Precision of a subject's arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Precision {
    /// Binary32.
    F32,
    /// Binary64.
    F64,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

/// What a subject does to the factors of a product of matrices, and to those of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// Nothing.
    #[default]
    AsStored,
    /// It may round each of them to bf16, as tensor cores take them; the sums are f32's.
    Bf16,
}

/// A scalar type of the reference that tensors can be stored in.
pub trait Scalar: Real {
    /// The stored type.
    const PRECISION: Precision;
}

impl Scalar for f32 {
    const PRECISION: Precision = Precision::F32;
}

impl Scalar for f64 {
    const PRECISION: Precision = Precision::F64;
}

/// What one rounding may cost when a result of one precision is held against a binary64 oracle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unit {
    /// Relative: half the distance between neighbours, plus the oracle's own.
    pub roundoff: f64,
    /// Absolute: the smallest positive number of the precision.
    pub tiny: f64,
    /// Absolute, for an exponential: twice the smallest normal number. Below it, vector and device
    /// libraries flush to zero or stop at the exponential of a clamped argument.
    pub flush: f64,
}

impl Unit {
    /// The oracle computes in binary64 too, so its roundings count beside the subject's.
    pub fn of(precision: Precision) -> Self {
        let oracle = 2_f64.powi(-53);
        match precision {
            Precision::F32 => Self {
                roundoff: 2_f64.powi(-24) + oracle,
                tiny: f64::from(f32::from_bits(1)),
                flush: 2.0 * f64::from(f32::MIN_POSITIVE),
            },
            Precision::F64 => Self {
                roundoff: oracle + oracle,
                tiny: f64::from_bits(1),
                flush: 2.0 * f64::MIN_POSITIVE,
            },
        }
    }

    /// Relative error of `roundings` successive roundings, `n * u / (1 - n * u)`.
    pub fn gamma(&self, roundings: f64) -> f64 {
        let linear = roundings * self.roundoff;
        if linear < 1.0 { linear / (1.0 - linear) } else { f64::INFINITY }
    }
}
