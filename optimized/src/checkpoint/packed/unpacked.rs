//! The integers of a layer and their grid, whatever layout they were in.

use rayon::prelude::*;

/// What a file of another program holds of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Unpacked {
    /// `[out, in]`.
    pub codes: Vec<i16>,
    /// `[out, groups]`.
    pub scale: Vec<f32>,
    /// `[out, groups]`.
    pub shift: Shift,
    /// The group of each input.
    pub group_of: Vec<usize>,
}

/// Where the codes of a group have their zero.
#[derive(Debug, Clone, PartialEq)]
pub enum Shift {
    /// `weight = (code - zero_point) * scale`.
    ZeroPoint(Vec<i16>),
    /// `weight = code * scale + bias`, rounded to f32 after the product and after the sum.
    Bias(Vec<f32>),
}

impl Unpacked {
    /// Groups of a row.
    pub fn groups(&self) -> usize {
        let rows = self.codes.len() / self.group_of.len();
        self.scale.len() / rows
    }

    /// The weight `[out, in]` in f32.
    pub fn weight(&self) -> Vec<f32> {
        let (columns, groups) = (self.group_of.len(), self.groups());
        let mut weight = vec![0.0; self.codes.len()];
        let rows = weight.par_chunks_mut(columns).zip(self.codes.par_chunks(columns));
        rows.enumerate().for_each(|(row, (weight, codes))| {
            let place = |input: usize| row * groups + self.group_of[input];
            for (input, (weight, code)) in weight.iter_mut().zip(codes).enumerate() {
                let place = place(input);
                *weight = match &self.shift {
                    Shift::ZeroPoint(zeros) => f32::from(code - zeros[place]) * self.scale[place],
                    Shift::Bias(bias) => f32::from(*code) * self.scale[place] + bias[place],
                };
            }
        });
        weight
    }
}
