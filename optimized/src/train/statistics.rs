//! What happens to the grids of a model in training.

use serde::Serialize;

use crate::backend::Backend;
use crate::error::Result;
use crate::methods::{CodeUse, LinearMethod};
use crate::model::Llama;

/// Scale and codes of one linear layer; what its method does not have is absent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerStatistics {
    /// Its name.
    pub layer: String,
    /// The trained scale.
    #[serde(flatten)]
    pub scale: Option<ScaleStatistics>,
    /// The codes that merging would give now.
    #[serde(flatten)]
    pub codes: Option<CodeUse>,
}

/// A trained scale over all its groups.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ScaleStatistics {
    /// The smallest.
    pub scale_min: f32,
    /// The mean.
    pub scale_mean: f64,
    /// The largest.
    pub scale_max: f32,
    /// Groups below the floor: they stand still.
    pub scale_floored: usize,
}

/// The statistics of every linear layer that has a trained scale or codes.
///
/// # Errors
/// `NonFinite` naming the tensor; when the device failed.
pub fn layer_statistics<B: Backend, L: LinearMethod<B>>(
    model: &Llama<B, L>,
) -> Result<Vec<LayerStatistics>> {
    let mut all = Vec::new();
    for (layer, linear) in model.linears() {
        let scale = match linear.trained_scale() {
            Some(scale) => {
                let floored = scale.standing_still(model.backend())?.0;
                Some(ScaleStatistics::of(&scale.to_host(model.backend())?, floored))
            }
            None => None,
        };
        let codes = linear.code_use(model.backend())?;
        if scale.is_some() || codes.is_some() {
            all.push(LayerStatistics { layer, scale, codes });
        }
    }
    Ok(all)
}

impl ScaleStatistics {
    fn of(values: &[f32], scale_floored: usize) -> Self {
        let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
        Self {
            scale_min: values.iter().copied().fold(f32::INFINITY, f32::min),
            scale_mean: sum / values.len() as f64,
            scale_max: values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            scale_floored,
        }
    }
}
