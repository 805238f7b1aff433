//! A model in several files: what is resident while it is read.

mod common;

use std::path::Path;
use std::sync::Arc;

use half::bf16;
use plumbline::checkpoint::ModelFolder;
use plumbline::cpu::Cpu;
use plumbline::finetune::{Method, Start, method_model};
use plumbline::model::{Projection, tensor_shapes};
use plumbline::ops::widen::WeightType;
use plumbline_reference::spec::LlamaConfig;
use safetensors::tensor::{Dtype, TensorView};

const SHARDS: usize = 4;
const MEBIBYTE: u64 = 1 << 20;

/// 109 million weights in eight blocks, 208 MiB in bf16.
fn config() -> LlamaConfig {
    LlamaConfig::from_value(&serde_json::json!({
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8,
        "num_attention_heads": 16, "vocab_size": 256, "max_position_embeddings": 64,
        "tie_word_embeddings": true,
    }))
    .unwrap()
}

/// Two blocks a file; every tensor is a part of the same bf16 numbers.
fn write_folder(folder: &Path) -> u64 {
    let config = config();
    let numbers: Vec<u8> = (0..1024 * 3072_u32)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 16) as f32 / 65536.0 - 0.5)
        .flat_map(|number| bf16::from_f32(number).to_le_bytes())
        .collect();
    let shapes = tensor_shapes(&config);
    let shard_of = |name: &str| {
        let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        block.map_or(0, |block| block.parse::<usize>().unwrap() / 2)
    };
    let file = |shard: usize| format!("model-{:05}-of-{SHARDS:05}.safetensors", shard + 1);
    for shard in 0..SHARDS {
        let views =
            shapes.iter().filter(|(name, _)| shard_of(name) == shard).map(|(name, shape)| {
                let bytes = &numbers[..2 * shape.iter().product::<usize>()];
                (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
            });
        safetensors::serialize_to_file(views, None, &folder.join(file(shard))).unwrap();
    }
    let map: serde_json::Map<String, serde_json::Value> =
        shapes.keys().map(|name| (name.clone(), file(shard_of(name)).into())).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    std::fs::write(folder.join("config.json"), config.to_value().to_string()).unwrap();
    (0..SHARDS).map(|shard| folder.join(file(shard)).metadata().unwrap().len()).sum()
}

/// A field of `/proc/self/status`, in bytes.
fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The pages of a mapped file count as resident, so neither a copy nor a mapping of whole files
/// would stay within the bound: the kept model, one tensor in bf16 and twice in f32, and what the
/// allocator and the smaller tensors take.
#[test]
#[cfg(target_os = "linux")]
fn a_model_of_several_files_is_read_with_room_for_one_tensor_beside_it() {
    let root = tempfile::tempdir().unwrap();
    let stored = write_folder(root.path());
    assert!(stored > 200 * MEBIBYTE, "{stored}");
    let method = common::settings::qlora(4);
    let kept: usize = Projection::all(&config())
        .iter()
        .map(|linear| method.cost(linear, WeightType::Bf16).unwrap().frozen_bytes)
        .sum();

    // The highest mark of resident memory starts again from what is resident now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    let folder = ModelFolder::open(root.path()).unwrap();
    let model = method_model(Arc::new(Cpu), &folder, &method, Start::Fresh(1)).unwrap();
    let (peak, after) = (status("VmHWM") - before, status("VmRSS") - before);

    let tensor = 1024 * 3072;
    let bound = kept as u64 + 10 * tensor + 16 * MEBIBYTE;
    println!(
        "files {} MiB, kept {} MiB, resident {} MiB, at most {} MiB, bound {} MiB",
        stored / MEBIBYTE,
        kept as u64 / MEBIBYTE,
        after / MEBIBYTE,
        peak / MEBIBYTE,
        bound / MEBIBYTE
    );
    assert!(peak <= bound, "{peak} > {bound}");
    assert_eq!(model.linears().len(), 56);
}
