//! Activations on grids of their own: the operation on both backends, bit for bit; and a model
//! that rounds them in training, recomputed, token by token, packed and merged.

mod common;
#[path = "common/numbers.rs"]
mod numbers;

use std::sync::Arc;

use common::program::{Place, json, plumbline};
use common::settings::{base, lr_qat};
use numbers::{bits, floats, random};
use plumbline::backend::Backend;
use plumbline::checkpoint::ModelFolder;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Interpreter};
use plumbline::error::Error;
use plumbline::finetune::{Start, first_difference, merge, method_model};
use plumbline::methods::LrQat;
use plumbline::model::{Batch, Decoder, Llama, Recompute};
use plumbline::ops::dynamic_quantize::{DynamicCodes, DynamicQuantize, DynamicQuantizeArgs};
use plumbline::recipe::LrQatSettings;
use plumbline_reference::spec::{ActivationSpec, Bits, Downcast, QuantSpec, ZeroPointRule};

fn cuda() -> Cuda<Interpreter> {
    Cuda::new(Interpreter::with_orders(2)).unwrap()
}

/// Output, scale, zero point as bits, codes; then what becomes of a gradient of ones.
type Answer = (Vec<u32>, Vec<u32>, Vec<u32>, Vec<i8>, Vec<u32>);

fn answer<B: Backend>(backend: &B, args: DynamicQuantizeArgs, x: &[f32]) -> Answer {
    let (len, groups) = (x.len(), args.tokens * args.spec.groups());
    // A buffer may be longer than an operation needs.
    let mut output = backend.upload(&vec![f32::NAN; len + 3]).unwrap();
    let mut alone = backend.zeros(len).unwrap();
    let mut scale = backend.zeros(groups).unwrap();
    let mut zero_point = backend.zeros(groups).unwrap();
    let mut codes = backend.zero_codes(len).unwrap();
    let to = DynamicCodes { codes: &mut codes, scale: &mut scale, zero_point: &mut zero_point };
    let x = backend.upload(x).unwrap();
    backend.dynamic_quantize(args, &x, &mut output, Some(to)).unwrap();
    backend.dynamic_quantize(args, &x, &mut alone, None).unwrap();
    let mut d = backend.upload(&vec![1.0; len]).unwrap();
    backend.dynamic_quantize_backward(args, &x, &mut d).unwrap();
    let told = |buffer: &B::Floats, len| bits(&backend.download(buffer, len).unwrap());
    assert_eq!(told(&output, len), told(&alone, len), "with and without codes");
    let codes = backend.download_codes(&codes).unwrap();
    (told(&output, len), told(&scale, groups), told(&zero_point, groups), codes, told(&d, len))
}

/// (Q14) and (Q15) group by group, as they are written.
fn by_definition(args: DynamicQuantizeArgs, x: &[f32]) -> Answer {
    let last = args.spec.unsigned_max() as f32;
    let mut answer = Answer::default();
    for group in x.chunks(args.spec.group_size()) {
        let low = group.iter().copied().fold(f32::INFINITY, f32::min);
        let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = match (high > low, low == 0.0) {
            (true, _) => ((high - low) / last).max(1e-8),
            (false, true) => 1.0,
            (false, false) => low.abs().max(1e-8),
        };
        let zero_point = match args.zero_point {
            ZeroPointRule::Integer => (-low / scale).round_ties_even(),
            ZeroPointRule::Float => -low / scale,
        };
        // 0 and not -0, whatever the sign of what is rounded to nothing.
        let zero_point = zero_point + 0.0;
        answer.1.push(scale.to_bits());
        answer.2.push(zero_point.to_bits());
        for x in group {
            let place = (x / scale).round_ties_even() + zero_point;
            let level = place.clamp(0.0, last);
            answer.0.push((scale * (level - zero_point)).to_bits());
            answer.3.push(level as u8 as i8);
            let passes = (0.0..=last).contains(&place);
            answer.4.push(if passes { 1.0f32 } else { 0.0 }.to_bits());
        }
    }
    answer
}

#[test]
fn every_backend_has_the_bits_of_the_definition() {
    let mut clipped = 0;
    let shapes = [
        (1, 1, 1, 2),
        (2, 3, 2, 3),
        (3, 33, 1, 4),
        (2, 128, 3, 8),
        (2, 260, 1, 4),
        (1, 1030, 1, 8),
        (1, 2052, 1, 8),
    ];
    for (case, (tokens, group, groups, width)) in shapes.into_iter().enumerate() {
        let columns = group * groups;
        let spec = QuantSpec::new(Bits::new(width).unwrap(), Some(group), columns).unwrap();
        let mut random = random(case as u64);
        for shift in [0.0, 3.0, -700.0] {
            let mut x = floats(&mut random, tokens * columns, 2.0);
            x.iter_mut().for_each(|x| *x += shift);
            x[0] = -0.0;
            for zero_point in [ZeroPointRule::Integer, ZeroPointRule::Float] {
                let args = DynamicQuantizeArgs { tokens, spec, zero_point };
                let expected = by_definition(args, &x);
                assert_eq!(answer(&Cpu, args, &x), expected, "{args:?}");
                assert_eq!(answer(&cuda(), args, &x), expected, "{args:?}");
                clipped += expected.4.iter().filter(|d| **d == 0).count();
            }
        }
    }
    assert!(clipped > 0, "nothing was clipped: the masks were not tried");
}

#[test]
fn what_is_not_finite_is_named() {
    fn told<B: Backend>(backend: &B, x: &[f32], is_backward: bool) -> String {
        let spec = QuantSpec::new(Bits::new(8).unwrap(), None, 2).unwrap();
        let zero_point = ZeroPointRule::Integer;
        let args = DynamicQuantizeArgs { tokens: x.len() / 2, spec, zero_point };
        let x = backend.upload(x).unwrap();
        let mut to = backend.zeros(4).unwrap();
        let done = if is_backward {
            backend.dynamic_quantize_backward(args, &x, &mut to)
        } else {
            backend.dynamic_quantize(args, &x, &mut to, None)
        };
        // A device says it where it is next waited for.
        done.and_then(|()| backend.download(&to, 1).map(|_| ())).unwrap_err().to_string()
    }
    for (x, tensor) in [
        ([1.0, 2.0, f32::NAN, 1.0], "x"),
        ([f32::INFINITY, 2.0, 1.0, 1.0], "x"),
        ([1.0, 2.0, 3e38, -3e38], "scale"),
    ] {
        for (is_backward, name) in
            [(false, "dynamic_quantize"), (true, "dynamic_quantize_backward")]
        {
            let on_cpu = told(&Cpu, &x, is_backward);
            assert!(on_cpu.contains(&format!("{name}: {tensor}")), "{on_cpu}");
            assert_eq!(told(&cuda(), &x, is_backward), on_cpu);
        }
    }
    let short = Cpu.dynamic_quantize(
        DynamicQuantizeArgs {
            tokens: 2,
            spec: QuantSpec::new(Bits::new(4).unwrap(), None, 3).unwrap(),
            zero_point: ZeroPointRule::Float,
        },
        &vec![0.0; 5],
        &mut vec![0.0; 6],
        None,
    );
    assert!(matches!(short, Err(Error::Length { tensor: "x", expected: 6, actual: 5, .. })));
}

fn spec(bits: u32, kv_bits: u32) -> ActivationSpec {
    ActivationSpec { kv_bits: Bits::new(kv_bits).unwrap(), ..ActivationSpec::new(width(bits)) }
}

fn width(bits: u32) -> Bits {
    Bits::new(bits).unwrap()
}

fn settings(activations: Option<ActivationSpec>) -> LrQatSettings {
    LrQatSettings { activations, ..lr_qat(4, Downcast::Fixed8, "frozen") }
}

fn tokens(folder: &ModelFolder) -> Vec<i32> {
    folder.tokenizer().unwrap().encode(&common::TEXT.repeat(12)).unwrap()
}

type Model<B> = Llama<B, LrQat<B>>;

/// The small model under LR-QAT, and a text.
fn model<B: Backend>(backend: Arc<B>, activations: Option<ActivationSpec>) -> (Model<B>, Vec<i32>) {
    let (_root, folder) = base();
    let text = tokens(&folder);
    let settings = settings(activations);
    (method_model(backend, &folder, &settings, Start::Fresh(3)).unwrap(), text)
}

/// Loss and gradients of a batch, as bits.
fn gradients<B: Backend>(
    model: &mut Model<B>,
    batch: &Batch<'_>,
    recompute: Recompute,
) -> (f64, Vec<Vec<u32>>) {
    let backend = model.shared_backend();
    let mut workspace = model.training_workspace(batch.tokens.len(), recompute).unwrap();
    for tensor in model.trainable() {
        backend.clear(tensor.gradient).unwrap();
    }
    let loss = model.loss_and_gradients(batch, 0.1, &mut workspace).unwrap();
    let of = |tensor: plumbline::methods::Trainable<'_, B>| {
        bits(&backend.download(tensor.gradient, tensor.len).unwrap())
    };
    (loss.sum, model.trainable().into_iter().map(of).collect())
}

#[test]
fn recomputed_activations_have_the_same_bits_and_each_choice_is_another_model() {
    fn losses<B: Backend>(backend: &Arc<B>) -> Vec<f64> {
        let narrow = spec(8, 2);
        let choices = [
            None,
            Some(spec(8, 8)),
            Some(narrow),
            Some(ActivationSpec { norm_outputs: false, ..narrow }),
            Some(ActivationSpec { zero_point: ZeroPointRule::Float, ..narrow }),
        ];
        let loss = |choice: Option<ActivationSpec>| {
            let (mut model, text) = model(backend.clone(), choice);
            let (tokens, targets) = (&text[..16], &text[1..17]);
            let batch = Batch { batch: 2, tokens, targets, documents: None };
            let kept = gradients(&mut model, &batch, Recompute::None);
            assert_eq!(gradients(&mut model, &batch, Recompute::Blocks), kept, "{choice:?}");
            kept.0
        };
        choices.into_iter().map(loss).collect()
    }
    for losses in [losses(&Arc::new(Cpu)), losses(&Arc::new(cuda()))] {
        for (index, loss) in losses.iter().enumerate() {
            assert!(!losses[..index].contains(loss), "{losses:?}");
            assert!((loss / losses[0] - 1.0).abs() < 0.2, "{losses:?}");
        }
    }
}

#[test]
fn a_document_in_a_packed_sequence_is_what_it_is_alone() {
    let (mut model, text) = model(Arc::new(Cpu), Some(spec(4, 4)));
    let mut workspace = model.training_workspace(24, Recompute::None).unwrap();
    let documents: Vec<i32> = (0..24).map(|place| if place < 10 { 0 } else { 10 }).collect();
    let packed = Batch { batch: 1, tokens: &text[..24], targets: &[], documents: Some(&documents) };
    let together = model.batch_logits(&packed, &mut workspace).unwrap();
    let vocab = model.config().vocab_size;
    for part in [0..10, 10..24] {
        let alone = model.logits(1, &text[part.clone()], &mut workspace).unwrap();
        let in_it = &together[part.start * vocab..part.end * vocab];
        assert_near(&alone, in_it);
    }
    // And gradients pass there.
    let batch = Batch { targets: &text[1..25], ..packed };
    let kept = gradients(&mut model, &batch, Recompute::None);
    assert_eq!(gradients(&mut model, &batch, Recompute::Blocks), kept);
}

/// Up to the order of sums, which hangs on the number of rows.
fn assert_near(left: &[f32], right: &[f32]) {
    let apart = left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart <= 1e-5, "{apart}");
}

#[test]
fn the_cached_decoder_rounds_what_the_whole_sequence_rounds() {
    let (model, text) = model(Arc::new(Cpu), Some(spec(4, 3)));
    let text = &text[..24];
    let mut workspace = model.evaluation_workspace(text.len()).unwrap();
    let whole = model.logits(1, text, &mut workspace).unwrap();
    let vocab = model.config().vocab_size;
    let mut decoder = Decoder::new(&model, text.len()).unwrap();
    let mut position = 0;
    for piece in [7, 1, 1, 10, 1, 4] {
        let logits = decoder.append(&text[position..position + piece]).unwrap();
        position += piece;
        assert_near(&logits, &whole[(position - 1) * vocab..][..vocab]);
    }
}

#[test]
fn the_merged_model_rounds_activations_too() {
    let (model, text) = model(Arc::new(Cpu), Some(spec(8, 4)));
    let probe = &text[..20];
    let mut workspace = model.evaluation_workspace(probe.len()).unwrap();
    let trained = model.logits(1, probe, &mut workspace).unwrap();
    let merged = merge(model).unwrap().model;
    assert_eq!(merged.activations(), Some(spec(8, 4)));
    assert_eq!(first_difference(&trained, &merged, probe).unwrap(), None);
    let plain = merged.with_activations(None);
    assert!(first_difference(&trained, &plain, probe).unwrap().is_some());
    // A workspace of the one is none for the other.
    let refused = plain.logits(1, probe, &mut workspace).unwrap_err().to_string();
    assert!(refused.contains("activations are rounded in another way"), "{refused}");
}

#[test]
fn a_run_is_merged_and_served_with_the_activations_it_was_trained_on() {
    let place = Place::new();
    let at = place.path();
    let method = |activations: &str| {
        let method = format!(
            "name = \"lr_qat\"\nbits = 4\ngroup_size = 16\nrank = 2\nlora_scaling = 4.0\n\
             downcast = \"fixed8\"\nactivations = {activations}"
        );
        let l4q = "name = \"l4q\"\nbits = 4\ngroup_size = 16\nrank = 2";
        place.recipe(|recipe| recipe.replace(l4q, &method));
    };
    method("{ bits = 8, kv_bits = 9 }");
    place.train_refused(&["recipe.toml", "activations.kv_bits is 9, expected 2 to 8"]);
    method("{ bits = 4, kv_bits = 3 }");
    let trained = json(&plumbline(at, &["train", "recipe.toml", "--json"]));
    let stated = serde_json::json!(spec(4, 3));
    let merged = json(&plumbline(at, &["merge", "run", "--out", "merged", "--json"]));
    assert_eq!((&merged["bitwise_equal"], &merged["activations"]), (&true.into(), &stated));
    let eval = ["eval", "perplexity", "--model", "merged", "--text", "text.txt", "--context", "24"];
    let eval = || json(&plumbline(at, &[&eval[..], &["--json"]].concat()))["perplexity"].clone();
    assert_eq!(eval(), trained["perplexity"]["text.txt"], "merged is trained");
    let write = ["generate", "--model", "merged", "--prompt", "Sing", "--tokens", "5"];
    assert!(plumbline(at, &write).status.success());
    let told = plumbline(at, &["inspect", "merged"]).stdout;
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("activations: 4 bits for each token, keys and values 3"), "{told}");
    // Whoever does not round them has another model.
    let config = at.join("merged/config.json");
    let mut value: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    let quantization = value["quantization_config"].as_object_mut().unwrap();
    assert_eq!(quantization.remove("activations"), Some(stated));
    std::fs::write(&config, value.to_string()).unwrap();
    assert_ne!(eval(), trained["perplexity"]["text.txt"]);

    let human = plumbline(at, &["merge", "run", "--out", "again"]).stdout;
    let human = String::from_utf8(human).unwrap();
    assert!(human.contains("whatever serves the model must round them alike"), "{human}");
}
