//! A trained scale, and the one that the layer's weight is made with: itself, or the nearest that
//! the format of a recipe's target can hold. Eq. (Q23).

use plumbline_reference::spec::{SCALE_FLOOR, ScaleRule};

use super::{Parameter, ParameterKind, Trainable};
use crate::backend::Backend;
use crate::error::Result;

/// The scale that the optimizer moves, in full precision, and the rule of its target.
pub struct TrainedScale<B: Backend> {
    pub(super) parameter: Parameter<B>,
    rule: Option<ScaleRule>,
}

impl<B: Backend> TrainedScale<B> {
    /// `values [out, groups]`.
    ///
    /// # Errors
    /// When the device has no room.
    pub(super) fn new(
        backend: &B,
        values: &[f32],
        shape: [usize; 2],
        rule: Option<ScaleRule>,
    ) -> Result<Self> {
        let parameter = Parameter::new(backend, values, &shape, ParameterKind::Scale, true)?;
        Ok(Self { parameter, rule })
    }

    pub(super) fn rule(&self) -> Option<ScaleRule> {
        self.rule
    }

    /// The scale that is trained, on the host.
    ///
    /// # Errors
    /// When the device failed.
    pub fn to_host(&self, backend: &B) -> Result<Vec<f32>> {
        self.parameter.to_host(backend)
    }

    /// Values that [`Self::round`] needs room for.
    pub(super) fn room(&self) -> usize {
        room(self.rule, self.parameter.len())
    }

    /// Rounds into `room`, where there is a rule.
    ///
    /// # Errors
    /// `NonFinite` naming the scale; `Length`.
    pub(super) fn round(&self, backend: &B, room: &mut B::Floats) -> Result<()> {
        match self.rule {
            Some(rule) => {
                backend.round_scale(rule, self.parameter.len(), &self.parameter.value, room)
            }
            None => Ok(()),
        }
    }

    /// The scale that the weight is made with, where [`Self::round`] wrote to `room`.
    pub(super) fn used<'a>(&'a self, room: &'a B::Floats) -> &'a B::Floats {
        if self.rule.is_some() { room } else { &self.parameter.value }
    }

    /// The scale that the weight is made with, in room of its own.
    ///
    /// # Errors
    /// As [`Self::round`]; when the device has no room.
    pub(super) fn rounded(&self, backend: &B) -> Result<B::Floats> {
        let mut room = backend.zeros(self.room())?;
        self.round(backend, &mut room)?;
        Ok(room)
    }

    /// What is left of the gradient, which is that of the scale in use. Eq. (Q23b).
    ///
    /// # Errors
    /// `Length`.
    pub(super) fn pass_gradient(&mut self, backend: &B) -> Result<()> {
        let len = self.parameter.len();
        match (self.rule, &mut self.parameter.gradient) {
            (Some(rule), Some(gradient)) => {
                backend.round_scale_backward(rule, len, &self.parameter.value, gradient)
            }
            _ => Ok(()),
        }
    }

    /// The scale that the weight is made with, on the host: raised to the floor, and rounded where
    /// there is a rule.
    ///
    /// # Errors
    /// As [`Self::round`].
    pub(super) fn merged(&self, backend: &B) -> Result<Vec<f32>> {
        let room = self.rounded(backend)?;
        let values = backend.download(self.used(&room), self.parameter.len())?;
        Ok(values.into_iter().map(|scale| scale.max(SCALE_FLOOR as f32)).collect())
    }

    /// Keeps the scale as it is.
    pub(super) fn freeze(&mut self) {
        self.parameter.freeze();
    }

    pub(super) fn is_trained(&self) -> bool {
        self.parameter.gradient.is_some()
    }

    /// The scale itself where it is trained.
    pub(super) fn if_trained(&self) -> Option<&Self> {
        self.is_trained().then_some(self)
    }

    pub(super) fn trainable(&mut self) -> Option<Trainable<'_, B>> {
        self.parameter.trainable("scale")
    }

    /// How many scales stand still, because they lie below the floor or beyond an end of the rule,
    /// and how many there are.
    ///
    /// # Errors
    /// When the device failed.
    pub fn standing_still(&self, backend: &B) -> Result<(usize, usize)> {
        let values = self.parameter.to_host(backend)?;
        let stands = |scale: &&f32| match self.rule {
            Some(rule) => !rule.reaches(f64::from(**scale)),
            None => **scale < SCALE_FLOOR as f32,
        };
        Ok((values.iter().filter(stands).count(), values.len()))
    }
}

/// Values of a rounded scale of so many groups.
pub(super) fn room(rule: Option<ScaleRule>, groups: usize) -> usize {
    if rule.is_some() { groups } else { 0 }
}

/// A scale as it begins, as the weight is made with it.
///
/// # Errors
/// `NonFinite` naming the scale; when the device has no room.
pub(super) fn round_on_host<B: Backend>(
    backend: &B,
    rule: Option<ScaleRule>,
    scale: Vec<f32>,
) -> Result<Vec<f32>> {
    let Some(rule) = rule else { return Ok(scale) };
    let (given, mut rounded) = (backend.upload(&scale)?, backend.zeros(scale.len())?);
    backend.round_scale(rule, scale.len(), &given, &mut rounded)?;
    backend.download(&rounded, scale.len())
}
