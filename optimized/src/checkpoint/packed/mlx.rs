//! The affine quantization of MLX.

use rayon::prelude::*;
use serde_json::Value;

use super::super::folder::ModelFolder;
use super::{Expected, Shift, Unpacked, dense, supported};
use crate::error::Result;
use crate::model::Projection;

/// `weight[o,i] = weight[o,i] * scales[o,g] + biases[o,g]`, codes one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Mlx {
    pub(super) bits: u32,
    group_size: usize,
}

impl Mlx {
    pub(super) fn read(config: &Value) -> Result<Self, String> {
        let number = |field: &str| config.get(field).and_then(Value::as_u64);
        let bits = supported("bits", number("bits"), &[2, 3, 4, 5, 6, 8])?;
        let group_size = supported("group_size", number("group_size"), &[16, 32, 64, 128])?;
        let mode = config.get("mode").map_or(Some("affine"), Value::as_str);
        supported("mode", mode, &["affine"])?;
        let known = ["bits", "group_size", "mode", "quant_method"];
        let fields = config.as_object().into_iter().flatten();
        if let Some((field, value)) =
            fields.into_iter().find(|(field, _)| !known.contains(&field.as_str()))
        {
            return Err(format!("quantization.{field} is {value}, which is not supported"));
        }
        Ok(Self { bits: bits as u32, group_size: group_size as usize })
    }

    /// Words and groups of a row.
    fn sizes(&self, linear: &Projection) -> Result<(usize, usize), String> {
        let columns = linear.in_features;
        if !columns.is_multiple_of(self.group_size) {
            let size = self.group_size;
            return Err(format!("{columns} inputs are no whole groups of {size}"));
        }
        Ok((columns * self.bits as usize / 32, columns / self.group_size))
    }

    pub(super) fn tensors(&self, linear: &Projection) -> Result<Vec<Expected>, String> {
        let (words, groups) = self.sizes(linear)?;
        let (name, rows) = (&linear.name, linear.out_features);
        Ok(vec![
            (format!("{name}.weight"), vec![rows, words]),
            (format!("{name}.scales"), vec![rows, groups]),
            (format!("{name}.biases"), vec![rows, groups]),
        ])
    }

    pub(super) fn unpacked(&self, folder: &ModelFolder, linear: &Projection) -> Result<Unpacked> {
        let (rows, columns) = (linear.out_features, linear.in_features);
        let (width, groups) = self
            .sizes(linear)
            .map_err(|reason| crate::error::Error::file(folder.path(), reason))?;
        let name = |tensor: &str| format!("{}.{tensor}", linear.name);
        let words = folder.words(&name("weight"), &[rows, width])?;
        let code = |at: usize| {
            let (o, i) = (at / columns, at % columns);
            dense(self.bits, i, |word| words[o * width + word]) as i16
        };
        Ok(Unpacked {
            codes: (0..rows * columns).into_par_iter().map(code).collect(),
            scale: folder.tensor(&name("scales"), &[rows, groups])?,
            shift: Shift::Bias(folder.tensor(&name("biases"), &[rows, groups])?),
            group_of: (0..columns).map(|i| i / self.group_size).collect(),
        })
    }
}
