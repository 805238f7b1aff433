//! AdamW over every trained tensor, with its rates by kind of parameter and clipping by the global
//! norm.

use std::collections::{BTreeMap, btree_map::Entry};

use plumbline_reference::spec::AdamWSpec;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::{LinearMethod, ParameterKind};
use crate::model::{LazyTensor, Llama, LossSlot};
use crate::ops::adamw::{AdamWArgs, AdamWTensor, GradientMultiplier, Moment, StateType};
use crate::ops::sums::StepSlots;

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

/// What a step does whose loss or gradient is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    /// Stop the run and name the tensor.
    #[default]
    Stop,
    /// Change nothing, count it and go on with the next samples.
    Skip,
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
    /// What a step does whose loss or gradient is not finite.
    pub on_nonfinite: OnNonfinite,
    /// What the two moments are kept in.
    pub state: StateType,
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
            on_nonfinite: OnNonfinite::Stop,
            state: StateType::F32,
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
struct Moments<B: Backend> {
    first: Moment<B>,
    second: Moment<B>,
    len: usize,
}

impl<B: Backend> Moments<B> {
    fn zeros(backend: &B, len: usize, state: StateType) -> Result<Self> {
        let zeros = || Moment::zeros(backend, len, state);
        Ok(Self { first: zeros()?, second: zeros()?, len })
    }
}

/// First and second moment of one tensor, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostMoments {
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of the squared gradient.
    pub second: Vec<f32>,
}

/// What a tensor's first moment is called behind its name.
pub(crate) const FIRST_MOMENT: &str = "first_moment";

/// What the second is called.
pub(crate) const SECOND_MOMENT: &str = "second_moment";

/// AdamW and its state.
pub struct Optimizer<B: Backend> {
    settings: OptimizerSettings,
    spec: AdamWSpec,
    moments: BTreeMap<String, Moments<B>>,
    sums: Option<(B::Sums, StepSlots)>,
    step: u64,
}

impl<B: Backend> Optimizer<B> {
    /// Fresh state.
    ///
    /// # Errors
    /// As [`OptimizerSettings::check`].
    pub fn new(settings: &OptimizerSettings) -> Result<Self> {
        let spec = settings.check()?;
        Ok(Self { settings: settings.clone(), spec, moments: BTreeMap::new(), sums: None, step: 0 })
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
            let upload = |values: &[f32]| Moment::upload(backend, values, settings.state);
            Ok((name.clone(), Moments { first: upload(first)?, second: upload(second)?, len }))
        };
        let moments = moments.iter().map(upload).collect::<Result<_>>()?;
        Ok(Self { moments, step: steps, ..Self::new(settings)? })
    }

    /// Goes on after `steps` steps with the moments that `moments` gives for the name and the
    /// length of every tensor that has some.
    ///
    /// # Errors
    /// Whatever `moments` returns; when the device failed.
    pub fn restore(
        &mut self,
        backend: &B,
        steps: u64,
        mut moments: impl FnMut(&str, usize) -> Result<HostMoments>,
    ) -> Result<()> {
        for (name, of_tensor) in &mut self.moments {
            let HostMoments { first, second } = moments(name, of_tensor.len)?;
            of_tensor.first.write(backend, &first)?;
            of_tensor.second.write(backend, &second)?;
        }
        self.step = steps;
        Ok(())
    }

    /// What the moments are kept in.
    pub fn state(&self) -> StateType {
        self.settings.state
    }

    /// Updates so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Forgets the gradients and the losses that were added up for a step.
    ///
    /// # Errors
    /// When the device failed.
    pub fn discard<L: LinearMethod<B>>(&mut self, model: &mut Llama<B, L>) -> Result<()> {
        let backend = model.shared_backend();
        if let Some((sums, _)) = &mut self.sums {
            backend.clear_sums(sums)?;
        }
        model.trainable().into_iter().try_for_each(|tensor| backend.clear(tensor.gradient))
    }

    /// The moments of every tensor that was updated, by its name.
    ///
    /// # Errors
    /// When the device failed.
    pub fn moments(&self, backend: &B) -> Result<BTreeMap<String, HostMoments>> {
        let download = |(name, moments): (&String, &Moments<B>)| {
            let first = moments.first.to_host(backend, moments.len)?;
            let second = moments.second.to_host(backend, moments.len)?;
            Ok((name.clone(), HostMoments { first, second }))
        };
        self.moments.iter().map(download).collect()
    }

    /// The same, to be fetched one after the other: both moments of each tensor by their names.
    pub fn moment_tensors<'a>(&'a self, backend: &'a B) -> Vec<LazyTensor<'a>> {
        let both = |(name, moments): (&String, &'a Moments<B>)| {
            let Moments { first, second, len } = moments;
            [(FIRST_MOMENT, first), (SECOND_MOMENT, second)].map(|(which, moment)| LazyTensor {
                name: format!("{name}.{which}"),
                shape: vec![*len],
                values: Box::new(move || moment.to_host(backend, *len)),
            })
        };
        self.moments.iter().flat_map(both).collect()
    }

    /// Makes moments and sums for every trained tensor and for `micro_batches` of a step, so that
    /// steps need no more memory.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn reserve<L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        micro_batches: usize,
    ) -> Result<()> {
        let backend = model.shared_backend();
        let trained = model.trainable();
        let slots = StepSlots { losses: micro_batches, tensors: trained.len() };
        for tensor in trained {
            if let Entry::Vacant(place) = self.moments.entry(tensor.name) {
                place.insert(Moments::zeros(&*backend, tensor.len, self.settings.state)?);
            }
        }
        if self.sums.as_ref().is_none_or(|(_, reserved)| *reserved != slots) {
            self.sums = Some((backend.upload_sums(&vec![0.0; slots.count()])?, slots));
        }
        Ok(())
    }

    /// Where the losses of a micro-batch are added up, for [`Optimizer::step`] to judge them.
    ///
    /// # Errors
    /// `Invalid` when it is none of those reserved.
    pub fn loss_slot(&mut self, micro_batch: usize) -> Result<LossSlot<'_, B>> {
        match &mut self.sums {
            Some((sums, slots)) if micro_batch < slots.losses => {
                Ok(LossSlot { sums, slot: micro_batch })
            }
            _ => Err(Error::Invalid(format!("no sum is reserved for micro-batch {micro_batch}"))),
        }
    }

    /// Updates every trained tensor with its rate times `rate_factor` and clears the gradients and
    /// losses. The device is waited for once, after everything else.
    ///
    /// # Errors
    /// `NonFinite` naming the loss, or the tensor whose gradient is not a number, or what the
    /// device refused meanwhile; nothing is updated or cleared then.
    pub fn step<L: LinearMethod<B>>(
        &mut self,
        model: &mut Llama<B, L>,
        rate_factor: f64,
    ) -> Result<StepSums> {
        let micro_batches = self.sums.as_ref().map_or(0, |(_, slots)| slots.losses);
        self.reserve(model, micro_batches)?;
        let backend = model.shared_backend();
        let Some((sums, slots)) = &mut self.sums else {
            unreachable!("sums were reserved above");
        };
        for (slot, tensor) in slots.squares().zip(model.trainable()) {
            backend.squared_norm(tensor.gradient, tensor.len, sums, slot)?;
        }
        backend.clip(*slots, self.settings.max_grad_norm, sums)?;
        let args = AdamWArgs { spec: self.spec, state: self.settings.state };
        let done = self.step;
        let mut moments: BTreeMap<&str, &mut Moments<B>> =
            self.moments.iter_mut().map(|(name, moments)| (name.as_str(), moments)).collect();
        let mut trained = model.trainable();
        let mut tensors: Vec<AdamWTensor<'_, B>> = trained
            .iter_mut()
            .map(|tensor| {
                let (learning_rate, weight_decay) = self.settings.of(tensor.kind);
                let moments = moments.remove(&*tensor.name).expect("reserved above");
                AdamWTensor {
                    name: &tensor.name,
                    len: tensor.len,
                    step: done.saturating_sub(tensor.since) + 1,
                    learning_rate: learning_rate * rate_factor,
                    weight_decay,
                    parameter: &mut *tensor.value,
                    gradient: &*tensor.gradient,
                    first_moment: &mut moments.first,
                    second_moment: &mut moments.second,
                }
            })
            .collect();
        backend.adamw(args, GradientMultiplier { sums, slot: slots.factor() }, &mut tensors)?;
        let slots = *slots;
        let read = backend.read_sums(sums)?;
        let result = judge(&*backend, model, slots, &read, self.step + 1)?;
        backend.clear_sums(sums)?;
        for tensor in model.trainable() {
            backend.clear(tensor.gradient)?;
        }
        self.step += 1;
        Ok(result)
    }
}

/// What a step adds up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSums {
    /// Sum of the losses of all micro-batches, in nats.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// Refuses a loss or a gradient that is not finite; the device updated nothing then.
fn judge<B: Backend, L: LinearMethod<B>>(
    backend: &B,
    model: &mut Llama<B, L>,
    slots: StepSlots,
    sums: &[f64],
    step: u64,
) -> Result<StepSums> {
    let loss = sums[..slots.losses].iter().fold(0.0, |sum, loss| sum + loss);
    if !loss.is_finite() {
        let tensor = format!("loss of step {step}");
        return Err(Error::NonFinite { tensor, index: 0, value: loss as f32 });
    }
    for (square, tensor) in sums[slots.squares()].iter().zip(model.trainable()) {
        if !square.is_finite() {
            let values = backend.download(tensor.gradient, tensor.len)?;
            let index = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
            let tensor = format!("gradient of {}", tensor.name);
            return Err(Error::NonFinite { tensor, index, value: values[index] });
        }
    }
    Ok(StepSums { loss, grad_norm: sums[slots.norm()] })
}
