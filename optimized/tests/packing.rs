//! Several documents in a sequence: each is computed as if it were alone.

#[path = "transformer/mod.rs"]
mod transformer;

use std::sync::Arc;

use plumbline::backend::{Backend, Storage};
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Interpreter};
use plumbline::error::Error;
use plumbline::methods::Dense;
use plumbline::model::{Batch, IGNORE, Llama, Recompute};
use plumbline::ops::attention::{AttentionArgs, AttentionInputs};
use plumbline::ops::rope::{Rope, RopeArgs, RopeTable};
use plumbline::train::new_model;
use plumbline_reference::spec::{LlamaConfig, RopeSpec};
use transformer::{Values, first_keys, judge_attention, run_attention};

fn cuda() -> Cuda<Interpreter> {
    Cuda::new(Interpreter::with_orders(2)).unwrap()
}

/// As `transformer` asks for: a buffer of `len` NaNs.
fn fresh<S: Storage>(backend: &S, len: usize) -> S::Floats {
    backend.upload(&vec![f32::NAN; len]).unwrap()
}

/// Its values.
fn taken<S: Storage>(backend: &S, buffer: &S::Floats, len: usize) -> Vec<f32> {
    backend.download(buffer, len).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn attention_to_one_document_is_exact_to_rounding() {
    let sizes = |batch, queries, keys, heads, kv_heads, head_dim| AttentionArgs {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        head_dim,
    };
    // Documents that begin inside tiles of rows and of keys, of one token, and far apart.
    judge_attention(&cuda(), &Cpu, sizes(2, 9, 9, 2, 1, 4), &[3, 4, 8]);
    judge_attention(&cuda(), &Cpu, sizes(1, 70, 70, 2, 1, 12), &[1, 33, 50]);
    judge_attention(&cuda(), &Cpu, sizes(1, 66, 70, 1, 1, 7), &[5, 64]);
    judge_attention(&cuda(), &Cpu, sizes(1, 40, 40, 2, 2, 66), &[39]);
    judge_attention(&cuda(), &Cpu, sizes(1, 5, 5, 1, 1, 130), &[2]);
}

#[test]
fn the_cpu_attends_to_a_document_with_the_bits_that_it_has_alone() {
    let (heads, kv_heads, head_dim) = (4, 2, 6);
    let args =
        |queries| AttentionArgs { batch: 1, queries, keys: queries, heads, kv_heads, head_dim };
    let starts = [0, 3, 4, 80];
    let length = 101;
    let mut draw = Values::new(9);
    let widths = [heads, kv_heads, kv_heads, heads].map(|heads| heads * head_dim);
    let inputs = widths.map(|width| draw.take(length * width));
    let firsts = first_keys(args(length), &starts);
    let packed = run_attention(&Cpu, args(length), Some(&firsts), &inputs);
    for (i, start) in starts.into_iter().enumerate() {
        let tokens = starts.get(i + 1).unwrap_or(&length) - start;
        let part =
            |values: &[f32], width: usize| values[start * width..][..tokens * width].to_vec();
        let own = std::array::from_fn(|i| part(&inputs[i], widths[i]));
        let [output, log_sum_exp, d_q, d_k, d_v] = run_attention(&Cpu, args(tokens), None, &own);
        for (packed, width, alone) in [
            (&packed[0], widths[0], output),
            (&packed[2], widths[0], d_q),
            (&packed[3], widths[1], d_k),
            (&packed[4], widths[1], d_v),
        ] {
            assert_eq!(bits(&part(packed, width)), bits(&alone), "document {i}");
        }
        for head in 0..heads {
            let packed = &packed[1][head * length + start..][..tokens];
            assert_eq!(bits(packed), bits(&log_sum_exp[head * tokens..][..tokens]));
        }
    }
}

/// Bits of a rotation and of its backward.
fn rotated<S: Rope>(
    backend: &S,
    length: usize,
    documents: Option<&[i32]>,
    x: &[f32],
) -> [Vec<u32>; 2] {
    let args = RopeArgs { batch: 2, length, heads: 2, head_dim: 8, first_position: 0 };
    let table = RopeTable::new(backend, RopeSpec::new(500.0).unwrap(), 8, 7).unwrap();
    let documents = documents.map(|documents| backend.upload_tokens(documents).unwrap());
    let [mut forward, mut backward] = [(); 2].map(|()| backend.upload(x).unwrap());
    backend.rope(args, &table, documents.as_ref(), &mut forward).unwrap();
    backend.rope_backward(args, &table, documents.as_ref(), &mut backward).unwrap();
    [forward, backward].map(|buffer| bits(&backend.download(&buffer, x.len()).unwrap()))
}

#[test]
fn positions_start_again_at_every_document() {
    let x = Values::new(2).take(2 * 6 * 16);
    let documents = [0, 0, 2, 2, 4, 4, 0, 0, 2, 2, 4, 4];
    let packed = rotated(&Cpu, 6, Some(&documents), &x);
    assert_eq!(rotated(&cuda(), 6, Some(&documents), &x), packed);
    for start in [0, 2, 4] {
        let own = |values: &[f32]| {
            [&values[start * 16..][..32], &values[(6 + start) * 16..][..32]].concat()
        };
        let alone = rotated(&Cpu, 2, None, &own(&x));
        for (packed, alone) in packed.iter().zip(alone) {
            let both = [&packed[start * 16..][..32], &packed[(6 + start) * 16..][..32]].concat();
            assert_eq!(both, alone, "document at {start}");
        }
    }
}

/// One block of grouped queries: 64 rows of a key head are 32 tokens.
fn model<B: Backend>(backend: B) -> Llama<B, Dense<B>> {
    let value = serde_json::json!({
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
        "max_position_embeddings": 96, "tie_word_embeddings": false,
    });
    new_model(Arc::new(backend), &LlamaConfig::from_value(&value).unwrap(), 5).unwrap()
}

fn text(seed: u64, tokens: usize) -> Vec<i32> {
    Values::new(seed).take(tokens).iter().map(|value| (20.0 * (value + 1.0)) as i32).collect()
}

/// What a model makes of a batch, to bits.
#[derive(PartialEq)]
struct Trained {
    logits: Vec<u32>,
    loss: u64,
    gradients: Vec<(String, Vec<u32>)>,
}

fn trained<B: Backend>(backend: B, batch: &Batch<'_>, recompute: Recompute) -> Trained {
    let mut model = model(backend);
    let mut workspace = model.training_workspace(batch.tokens.len(), recompute).unwrap();
    let logits = model.batch_logits(batch, &mut workspace).unwrap();
    let loss = model.loss(batch, &mut workspace).unwrap();
    let again = model.loss_and_gradients(batch, 0.25, &mut workspace).unwrap();
    assert_eq!(loss.sum.to_bits(), again.sum.to_bits());
    let backend = model.shared_backend();
    let gradients = model.trainable().into_iter().map(|tensor| {
        let gradient = backend.download(tensor.gradient, tensor.len).unwrap();
        assert!(gradient.iter().any(|value| *value != 0.0), "{} has no gradient", tensor.name);
        (tensor.name, bits(&gradient))
    });
    Trained { logits: bits(&logits), loss: loss.sum.to_bits(), gradients: gradients.collect() }
}

/// A sequence of three documents, and the same documents as sequences.
fn packed_is_separate<B: Backend>(backend: impl Fn() -> B, length: usize, recompute: Recompute) {
    let tokens = text(3, 3 * length);
    let mut targets = text(4, 3 * length);
    targets[length - 1] = IGNORE;
    let documents: Vec<i32> = (0..3 * length).map(|i| (i / length * length) as i32).collect();
    let separate = Batch { batch: 3, tokens: &tokens, targets: &targets, documents: None };
    let packed = Batch { batch: 1, documents: Some(&documents), ..separate };
    let alone = trained(backend(), &separate, recompute);
    assert!(trained(backend(), &packed, recompute) == alone, "packed is not separate");
    let one = Batch { batch: 1, ..separate };
    assert!(trained(backend(), &one, recompute) != alone, "the documents make no difference");
}

#[test]
fn a_model_trains_on_packed_documents_with_the_bits_of_separate_ones() {
    packed_is_separate(|| Cpu, 11, Recompute::None);
    packed_is_separate(|| Cpu, 32, Recompute::Blocks);
    // Whole tiles: the sums of the kernels are in the same order.
    packed_is_separate(cuda, 32, Recompute::None);
}

/// Logits of the tokens from 13 on, to bits, after 13 tokens of another document.
fn second<B: Backend>(backend: B, before: u64) -> Vec<u32> {
    let tokens = [text(before, 13), text(1, 20)].concat();
    let documents: Vec<i32> = (0..33).map(|i| if i < 13 { 0 } else { 13 }).collect();
    let model = model(backend);
    let mut workspace = model.evaluation_workspace(33).unwrap();
    let batch = Batch { batch: 1, tokens: &tokens, targets: &[], documents: Some(&documents) };
    let logits = model.batch_logits(&batch, &mut workspace).unwrap();
    bits(&logits[13 * 40..])
}

#[test]
fn a_document_does_not_see_what_the_one_ahead_says() {
    assert_eq!(second(Cpu, 7), second(Cpu, 8));
    assert_eq!(second(cuda(), 7), second(cuda(), 8));
}

/// What backends say of these documents of two sequences of three tokens.
fn refusals<B: Backend>(backend: &B, documents: &[i32]) -> [String; 2] {
    let floats = |len| backend.zeros(len).unwrap();
    let (x, mut output, mut saved) = (floats(12), floats(12), floats(6));
    let documents = backend.upload_tokens(documents).unwrap();
    let args = AttentionArgs { batch: 2, queries: 3, keys: 3, heads: 1, kv_heads: 1, head_dim: 2 };
    let inputs = AttentionInputs { q: &x, k: &x, v: &x, documents: Some(&documents) };
    let told = backend.attention(args, inputs, &mut output, &mut saved).unwrap_err();
    let args = RopeArgs { batch: 2, length: 3, heads: 1, head_dim: 2, first_position: 0 };
    let table = RopeTable::new(backend, RopeSpec::new(500.0).unwrap(), 2, 3).unwrap();
    let of_rope = backend.rope(args, &table, Some(&documents), &mut output).unwrap_err();
    [told, of_rope].map(|error| error.to_string())
}

#[test]
fn documents_that_begin_out_of_order_are_refused() {
    for (documents, expected) in [
        (vec![0, 0, 0, 0, 2, 2], "token 1 of sequence 1 begins at 2, expected 0..=1"),
        (vec![0, 1, 0, 0, 0, 0], "token 2 of sequence 0 begins at 0, expected 1..=2"),
        (vec![-1, 0, 0, 0, 0, 0], "token 0 of sequence 0 begins at -1, expected 0..=0"),
    ] {
        let expected = ["attention", "rope"]
            .map(|operation| format!("{operation}: the document of {expected}"));
        assert_eq!(refusals(&Cpu, &documents), expected);
        assert_eq!(refusals(&cuda(), &documents), expected);
    }
    let expected = ["attention", "rope"]
        .map(|operation| format!("{operation}: documents holds 5 values, expected 6"));
    assert_eq!(refusals(&Cpu, &[0; 5]), expected);
    assert_eq!(refusals(&cuda(), &[0; 5]), expected);
    let model = model(Cpu);
    let mut workspace = model.evaluation_workspace(2).unwrap();
    let batch = Batch { batch: 1, tokens: &[1, 2], targets: &[], documents: Some(&[0]) };
    let told = model.batch_logits(&batch, &mut workspace).unwrap_err();
    assert!(matches!(told, Error::Invalid(_)));
    assert_eq!(told.to_string(), "2 tokens with 1 documents' places");
}
