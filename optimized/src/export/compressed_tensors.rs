//! The layout `pack-quantized` of compressed-tensors: codes packed along the inputs, zero points
//! along the outputs, both with half the range added.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::floats::FloatType;
use super::grid::{FileGrid, Integers};
use super::lack::Lack;
use super::layer::CodedLayer;
use super::layout::LayerTensors;
use super::pack::{pack_rows, stored, transposed, words};

/// The grid that all layers are brought to.
pub(super) fn grid(grid: FileGrid) -> Result<FileGrid, Lack> {
    grid.widened(&[2, 3, 4, 5, 6, 7, 8], "2 to 8")
}

/// `weight_packed`, `weight_scale [out, groups]`, `weight_shape`, and `weight_zero_point` where
/// zeros are not all in the middle. Unsigned codes are the signed ones with half the range added.
pub(super) fn tensors(
    layer: &CodedLayer,
    grid: FileGrid,
    floats: FloatType,
) -> Result<LayerTensors, Lack> {
    let layer = Integers::new(layer, grid)?;
    let (rows, columns, groups) = (layer.out_features, layer.in_features, layer.groups);
    floats.check_scales(&layer.scale)?;
    check_words(columns, layer.bits)?;
    if !grid.symmetric {
        check_words(rows, layer.bits)?;
    }
    let codes = pack_rows(&layer.codes, columns, layer.bits);
    let shape: Vec<u8> =
        [rows, columns].iter().flat_map(|size| (*size as i64).to_le_bytes()).collect();
    let mut tensors = vec![
        ("weight_packed", stored(&codes, [rows, codes.len() / rows], Dtype::I32)),
        ("weight_scale", floats.stored(&layer.scale, &[rows, groups])),
        ("weight_shape", (Dtype::I64, vec![2], shape)),
    ];
    if !grid.symmetric {
        let packed = pack_rows(&transposed(&layer.zeros, groups), rows, layer.bits);
        let height = packed.len() / groups;
        let packed = transposed(&packed, height);
        tensors.push(("weight_zero_point", stored(&packed, [height, groups], Dtype::I32)));
    }
    Ok(tensors)
}

/// Widths that do not divide 32 were once written with whole codes in every word. Where that takes as
/// many words, nothing in a file tells the two apart.
fn check_words(count: usize, bits: u32) -> Result<(), Lack> {
    let whole = 32 / bits as usize;
    let is_told = 32 % bits == 0 || count <= whole || words(count, bits) != count.div_ceil(whole);
    match is_told {
        true => Ok(()),
        false => {
            Err(Lack::Model(format!("{count} codes of {bits} bits would be read in two ways")))
        }
    }
}

/// `quantization_config`.
pub(super) fn config(grid: FileGrid, plain: &[String]) -> Value {
    let ignore: Vec<&str> = std::iter::once("lm_head").chain(plain.iter().map(|p| &**p)).collect();
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignore,
        "kv_cache_scheme": null,
        "config_groups": { "group_0": {
            "targets": ["Linear"],
            "input_activations": null,
            "output_activations": null,
            "weights": {
                "num_bits": grid.bits,
                "type": "int",
                "symmetric": grid.symmetric,
                "strategy": if grid.group_size.is_some() { "group" } else { "channel" },
                "group_size": grid.group_size,
                "dynamic": false,
                "actorder": null,
            },
        }},
    })
}
