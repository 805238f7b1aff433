//! The layout of AutoAWQ for its GEMM kernels.

use rayon::prelude::*;
use serde_json::Value;

use super::super::folder::ModelFolder;
use super::{Expected, Shift, Unpacked, group_size, supported};
use crate::error::Result;
use crate::model::Projection;

/// Width of a code: the layout has no other.
pub(super) const BITS: u32 = 4;

/// Which of eight neighbouring outputs each nibble of a word holds, from the lowest on.
const OUTPUT_OF_NIBBLE: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// `weight[o,i] = (qweight[i,o] - qzeros[g,o]) * scales[g,o]`.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Awq {
    /// Consecutive inputs of a group; `None` for one group.
    group_size: Option<usize>,
}

impl Awq {
    pub(super) fn read(config: &Value) -> Result<Self, String> {
        // The two names that a field has had.
        let field = |names: [&str; 2]| names.iter().find_map(|name| config.get(*name));
        let bits = field(["bits", "w_bit"]).and_then(Value::as_u64);
        supported("bits", bits, &[u64::from(BITS)])?;
        let version = field(["version", "backend"]);
        let version = version.map_or(Some("gemm"), Value::as_str).map(str::to_lowercase);
        supported("version", version.as_deref(), &["gemm"])?;
        supported(
            "zero_point",
            config.get("zero_point").map_or(Some(true), Value::as_bool),
            &[true],
        )?;
        let group_size = group_size(field(["group_size", "q_group_size"]))?;
        Ok(Self { group_size })
    }

    fn groups(&self, linear: &Projection) -> usize {
        self.group_size.map_or(1, |size| linear.in_features.div_ceil(size))
    }

    pub(super) fn tensors(&self, linear: &Projection) -> Result<Vec<Expected>, String> {
        let Projection { name, out_features, in_features } = linear;
        if !out_features.is_multiple_of(8) {
            return Err(format!("{out_features} outputs do not fill words of 8 codes"));
        }
        let groups = self.groups(linear);
        Ok(vec![
            (format!("{name}.qweight"), vec![*in_features, out_features / 8]),
            (format!("{name}.qzeros"), vec![groups, out_features / 8]),
            (format!("{name}.scales"), vec![groups, *out_features]),
        ])
    }

    pub(super) fn unpacked(&self, folder: &ModelFolder, linear: &Projection) -> Result<Unpacked> {
        let (rows, columns, groups) =
            (linear.out_features, linear.in_features, self.groups(linear));
        let name = |tensor: &str| format!("{}.{tensor}", linear.name);
        let codes = folder.words(&name("qweight"), &[columns, rows / 8])?;
        let zeros = folder.words(&name("qzeros"), &[groups, rows / 8])?;
        let scales = folder.tensor(&name("scales"), &[groups, rows])?;
        let mut nibble_of = [0; 8];
        for (nibble, output) in OUTPUT_OF_NIBBLE.into_iter().enumerate() {
            nibble_of[output] = nibble;
        }
        // Of a line of words, the value of an output.
        let value = |words: &[u32], line: usize, output: usize| {
            let word = words[line * (rows / 8) + output / 8];
            (word >> (4 * nibble_of[output % 8]) & 15) as i16
        };
        let grid = |at: usize| (at % groups, at / groups);
        Ok(Unpacked {
            codes: (0..rows * columns)
                .into_par_iter()
                .map(|at| value(&codes, at % columns, at / columns))
                .collect(),
            scale: (0..rows * groups)
                .map(|at| {
                    let (group, output) = grid(at);
                    scales[group * rows + output]
                })
                .collect(),
            shift: Shift::ZeroPoint(
                (0..rows * groups)
                    .map(|at| {
                        let (group, output) = grid(at);
                        value(&zeros, group, output)
                    })
                    .collect(),
            ),
            group_of: (0..columns).map(|i| i / self.group_size.unwrap_or(columns)).collect(),
        })
    }
}
