//! The layout of AutoGPTQ and of everything that writes `quant_method` `gptq`.

use rayon::prelude::*;
use serde_json::Value;

use super::super::folder::ModelFolder;
use super::{Expected, Shift, Unpacked, checked_groups, dense, group_size, supported, unused};
use crate::error::{Error, Result};
use crate::model::Projection;

/// `weight[o,i] = (qweight[i,o] - zero_point[g,o]) * scales[g,o]`, `g = g_idx[i]`.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Gptq {
    pub(super) bits: u32,
    /// Consecutive inputs of a group before they were put in order; `None` for one group.
    group_size: Option<usize>,
    /// Whether groups may follow an order, which `g_idx` then says.
    ordered: bool,
    /// What is added to a stored zero point: the first version of the format stores one less.
    zero_point_shift: u32,
}

impl Gptq {
    pub(super) fn read(config: &Value) -> Result<Self, String> {
        let bits = supported("bits", config.get("bits").and_then(Value::as_u64), &[2, 3, 4, 8])?;
        let group_size = group_size(config.get("group_size"))?;
        let version = config.get("checkpoint_format").filter(|value| !value.is_null());
        let version = version.map_or(Some("gptq"), Value::as_str);
        let version = supported("checkpoint_format", version, &["gptq", "gptq_v2"])?;
        for field in ["is_marlin_format", "dynamic", "lm_head"] {
            unused(field, config.get(field))?;
        }
        Ok(Self {
            bits: bits as u32,
            group_size,
            ordered: config.get("desc_act").and_then(Value::as_bool).unwrap_or(false),
            zero_point_shift: if version == "gptq" { 1 } else { 0 },
        })
    }

    fn groups(&self, linear: &Projection) -> usize {
        self.group_size.map_or(1, |size| linear.in_features.div_ceil(size))
    }

    pub(super) fn tensors<'f>(
        &self,
        linear: &Projection,
        found: impl Fn(&str) -> Option<&'f [usize]>,
    ) -> Result<Vec<Expected>, String> {
        let Projection { name, out_features, in_features } = linear;
        let (out_features, in_features) = (*out_features, *in_features);
        let bits = self.bits as usize;
        for (what, count) in [("outputs", out_features), ("inputs", in_features)] {
            if !(count * bits).is_multiple_of(32) {
                return Err(format!("{count} {what} do not fill words of 32 bits"));
            }
        }
        let groups = self.groups(linear);
        let mut expected = vec![
            (format!("{name}.qweight"), vec![in_features * bits / 32, out_features]),
            (format!("{name}.qzeros"), vec![groups, out_features * bits / 32]),
            (format!("{name}.scales"), vec![groups, out_features]),
        ];
        // Without an order, a file may do without the groups of the inputs.
        let index = format!("{name}.g_idx");
        if self.ordered || found(&index).is_some() {
            expected.push((index, vec![in_features]));
        }
        // Some writers give every layer a bias of zeros.
        let bias = format!("{name}.bias");
        if found(&bias).is_some() {
            expected.push((bias, vec![out_features]));
        }
        Ok(expected)
    }

    pub(super) fn unpacked(&self, folder: &ModelFolder, linear: &Projection) -> Result<Unpacked> {
        let (rows, columns) = (linear.out_features, linear.in_features);
        let (bits, groups) = (self.bits as usize, self.groups(linear));
        let name = |tensor: &str| format!("{}.{tensor}", linear.name);
        let words_of_row = rows * bits / 32;
        let codes = folder.words(&name("qweight"), &[columns * bits / 32, rows])?;
        let zeros = folder.words(&name("qzeros"), &[groups, words_of_row])?;
        let scales = folder.tensor(&name("scales"), &[groups, rows])?;
        let group_of = match folder.has(&name("g_idx")) {
            true => {
                let stored = folder.words(&name("g_idx"), &[columns])?;
                checked_groups(folder, &name("g_idx"), stored, groups)?
            }
            false => (0..columns).map(|i| i / self.group_size.unwrap_or(columns)).collect(),
        };
        if folder.has(&name("bias")) {
            let bias = folder.tensor(&name("bias"), &[rows])?;
            if let Some(value) = bias.iter().find(|value| **value != 0.0) {
                let reason = format!("tensor {} holds {value}; LLaMA has no bias", name("bias"));
                return Err(Error::file(folder.path(), reason));
            }
        }
        let code = |at: usize| {
            let (o, i) = (at / columns, at % columns);
            dense(self.bits, i, |word| codes[word * rows + o]) as i16
        };
        let zero_point = |at: usize| {
            let (o, g) = (at / groups, at % groups);
            let stored = dense(self.bits, o, |word| zeros[g * words_of_row + word]);
            (stored + self.zero_point_shift) as i16
        };
        let scale = |at: usize| scales[at % groups * rows + at / groups];
        Ok(Unpacked {
            codes: (0..rows * columns).into_par_iter().map(code).collect(),
            scale: (0..rows * groups).map(scale).collect(),
            shift: Shift::ZeroPoint((0..rows * groups).map(zero_point).collect()),
            group_of,
        })
    }
}
