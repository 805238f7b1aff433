//! Merged models in other programs' formats: every grid that a method leaves, in every format, read
//! back; what is refused, and why.

#[path = "../common/mod.rs"]
mod common;
mod tokenizers;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use common::docs;
use common::merged::{Kind, Tensors, Trained, config, save};
use common::program::{json, plumbline, refused};
use plumbline::checkpoint::{ModelFolder, Shift};
use plumbline::export::{
    CodedLayer, Exported, FloatType, Format, Grid, Level, Request, Zero, export,
};
use plumbline::model::Projection;
use plumbline_reference::spec::{ActivationSpec, Bits, ScaleRule};
use safetensors::Dtype;
use serde_json::{Value, json};

/// A folder for a test, and the model in it.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new(trained: Trained) -> Self {
        Self::with(trained, config())
    }

    fn with(trained: Trained, config: Value) -> Self {
        let root = tempfile::tempdir().unwrap();
        trained.write(&root.path().join("merged"), config);
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn export(&self, format: Format, floats: FloatType) -> Result<Exported, String> {
        let source = ModelFolder::open(&self.path("merged")).unwrap();
        let out = self.path(&format!("{format}-{floats}"));
        let request = Request { source: &source, format, floats, out: &out, force: false };
        let exported = export(&request, &|_, _| ()).map_err(|error| error.to_string());
        // A refusal leaves nothing at all.
        assert_eq!(exported.is_ok(), out.exists());
        let left = fs::read_dir(self.root.path()).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with('.')
        });
        assert_eq!(left.count(), 0);
        exported
    }
}

/// The formats that hold a result, to the last bit of every value.
fn holders(trained: Trained) -> Vec<Format> {
    let place = Place::new(trained);
    let holds = |format: &Format| match place.export(*format, FloatType::F32) {
        Ok(exported) => {
            assert!(exported.layers.iter().all(|layer| layer.level == Level::E2), "{format}");
            assert_eq!(exported.layers.len(), 7);
            true
        }
        Err(message) => {
            assert!(message.contains(&format!("{format} cannot hold ")), "{message}");
            false
        }
    };
    Format::ALL.into_iter().filter(holds).collect()
}

const GROUPS: [Option<usize>; 3] = [Some(32), Some(16), None];

/// Every width of every grid: which formats hold it is what docs/formats.md says of each.
#[test]
fn every_grid_is_held_where_it_can_be() {
    for bits in 2..=8 {
        for group_size in GROUPS {
            let in_blocks = group_size != Some(16);
            let symmetric = holders(Trained::new(Kind::Symmetric, bits, group_size));
            let zero_point = holders(Trained::new(Kind::ZeroPoint, bits, group_size));
            for format in Format::ALL {
                use Format as F;
                let blocks = match format {
                    F::GgufQ4_0 | F::GgufQ4_1 => Some(4),
                    F::GgufQ5_0 => Some(5),
                    F::GgufQ8_0 => Some(8),
                    _ => None,
                };
                let of_symmetric = match (format, blocks) {
                    (F::Awq, _) => bits <= 4,
                    (F::Mlx, _) => in_blocks,
                    (_, Some(width)) => in_blocks && bits <= width,
                    _ => true,
                };
                assert_eq!(
                    symmetric.contains(&format),
                    of_symmetric,
                    "{format} {bits} {group_size:?}"
                );
                let of_zero_point = match (format, blocks) {
                    // Zero point 0 is there, which the first version cannot say.
                    (F::Gptq, _) => false,
                    // m = -z d has to be an f16: with 8 bits of scale and 3 of zero it is.
                    (F::GgufQ4_1, _) => in_blocks && bits <= 3,
                    // One bit goes to the codes below zero.
                    (_, Some(width)) => in_blocks && bits < width,
                    _ => of_symmetric,
                };
                assert_eq!(
                    zero_point.contains(&format),
                    of_zero_point,
                    "{format} with zero points, {bits} bits, {group_size:?}"
                );
            }
        }
    }
}

/// Numbers that no integer format has: an offset of training's own, and zero points between codes.
#[test]
fn offsets_and_real_zero_points_stay_with_formats_that_add_as_training_did() {
    for kind in [Kind::Offset, Kind::RealZero] {
        let holders = holders(Trained::new(kind, 4, Some(32)));
        assert_eq!(holders, [Format::HuggingFace, Format::Plumbline], "{kind:?}");
    }
}

/// A scale that was not trained for a format keeps 24 bits, which only types of 32 hold.
#[test]
fn any_scale_needs_a_format_with_f32() {
    let trained = Trained { significant: 24, ..Trained::new(Kind::Symmetric, 4, Some(32)) };
    // MLX would round the product and the sum where training rounded one product.
    let expected = [Format::CompressedTensors, Format::HuggingFace, Format::Plumbline];
    assert_eq!(holders(trained), expected);
    let message = Place::new(trained).export(Format::GgufQ4_0, FloatType::F32).unwrap_err();
    assert!(message.contains("which is no f16; train with this format"), "{message}");
    assert!(message.contains("compressed-tensors can hold this model"), "{message}");
}

/// Engines that compute in sixteen bits: with 8 bits of scale and codes of 4, f16 rounds nothing;
/// bf16 rounds some products, and is refused.
#[test]
fn a_type_that_would_round_a_value_is_refused() {
    let place = Place::new(Trained::new(Kind::Symmetric, 4, Some(32)));
    for format in [Format::CompressedTensors, Format::Gptq, Format::Mlx, Format::HuggingFace] {
        let exported = place.export(format, FloatType::F16).unwrap();
        assert!(exported.layers.iter().all(|layer| layer.exact_in == ["f32", "f16"]));
        let message = place.export(format, FloatType::Bf16).unwrap_err();
        assert!(message.contains("which is no bf16"), "{message}");
    }
}

/// Each format's file as its own bytes, read here from the published layout and by no code of ours.
#[test]
fn a_code_is_where_the_layout_says() {
    let place = Place::new(Trained::new(Kind::ZeroPoint, 4, Some(32)));
    let source = ModelFolder::open(&place.path("merged")).unwrap();
    let linear = Projection::all(source.config()).remove(6);
    let layer = CodedLayer::read(&source, &linear).unwrap().unwrap();
    let Zero::Codes(zeros) = &layer.zero else { panic!("{:?}", layer.zero) };
    let (columns, groups) = (layer.in_features, layer.groups());
    let code = |o: usize, i: usize| u32::from(layer.codes[o * columns + i]);
    let zero = |o: usize, g: usize| u32::from(zeros[o * groups + g]);
    let words = |format: Format, tensor: &str| {
        place.export(format, FloatType::F32).unwrap();
        let bytes =
            fs::read(place.path(&format!("{format}-f32")).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = file.tensor(&format!("{}.{tensor}", linear.name)).unwrap();
        let words: Vec<u32> =
            view.data().chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
        fs::remove_dir_all(place.path(&format!("{format}-f32"))).unwrap();
        (words, view.shape().to_vec())
    };
    let nibble = |word: u32, at: usize| word >> (4 * at) & 15;
    let outputs = layer.out_features;
    let (packed, shape) = words(Format::CompressedTensors, "weight_packed");
    assert_eq!(shape, [outputs, columns / 8]);
    let (gptq, shape) = words(Format::GptqV2, "qweight");
    assert_eq!(shape, [columns / 8, outputs]);
    let (awq, shape) = words(Format::Awq, "qweight");
    assert_eq!(shape, [columns, outputs / 8]);
    // AutoAWQ's order of the outputs of a word.
    let order = [0, 2, 4, 6, 1, 3, 5, 7];
    for o in 0..outputs {
        for i in 0..columns {
            assert_eq!(nibble(packed[o * columns / 8 + i / 8], i % 8), code(o, i));
            assert_eq!(nibble(gptq[i / 8 * outputs + o], i % 8), code(o, i));
            let at = order.iter().position(|place| *place == o % 8).unwrap();
            assert_eq!(nibble(awq[i * outputs / 8 + o / 8], at), code(o, i));
        }
    }
    let (packed, shape) = words(Format::CompressedTensors, "weight_zero_point");
    assert_eq!(shape, [outputs / 8, groups]);
    let (gptq, shape) = words(Format::GptqV2, "qzeros");
    assert_eq!(shape, [groups, outputs / 8]);
    for o in 0..outputs {
        for g in 0..groups {
            assert_eq!(nibble(packed[o / 8 * groups + g], o % 8), zero(o, g));
            assert_eq!(nibble(gptq[g * outputs / 8 + o / 8], o % 8), zero(o, g));
        }
    }
}

/// The first version stores a zero point less one: all but 0.
#[test]
fn the_first_version_of_gptq_takes_zero_points_from_one_on() {
    let place = Place::new(Trained::new(Kind::ZeroPoint, 4, Some(32)));
    let merged = place.path("merged/model.safetensors");
    let bytes = fs::read(&merged).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    for (_, (_, _, bytes)) in tensors.iter_mut().filter(|(name, _)| name.ends_with("zero_point")) {
        for value in bytes.chunks_mut(4).filter(|value| value.iter().all(|byte| *byte == 0)) {
            value.copy_from_slice(&1.0f32.to_le_bytes());
        }
    }
    let message = place.export(Format::Gptq, FloatType::F32).unwrap_err();
    let expected =
        "a group has the zero point 0, it stores 1 and above; gptq-v2 can hold this model";
    assert!(message.contains(expected), "{message}");
    let config: Value =
        serde_json::from_str(&fs::read_to_string(place.path("merged/config.json")).unwrap())
            .unwrap();
    save(&place.path("merged"), &config, &tensors);
    place.export(Format::Gptq, FloatType::F32).unwrap();
    let written = ModelFolder::open(&place.path("gptq-f32")).unwrap();
    let linear = &Projection::all(written.config())[0];
    let Shift::ZeroPoint(zeros) = written.unpacked(linear).unwrap().unwrap().shift else {
        panic!()
    };
    assert_eq!((zeros.iter().min(), zeros.iter().max()), (Some(&1), Some(&15)));
}

/// Ties, scaled frequencies and heads of several sizes reach the file and come back.
#[test]
fn a_gguf_file_keeps_the_model_around_the_codes() {
    let trained = Trained::new(Kind::Symmetric, 4, Some(32));
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    for (tied, scaling, theta) in
        [(true, Value::Null, 1e4), (false, llama3, 5e5), (false, linear, 1e4)]
    {
        let mut config = config();
        config["tie_word_embeddings"] = tied.into();
        config["rope_scaling"] = scaling;
        config["rope_theta"] = theta.into();
        let place = Place::with(trained, config);
        place.export(Format::GgufQ4_0, FloatType::F32).unwrap();
        let written = ModelFolder::open(&place.path("gguf-q4_0-f32")).unwrap();
        let source = ModelFolder::open(&place.path("merged")).unwrap();
        assert_eq!(written.config().rope, source.config().rope);
        assert_eq!(written.config().tie_word_embeddings, tied);
    }
}

/// mlx-lm packs the embedding like any layer.
#[test]
fn a_packed_embedding_is_read() {
    let place = Place::new(Trained::new(Kind::Symmetric, 4, Some(32)));
    place.export(Format::Mlx, FloatType::F32).unwrap();
    let folder = place.path("mlx-f32");
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let owned = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    let mut tensors: Tensors = file.tensors().into_iter().map(owned).collect();
    let (rows, columns, groups) = (40, 96, 3);
    let code = |row: usize, column: usize| (row * 7 + column * 3) as u32 % 16;
    let scale = |row: usize, group: usize| (row + 5 * group + 1) as f32 / 1024.0;
    let bias = |row: usize, group: usize| (row as f32 - 8.0 * group as f32) / 256.0;
    let word = |at: usize| {
        let (row, first) = (at / (columns / 8), at % (columns / 8) * 8);
        (0..8).map(|place| code(row, first + place) << (4 * place)).sum::<u32>()
    };
    let words = (0..rows * columns / 8).flat_map(|at| word(at).to_le_bytes()).collect();
    let grid = |value: &dyn Fn(usize, usize) -> f32| {
        let values = (0..rows * groups).map(|at| value(at / groups, at % groups));
        (Dtype::F32, vec![rows, groups], values.flat_map(f32::to_le_bytes).collect())
    };
    let name = "model.embed_tokens";
    tensors.insert(format!("{name}.weight"), (Dtype::U32, vec![rows, columns / 8], words));
    tensors.insert(format!("{name}.scales"), grid(&scale));
    tensors.insert(format!("{name}.biases"), grid(&bias));
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    save(&folder, &serde_json::from_str(&config).unwrap(), &tensors);
    let read = ModelFolder::open(&folder).unwrap();
    let values = read.tensor(&format!("{name}.weight"), &[rows, columns]).unwrap();
    for (at, value) in values.into_iter().enumerate() {
        let (row, column) = (at / columns, at % columns);
        let (scale, bias) = (scale(row, column / 32), bias(row, column / 32));
        assert_eq!(value, code(row, column) as f32 * scale + bias, "{row} {column}");
    }
    tensors.remove(&format!("{name}.biases"));
    save(&folder, &serde_json::from_str(&config).unwrap(), &tensors);
    let error = ModelFolder::open(&folder).err().unwrap().to_string();
    assert!(error.contains("has no tensor model.embed_tokens.biases"), "{error}");
}

/// A model that was trained with rounded activations is not handed to who does not round them.
#[test]
fn rounded_activations_stay_with_this_program() {
    let place = Place::new(Trained::new(Kind::Symmetric, 4, Some(32)));
    let path = place.path("merged/config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let activations = ActivationSpec::new(Bits::new(8).unwrap());
    config["quantization_config"]["activations"] = json!(activations);
    fs::write(&path, config.to_string()).unwrap();
    let message = place.export(Format::GgufQ4_0, FloatType::F32).unwrap_err();
    assert!(message.contains("activations were rounded in training"), "{message}");
    assert!(message.contains("plumbline can hold this model"), "{message}");
    place.export(Format::Plumbline, FloatType::F32).unwrap();
}

/// The whole command: outputs compared, nothing replaced without being told to, refusals in words.
#[test]
fn the_command_writes_once_and_says_what_it_proved() {
    let place = Place::new(Trained::new(Kind::Symmetric, 3, Some(32)));
    let run = |arguments: &[&str]| plumbline(place.root.path(), arguments);
    for (format, out) in [("gguf-q4_0", "model.gguf"), ("compressed-tensors", "model")] {
        let arguments = ["export", "merged", "--format", format, "--out", out];
        let told = json(&run(&[&arguments[..], &["--json"]].concat()));
        assert_eq!((&told["level"], &told["format"]), (&json!("E3"), &json!(format)));
        assert_eq!(told["layers"].as_array().unwrap().len(), 7);
        assert_eq!(told["layers"][0]["level"], "E2");
        refused(&run(&arguments), &[out, "already exists; --force replaces it"]);
        let text = run(&[&arguments[..], &["--force"]].concat());
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(
            text.contains("model.layers.0.self_attn.q_proj: 3 bits, groups of 32, E2"),
            "{text}"
        );
        let inspected = run(&["inspect", out]);
        assert!(inspected.status.success());
    }
    // What is not a model's is never replaced.
    fs::create_dir(place.path("mine")).unwrap();
    fs::write(place.path("mine/letter.txt"), "dear").unwrap();
    let arguments = ["export", "merged", "--format", "mlx", "--out", "mine", "--force"];
    refused(&run(&arguments), &["mine", "is no model's folder, and is not replaced"]);
    let arguments = ["export", "merged", "--format", "gguf-q4_0", "--out", "mine", "--force"];
    refused(&run(&arguments), &["mine", "is a folder, and is not replaced by a file"]);
    assert!(place.path("mine/letter.txt").exists());
    let wrong = run(&["export", "merged", "--format", "gguf-q9", "--out", "x"]);
    assert_eq!(wrong.status.code(), Some(2));
    let message = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        message.contains("gguf-q9 is no format, expected one of compressed-tensors"),
        "{message}"
    );
}

/// Training goes on from every format, and a model without codes has only its weights to give.
#[test]
fn what_was_exported_is_a_model_to_start_from() {
    let place = Place::new(Trained::new(Kind::Symmetric, 4, Some(32)));
    let source = ModelFolder::open(&place.path("merged")).unwrap();
    for format in Format::ALL {
        place.export(format, FloatType::F32).unwrap();
        if format == Format::Plumbline {
            continue;
        }
        let written = ModelFolder::open(&place.path(&format!("{format}-f32"))).unwrap();
        for linear in Projection::all(source.config()) {
            let trained = CodedLayer::read(&source, &linear).unwrap().unwrap().weight();
            assert_eq!(written.weight(&linear).unwrap().into_floats(), trained, "{format}");
        }
    }
    fs::rename(place.path("hugging-face-f32"), place.path("plain")).unwrap();
    let run = |format: &str| {
        plumbline(place.root.path(), &["export", "plain", "--format", format, "--out", "again"])
    };
    refused(&run("awq"), &["awq cannot hold the model: it has no codes", "hugging-face can hold"]);
    assert!(run("hugging-face").status.success());
}

/// What becomes of what each method leaves, as docs/formats.md tells it. `PLUMBLINE_WRITE_DOCS=1`
/// writes the table.
#[test]
fn the_table_of_the_documentation_is_what_happens() {
    let rows = [
        ("symmetric, 4 bits, groups of 32 (L4Q, LR-QAT, QAT)", Kind::Symmetric, 4, Some(32)),
        ("symmetric, 3 bits", Kind::Symmetric, 3, Some(32)),
        ("symmetric, 2 bits", Kind::Symmetric, 2, Some(32)),
        ("symmetric, 8 bits", Kind::Symmetric, 8, Some(32)),
        ("symmetric, 4 bits, a group for a row", Kind::Symmetric, 4, None),
        ("symmetric, 4 bits, groups of 16", Kind::Symmetric, 4, Some(16)),
        ("integer zero points, 4 bits (PEQA, RTN, GPTQ)", Kind::ZeroPoint, 4, Some(32)),
        ("integer zero points, 3 bits", Kind::ZeroPoint, 3, Some(32)),
        ("integer zero points, 2 bits", Kind::ZeroPoint, 2, Some(32)),
        ("integer zero points, 8 bits", Kind::ZeroPoint, 8, Some(32)),
        ("offset, 4 bits (L4Q without a target)", Kind::Offset, 4, Some(32)),
        ("real zero points, 4 bits (QA-LoRA)", Kind::RealZero, 4, Some(32)),
    ];
    let mut table = String::from("| trained result |");
    let heads: String = Format::ALL.iter().map(|format| format!(" {format} |")).collect();
    writeln!(table, "{heads}\n|---|{}", "---|".repeat(Format::ALL.len())).unwrap();
    for significant in [8, 24] {
        for (name, kind, bits, group_size) in rows {
            if significant == 24 && (kind, bits, group_size) != (Kind::Symmetric, 4, Some(32)) {
                continue;
            }
            let holders = holders(Trained { kind, bits, group_size, significant });
            let cells: String = Format::ALL
                .iter()
                .map(|format| if holders.contains(format) { " E2 |" } else { " – |" })
                .collect();
            let any = if significant == 8 { "" } else { ", any f32 as scale" };
            writeln!(table, "| {name}{any} |{cells}").unwrap();
        }
    }
    docs::assert_table("levels", &table);
}

/// A recipe is checked by a table of what each format holds: every grid that it lets through, on the
/// scales that training then leaves, is held.
#[test]
fn what_may_be_trained_for_a_format_is_held_by_it() {
    for format in Format::ALL {
        let Some(rule) = format.scale_rule() else { continue };
        for (kind, grid) in [(Kind::Symmetric, Grid::Symmetric), (Kind::ZeroPoint, Grid::ZeroPoint)]
        {
            for bits in 2..=8 {
                for group_size in [Some(32), None] {
                    let trained = Trained::new(kind, bits, group_size);
                    let full = rule == ScaleRule::F16;
                    let place =
                        Place::new(Trained { significant: if full { 11 } else { 8 }, ..trained });
                    if format.check_bits(grid, Bits::new(bits).unwrap()).is_ok() {
                        let told = place.export(format, FloatType::F32);
                        assert!(told.is_ok(), "{format} {kind:?} {bits} {group_size:?}: {told:?}");
                    }
                }
            }
        }
    }
}

/// Sides that fill no word, a layer of one row and one of one column: held by the formats that pad or
/// do not pack, and told by the others.
#[test]
fn odd_sides_are_held_or_named() {
    for (hidden, intermediate) in [(6, 1), (10, 7), (14, 33)] {
        let mut config = config();
        config["hidden_size"] = hidden.into();
        config["intermediate_size"] = intermediate.into();
        config["num_attention_heads"] = 1.into();
        config["head_dim"] = 2.into();
        for kind in [Kind::Symmetric, Kind::ZeroPoint] {
            for bits in [2, 3, 4, 5, 8] {
                let place = Place::with(Trained::new(kind, bits, None), config.clone());
                for format in [Format::CompressedTensors, Format::HuggingFace, Format::Plumbline] {
                    let told = place.export(format, FloatType::F32);
                    // Few codes of a width that does not divide 32.
                    let two_ways = told.as_ref().is_err_and(|told| {
                        told.contains("would be read in two ways") && [3, 5].contains(&bits)
                    });
                    let may_be = format == Format::CompressedTensors && two_ways;
                    assert!(told.is_ok() || may_be, "{format} {kind:?} {bits}: {told:?}");
                }
                for format in [Format::GptqV2, Format::Awq, Format::Mlx, Format::GgufQ8_0] {
                    let message = place.export(format, FloatType::F32).unwrap_err();
                    let lacks = ["expected a multiple of", "groups of", "codes of"];
                    assert!(lacks.iter().any(|lack| message.contains(lack)), "{message}");
                    assert!(message.contains("can hold this model"), "{message}");
                }
            }
        }
    }
}

/// Every code beside every zero point, at every width, through every layout that has zero points.
#[test]
fn every_code_meets_every_zero_point() {
    let mut config = config();
    for field in ["hidden_size", "intermediate_size"] {
        config[field] = 256.into();
    }
    for bits in 2..=8 {
        let place = Place::with(Trained::new(Kind::ZeroPoint, bits, None), config.clone());
        let source = ModelFolder::open(&place.path("merged")).unwrap();
        let mut met = vec![false; 1 << (2 * bits)];
        for linear in Projection::all(source.config()) {
            let layer = CodedLayer::read(&source, &linear).unwrap().unwrap();
            let Zero::Codes(zeros) = &layer.zero else { panic!("{:?}", layer.zero) };
            for (codes, zero) in layer.codes.chunks(layer.group_size).zip(zeros) {
                codes
                    .iter()
                    .for_each(|code| met[usize::from(*zero) << bits | usize::from(*code)] = true);
            }
        }
        assert!(met.iter().all(|met| *met), "{bits} bits");
        for format in [Format::CompressedTensors, Format::GptqV2, Format::Awq, Format::Mlx] {
            let holds = match format {
                Format::Awq => bits <= 4,
                _ => true,
            };
            assert_eq!(place.export(format, FloatType::F32).is_ok(), holds, "{format} {bits}");
        }
        place.export(Format::Plumbline, FloatType::F32).unwrap();
    }
}
