//! How fast the pairs of a rotary position embedding turn.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{SpecError, out_of_range};

/// Base of the rotary frequencies, and what was done to them for longer contexts. Eq. (N3c).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeSpec {
    theta: f64,
    scaling: RopeScaling,
}

/// What becomes of the frequencies that follow from the base.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// They stay.
    Default,
    /// All are divided by the factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Slow pairs are divided by the factor, fast ones stay, and those between are mixed.
    Llama3(Llama3Scaling),
}

/// The parameters of LLaMA 3.1's scaling, under their names in `config.json`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// Divides the frequency of a slow pair; at least 1.
    pub factor: f64,
    /// A pair that turns less often than this in the original context is slow.
    pub low_freq_factor: f64,
    /// A pair that turns more often than this in the original context is fast.
    pub high_freq_factor: f64,
    /// Context that the model was trained for before it was lengthened.
    pub original_max_position_embeddings: usize,
}

impl RopeSpec {
    /// Frequencies of this base, unscaled.
    ///
    /// # Errors
    /// `OutOfRange` for a base that is not a positive number.
    pub fn new(theta: f64) -> Result<Self, SpecError> {
        if !(theta > 0.0 && theta.is_finite()) {
            out_of_range("rope_theta", theta, "a positive number")?;
        }
        Ok(Self { theta, scaling: RopeScaling::Default })
    }

    /// The same base with another scaling.
    ///
    /// # Errors
    /// `OutOfRange` naming the parameter.
    pub fn with_scaling(self, scaling: RopeScaling) -> Result<Self, SpecError> {
        match scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => check_factor(factor)?,
            RopeScaling::Llama3(llama3) => llama3.check()?,
        }
        Ok(Self { scaling, ..self })
    }

    /// Reads the object of `config.json` called `field`, `rope_scaling` in older files and
    /// `rope_parameters` in newer ones; null is no scaling. A base inside of it replaces `theta`.
    ///
    /// # Errors
    /// `Malformed` naming `field` and what is wrong in it: a type that is not implemented, a
    /// parameter that is missing, unknown or out of range.
    pub fn from_config(theta: f64, field: &str, object: &Value) -> Result<Self, SpecError> {
        Self::read(theta, object).map_err(|error| match error {
            // The base outside of the object has its own name.
            SpecError::OutOfRange { field: "rope_theta", .. } => error,
            other => SpecError::Malformed(format!("{field}: {other}")),
        })
    }

    fn read(theta: f64, object: &Value) -> Result<Self, SpecError> {
        if object.is_null() {
            return Self::new(theta);
        }
        let kind = object.get("rope_type").or_else(|| object.get("type"));
        let kind = match kind {
            None | Some(Value::Null) => "default",
            Some(kind) => kind.as_str().unwrap_or("no text"),
        };
        let supported = "default, linear, llama3";
        if !supported.split(", ").any(|known| known == kind) {
            let value = kind.to_owned();
            return Err(SpecError::Unsupported { field: "rope_type", value, supported });
        }
        let raw: RawRope = serde_json::from_value(object.clone())
            .map_err(|error| SpecError::Malformed(error.to_string()))?;
        if raw.partial_rotary_factor.is_some_and(|part| part != 1.0) {
            let value = raw.partial_rotary_factor.unwrap_or_default().to_string();
            let field = "partial_rotary_factor";
            return Err(SpecError::Unsupported { field, value, supported: "1" });
        }
        Self::new(raw.rope_theta.unwrap_or(theta))?.with_scaling(match kind {
            "linear" => RopeScaling::Linear { factor: needed("factor", raw.factor)? },
            "llama3" => RopeScaling::Llama3(Llama3Scaling {
                factor: needed("factor", raw.factor)?,
                low_freq_factor: needed("low_freq_factor", raw.low_freq_factor)?,
                high_freq_factor: needed("high_freq_factor", raw.high_freq_factor)?,
                original_max_position_embeddings: needed(
                    "original_max_position_embeddings",
                    raw.original_max_position_embeddings,
                )?,
            }),
            _ => RopeScaling::Default,
        })
    }

    /// Base of the frequencies.
    pub fn theta(&self) -> f64 {
        self.theta
    }

    /// What was done to them.
    pub fn scaling(&self) -> RopeScaling {
        self.scaling
    }

    /// The scaling as `rope_scaling` of a `config.json`.
    pub fn scaling_value(&self) -> Value {
        match self.scaling {
            RopeScaling::Default => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3(llama3) => json!({
                "rope_type": "llama3",
                "factor": llama3.factor,
                "low_freq_factor": llama3.low_freq_factor,
                "high_freq_factor": llama3.high_freq_factor,
                "original_max_position_embeddings": llama3.original_max_position_embeddings,
            }),
        }
    }
}

impl Llama3Scaling {
    fn check(&self) -> Result<(), SpecError> {
        check_factor(self.factor)?;
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        if !(low > 0.0 && low.is_finite()) {
            out_of_range("low_freq_factor", low, "a positive number")?;
        }
        if !(high > low && high.is_finite()) {
            out_of_range("high_freq_factor", high, "a number above low_freq_factor")?;
        }
        if self.original_max_position_embeddings == 0 {
            out_of_range("original_max_position_embeddings", 0, "at least 1")?;
        }
        Ok(())
    }
}

fn check_factor(factor: f64) -> Result<(), SpecError> {
    if !(factor >= 1.0 && factor.is_finite()) {
        out_of_range("factor", factor, "a number of at least 1")?;
    }
    Ok(())
}

fn needed<T>(field: &str, value: Option<T>) -> Result<T, SpecError> {
    value.ok_or_else(|| SpecError::Malformed(format!("{field} is missing")))
}

/// The object as it is written. What it says changes every angle, so nothing in it is ignored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRope {
    #[serde(rename = "rope_type")]
    _rope_type: Option<String>,
    #[serde(rename = "type")]
    _type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama_3_2() -> Value {
        json!({
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })
    }

    #[test]
    fn both_spellings_of_the_type_and_a_base_inside_are_read() {
        let spec = RopeSpec::from_config(5e5, "rope_scaling", &llama_3_2()).unwrap();
        let RopeScaling::Llama3(llama3) = spec.scaling() else { panic!("{spec:?}") };
        assert_eq!((llama3.factor, llama3.original_max_position_embeddings), (32.0, 8192));
        assert_eq!(spec.scaling_value(), llama_3_2());
        let mut newer = llama_3_2();
        newer["rope_theta"] = json!(5e5);
        assert_eq!(RopeSpec::from_config(1e4, "rope_parameters", &newer), Ok(spec));
        let older = json!({"type": "linear", "factor": 8});
        let older = RopeSpec::from_config(1e4, "rope_scaling", &older).unwrap();
        assert_eq!((older.theta(), older.scaling()), (1e4, RopeScaling::Linear { factor: 8.0 }));
        let none = RopeSpec::from_config(1e4, "rope_scaling", &Value::Null);
        assert_eq!(none, RopeSpec::new(1e4));
    }

    #[test]
    fn what_is_not_implemented_missing_or_impossible_is_named_with_its_value() {
        for kind in ["dynamic", "yarn", "longrope"] {
            let value = json!({"type": kind, "factor": 2.0, "beta_fast": 32.0});
            let refused = RopeSpec::from_config(1e4, "rope_scaling", &value).unwrap_err();
            let expected = format!(
                "rope_scaling: config field rope_type is {kind}, supported: default, linear, llama3"
            );
            assert_eq!(refused.to_string(), expected);
        }
        for (field, value, message) in [
            ("factor", json!(0.5), "factor is 0.5, expected a number of at least 1"),
            ("factor", Value::Null, "factor is missing"),
            ("low_freq_factor", json!(0.0), "low_freq_factor is 0"),
            ("high_freq_factor", json!(1.0), "high_freq_factor is 1"),
            ("original_max_position_embeddings", json!(0), "at least 1"),
            ("original_max_position_embeddings", json!(0.5), "0.5"),
            ("partial_rotary_factor", json!(0.5), "partial_rotary_factor is 0.5"),
            ("mrope_section", json!([16, 24, 24]), "mrope_section"),
            ("rope_theta", json!(-1.0), "rope_theta is -1"),
        ] {
            let mut bad = llama_3_2();
            bad[field] = value;
            let refused = RopeSpec::from_config(1e4, "rope_scaling", &bad).unwrap_err();
            assert!(refused.to_string().contains(message), "{refused}");
        }
    }
}
