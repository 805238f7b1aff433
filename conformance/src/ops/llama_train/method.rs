//! The parameters of a training run.

use plumbline_reference::model::train::{Grid, Method, Optimizer};
use plumbline_reference::spec::{AdamWSpec, LrQatSpec, QatQuantizer};

use crate::params::{self, Params, Quantizer};

/// What stands before the name of a trained tensor whose running mean of gradients it is.
pub const FIRST_MOMENT: &str = "first_moment.";

/// The same for the running mean of squared gradients.
pub const SECOND_MOMENT: &str = "second_moment.";

/// Parameters that belong to the model and to the optimizer, whatever the method.
const OF_EVERY_METHOD: &[&str] =
    &["config", "method", "lr", "beta1", "beta2", "eps", "weight_decay", "first_step"];

/// Every method, with the parameters of its own.
const METHODS: &[(&str, &[&str])] = &[
    ("lora", &["lora_scaling"]),
    ("l4q", &["bits", "group_size", "lora_scaling", "grad_scale", "mask"]),
    (
        "lr_qat",
        &["bits", "group_size", "lora_scaling", "downcast", "inner_scale", "mask", "dialect"],
    ),
    ("qa_lora", &["bits", "group_size", "lora_scaling", "pool", "dialect"]),
    ("qat", &["bits", "group_size", "quantizer", "grad_scale", "mask"]),
    ("qat_lora", &["bits", "group_size", "lora_scaling", "grad_scale", "mask"]),
    ("peqa", &["bits", "group_size"]),
];

/// The value of `method`.
///
/// # Errors
/// Where it is absent or no method.
pub fn method_name(params: &Params) -> Result<&'static str, String> {
    let name: String = params.required("method")?;
    let known = METHODS.iter().find(|(known, _)| *known == name);
    known.map(|(known, _)| *known).ok_or_else(|| {
        let known: Vec<_> = METHODS.iter().map(|(known, _)| *known).collect();
        format!("params.method is {name:?}, expected one of {}", known.join(", "))
    })
}

/// The method and its parameters.
///
/// # Errors
/// One line naming the parameter and its value, also for one that is another method's.
pub fn method(params: &Params) -> Result<Method, String> {
    let name = method_name(params)?;
    let own = METHODS.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, own)| own);
    let known = [OF_EVERY_METHOD, own].concat();
    if let Some(key) = params.unknown_key(&known) {
        return Err(format!("params.{key} is not a parameter of method {name}"));
    }
    let lora_scaling = || params::lora_scaling(params);
    if name == "lora" {
        return Ok(Method::Lora { lora_scaling: lora_scaling()? });
    }
    let quantizer = Quantizer::read(params)?;
    let (grid, rules) =
        (Grid { bits: quantizer.bits, group_size: quantizer.group_size }, quantizer.rules());
    Ok(match name {
        "l4q" => Method::L4q { grid, lora_scaling: lora_scaling()?, rules },
        "lr_qat" => {
            let hidden_size = params::llama_config(params)?.hidden_size;
            let spec: LrQatSpec = params::lr_qat(params, hidden_size)?;
            Method::LrQat {
                grid,
                lora_scaling: lora_scaling()?,
                inner_scale: spec.inner_scale(),
                mask: spec.mask(),
                dialect: spec.dialect(),
            }
        }
        "qa_lora" => {
            let pool = params::group_pool(params)?;
            Method::QaLora { grid, lora_scaling: lora_scaling()?, pool }
        }
        "qat" => {
            let quantizer: Option<QatQuantizer> = params.optional("quantizer")?;
            Method::Qat { grid, quantizer: quantizer.unwrap_or_default(), rules }
        }
        "qat_lora" => Method::QatLora { grid, lora_scaling: lora_scaling()?, rules },
        _ => Method::Peqa { grid },
    })
}

/// AdamW and the number of the first step.
///
/// # Errors
/// One line naming the parameter and its value.
pub fn optimizer(params: &Params) -> Result<(Optimizer, u64), String> {
    let [beta1, beta2, eps] = ["beta1", "beta2", "eps"].map(|name| params.number(name));
    let optimizer = Optimizer {
        spec: AdamWSpec::new(beta1?, beta2?, eps?).map_err(|e| format!("params: {e}"))?,
        lr: params.number("lr")?,
        weight_decay: params.number("weight_decay")?,
    };
    Ok((optimizer, params.optional("first_step")?.unwrap_or(1)))
}
