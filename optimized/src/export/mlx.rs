//! The affine quantization of MLX: a scale and a bias for each group.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::floats::FloatType;
use super::grid::{Biased, FileGrid};
use super::lack::Lack;
use super::layer::CodedLayer;
use super::layout::LayerTensors;
use super::pack::{pack_rows, stored};

/// Groups that its kernels have, the largest first.
const GROUPS: [usize; 3] = [128, 64, 32];

/// The grid that all layers are brought to.
pub(super) fn grid(grid: FileGrid) -> Result<FileGrid, Lack> {
    // A layer with other groups than its kernels' has its scales repeated; one with a single group
    // for a row finds out for itself whether the row has whole groups.
    let size = match grid.group_size {
        None => GROUPS[2],
        Some(size) => *GROUPS
            .iter()
            .find(|group| size.is_multiple_of(**group))
            .ok_or(Lack::GroupSize { size, holds: "32, 64 and 128" })?,
    };
    let grid = grid.widened(&[2, 3, 4, 5, 6, 8], "2, 3, 4, 5, 6 or 8")?;
    Ok(FileGrid { group_size: Some(size), ..grid })
}

/// `weight [out, in bits / 32]`, `scales` and `biases [out, groups]`.
pub(super) fn tensors(
    layer: &CodedLayer,
    grid: FileGrid,
    floats: FloatType,
) -> Result<LayerTensors, Lack> {
    let (rows, columns) = (layer.out_features, layer.in_features);
    let size = grid.size(columns);
    if !layer.group_size.is_multiple_of(size) {
        return Err(Lack::GroupSize { size: layer.group_size, holds: "32, 64 and 128" });
    }
    let biased = Biased::new(layer, size, floats)?;
    let codes = pack_rows(&biased.codes, columns, grid.bits);
    let groups = columns / size;
    Ok(vec![
        ("weight", stored(&codes, [rows, codes.len() / rows], Dtype::U32)),
        ("scales", floats.stored(&biased.scale, &[rows, groups])),
        ("biases", floats.stored(&biased.bias, &[rows, groups])),
    ])
}

/// `quantization`.
pub(super) fn config(grid: FileGrid) -> Value {
    json!({ "bits": grid.bits, "group_size": grid.group_size, "mode": "affine" })
}
