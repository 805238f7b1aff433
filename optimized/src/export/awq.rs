//! The layout of AutoAWQ for its GEMM kernels: eight outputs in a word, even ones first.

use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::floats::FloatType;
use super::grid::{FileGrid, Integers};
use super::lack::Lack;
use super::layer::CodedLayer;
use super::layout::LayerTensors;
use super::pack::{stored, transposed};

/// The grid that all layers are brought to.
pub(super) fn grid(grid: FileGrid) -> Result<FileGrid, Lack> {
    grid.widened(&[4], "4")
}

/// `qweight [in, out / 8]`, `qzeros [groups, out / 8]`, `scales [groups, out]`.
pub(super) fn tensors(layer: &CodedLayer, grid: FileGrid) -> Result<LayerTensors, Lack> {
    let layer = Integers::new(layer, grid)?;
    let (rows, columns, groups) = (layer.out_features, layer.in_features, layer.groups);
    if !rows.is_multiple_of(8) {
        return Err(Lack::Side { what: "outputs", length: rows, multiple: 8 });
    }
    FloatType::F16.check_scales(&layer.scale)?;
    let codes = interleaved(&transposed(&layer.codes, columns));
    let zeros = interleaved(&transposed(&layer.zeros, groups));
    let scales = transposed(&layer.scale, groups);
    Ok(vec![
        ("qweight", stored(&codes, [columns, rows / 8], Dtype::I32)),
        ("qzeros", stored(&zeros, [groups, rows / 8], Dtype::I32)),
        ("scales", FloatType::F16.stored(&scales, &[groups, rows])),
    ])
}

/// Eight codes of four bits in a word: the even ones in its lower half, the odd ones in its upper.
fn interleaved(codes: &[u8]) -> Vec<u32> {
    let word = |eight: &[u8]| {
        let of = |place: usize| u32::from(eight[place]) << (4 * (place / 2 + 4 * (place % 2)));
        (0..8).map(of).fold(0, |word, nibble| word | nibble)
    };
    codes.par_chunks(8).map(word).collect()
}

/// `quantization_config`.
pub(super) fn config(grid: FileGrid, plain: &[String]) -> Value {
    json!({
        "quant_method": "awq",
        "bits": grid.bits,
        "group_size": grid.group_size.map_or(-1, |size| size as i64),
        "zero_point": true,
        "version": "gemm",
        "modules_to_not_convert": if plain.is_empty() { Value::Null } else { json!(plain) },
    })
}
