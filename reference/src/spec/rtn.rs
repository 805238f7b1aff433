//! How round-to-nearest chooses the range of a group.

use serde::{Deserialize, Serialize};

use super::{SpecError, out_of_range};

/// The scale of a symmetric grid. Eq. (Q13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SymmetricScale {
    /// `absmax / qmax`: nothing clips, code 0 is unused.
    #[default]
    Paper,
    /// `2 * absmax / (2^bits - 1)`, as GPTQ's code: the positive extreme lies on a tie above the
    /// grid.
    Gptq,
}

/// Which ranges are tried. Eq. (Q13).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RangeSearch {
    /// The range of the weights alone.
    #[default]
    MinMax,
    /// Best of `steps` ranges `k / steps` of that, under `sum |weight - output|^p`.
    Lp {
        /// Exponent of the error, positive and finite.
        p: f64,
        /// Ranges tried, at least 1.
        steps: usize,
    },
}

impl RangeSearch {
    /// Names as the case protocol writes them; `p` and `steps` belong to `lp` alone.
    ///
    /// # Errors
    /// `OutOfRange` for an unknown name, or for `p` and `steps` missing, present or out of range.
    pub fn from_name(name: &str, p: Option<f64>, steps: Option<usize>) -> Result<Self, SpecError> {
        match (name, p, steps) {
            ("min_max", None, None) => Ok(Self::MinMax),
            ("min_max", Some(p), _) => match out_of_range("p", p, "absent without range lp")? {},
            ("min_max", _, Some(steps)) => {
                match out_of_range("steps", steps, "absent without range lp")? {}
            }
            ("lp", p, steps) => {
                let (p, steps) = (p.unwrap_or(f64::NAN), steps.unwrap_or(0));
                if !(p > 0.0 && p.is_finite()) {
                    out_of_range("p", p, "a positive number with range lp")?;
                }
                if steps == 0 {
                    out_of_range("steps", steps, "at least 1 with range lp")?;
                }
                Ok(Self::Lp { p, steps })
            }
            (other, ..) => match out_of_range("range", other, "min_max or lp")? {},
        }
    }
}

/// The choices of round-to-nearest beside the grid's width and groups.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RtnSpec {
    /// Zero point in the middle of the codes, or where the range puts it.
    pub symmetric: bool,
    /// The range.
    pub range: RangeSearch,
    /// The scale where `symmetric`.
    pub convention: SymmetricScale,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_and_steps_belong_to_lp() {
        let lp = RangeSearch::Lp { p: 2.4, steps: 100 };
        assert_eq!(RangeSearch::from_name("lp", Some(2.4), Some(100)), Ok(lp));
        assert_eq!(RangeSearch::from_name("min_max", None, None), Ok(RangeSearch::MinMax));
        for (name, p, steps, message) in [
            ("lp", None, Some(1), "p is NaN"),
            ("lp", Some(0.0), Some(1), "p is 0"),
            ("lp", Some(f64::INFINITY), Some(1), "p is inf"),
            ("lp", Some(2.0), None, "steps is 0"),
            ("min_max", Some(2.0), None, "p is 2"),
            ("min_max", None, Some(3), "steps is 3"),
            ("mse", None, None, "range is mse, expected min_max or lp"),
        ] {
            let refused = RangeSearch::from_name(name, p, steps).unwrap_err().to_string();
            assert!(refused.contains(message), "{refused}");
        }
    }
}
