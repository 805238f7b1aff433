use serde::{Deserialize, Serialize};

use super::{Bits, SpecError, ZeroPointRule, out_of_range};

/// Activations of a model on grids that are taken from each token. Eqs. (Q14), (N8d).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stated")]
pub struct ActivationSpec {
    /// Width of a code.
    pub bits: Bits,
    /// Width of a code of keys and values as their projections give them.
    pub kv_bits: Bits,
    /// Whether zero points are integers.
    pub zero_point: ZeroPointRule,
    /// Whether what the norms give is quantized too.
    pub norm_outputs: bool,
}

impl ActivationSpec {
    /// Every place at one width, with integer zero points.
    pub fn new(bits: Bits) -> Self {
        let zero_point = ZeroPointRule::default();
        Self { bits, kv_bits: bits, zero_point, norm_outputs: true }
    }
}

/// The fields as a file states them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    bits: u32,
    kv_bits: Option<u32>,
    #[serde(default)]
    zero_point: ZeroPointRule,
    norm_outputs: Option<bool>,
}

impl TryFrom<Stated> for ActivationSpec {
    type Error = SpecError;

    fn try_from(stated: Stated) -> Result<Self, SpecError> {
        let Stated { bits, kv_bits, zero_point, norm_outputs } = stated;
        Ok(Self {
            bits: width("activations.bits", bits)?,
            kv_bits: width("activations.kv_bits", kv_bits.unwrap_or(bits))?,
            zero_point,
            norm_outputs: norm_outputs.unwrap_or(true),
        })
    }
}

fn width(field: &'static str, bits: u32) -> Result<Bits, SpecError> {
    match Bits::new(bits) {
        Ok(bits) => Ok(bits),
        Err(_) => out_of_range(field, bits, "2 to 8").map(|never| match never {}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<ActivationSpec, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_and_values_are_as_wide_as_the_rest_unless_told() {
        let plain = ActivationSpec::new(Bits::new(8).unwrap());
        assert_eq!(read(json!({"bits": 8})), Ok(plain));
        let narrow = ActivationSpec { kv_bits: Bits::new(4).unwrap(), ..plain };
        assert_eq!(read(json!({"bits": 8, "kv_bits": 4})), Ok(narrow));
        assert_eq!(read(serde_json::to_value(narrow).unwrap()), Ok(narrow));
        let public = json!({"bits": 8, "zero_point": "float", "norm_outputs": false});
        let public = read(public).unwrap();
        assert_eq!((public.zero_point, public.norm_outputs), (ZeroPointRule::Float, false));
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (value, expected) in [
            (json!({"bits": 9}), "activations.bits is 9, expected 2 to 8"),
            (json!({"bits": 8, "kv_bits": 1}), "activations.kv_bits is 1, expected 2 to 8"),
            (json!({"kv_bits": 4}), "missing field `bits`"),
            (json!({"bits": 8, "key_bits": 4}), "unknown field `key_bits`"),
        ] {
            let refused = read(value).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }
}
