//! Files of every format with one thing wrong, and the message that each gets: the table of
//! docs/formats.md. `PLUMBLINE_WRITE_DOCS=1` writes it.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use common::docs;
use common::merged::{Kind, Tensors, Trained, config, save};
use common::program::{plumbline, refused};
use plumbline::checkpoint::ModelFolder;
use plumbline::export::{FloatType, Format, Request, export};
use plumbline::model::Projection;
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Value, json};

const LAYER: &str = "model.layers.0.self_attn.q_proj";

/// What is changed in a valid model.
enum Change {
    /// A field of `config.json`, by pointer; null takes it away.
    Field(&'static str, Value),
    /// A tensor of the first layer is not there.
    Missing(&'static str),
    /// A tensor of the first layer has other bytes from a place on.
    Bytes(&'static str, usize, Vec<u8>),
    /// A tensor of the first layer has another shape.
    Shape(&'static str, Vec<usize>),
    /// A tensor that is no LLaMA's is there too.
    Stranger,
    /// The file of tensors ends early by so many bytes.
    Cut(usize),
    /// The file of tensors has other bytes from a place on.
    Raw(usize, Vec<u8>),
}

fn cases() -> Vec<(Option<Format>, Kind, &'static str, Change)> {
    use Change::{Bytes, Cut, Field, Missing, Raw, Shape, Stranger};
    use Format as F;
    let nan = f32::NAN.to_le_bytes().to_vec();
    let (ct, v1, v2) = (Some(F::CompressedTensors), Some(F::Gptq), Some(F::GptqV2));
    let (awq, mlx, gguf, own) = (Some(F::Awq), Some(F::Mlx), Some(F::GgufQ4_0), Some(F::Plumbline));
    let symmetric = Kind::Symmetric;
    vec![
        (
            ct,
            symmetric,
            "a width that it does not have",
            Field("/quantization_config/config_groups/group_0/weights/num_bits", json!(9)),
        ),
        (
            ct,
            symmetric,
            "activations quantized too",
            Field(
                "/quantization_config/config_groups/group_0/input_activations",
                json!({"num_bits": 8}),
            ),
        ),
        (
            ct,
            symmetric,
            "the width of another file",
            Field("/quantization_config/config_groups/group_0/weights/num_bits", json!(8)),
        ),
        (
            ct,
            symmetric,
            "zero points announced and not there",
            Field("/quantization_config/config_groups/group_0/weights/symmetric", json!(false)),
        ),
        (ct, symmetric, "another shape declared", Bytes("weight_shape", 0, vec![97])),
        (ct, symmetric, "a scale that is no number", Bytes("weight_scale", 8, nan.clone())),
        (
            ct,
            symmetric,
            "no strategy",
            Field("/quantization_config/config_groups/group_0/weights/strategy", Value::Null),
        ),
        (v1, symmetric, "no scales", Missing("scales")),
        (v1, symmetric, "groups of no inputs", Field("/quantization_config/group_size", json!(0))),
        (v2, Kind::ZeroPoint, "a group that is none", Bytes("g_idx", 4, vec![7])),
        (v2, Kind::ZeroPoint, "codes of half the layer", Shape("qweight", vec![6, 192])),
        (awq, Kind::ZeroPoint, "three bits", Field("/quantization_config/bits", json!(3))),
        (
            awq,
            Kind::ZeroPoint,
            "the layout of other kernels",
            Field("/quantization_config/version", json!("gemv")),
        ),
        (
            mlx,
            symmetric,
            "a setting of one layer",
            Field("/quantization", json!({"bits": 4, "group_size": 32, LAYER: {"bits": 8}})),
        ),
        (mlx, symmetric, "no biases", Missing("biases")),
        (own, symmetric, "a scale of zero", Bytes("scale", 0, vec![0; 4])),
        (own, symmetric, "bytes for words", Field("/quantization_config/packed", json!(false))),
        (None, symmetric, "a code outside the grid", Bytes("codes", 5, vec![100])),
        (None, Kind::ZeroPoint, "a zero point that is no number", Bytes("zero_point", 0, nan)),
        (None, symmetric, "more blocks than tensors", Field("/num_hidden_layers", json!(100_000))),
        (None, symmetric, "a side beyond reason", Field("/hidden_size", json!(1u64 << 62))),
        (None, symmetric, "a tensor of no LLaMA", Stranger),
        (None, symmetric, "cut short", Cut(100)),
        (None, symmetric, "a header longer than the file", Raw(0, vec![0xff; 8])),
        (gguf, symmetric, "not a GGUF file", Raw(0, b"GGML".to_vec())),
        (gguf, symmetric, "a version to come", Raw(4, vec![9])),
        (gguf, symmetric, "cut short", Cut(100)),
        (gguf, symmetric, "2^64 - 1 tensors", Raw(8, vec![0xff; 8])),
        (gguf, symmetric, "a key longer than the file", Raw(24, vec![0xff; 8])),
    ]
}

/// The message that a changed model gets, without where it was.
fn message(format: Option<Format>, kind: Kind, change: Change) -> String {
    let root = tempfile::tempdir().unwrap();
    let (merged, out) = (root.path().join("merged"), root.path().join("model"));
    Trained::new(kind, 4, Some(32)).write(&merged, config());
    match format {
        None => fs::rename(&merged, &out).unwrap(),
        Some(format) => {
            let (source, floats) = (ModelFolder::open(&merged).unwrap(), FloatType::F32);
            let request = Request { source: &source, format, floats, out: &out, force: false };
            export(&request, &|_, _| ()).unwrap();
        }
    }
    ModelFolder::open(&out).unwrap();
    apply(&out, change);
    let broken = match ModelFolder::open(&out) {
        Err(error) => error.to_string(),
        // What is in the tensors shows when they are read.
        Ok(folder) => Projection::all(folder.config())
            .iter()
            .find_map(|linear| {
                folder
                    .weight(linear)
                    .err()
                    .filter(|_| folder.quantization().is_none())
                    .or_else(|| plumbline::export::CodedLayer::read(&folder, linear).err())
            })
            .expect("every change is one that is noticed")
            .to_string(),
    };
    // The program says the same, with exit code 2.
    let told =
        plumbline(root.path(), &["export", "model", "--format", "hugging-face", "--out", "x"]);
    let said = broken.replace(&format!("{}/", root.path().display()), "");
    refused(&told, &[&said]);
    assert!(!root.path().join("x").exists());
    said
}

fn apply(out: &Path, change: Change) {
    let file = if out.is_file() { out.to_path_buf() } else { out.join("model.safetensors") };
    let mut bytes = fs::read(&file).unwrap();
    match change {
        Change::Field(pointer, value) => {
            let path = out.join("config.json");
            let mut config: Value =
                serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[field] = value;
            fs::write(path, config.to_string()).unwrap();
        }
        Change::Cut(by) => fs::write(&file, &bytes[..bytes.len() - by]).unwrap(),
        Change::Raw(at, new) => {
            bytes[at..at + new.len()].copy_from_slice(&new);
            fs::write(&file, bytes).unwrap();
        }
        of_tensor => {
            let read = SafeTensors::deserialize(&bytes).unwrap();
            let mut tensors: Tensors = read
                .tensors()
                .into_iter()
                .map(|(name, view)| {
                    (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
                })
                .collect();
            let name = |tensor: &str| format!("{LAYER}.{tensor}");
            match of_tensor {
                Change::Missing(tensor) => drop(tensors.remove(&name(tensor)).unwrap()),
                Change::Bytes(tensor, at, new) => {
                    tensors.get_mut(&name(tensor)).unwrap().2[at..at + new.len()]
                        .copy_from_slice(&new);
                }
                Change::Shape(tensor, shape) => tensors.get_mut(&name(tensor)).unwrap().1 = shape,
                _ => {
                    drop(tensors.insert("visual.weight".into(), (Dtype::F32, vec![1], vec![0; 4])))
                }
            }
            let config = fs::read_to_string(out.join("config.json")).unwrap();
            save(out, &serde_json::from_str(&config).unwrap(), &tensors);
        }
    }
}

#[test]
fn every_malformed_file_gets_the_message_of_the_documentation() {
    let mut table = String::from("| format | what is wrong | message |\n|---|---|---|\n");
    for (format, kind, what, change) in cases() {
        let name = format.map_or("merged", Format::name);
        let said = message(format, kind, change).replace('|', "\\|");
        writeln!(table, "| {name} | {what} | {said} |").unwrap();
    }
    docs::assert_table("malformed files", &table);
}
