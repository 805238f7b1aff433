//! AdamW over every trained tensor, with its rates by kind of parameter and clipping by the global
//! norm.

use std::collections::BTreeMap;

use plumbline_reference::spec::AdamWSpec;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::{LinearMethod, ParameterKind};
use crate::model::Llama;
use crate::ops::adamw::{AdamWArgs, AdamWTensors};

/// Overrides for one kind of parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindSettings {
    /// Peak learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Decoupled weight decay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// The optimizer as a recipe states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSettings {
    /// Peak learning rate of kinds without their own.
    pub learning_rate: f64,
    /// Decoupled weight decay of kinds without their own.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest global norm of the gradient; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// Matrices of linear layers and the output projection (pretraining).
    pub weight: KindSettings,
    /// The embedding table (pretraining).
    pub embedding: KindSettings,
    /// Normalisation weights (pretraining).
    pub norm: KindSettings,
    /// Input-side low-rank factors.
    pub lora_a: KindSettings,
    /// Output-side low-rank factors.
    pub lora_b: KindSettings,
    /// Quantization steps.
    pub scale: KindSettings,
    /// Quantization offsets.
    pub offset: KindSettings,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        let kind = KindSettings::default();
        Self {
            learning_rate: 1e-3,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            max_grad_norm: 1.0,
            weight: kind,
            embedding: kind,
            norm: kind,
            lora_a: kind,
            lora_b: kind,
            scale: kind,
            offset: kind,
        }
    }
}

impl OptimizerSettings {
    /// Peak learning rate and weight decay of a kind.
    pub fn of(&self, kind: ParameterKind) -> (f64, f64) {
        let settings = match kind {
            ParameterKind::Weight => self.weight,
            ParameterKind::Embedding => self.embedding,
            ParameterKind::Norm => self.norm,
            ParameterKind::LoraA => self.lora_a,
            ParameterKind::LoraB => self.lora_b,
            ParameterKind::Scale => self.scale,
            ParameterKind::Offset => self.offset,
        };
        (
            settings.learning_rate.unwrap_or(self.learning_rate),
            settings.weight_decay.unwrap_or(self.weight_decay),
        )
    }

    /// Checks every number.
    ///
    /// # Errors
    /// `Invalid` naming field and value; `Spec` for betas and eps.
    pub fn check(&self) -> Result<AdamWSpec> {
        let kinds = [
            (
                "",
                KindSettings {
                    learning_rate: Some(self.learning_rate),
                    weight_decay: Some(self.weight_decay),
                },
            ),
            ("weight.", self.weight),
            ("embedding.", self.embedding),
            ("norm.", self.norm),
            ("lora_a.", self.lora_a),
            ("lora_b.", self.lora_b),
            ("scale.", self.scale),
            ("offset.", self.offset),
        ];
        for (kind, settings) in kinds {
            for (field, value) in
                [("learning_rate", settings.learning_rate), ("weight_decay", settings.weight_decay)]
            {
                if let Some(value) = value
                    && !(value >= 0.0 && value.is_finite())
                {
                    let reason = format!("optimizer.{kind}{field} is {value}, expected at least 0");
                    return Err(Error::Invalid(reason));
                }
            }
        }
        if !(self.max_grad_norm >= 0.0 && self.max_grad_norm.is_finite()) {
            let value = self.max_grad_norm;
            let reason = format!("optimizer.max_grad_norm is {value}, expected at least 0");
            return Err(Error::Invalid(reason));
        }
        Ok(AdamWSpec::new(self.beta1, self.beta2, self.eps)?)
    }
}

/// First and second moment of one tensor.
struct Moments<F> {
    first: F,
    second: F,
    len: usize,
}

/// First and second moment of one tensor, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostMoments {
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of the squared gradient.
    pub second: Vec<f32>,
}

/// AdamW and its state.
pub struct Optimizer<B: Backend> {
    settings: OptimizerSettings,
    spec: AdamWSpec,
    moments: BTreeMap<String, Moments<B::Floats>>,
    step: u64,
}

impl<B: Backend> Optimizer<B> {
    /// Fresh state.
    ///
    /// # Errors
    /// As [`OptimizerSettings::check`].
    pub fn new(settings: &OptimizerSettings) -> Result<Self> {
        let spec = settings.check()?;
        Ok(Self { settings: settings.clone(), spec, moments: BTreeMap::new(), step: 0 })
    }

    /// Continues after `steps` steps with the moments that they left; a tensor that has none here
    /// begins with zeros.
    ///
    /// # Errors
    /// As [`OptimizerSettings::check`]; when the device has no room.
    pub fn resume(
        settings: &OptimizerSettings,
        backend: &B,
        steps: u64,
        moments: &BTreeMap<String, HostMoments>,
    ) -> Result<Self> {
        let upload = |(name, HostMoments { first, second }): (&String, &HostMoments)| {
            let len = first.len();
            let (first, second) = (backend.upload(first)?, backend.upload(second)?);
            Ok((name.clone(), Moments { first, second, len }))
        };
        let moments = moments.iter().map(upload).collect::<Result<_>>()?;
        Ok(Self { moments, step: steps, ..Self::new(settings)? })
    }

    /// The moments of every tensor that was updated, by its name.
    ///
    /// # Errors
    /// When the device failed.
    pub fn moments(&self, backend: &B) -> Result<BTreeMap<String, HostMoments>> {
        let download = |(name, moments): (&String, &Moments<B::Floats>)| {
            let first = backend.download(&moments.first, moments.len)?;
            let second = backend.download(&moments.second, moments.len)?;
            Ok((name.clone(), HostMoments { first, second }))
        };
        self.moments.iter().map(download).collect()
    }

    /// Updates every trained tensor with its rate times `rate_factor`, clears the gradients and
    /// returns their global norm before clipping.
    ///
    /// # Errors
    /// `NonFinite` naming the tensor whose gradient is not a number; nothing is updated then.
    pub fn step<L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        rate_factor: f64,
    ) -> Result<f64> {
        let backend = model.shared_backend();
        let norm = global_norm(&*backend, model)?;
        let limit = self.settings.max_grad_norm;
        let clip = if limit > 0.0 && norm > limit { limit / norm } else { 1.0 };
        self.step += 1;
        for tensor in model.trainable() {
            let (learning_rate, weight_decay) = self.settings.of(tensor.kind);
            if !self.moments.contains_key(&tensor.name) {
                let (first, second) = (backend.zeros(tensor.len)?, backend.zeros(tensor.len)?);
                self.moments
                    .insert(tensor.name.clone(), Moments { first, second, len: tensor.len });
            }
            let moments = self.moments.get_mut(&tensor.name).expect("inserted above");
            let args = AdamWArgs {
                len: tensor.len,
                spec: self.spec,
                learning_rate: learning_rate * rate_factor,
                weight_decay,
                gradient_multiplier: clip as f32,
                step: self.step,
            };
            let tensors = AdamWTensors {
                parameter: tensor.value,
                gradient: tensor.gradient,
                first_moment: &mut moments.first,
                second_moment: &mut moments.second,
            };
            backend.adamw(args, tensors)?;
            backend.clear(tensor.gradient)?;
        }
        Ok(norm)
    }
}

/// Euclidean norm of all gradients together.
fn global_norm<B: Backend, L: LinearMethod<B>>(
    backend: &B,
    model: &mut Llama<B, L>,
) -> Result<f64> {
    let mut sum = 0.0;
    for tensor in model.trainable() {
        let square = backend.squared_norm(tensor.gradient, tensor.len)?;
        if !square.is_finite() {
            let values = backend.download(tensor.gradient, tensor.len)?;
            let index = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
            let tensor = format!("gradient of {}", tensor.name);
            return Err(Error::NonFinite { tensor, index, value: values[index] });
        }
        sum += square;
    }
    Ok(sum.sqrt())
}
