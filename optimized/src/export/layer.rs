//! A layer of a merged model as every format sees it.

use plumbline_reference::spec::SCALE_FLOOR;
use rayon::prelude::*;

use super::lack::Lack;
use crate::checkpoint::ModelFolder;
use crate::error::Result;
use crate::methods::{AffineTensors, MergedTensors};
use crate::model::Projection;

/// Unsigned codes and their grid.
#[derive(Debug, Clone, PartialEq)]
pub struct CodedLayer {
    /// Width of a code.
    pub bits: u32,
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// Consecutive inputs that share a scale.
    pub group_size: usize,
    /// `[out, in]`, from 0 to `2^bits - 1`.
    pub codes: Vec<u8>,
    /// `[out, groups]`.
    pub scale: Vec<f32>,
    /// Where the codes have their zero.
    pub zero: Zero,
}

/// Where codes have their zero. `[out, groups]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Zero {
    /// `weight = (code - zero) * scale`, the zero one of the codes.
    Codes(Vec<u8>),
    /// The same with any number.
    Real(Vec<f32>),
    /// `weight = (code - 2^(bits-1)) * scale + offset`.
    Offset(Vec<f32>),
}

impl CodedLayer {
    /// The layer of a folder that this program wrote; `None` for one that is a weight there.
    ///
    /// # Errors
    /// `File` naming tensor and file.
    pub fn read(folder: &ModelFolder, linear: &Projection) -> Result<Option<Self>> {
        let Some(quantization) = folder.quantization() else { return Ok(None) };
        if quantization.grid_of(&linear.name).is_none() {
            return Ok(None);
        }
        Ok(Some(match quantization.zero_point {
            true => Self::from(folder.affine(linear)?),
            false => Self::from(folder.merged(linear)?),
        }))
    }

    /// The zero in the middle of the codes.
    pub fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Whether every zero is in the middle.
    pub fn is_symmetric(&self) -> bool {
        matches!(&self.zero, Zero::Codes(zeros) if zeros.iter().all(|zero| *zero == self.middle()))
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.in_features / self.group_size
    }

    /// What a code of a group stands for: the f32 that the trained model multiplies with.
    pub fn value(&self, place: usize, code: u8) -> f32 {
        let scale = self.scale[place];
        match &self.zero {
            Zero::Codes(zeros) => scale * (f32::from(code) - f32::from(zeros[place])),
            Zero::Real(zeros) => scale * (f32::from(code) - zeros[place]),
            Zero::Offset(offset) => {
                (f32::from(code) - f32::from(self.middle())) * scale + offset[place]
            }
        }
    }

    /// The weight `[out, in]`.
    pub fn weight(&self) -> Vec<f32> {
        let groups = self.codes.par_chunks(self.group_size).enumerate();
        groups
            .flat_map_iter(|(place, codes)| codes.iter().map(move |code| self.value(place, *code)))
            .collect()
    }

    /// The zeros as codes.
    ///
    /// # Errors
    /// That they are none.
    pub(super) fn zero_codes(&self) -> Result<&[u8], Lack> {
        match &self.zero {
            Zero::Codes(zeros) => Ok(zeros),
            Zero::Real(zeros) => {
                let code = |zero: &&f32| zero.fract() != 0.0 || **zero < 0.0;
                let value = *zeros.iter().find(code).unwrap_or(&zeros[0]);
                Err(Lack::RealZeroPoint { value })
            }
            Zero::Offset(offset) => {
                let value = *offset.iter().find(|offset| **offset != 0.0).unwrap_or(&offset[0]);
                Err(Lack::Offset { value })
            }
        }
    }
}

impl From<MergedTensors> for CodedLayer {
    fn from(merged: MergedTensors) -> Self {
        let MergedTensors { spec, out_features, codes, scale, offset } = merged;
        let bits = spec.bits().count();
        let middle = 1 << (bits - 1);
        let zero = match offset.iter().all(|offset| *offset == 0.0) {
            true => Zero::Codes(vec![middle; scale.len()]),
            false => Zero::Offset(offset),
        };
        Self {
            bits,
            out_features,
            in_features: spec.in_features(),
            group_size: spec.group_size(),
            codes: codes.into_iter().map(|code| (code as u8).wrapping_add(middle)).collect(),
            scale,
            zero,
        }
    }
}

impl From<AffineTensors> for CodedLayer {
    fn from(affine: AffineTensors) -> Self {
        let AffineTensors { spec, out_features, codes, scale, zero_point } = affine;
        let range = 0.0..=spec.unsigned_max() as f32;
        let is_code = |zero: &f32| range.contains(zero) && zero.fract() == 0.0;
        let zero = match zero_point.iter().all(is_code) {
            true => Zero::Codes(zero_point.into_iter().map(|zero| zero as u8).collect()),
            false => Zero::Real(zero_point),
        };
        Self {
            bits: spec.bits().count(),
            out_features,
            in_features: spec.in_features(),
            group_size: spec.group_size(),
            codes,
            // What the layer that runs on these codes does with a scale below the floor.
            scale: scale.into_iter().map(|scale| scale.max(SCALE_FLOOR as f32)).collect(),
            zero,
        }
    }
}
