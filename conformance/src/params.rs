//! The JSON object `params` of a case, and the typed parameters that operations read from it.

use plumbline_reference::spec::{
    AdamWSpec, Bits, BlockSize, GptqSpec, GradScale, GroupPool, InitScaleRule, InnerScale,
    LlamaConfig, LrQatSpec, MaskRule, PackedBits, QuantSpec, RangeSearch, RopeSpec, RtnSpec,
    ScaleRule, SpecError, StoredType, StraightThrough,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The object `params`, as it is written in the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Params(pub Map<String, Value>);

impl Params {
    /// Parses the JSON text of the metadata key `params`.
    ///
    /// # Errors
    /// For anything but one JSON object.
    pub fn from_json(text: &str) -> Result<Self, String> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => Err(format!("params is {other}, expected a JSON object")),
            Err(e) => Err(format!("params is not JSON: {e}")),
        }
    }

    /// Keys are sorted: the same parameters always give the same text.
    pub fn to_json(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    /// The first key that is not in `known`.
    pub fn unknown_key(&self, known: &[&str]) -> Option<&str> {
        self.0.keys().map(String::as_str).find(|key| !known.contains(key))
    }

    /// A parameter that may be absent or null.
    ///
    /// # Errors
    /// Where it is there and is something else than `T`.
    pub fn optional<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|e| format!("params.{name} is {value}: {e}")),
        }
    }

    /// A parameter that must be there.
    ///
    /// # Errors
    /// Where it is absent, null or something else than `T`.
    pub fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        self.optional(name)?.ok_or_else(|| format!("params.{name} is missing"))
    }

    /// A number that must be there.
    ///
    /// # Errors
    /// Where it is absent or not a number.
    pub fn number(&self, name: &str) -> Result<f64, String> {
        self.required(name)
    }
}

impl FromIterator<(&'static str, Value)> for Params {
    fn from_iter<I: IntoIterator<Item = (&'static str, Value)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

fn refused(error: SpecError) -> String {
    format!("params: {error}")
}

/// `bits` and `group_size`, and `grad_scale` and `mask` where the operation has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantizer {
    /// Width of a code.
    pub bits: Bits,
    /// Consecutive inputs that share a scale; none: the whole row.
    pub group_size: Option<usize>,
    /// Factor on the gradients of scale and offset.
    pub grad_scale: GradScale,
    /// Which weights pass their gradient.
    pub mask: MaskRule,
}

impl Quantizer {
    /// # Errors
    /// One line naming the parameter and its value.
    pub fn read(params: &Params) -> Result<Self, String> {
        Ok(Self {
            bits: Bits::new(params.required("bits")?).map_err(refused)?,
            group_size: params.optional("group_size")?,
            grad_scale: params.optional("grad_scale")?.unwrap_or_default(),
            mask: params.optional("mask")?.unwrap_or_default(),
        })
    }

    /// What the backward pass is told.
    pub fn rules(&self) -> StraightThrough {
        StraightThrough { grad_scale: self.grad_scale, mask: self.mask }
    }

    /// The quantizer of a weight with so many inputs.
    ///
    /// # Errors
    /// Where a group would cross the end of a row.
    pub fn spec(&self, in_features: usize) -> Result<QuantSpec, String> {
        QuantSpec::new(self.bits, self.group_size, in_features).map_err(refused)
    }
}

/// Parameters of `nf4.quantize`: whether `absmax` is quantized too is the second one.
///
/// # Errors
/// One line naming the parameter and its value.
pub fn nf4(params: &Params) -> Result<(BlockSize, bool), String> {
    let block_size = BlockSize::new(params.required("block_size")?).map_err(refused)?;
    Ok((block_size, params.required("double_quantize")?))
}

/// Parameters of `gptq.quantize`.
///
/// # Errors
/// One line naming the parameter and its value.
pub fn gptq(params: &Params, in_features: usize) -> Result<GptqSpec, String> {
    let quant = Quantizer::read(params)?.spec(in_features)?;
    let mut spec = GptqSpec::new(quant, params.required("symmetric")?);
    if let Some(damping) = params.optional("damping")? {
        spec = spec.with_damping(damping).map_err(refused)?;
    }
    if let Some(block_size) = params.optional("block_size")? {
        spec = spec.with_block_size(block_size).map_err(refused)?;
    }
    spec.act_order = params.required("act_order")?;
    spec.static_groups = params.optional("static_groups")?.unwrap_or(false);
    Ok(spec)
}

/// The multiplier on `lora_b @ lora_a`.
///
/// # Errors
/// Where it is absent or not a number.
pub fn lora_scaling(params: &Params) -> Result<f64, String> {
    params.number("lora_scaling")
}

/// `dtype`, a narrow float type.
///
/// # Errors
/// Where it is absent or no such type.
pub fn stored_type(params: &Params) -> Result<StoredType, String> {
    params.required("dtype")
}

/// `scale_rule`, the numbers that a scale may be.
///
/// # Errors
/// Where it is absent or no such rule.
pub fn scale_rule(params: &Params) -> Result<ScaleRule, String> {
    params.required("scale_rule")
}

/// `bits` of a packed code.
///
/// # Errors
/// Where it is absent or a width that is not packed.
pub fn packed_bits(params: &Params) -> Result<PackedBits, String> {
    PackedBits::new(params.required("bits")?).map_err(refused)
}

/// `downcast`, `inner_scale`, `mask` and `dialect` beside the quantizer of a weight.
///
/// # Errors
/// One line naming the parameter and its value, also where two of them contradict each other.
pub fn lr_qat(params: &Params, in_features: usize) -> Result<LrQatSpec, String> {
    let inner_scale: Option<String> = params.optional("inner_scale")?;
    let inner_scale = InnerScale::from_name(inner_scale.as_deref(), params.required("downcast")?)
        .map_err(refused)?;
    let mask = params.optional("mask")?.unwrap_or_default();
    let dialect = params.optional("dialect")?.unwrap_or_default();
    let grid = Quantizer::read(params)?.spec(in_features)?;
    LrQatSpec::new(grid, inner_scale, mask, dialect).map_err(refused)
}

/// `rule`, with `p` and `steps` where the rule is `lp`.
///
/// # Errors
/// One line naming the parameter and its value.
pub fn init_rule(params: &Params) -> Result<InitScaleRule, String> {
    let name: String = params.required("rule")?;
    InitScaleRule::from_name(&name, params.optional("p")?, params.optional("steps")?)
        .map_err(refused)
}

/// `symmetric`, `convention`, and `range` with `p` and `steps` where it is `lp`.
///
/// # Errors
/// One line naming the parameter and its value.
pub fn rtn(params: &Params) -> Result<RtnSpec, String> {
    let range: Option<String> = params.optional("range")?;
    let range = range.as_deref().unwrap_or("min_max");
    Ok(RtnSpec {
        symmetric: params.required("symmetric")?,
        range: RangeSearch::from_name(range, params.optional("p")?, params.optional("steps")?)
            .map_err(refused)?,
        convention: params.optional("convention")?.unwrap_or_default(),
    })
}

/// `pool` and `dialect`.
///
/// # Errors
/// One line naming the parameter and its value.
pub fn group_pool(params: &Params) -> Result<GroupPool, String> {
    let dialect = params.optional("dialect")?.unwrap_or_default();
    GroupPool::new(params.required("pool")?, dialect).map_err(refused)
}

/// Parameters of `rope.*`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies, and their scaling.
    pub spec: RopeSpec,
    /// Position of token 0.
    pub first_position: usize,
}

impl Rope {
    /// # Errors
    /// One line naming the parameter and its value.
    pub fn read(params: &Params) -> Result<Self, String> {
        const SCALING: &str = "rope_scaling";
        let scaling: Value = params.optional(SCALING)?.unwrap_or_default();
        Ok(Self {
            spec: RopeSpec::from_config(params.number("theta")?, SCALING, &scaling)
                .map_err(refused)?,
            first_position: params.required("first_position")?,
        })
    }
}

/// Parameters of `attention.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
}

impl Attention {
    /// # Errors
    /// One line naming the parameter and its value.
    pub fn read(params: &Params) -> Result<Self, String> {
        Ok(Self { heads: params.required("heads")?, kv_heads: params.required("kv_heads")? })
    }
}

/// Parameters of `adamw.step`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// The constants of the optimizer.
    pub spec: AdamWSpec,
    /// Learning rate.
    pub lr: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
    /// The first step is 1.
    pub step: u64,
}

impl AdamW {
    /// # Errors
    /// One line naming the parameter and its value.
    pub fn read(params: &Params) -> Result<Self, String> {
        let [beta1, beta2, eps] = ["beta1", "beta2", "eps"].map(|name| params.number(name));
        Ok(Self {
            spec: AdamWSpec::new(beta1?, beta2?, eps?).map_err(refused)?,
            lr: params.number("lr")?,
            weight_decay: params.number("weight_decay")?,
            step: params.required("step")?,
        })
    }
}

/// The model of `llama.loss_and_gradients`.
///
/// # Errors
/// One line naming the field of the configuration and its value.
pub fn llama_config(params: &Params) -> Result<LlamaConfig, String> {
    let config: Value = params.required("config")?;
    LlamaConfig::from_value(&config).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> Params {
        Params::from_json(text).unwrap()
    }

    #[test]
    fn absent_and_null_group_size_mean_one_group_per_row() {
        for text in [r#"{"bits": 4}"#, r#"{"bits": 4, "group_size": null, "grad_scale": "none"}"#] {
            let quantizer = Quantizer::read(&params(text)).unwrap();
            assert_eq!(quantizer.spec(6).unwrap().group_size(), 6);
            assert_eq!(quantizer.grad_scale, GradScale::None);
            assert_eq!(quantizer.mask, MaskRule::PreRound);
        }
    }

    #[test]
    fn a_wrong_parameter_is_named_with_its_value() {
        for (text, message) in [
            (r#"{}"#, "params.bits is missing"),
            (r#"{"bits": 9}"#, "params: bits is 9, expected 2 to 8"),
            (r#"{"bits": 4.5}"#, "params.bits is 4.5"),
            (r#"{"bits": 4, "group_size": -1}"#, "params.group_size is -1"),
            (r#"{"bits": 4, "grad_scale": "LSQ"}"#, "params.grad_scale is \"LSQ\""),
            (r#"{"bits": 4, "mask": "closed"}"#, "params.mask is \"closed\""),
        ] {
            let refused = Quantizer::read(&params(text)).unwrap_err();
            assert!(refused.contains(message), "{text}: {refused}");
        }
        assert!(Params::from_json("[1]").unwrap_err().contains("expected a JSON object"));
        assert!(init_rule(&params(r#"{"rule": "lp"}"#)).unwrap_err().contains("p is"));
    }
}
