//! The layout of AutoGPTQ: codes packed along the inputs, zero points along the outputs.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::floats::FloatType;
use super::grid::{FileGrid, Integers};
use super::lack::Lack;
use super::layer::CodedLayer;
use super::layout::LayerTensors;
use super::pack::{pack_rows, stored, transposed};

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// Less one, in as many bits as a code: 1 to `2^bits`.
    One,
    /// As they are.
    Two,
}

/// The grid that all layers are brought to.
pub(super) fn grid(grid: FileGrid) -> Result<FileGrid, Lack> {
    grid.widened(&[2, 3, 4, 8], "2, 3, 4 or 8")
}

/// `qweight [in bits / 32, out]`, `qzeros [groups, out bits / 32]`, `scales [groups, out]`, `g_idx`.
pub(super) fn tensors(
    layer: &CodedLayer,
    grid: FileGrid,
    version: Version,
) -> Result<LayerTensors, Lack> {
    let layer = Integers::new(layer, grid)?;
    let (bits, rows, columns, groups) =
        (layer.bits, layer.out_features, layer.in_features, layer.groups);
    for (what, length) in [("outputs", rows), ("inputs", columns)] {
        if !(length * bits as usize).is_multiple_of(32) {
            let multiple = 32 / super::grid::common(32, bits as usize);
            return Err(Lack::Side { what, length, multiple });
        }
    }
    FloatType::F16.check_scales(&layer.scale)?;
    let zeros = match version {
        Version::Two => layer.zeros,
        Version::One => {
            if let Some(value) = layer.zeros.iter().find(|zero| **zero == 0).copied() {
                return Err(Lack::ZeroPoint { value, holds: "1 and above" });
            }
            layer.zeros.iter().map(|zero| zero - 1).collect()
        }
    };
    let packed = pack_rows(&layer.codes, columns, bits);
    let height = packed.len() / rows;
    let zeros = pack_rows(&transposed(&zeros, groups), rows, bits);
    let scales = transposed(&layer.scale, groups);
    let size = columns / groups;
    let index: Vec<u32> = (0..columns).map(|input| (input / size) as u32).collect();
    let index = (Dtype::I32, vec![columns], index.iter().flat_map(|g| g.to_le_bytes()).collect());
    Ok(vec![
        ("qweight", stored(&transposed(&packed, height), [height, rows], Dtype::I32)),
        ("qzeros", stored(&zeros, [groups, zeros.len() / groups], Dtype::I32)),
        ("scales", FloatType::F16.stored(&scales, &[groups, rows])),
        ("g_idx", index),
    ])
}

/// `quantization_config`.
pub(super) fn config(grid: FileGrid, version: Version) -> Value {
    json!({
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group_size.map_or(-1, |size| size as i64),
        "desc_act": false,
        "sym": grid.symmetric,
        "checkpoint_format": match version { Version::One => "gptq", Version::Two => "gptq_v2" },
        "lm_head": false,
        "meta": { "quantizer": [format!("plumbline:{}", env!("CARGO_PKG_VERSION"))] },
    })
}
