//! Multiple choice: the log-likelihoods that runs of the whole text give, though what choices share
//! is run once.

mod common;

use std::sync::Arc;

use plumbline::checkpoint::Tokenizer;
use plumbline::choice::{Answered, Choice, Item, Shots, score};
use plumbline::cpu::Cpu;
use plumbline::methods::Dense;
use plumbline::model::{Batch, Decoder, IGNORE, Llama};
use plumbline::train::new_model;

/// What another order of f32 sums may change of a log-likelihood, for each judged token, nats: a few
/// roundings of logits below 1.
const PER_TOKEN: f64 = 8.0 * f32::EPSILON as f64;

const LONGEST: usize = 64;

fn model() -> Llama<Cpu, Dense<Cpu>> {
    let model = new_model(Arc::new(Cpu), &common::config(), 11).unwrap();
    assert_eq!(model.config().longest_sequence(), LONGEST);
    model
}

fn tokenizer() -> Tokenizer {
    Tokenizer::train(&common::TEXT.repeat(8), 280).unwrap()
}

/// By one forward of context and choice, without a cache.
fn whole(model: &Llama<Cpu, Dense<Cpu>>, tokenizer: &Tokenizer, choice: &Choice) -> (f64, usize) {
    let tokens = tokenizer.encode(&format!("{}{}", choice.context, choice.continuation)).unwrap();
    let judged = tokens.len() - tokenizer.encode(choice.context.trim_end()).unwrap().len();
    let tokens = &tokens[tokens.len().saturating_sub(LONGEST + 1)..];
    let (read, mut targets) = (&tokens[..tokens.len() - 1], tokens[1..].to_vec());
    let context = targets.len() - judged;
    targets[..context].fill(IGNORE);
    let mut workspace = model.evaluation_workspace(LONGEST).unwrap();
    let batch = Batch { batch: 1, tokens: read, targets: &targets, documents: None };
    (-model.loss(&batch, &mut workspace).unwrap().sum, judged)
}

fn answers(
    model: &Llama<Cpu, Dense<Cpu>>,
    tokenizer: &Tokenizer,
    items: &[Item],
) -> (Vec<Answered>, usize) {
    let shots = Shots { items: &[], count: 0, seed: 0, same: false };
    let mut all = Vec::new();
    let told = |answered: &Answered| {
        all.push(answered.clone());
        Ok(())
    };
    let score = score(model, tokenizer, items, &shots, told).unwrap();
    (all, score.shortened)
}

fn item(choices: Vec<Choice>) -> Item {
    Item { choices, answer: 0 }
}

#[test]
fn a_shared_beginning_changes_no_log_likelihood() {
    let (model, tokenizer) = (model(), tokenizer());
    let context = "Sing, heavenly Muse, that on the secret";
    let of_one_context =
        ["top of Oreb", "top of Sinai", "seed", "top"].map(|text| Choice::new(context, text));
    // As where a blank is filled: contexts differ, and what follows is judged.
    let of_several =
        ["The earth", "Chaos"].map(|word| Choice::new(word, "rose out of the heavens"));
    let long = context.repeat(4);
    let items = [
        item(of_one_context.to_vec()),
        item(of_several.to_vec()),
        item(vec![of_one_context[1].clone()]),
        item(vec![Choice::new(&long, "top"), Choice::new(&long, "top of Oreb, or of Sinai")]),
        item(of_one_context.iter().chain(&of_several).cloned().collect()),
    ];
    let (answered, shortened) = answers(&model, &tokenizer, &items);
    assert_eq!((answered.len(), shortened), (items.len(), 1));
    for (item, answered) in items.iter().zip(&answered) {
        for (place, choice) in item.choices.iter().enumerate() {
            let (expected, judged) = whole(&model, &tokenizer, choice);
            assert_eq!(answered.tokens[place], judged, "{choice:?}");
            let found = answered.log_likelihoods[place];
            let error = (found - expected).abs();
            assert!(error <= PER_TOKEN * judged as f64, "{found} for {expected} of {choice:?}");
        }
    }
}

#[test]
fn equal_choices_are_equally_likely_to_the_last_bit() {
    let (model, tokenizer) = (model(), tokenizer());
    let choice = |text: &str| Choice::new("Sing, heavenly Muse, that", text);
    let items = [item(vec![choice("on the top"), choice("shepherd"), choice("on the top")])];
    let (answered, _) = answers(&model, &tokenizer, &items);
    let found = &answered[0].log_likelihoods;
    assert_eq!(found[0].to_bits(), found[2].to_bits());
    assert_ne!(found[0], found[1]);
}

#[test]
fn a_sequence_goes_on_from_where_it_was_rewound_to() {
    let model = model();
    let mut decoder = Decoder::new(&model, 12).unwrap();
    let fresh = decoder.append(&[5, 6, 7, 8, 9]).unwrap();
    decoder.append(&[1, 2, 3]).unwrap();
    decoder.rewind(4);
    assert_eq!(decoder.position(), 4);
    let again = decoder.append(&[9]).unwrap();
    for (fresh, again) in fresh.iter().zip(&again) {
        assert!((fresh - again).abs() <= PER_TOKEN as f32, "{again} for {fresh}");
    }
    // No more is forgotten than there is.
    decoder.rewind(9);
    assert_eq!(decoder.position(), 5);
    assert!(decoder.append_judged(&[1], &[2, 3]).is_err());
    assert!(decoder.append_judged(&[1; 8], &[2]).is_err());
    assert_eq!(decoder.position(), 5);
}
