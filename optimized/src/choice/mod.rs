//! Multiple choice by log-likelihood: the answer is the choice that the model finds likeliest.

mod tasks;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::backend::Backend;
use crate::checkpoint::Tokenizer;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;
use crate::model::{Decoder, Llama};

pub use tasks::Task;

/// A question.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// What the model reads before each choice, and what it is then asked the likelihood of.
    pub choices: Vec<Choice>,
    /// The right one.
    pub answer: usize,
}

/// A way to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Read.
    pub context: String,
    /// Judged, with the blank that begins it.
    pub continuation: String,
    /// Characters by which its log-likelihood is divided for the normalised accuracy.
    pub characters: usize,
}

impl Choice {
    /// A choice whose whole text counts but the blank before it.
    pub fn new(context: impl Into<String>, text: &str) -> Self {
        let (context, continuation) = (context.into(), format!(" {text}"));
        Self { context, continuation, characters: text.chars().count() }
    }
}

impl Item {
    /// The question with its right answer, as an example before another one.
    fn solved(&self) -> String {
        let Choice { context, continuation, .. } = &self.choices[self.answer];
        format!("{context}{continuation}\n\n")
    }
}

/// What the model made of a question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answered {
    /// Its number in the file.
    pub item: usize,
    /// Log-likelihood of each choice, nats.
    pub log_likelihoods: Vec<f64>,
    /// Tokens of each choice that were judged.
    pub tokens: Vec<usize>,
    /// The right choice.
    pub answer: usize,
    /// The likeliest choice.
    pub chosen: usize,
    /// The likeliest for its number of characters.
    pub chosen_normalized: usize,
}

/// A share of right answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    /// Right ones over all.
    pub accuracy: f64,
    /// Standard error of the mean; absent for a single question.
    pub standard_error: Option<f64>,
}

impl Share {
    /// Of one truth value for each question.
    fn of(right: impl Iterator<Item = bool>) -> Self {
        let (mut count, mut sum) = (0.0, 0.0);
        for right in right {
            count += 1.0;
            sum += f64::from(u8::from(right));
        }
        let accuracy = sum / count;
        // The variance of zeros and ones, with the sample's own mean.
        let standard_error =
            (count > 1.0).then(|| (accuracy * (1.0 - accuracy) / (count - 1.0)).sqrt());
        Self { accuracy, standard_error }
    }
}

/// The results over all questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// By log-likelihood.
    pub plain: Share,
    /// By log-likelihood for each character.
    pub normalized: Share,
    /// Questions whose examples or beginnings did not fit into the model's positions.
    pub shortened: usize,
}

/// Solved questions that stand before each one.
pub struct Shots<'a> {
    /// Where they are taken from.
    pub items: &'a [Item],
    /// How many.
    pub count: usize,
    /// Their choice is a function of this and of the question's number.
    pub seed: u64,
    /// Whether `items` are the questions themselves, which must not answer themselves.
    pub same: bool,
}

impl Shots<'_> {
    fn before(&self, item: usize) -> Result<String> {
        if self.count == 0 {
            return Ok(String::new());
        }
        let mut places: Vec<usize> =
            (0..self.items.len()).filter(|place| !(self.same && *place == item)).collect();
        if places.len() < self.count {
            let (have, want) = (places.len(), self.count);
            return Err(Error::Invalid(format!("{want} examples are asked for, there are {have}")));
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(item as u64);
        let (chosen, _) = places.partial_shuffle(&mut random, self.count);
        Ok(chosen.iter().map(|place| self.items[*place].solved()).collect())
    }
}

/// Asks the model every question. `told` hears each answer.
///
/// A context and its choice are encoded together; the choice's tokens are those after as many as
/// the context alone has. Where both do not fit into the model's positions, the beginning is left
/// out.
///
/// # Errors
/// `Invalid` for no question, a choice without a token or one that is too long; `TokenOutOfRange`.
pub fn score<B: Backend, L: LinearMethod<B>>(
    model: &Llama<B, L>,
    tokenizer: &Tokenizer,
    items: &[Item],
    shots: &Shots<'_>,
    mut told: impl FnMut(&Answered) -> Result<()>,
) -> Result<Score> {
    if items.is_empty() {
        return Err(Error::Invalid("there is no question".into()));
    }
    let longest = model.config().longest_sequence();
    let mut decoder = Decoder::new(model, 1)?;
    let (mut plain, mut normalized) = (Vec::new(), Vec::new());
    let mut shortened = 0;
    for (number, item) in items.iter().enumerate() {
        let before = shots.before(number)?;
        let encoded: Vec<Encoded> = item
            .choices
            .iter()
            .map(|choice| encode(tokenizer, &before, choice)?.fitting(longest))
            .collect::<Result<_>>()
            .map_err(|error| Error::Invalid(format!("question {number}: {error}")))?;
        let room = encoded.iter().map(|choice| choice.tokens.len()).max().unwrap_or(1);
        if room > decoder.capacity() {
            decoder = Decoder::new(model, room.next_multiple_of(64).min(longest))?;
        }
        let log_likelihoods = log_likelihoods(&mut decoder, &encoded)?;
        shortened += usize::from(encoded.iter().any(|choice| choice.is_shortened));
        let for_characters: Vec<f64> = log_likelihoods
            .iter()
            .zip(&item.choices)
            .map(|(sum, choice)| sum / choice.characters as f64)
            .collect();
        let answered = Answered {
            item: number,
            answer: item.answer,
            chosen: first_largest(&log_likelihoods),
            chosen_normalized: first_largest(&for_characters),
            log_likelihoods,
            tokens: encoded.iter().map(|choice| choice.targets.len()).collect(),
        };
        plain.push(answered.chosen == item.answer);
        normalized.push(answered.chosen_normalized == item.answer);
        told(&answered)?;
    }
    let (plain, normalized) = (Share::of(plain.into_iter()), Share::of(normalized.into_iter()));
    Ok(Score { plain, normalized, shortened })
}

/// A choice after its context, as the model takes it.
struct Encoded {
    /// What is read: all but the last token, which is only predicted.
    tokens: Vec<i32>,
    /// What should follow each of the last `targets.len()` tokens.
    targets: Vec<i32>,
    /// Whether the beginning was left out.
    is_shortened: bool,
}

impl Encoded {
    /// Without as much of the beginning as does not fit into `longest` positions.
    fn fitting(mut self, longest: usize) -> Result<Self> {
        let judged = self.targets.len();
        if judged + 1 > longest {
            return Err(Error::Invalid(format!("a choice of {judged} tokens is too long")));
        }
        let excess = self.tokens.len().saturating_sub(longest);
        self.tokens.drain(..excess);
        self.is_shortened = excess > 0;
        Ok(self)
    }

    /// Tokens before the one that the first target follows.
    fn unjudged(&self) -> &[i32] {
        &self.tokens[..self.tokens.len() - self.targets.len()]
    }
}

/// Log-likelihood of each choice of a question, nats.
///
/// The tokens that all of them begin with are run once. Every choice goes on from there, the first
/// too, so that equal choices are equally likely to the last bit.
fn log_likelihoods<B: Backend, L: LinearMethod<B>>(
    decoder: &mut Decoder<'_, B, L>,
    choices: &[Encoded],
) -> Result<Vec<f64>> {
    let Some((first, others)) = choices.split_first() else {
        return Ok(Vec::new());
    };
    let alike = |a: &[i32], b: &[i32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let shared =
        others.iter().map(|choice| alike(first.unjudged(), choice.unjudged())).min().unwrap_or(0);
    decoder.clear();
    if shared > 0 {
        decoder.extend(&first.tokens[..shared])?;
    }
    let judge = |choice: &Encoded| {
        decoder.rewind(shared);
        decoder.append_judged(&choice.tokens[shared..], &choice.targets)
    };
    choices.iter().map(judge).collect()
}

/// Examples, context and choice together.
fn encode(tokenizer: &Tokenizer, before: &str, choice: &Choice) -> Result<Encoded> {
    let context = format!("{before}{}", choice.context);
    // Blanks at the end of a context belong to what follows: that is where tokens begin.
    let kept = context.trim_end();
    let mut tokens = tokenizer.encode(&format!("{context}{}", choice.continuation))?;
    let judged = tokens.len().saturating_sub(tokenizer.encode(kept)?.len());
    if judged == 0 || judged == tokens.len() {
        let text = &choice.continuation;
        let reason = format!("the choice {text:?} has no token of its own after its context");
        return Err(Error::Invalid(reason));
    }
    let targets = tokens[tokens.len() - judged..].to_vec();
    tokens.pop();
    Ok(Encoded { tokens, targets, is_shortened: false })
}

/// The first of the largest.
fn first_largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str) -> Item {
        let choices = vec![Choice::new(name, "no"), Choice::new(name, "yes")];
        Item { choices, answer: 1 }
    }

    #[test]
    fn examples_never_hold_the_question_and_depend_on_seed_and_number() {
        let items: Vec<Item> = (0..6).map(|i| item(&format!("<{i}>"))).collect();
        let shots = Shots { items: &items, count: 5, seed: 3, same: true };
        let before = shots.before(2).unwrap();
        assert!(!before.contains("<2>"), "{before}");
        assert_eq!(before.matches(" yes\n\n").count(), 5);
        assert_eq!(before, shots.before(2).unwrap());
        let few = Shots { count: 2, ..shots };
        assert!((0..6).any(|i| few.before(i).unwrap() != few.before((i + 1) % 6).unwrap()));
        let error = Shots { count: 6, ..few }.before(0).unwrap_err().to_string();
        assert!(error.contains("6 examples are asked for, there are 5"), "{error}");
    }

    #[test]
    fn a_share_has_the_standard_error_of_its_mean() {
        let share = Share::of([true, false, true, true].into_iter());
        assert_eq!(share.accuracy, 0.75);
        assert_eq!(share.standard_error, Some((0.75f64 * 0.25 / 3.0).sqrt()));
        assert_eq!(Share::of([true].into_iter()).standard_error, None);
    }

    #[test]
    fn of_equal_choices_the_first_is_taken() {
        assert_eq!(first_largest(&[-2.0, -1.0, -1.0]), 1);
    }
}
