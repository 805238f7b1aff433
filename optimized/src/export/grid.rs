//! What the formats with one grid for the whole model have in common: its width and groups, and a
//! layer's codes, zeros and scales brought to it without changing a value.

use super::floats::FloatType;
use super::lack::Lack;
use super::layer::{CodedLayer, Zero};

/// The grid of a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileGrid {
    /// Width of a code.
    pub bits: u32,
    /// Consecutive inputs that share a scale; `None` for one group per row.
    pub group_size: Option<usize>,
    /// Whether every zero is in the middle.
    pub symmetric: bool,
}

impl FileGrid {
    /// One that every layer so far and this one can be brought to: the wider codes, the groups
    /// that divide both.
    pub(super) fn with(self, layer: &CodedLayer) -> Self {
        let of_layer = Self::of(layer);
        Self {
            bits: self.bits.max(of_layer.bits),
            group_size: match (self.group_size, of_layer.group_size) {
                (None, None) => None,
                // A whole row is divided by what divides its length.
                (None, Some(size)) | (Some(size), None) => Some(common(size, layer.in_features)),
                (Some(one), Some(other)) => Some(common(one, other)),
            },
            symmetric: self.symmetric && of_layer.symmetric,
        }
    }

    /// A layer's own.
    pub(super) fn of(layer: &CodedLayer) -> Self {
        let is_whole = layer.group_size == layer.in_features;
        Self {
            bits: layer.bits,
            group_size: (!is_whole).then_some(layer.group_size),
            symmetric: layer.is_symmetric(),
        }
    }

    /// The narrowest of the format's widths that holds the codes.
    pub(super) fn widened(self, widths: &[u32], holds: &'static str) -> Result<Self, Lack> {
        let width = widths.iter().find(|width| **width >= self.bits);
        let bits = *width.ok_or(Lack::Bits { bits: self.bits, holds })?;
        Ok(Self { bits, ..self })
    }

    /// Inputs of a group in a layer with so many.
    pub(super) fn size(self, in_features: usize) -> usize {
        self.group_size.unwrap_or(in_features)
    }
}

/// The greatest common divisor.
pub(super) fn common(one: usize, other: usize) -> usize {
    if other == 0 { one } else { common(other, one % other) }
}

/// A layer on a grid with zeros that are codes: `weight = (code - zero) * scale`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Integers {
    /// Width of a code.
    pub bits: u32,
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// Groups of a row.
    pub groups: usize,
    /// `[out, in]`.
    pub codes: Vec<u8>,
    /// `[out, groups]`.
    pub zeros: Vec<u8>,
    /// `[out, groups]`.
    pub scale: Vec<f32>,
}

impl Integers {
    /// A layer brought to a grid: codes move with their zero where the grid is wider, a scale is
    /// written more than once where its groups are smaller.
    pub(super) fn new(layer: &CodedLayer, grid: FileGrid) -> Result<Self, Lack> {
        let zeros = layer.zero_codes()?;
        // Symmetric grids of all widths have their zero in the middle; of others, the codes stay.
        let moved = match grid.symmetric {
            true => (1u8 << (grid.bits - 1)) - layer.middle(),
            false => 0,
        };
        let size = grid.size(layer.in_features);
        Ok(Self {
            bits: grid.bits,
            out_features: layer.out_features,
            in_features: layer.in_features,
            groups: layer.in_features / size,
            codes: layer.codes.iter().map(|code| code + moved).collect(),
            zeros: repeated(zeros, layer.group_size / size).map(|zero| zero + moved).collect(),
            scale: repeated(&layer.scale, layer.group_size / size).collect(),
        })
    }

    /// A layer brought to codes of `bits` bits around a zero in the middle: what a grid of one bit
    /// less always allows, whatever its zero points are. docs/formats.md, "Zeros moved to
    /// the middle".
    pub(super) fn centred(layer: &CodedLayer, bits: u32, size: usize) -> Result<Self, Lack> {
        let zeros = layer.zero_codes()?;
        let middle = 1i32 << (bits - 1);
        let groups = layer.codes.chunks(layer.group_size).zip(zeros);
        let mut codes = Vec::with_capacity(layer.codes.len());
        for (group, zero) in groups {
            for code in group {
                let steps = i32::from(*code) - i32::from(*zero);
                if !(-middle..middle).contains(&steps) {
                    return Err(Lack::Steps { steps, bits });
                }
                codes.push((steps + middle) as u8);
            }
        }
        let scale: Vec<f32> = repeated(&layer.scale, layer.group_size / size).collect();
        Ok(Self {
            bits,
            out_features: layer.out_features,
            in_features: layer.in_features,
            groups: layer.in_features / size,
            codes,
            zeros: vec![middle as u8; scale.len()],
            scale,
        })
    }
}

/// A layer on a grid with a number that is added: `weight = code * scale + bias`, rounded after the
/// product and after the sum.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Biased {
    /// `[out, in]`.
    pub codes: Vec<u8>,
    /// `[out, groups]`.
    pub scale: Vec<f32>,
    /// `[out, groups]`.
    pub bias: Vec<f32>,
}

impl Biased {
    /// A layer with groups of `size`, scale and bias numbers of `floats`. Every code of the grid
    /// must stand for the bits that it stood for.
    pub(super) fn new(layer: &CodedLayer, size: usize, floats: FloatType) -> Result<Self, Lack> {
        floats.check_scales(&layer.scale)?;
        let mut bias = Vec::with_capacity(layer.scale.len());
        for (place, scale) in layer.scale.iter().enumerate() {
            let scale = f64::from(*scale);
            let exact = match &layer.zero {
                Zero::Codes(zeros) => -f64::from(zeros[place]) * scale,
                Zero::Real(zeros) => -f64::from(zeros[place]) * scale,
                Zero::Offset(offset) => {
                    f64::from(offset[place]) - f64::from(layer.middle()) * scale
                }
            };
            let added = exact as f32;
            let missing = |value: f32| match &layer.zero {
                Zero::Codes(_) => Lack::Value { value, holds: floats },
                Zero::Real(zeros) => Lack::RealZeroPoint { value: zeros[place] },
                Zero::Offset(offset) => Lack::Offset { value: offset[place] },
            };
            // Zero is stored as zero, whatever its sign was.
            let added = if added == 0.0 { 0.0 } else { added };
            if !floats.holds(added) {
                return Err(missing(added));
            }
            for code in 0..=(u8::MAX >> (8 - layer.bits)) {
                let value = f32::from(code) * layer.scale[place] + added;
                if value != layer.value(place, code) {
                    return Err(missing(added));
                }
            }
            bias.push(added);
        }
        let times = layer.group_size / size;
        Ok(Self {
            codes: layer.codes.clone(),
            scale: repeated(&layer.scale, times).collect(),
            bias: repeated(&bias, times).collect(),
        })
    }
}

/// Each value so many times.
fn repeated<T: Copy>(values: &[T], times: usize) -> impl Iterator<Item = T> {
    values.iter().flat_map(move |value| std::iter::repeat_n(*value, times))
}
