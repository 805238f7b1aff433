//! Checkpoints that other programs quantized: written here bit by bit, and read as the weights that
//! they stand for.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::program::{json, plumbline, refused};
use half::{bf16, f16};
use plumbline::checkpoint::{LoadedModel, ModelFolder};
use plumbline::cpu::Cpu;
use plumbline::model::{Projection, tensor_shapes};
use plumbline_reference::spec::LlamaConfig;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Every width is a multiple of 32, so that three bits fill words.
fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 280,
        "max_position_embeddings": 64, "tie_word_embeddings": true,
    })
}

/// Type, shape, bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// A layer in integers.
struct Layer {
    linear: Projection,
    groups: usize,
    /// `code(o, i)`, from 0.
    codes: Vec<u32>,
    /// `[out, groups]`.
    zero_points: Vec<i64>,
    /// `[out, groups]`, exact in 8 bits of mantissa.
    scales: Vec<f64>,
    index: Vec<usize>,
}

impl Layer {
    /// Codes of the whole range; zero points `lowest` to `highest`, each of them somewhere; groups
    /// of eight inputs, dealt out like cards where `permuted`.
    fn new(linear: Projection, bits: u32, [lowest, highest]: [i64; 2], permuted: bool) -> Self {
        let (rows, columns) = (linear.out_features, linear.in_features);
        let groups = columns / 8;
        let count = highest - lowest + 1;
        Self {
            groups,
            codes: (0..rows * columns).map(|at| (at as u32 * 37 + 11) % (1 << bits)).collect(),
            zero_points: (0..rows * groups).map(|at| lowest + at as i64 * 7 % count).collect(),
            scales: (0..rows * groups).map(|at| (65 + at % 61) as f64 / 4096.0).collect(),
            index: (0..columns).map(|i| if permuted { i % groups } else { i / 8 }).collect(),
            linear,
        }
    }

    /// What it stands for, in arithmetic that does not round.
    fn weight(&self) -> Vec<f32> {
        let columns = self.linear.in_features;
        let of = |at: usize| {
            let place = at / columns * self.groups + self.index[at % columns];
            let steps = i64::from(self.codes[at]) - self.zero_points[place];
            let exact = steps as f64 * self.scales[place];
            assert_eq!(f64::from(exact as f32), exact);
            exact as f32
        };
        (0..self.codes.len()).map(of).collect()
    }

    fn name(&self, tensor: &str) -> String {
        format!("{}.{tensor}", self.linear.name)
    }

    /// Scales by `order`, as the bytes of a type.
    fn scales(&self, dtype: Dtype, order: impl Iterator<Item = usize>) -> Vec<u8> {
        let bytes = |at: usize| match dtype {
            Dtype::F16 => f16::from_f64(self.scales[at]).to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f64(self.scales[at]).to_le_bytes().to_vec(),
            _ => (self.scales[at] as f32).to_le_bytes().to_vec(),
        };
        order.flat_map(bytes).collect()
    }
}

/// Lines of `length` values, every bit set on its own from the first word's lowest on; `spread`
/// values to a word, or all after each other. The words of all lines are returned line by line.
fn pack(values: &[u32], length: usize, bits: u32, spread: Option<usize>) -> (usize, Vec<u32>) {
    let width = match spread {
        Some(values) => length.div_ceil(values),
        None => (length * bits as usize).div_ceil(32),
    };
    let mut words = vec![0u32; values.len() / length * width];
    for (at, value) in values.iter().enumerate() {
        let (line, place) = (at / length, at % length);
        for bit in (0..bits as usize).filter(|bit| value >> bit & 1 == 1) {
            let (word, bit) = match spread {
                Some(values) => (place / values, place % values * bits as usize + bit),
                None => ((place * bits as usize + bit) / 32, (place * bits as usize + bit) % 32),
            };
            words[line * width + word] |= 1 << bit;
        }
    }
    (width, words)
}

fn transposed<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns;
    (0..values.len()).map(|at| values[at % rows * columns + at / rows]).collect()
}

fn words(shape: [usize; 2], words: &[u32]) -> Tensor {
    (Dtype::I32, shape.to_vec(), words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn index(layer: &Layer) -> Tensor {
    let bytes = layer.index.iter().flat_map(|group| (*group as i32).to_le_bytes()).collect();
    (Dtype::I32, vec![layer.index.len()], bytes)
}

/// A layer of GPTQ; `less` is what the version takes off a zero point.
fn gptq(layer: &Layer, bits: u32, less: i64) -> BTreeMap<String, Tensor> {
    let (rows, columns) = (layer.linear.out_features, layer.linear.in_features);
    // Packed along the inputs, a column of words for each output.
    let (height, packed) = pack(&layer.codes, columns, bits, None);
    let qweight = words([height, rows], &transposed(&packed, height));
    let stored: Vec<u32> = layer.zero_points.iter().map(|zero| (zero - less) as u32).collect();
    assert!(stored.iter().all(|zero| *zero < 1 << bits));
    let (width, packed) = pack(&transposed(&stored, layer.groups), rows, bits, None);
    let order = (0..layer.scales.len()).map(|at| at % rows * layer.groups + at / rows);
    let scales = (Dtype::F16, vec![layer.groups, rows], layer.scales(Dtype::F16, order));
    BTreeMap::from([
        (layer.name("qweight"), qweight),
        (layer.name("qzeros"), words([layer.groups, width], &packed)),
        (layer.name("scales"), scales),
        (layer.name("g_idx"), index(layer)),
        (layer.name("bias"), (Dtype::F16, vec![rows], vec![0; 2 * rows])),
    ])
}

/// A layer of compressed-tensors; symmetric where every zero point is in the middle.
fn compressed(layer: &Layer, bits: u32, spread: Option<usize>) -> BTreeMap<String, Tensor> {
    let (rows, columns) = (layer.linear.out_features, layer.linear.in_features);
    let (width, packed) = pack(&layer.codes, columns, bits, spread);
    let scales = layer.scales(Dtype::BF16, 0..layer.scales.len());
    let shape = [rows, columns].iter().flat_map(|size| (*size as i64).to_le_bytes()).collect();
    let mut tensors = BTreeMap::from([
        (layer.name("weight_packed"), words([rows, width], &packed)),
        (layer.name("weight_scale"), (Dtype::BF16, vec![rows, layer.groups], scales)),
        (layer.name("weight_shape"), (Dtype::I64, vec![2], shape)),
    ]);
    if layer.zero_points.iter().any(|zero| *zero != 1 << (bits - 1)) {
        // Packed along the outputs.
        let stored: Vec<u32> = layer.zero_points.iter().map(|zero| *zero as u32).collect();
        let (height, packed) = pack(&transposed(&stored, layer.groups), rows, bits, spread);
        let zero_points = words([height, layer.groups], &transposed(&packed, height));
        tensors.insert(layer.name("weight_zero_point"), zero_points);
    }
    if layer.index.windows(2).any(|pair| pair[0] > pair[1]) {
        tensors.insert(layer.name("weight_g_idx"), index(layer));
    }
    tensors
}

/// A folder with the layers' tensors, and everything else from a formula.
fn write(folder: &Path, quantization: &Value, mut tensors: BTreeMap<String, Tensor>) {
    let mut config = config();
    let parsed = LlamaConfig::from_value(&config).unwrap();
    for (name, shape) in tensor_shapes(&parsed) {
        if name.ends_with("proj.weight") {
            continue;
        }
        let len: usize = shape.iter().product();
        let value = |at: usize| if shape.len() == 1 { 1.0 } else { (at % 89) as f32 / 512.0 };
        let bytes = (0..len).flat_map(|at| value(at).to_le_bytes()).collect();
        tensors.insert(name, (Dtype::F32, shape, bytes));
    }
    config["quantization_config"] = quantization.clone();
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

fn layers(bits: u32, zero_points: [i64; 2], permuted: bool) -> Vec<Layer> {
    let config = LlamaConfig::from_value(&config()).unwrap();
    let layer = |linear| Layer::new(linear, bits, zero_points, permuted);
    Projection::all(&config).into_iter().map(layer).collect()
}

/// Writes the layers, reads them again, and compares every bit of every weight.
fn reads(
    quantization: &Value,
    layers: &[Layer],
    tensors: impl Fn(&Layer) -> BTreeMap<String, Tensor>,
) {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), quantization, layers.iter().flat_map(tensors).collect());
    let folder = ModelFolder::open(root.path()).unwrap();
    for layer in layers {
        let read = folder.weight(&layer.linear).unwrap().into_floats();
        let differs = read.iter().zip(layer.weight()).position(|(l, r)| l.to_bits() != r.to_bits());
        assert_eq!(differs, None, "{quantization} {}", layer.linear.name);
    }
    let LoadedModel::Dense(model) = folder.load(Arc::new(Cpu)).unwrap() else { panic!("codes") };
    let mut workspace = model.evaluation_workspace(4).unwrap();
    let logits = model.logits(1, &[1, 2, 3, 4], &mut workspace).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
}

fn of_gptq(bits: u32, version: &str, permuted: bool) -> Value {
    json!({
        "quant_method": "gptq", "bits": bits, "group_size": 8, "desc_act": permuted, "sym": false,
        "damp_percent": 0.01, "checkpoint_format": version, "true_sequential": true,
        "lm_head": false, "dynamic": {},
    })
}

fn of_compressed(bits: u32, symmetric: bool, permuted: bool) -> Value {
    let actorder = if permuted { json!("group") } else { Value::Null };
    json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "quantization_status": "compressed", "kv_cache_scheme": null,
        "config_groups": { "group_0": {
            "targets": ["Linear"], "input_activations": null, "output_activations": null,
            "weights": {
                "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group",
                "group_size": 8, "dynamic": false, "actorder": actorder,
            },
        }},
    })
}

/// Zero points at both ends of what each version can store: the first stores one less.
#[test]
fn gptq_of_both_versions_is_read_to_the_bit() {
    for bits in [2, 3, 4, 8] {
        for permuted in [false, true] {
            let most = (1 << bits) - 1;
            for (version, ends, less) in [("gptq", [1, most + 1], 1), ("gptq_v2", [0, most], 0)] {
                let quantization = of_gptq(bits, version, permuted);
                let layers = layers(bits, ends, permuted);
                reads(&quantization, &layers, |layer| gptq(layer, bits, less));
            }
        }
    }
    // Without an order, the groups of the inputs may be missing.
    let without = |layer: &Layer| {
        let mut tensors = gptq(layer, 4, 0);
        tensors.remove(&layer.name("g_idx"));
        tensors.remove(&layer.name("bias"));
        tensors
    };
    reads(&of_gptq(4, "gptq_v2", false), &layers(4, [0, 15], false), without);
}

#[test]
fn compressed_tensors_are_read_to_the_bit() {
    for bits in 2..=8 {
        let (middle, most) = (1 << (bits - 1), (1 << bits) - 1);
        for permuted in [false, true] {
            for (symmetric, ends) in [(true, [middle, middle]), (false, [0, most])] {
                let quantization = of_compressed(bits, symmetric, permuted);
                let layers = layers(bits, ends, permuted);
                reads(&quantization, &layers, |layer| compressed(layer, bits, None));
                if bits == 3 {
                    // Ten values to a word, as it was once written.
                    reads(&quantization, &layers, |layer| compressed(layer, 3, Some(10)));
                }
            }
        }
    }
}

/// A layer that was left out of the quantization has its weight.
#[test]
fn a_layer_that_was_left_out_is_read_as_it_is() {
    let (all, root) = (layers(4, [8, 8], false), tempfile::tempdir().unwrap());
    let mut tensors: BTreeMap<_, _> =
        all[1..].iter().flat_map(|layer| compressed(layer, 4, None)).collect();
    let bytes = all[0].weight().iter().flat_map(|w| w.to_le_bytes()).collect();
    tensors.insert(all[0].name("weight"), (Dtype::F32, vec![32, 32], bytes));
    write(root.path(), &of_compressed(4, true, false), tensors);
    let folder = ModelFolder::open(root.path()).unwrap();
    for layer in &all {
        assert_eq!(folder.weight(&layer.linear).unwrap().into_floats(), layer.weight());
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let changed = |mut value: Value, pointer: &str, to: Value| {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        value.pointer_mut(parent).unwrap()[field] = to;
        value
    };
    let gptq_4 = || of_gptq(4, "gptq", false);
    let packed_4 = || of_compressed(4, true, false);
    let weights = "/config_groups/group_0/weights";
    for (quantization, expected) in [
        (changed(gptq_4(), "/bits", json!(5)), "bits is 5, supported: 2, 3, 4, 8"),
        (changed(gptq_4(), "/group_size", json!(0)), "group_size is 0, expected -1 or"),
        (changed(gptq_4(), "/checkpoint_format", json!("marlin")), "checkpoint_format is marlin"),
        (changed(gptq_4(), "/dynamic", json!({"-:mlp": {}})), "dynamic is {"),
        (changed(gptq_4(), "/lm_head", json!(true)), "lm_head is true, which is not supported"),
        (changed(packed_4(), "/format", json!("marlin-24")), "format is marlin-24, supported"),
        (changed(packed_4(), "/kv_cache_scheme", json!({"num_bits": 8})), "kv_cache_scheme is"),
        (changed(packed_4(), &format!("{weights}/type"), json!("float")), "weights.type is float"),
        (
            changed(packed_4(), &format!("{weights}/strategy"), json!("block")),
            "weights.strategy is block, supported: group, channel",
        ),
        (
            changed(packed_4(), "/config_groups/group_0/input_activations", json!({"a": 1})),
            "input_activations is {",
        ),
        (changed(packed_4(), "/config_groups/group_1", json!({})), "has 2 groups, supported: 1"),
        (
            json!({"quant_method": "aqlm"}),
            "aqlm, supported: plumbline, gptq, compressed-tensors, awq",
        ),
    ] {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &quantization, BTreeMap::new());
        let refused = ModelFolder::open(root.path()).err().unwrap().to_string();
        assert!(refused.contains("config.json") && refused.contains(expected), "{refused}");
    }
}

#[test]
fn tensors_that_contradict_each_other_are_refused() {
    let refused = |quantization: &Value, spoil: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let of_layer = |layer: &Layer| match quantization["quant_method"] == "gptq" {
            true => gptq(layer, 4, 1),
            false => compressed(layer, 4, None),
        };
        let all = layers(4, [8, 8], true);
        let mut tensors = all.iter().flat_map(of_layer).collect();
        spoil(&mut tensors);
        let root = tempfile::tempdir().unwrap();
        write(root.path(), quantization, tensors);
        let folder = ModelFolder::open(root.path());
        let read = folder.and_then(|folder| folder.weight(&all[0].linear));
        read.err().unwrap().to_string()
    };
    let name = |tensor: &str| format!("model.layers.0.self_attn.q_proj.{tensor}");
    let of_gptq = of_gptq(4, "gptq", true);
    let message = refused(&of_gptq, &|tensors| {
        tensors.get_mut(&name("g_idx")).unwrap().2[4..8].copy_from_slice(&9i32.to_le_bytes());
    });
    assert!(message.contains("g_idx says group 9 for input 1, expected 0 to 3"), "{message}");
    let message = refused(&of_gptq, &|tensors| {
        tensors.get_mut(&name("bias")).unwrap().2[1] = 0x3c;
    });
    assert!(message.contains("q_proj.bias holds 1; LLaMA has no bias"), "{message}");
    let message = refused(&of_gptq, &|tensors| {
        tensors.remove(&name("g_idx"));
    });
    assert!(message.contains("has no tensor") && message.contains("q_proj.g_idx"), "{message}");
    let of_compressed = of_compressed(4, true, true);
    let message = refused(&of_compressed, &|tensors| {
        tensors.get_mut(&name("weight_shape")).unwrap().2[0] = 31;
    });
    assert!(message.contains("weight_shape says [31, 32], expected [32, 32]"), "{message}");
    let message = refused(&of_compressed, &|tensors| {
        let packed = tensors.get_mut(&name("weight_packed")).unwrap();
        (packed.1, packed.2) = (vec![32, 5], packed.2[..1].repeat(4 * 32 * 5));
    });
    assert!(message.contains("has 5 words for 32 values of 4 bits, expected 4"), "{message}");
}

/// What was read is a model like any other to the commands.
#[test]
fn the_commands_take_it_as_a_model() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("model");
    let tensors = layers(4, [1, 16], true).iter().flat_map(|layer| gptq(layer, 4, 1)).collect();
    write(&model, &of_gptq(4, "gptq", true), tensors);
    let human = plumbline(root.path(), &["inspect", "model"]);
    assert!(String::from_utf8_lossy(&human.stdout).contains("gptq: 4 bits"), "{human:?}");
    let quantize = ["quantize", "model", "--method", "rtn", "--bits", "4", "--out", "again"];
    json(&plumbline(root.path(), &[&quantize[..], &["--json"]].concat()));
    let write = ["generate", "--model", "model", "--prompt-ids", "5,6", "--tokens", "3", "--json"];
    let ids = |model: &str| {
        let command = write.map(|argument| if argument == "model" { model } else { argument });
        json(&plumbline(root.path(), &command))["new_ids"].as_array().unwrap().len()
    };
    assert_eq!((ids("model"), ids("again")), (3, 3));
    refused(&plumbline(root.path(), &quantize), &["again", "already exists"]);
}
