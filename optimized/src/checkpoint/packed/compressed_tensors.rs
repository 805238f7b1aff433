//! `compressed-tensors` with the format `pack-quantized`.

use rayon::prelude::*;
use serde_json::Value;

use super::super::folder::ModelFolder;
use super::{Expected, Shift, Unpacked, checked_groups, dense, supported, unused};
use crate::error::{Error, Result};
use crate::model::Projection;

/// `weight[o,i] = (code[o,i] - zero_point[o,g]) * scale[o,g]`, codes and zero points signed and
/// stored with `2^(bits-1)` added.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct CompressedTensors {
    pub(super) bits: u32,
    /// `None` for one group per row.
    group_size: Option<usize>,
    symmetric: bool,
    /// Whether groups follow an order, which `weight_g_idx` then says.
    ordered: bool,
}

/// Where a value stands in a row of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One after the other, also across words.
    Dense,
    /// As many as are whole in a word, and the rest of it empty: how widths that do not divide 32
    /// were once written.
    Padded,
}

impl Layout {
    fn words(self, bits: u32, count: usize) -> usize {
        match self {
            Self::Dense => (count * bits as usize).div_ceil(32),
            Self::Padded => count.div_ceil((32 / bits) as usize),
        }
    }

    fn value(self, bits: u32, index: usize, word: impl Fn(usize) -> u32) -> u32 {
        match self {
            Self::Dense => dense(bits, index, word),
            Self::Padded => {
                let whole = (32 / bits) as usize;
                let shift = (index % whole) as u32 * bits;
                word(index / whole) >> shift & (u32::MAX >> (32 - bits))
            }
        }
    }

    /// The one that has so many words for `count` values. Where both have, they agree, or nothing
    /// in the file tells them apart.
    fn of(bits: u32, count: usize, words: usize) -> Result<Self, String> {
        let [dense, padded] = [Self::Dense, Self::Padded].map(|layout| layout.words(bits, count));
        let agree = 32 % bits == 0 || count <= (32 / bits) as usize;
        match (words == dense, words == padded) {
            (true, false) => Ok(Self::Dense),
            (true, true) if agree => Ok(Self::Dense),
            (true, true) => Err(format!(
                "{count} values of {bits} bits in {words} words may be laid in two ways"
            )),
            (false, true) => Ok(Self::Padded),
            (false, false) => Err(format!(
                "has {words} words for {count} values of {bits} bits, expected {dense}"
            )),
        }
    }
}

impl CompressedTensors {
    pub(super) fn read(config: &Value) -> Result<Self, String> {
        let text = |value: Option<&'_ Value>| value.and_then(Value::as_str).map(str::to_owned);
        let format = text(config.get("format"));
        supported("format", format.as_deref(), &["pack-quantized"])?;
        let groups = config.get("config_groups").and_then(Value::as_object);
        let Some(group) = groups.filter(|groups| groups.len() == 1).and_then(|g| g.values().next())
        else {
            let count = groups.map_or(0, serde_json::Map::len);
            return Err(format!(
                "quantization_config.config_groups has {count} groups, supported: 1"
            ));
        };
        for field in ["input_activations", "output_activations"] {
            unused(field, group.get(field))?;
        }
        for field in ["kv_cache_scheme", "transform_config"] {
            unused(field, config.get(field))?;
        }
        if let Some(sparse) = config.get("sparsity_config").and_then(|sparse| sparse.get("format"))
        {
            supported("sparsity_config.format", sparse.as_str(), &["dense"])?;
        }
        let weights = group.get("weights").unwrap_or(&Value::Null);
        let bits = weights.get("num_bits").and_then(Value::as_u64);
        let bits = supported("weights.num_bits", bits, &[2, 3, 4, 5, 6, 7, 8])?;
        supported("weights.type", text(weights.get("type")).as_deref(), &["int"])?;
        unused("weights.dynamic", weights.get("dynamic"))?;
        let strategy = text(weights.get("strategy"));
        let group_size =
            match supported("weights.strategy", strategy.as_deref(), &["group", "channel"])? {
                "channel" => None,
                _ => match weights.get("group_size").and_then(Value::as_u64) {
                    Some(size) if size > 0 => Some(size as usize),
                    _ => return Err("quantization_config.weights.group_size is no number".into()),
                },
            };
        let order = text(weights.get("actorder"));
        Ok(Self {
            bits: bits as u32,
            group_size,
            symmetric: weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true),
            ordered: matches!(order.as_deref(), Some("group" | "dynamic")),
        })
    }

    /// Outputs, inputs and groups.
    fn sizes(&self, linear: &Projection) -> (usize, usize, usize) {
        let groups = self.group_size.map_or(1, |size| linear.in_features.div_ceil(size));
        (linear.out_features, linear.in_features, groups)
    }

    pub(super) fn tensors<'f>(
        &self,
        linear: &Projection,
        found: impl Fn(&str) -> Option<&'f [usize]>,
    ) -> Result<Vec<Expected>, String> {
        let (rows, columns, groups) = self.sizes(linear);
        let name = |tensor: &str| format!("{}.{tensor}", linear.name);
        // Which of the two layouts it is shows in the packed side alone.
        let words = |tensor: &str, side: usize, count: usize| {
            let dense = Layout::Dense.words(self.bits, count);
            let words = found(&name(tensor)).and_then(|shape| shape.get(side)).copied();
            let words = words.unwrap_or(dense);
            Layout::of(self.bits, count, words).map(|_| words)
        };
        let packed = vec![rows, words("weight_packed", 1, columns)?];
        let mut expected = vec![
            (name("weight_packed"), packed),
            (name("weight_scale"), vec![rows, groups]),
            (name("weight_shape"), vec![2]),
        ];
        if !self.symmetric {
            let packed = vec![words("weight_zero_point", 0, rows)?, groups];
            expected.push((name("weight_zero_point"), packed));
        }
        if self.ordered || found(&name("weight_g_idx")).is_some() {
            expected.push((name("weight_g_idx"), vec![columns]));
        }
        Ok(expected)
    }

    pub(super) fn unpacked(&self, folder: &ModelFolder, linear: &Projection) -> Result<Unpacked> {
        let (rows, columns, groups) = self.sizes(linear);
        let name = |tensor: &str| format!("{}.{tensor}", linear.name);
        let stated = folder.integers(&name("weight_shape"))?;
        if stated != [rows as i64, columns as i64] {
            let reason = format!(
                "tensor {} says {stated:?}, expected [{rows}, {columns}]",
                name("weight_shape")
            );
            return Err(Error::file(folder.path(), reason));
        }
        let scale = folder.tensor(&name("weight_scale"), &[rows, groups])?;
        let group_of = self.index(folder, linear)?;
        let (width, layout) = self.words(folder, &name("weight_packed"), 1, columns)?;
        let codes = folder.words(&name("weight_packed"), &[rows, width])?;
        let zeros = match self.symmetric {
            true => None,
            false => {
                let tensor = name("weight_zero_point");
                let (height, layout) = self.words(folder, &tensor, 0, rows)?;
                Some((folder.words(&tensor, &[height, groups])?, layout))
            }
        };
        let code = |at: usize| {
            let (o, i) = (at / columns, at % columns);
            layout.value(self.bits, i, |word| codes[o * width + word]) as i16
        };
        // Codes and zero points are stored with half the range added, which a difference drops.
        let zero_point = |at: usize| match &zeros {
            None => 1 << (self.bits - 1),
            Some((words, layout)) => {
                let (o, g) = (at / groups, at % groups);
                layout.value(self.bits, o, |word| words[word * groups + g]) as i16
            }
        };
        Ok(Unpacked {
            codes: (0..rows * columns).into_par_iter().map(code).collect(),
            scale,
            shift: Shift::ZeroPoint((0..rows * groups).map(zero_point).collect()),
            group_of,
        })
    }

    /// The group of each input.
    fn index(&self, folder: &ModelFolder, linear: &Projection) -> Result<Vec<usize>> {
        let name = format!("{}.weight_g_idx", linear.name);
        let columns = linear.in_features;
        if folder.has(&name) {
            let stored = folder.words(&name, &[columns])?;
            // -1 everywhere is how an index that was never set is written.
            if self.ordered || stored.iter().any(|group| *group != u32::MAX) {
                return checked_groups(folder, &name, stored, self.sizes(linear).2);
            }
        }
        Ok((0..columns).map(|i| i / self.group_size.unwrap_or(columns)).collect())
    }

    /// Words of `count` packed values along one side of a tensor, and how they are laid.
    fn words(
        &self,
        folder: &ModelFolder,
        name: &str,
        side: usize,
        count: usize,
    ) -> Result<(usize, Layout)> {
        let words = folder.shape(name)?[side];
        let place = |reason: String| Error::file(folder.path(), format!("tensor {name}: {reason}"));
        Layout::of(self.bits, count, words).map(|layout| (words, layout)).map_err(place)
    }
}
