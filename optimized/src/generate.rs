//! Writing text: the next token by temperature and top-p, again and again.

use rand::Rng;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::LinearMethod;
use crate::model::Decoder;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only the most likely tokens that together have this probability are considered.
    pub top_p: f64,
}

impl Sampling {
    /// # Errors
    /// `Invalid` for a negative temperature or a top-p outside (0, 1].
    pub fn new(temperature: f64, top_p: f64) -> Result<Self> {
        if !(temperature >= 0.0 && temperature.is_finite()) {
            let reason = format!("temperature is {temperature}, expected at least 0");
            return Err(Error::Invalid(reason));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            let reason = format!("top-p is {top_p}, expected above 0 and at most 1");
            return Err(Error::Invalid(reason));
        }
        Ok(Self { temperature, top_p })
    }

    /// A token for these logits; ties go to the lower id.
    pub fn choose(&self, logits: &[f32], random: &mut impl Rng) -> i32 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        if self.temperature == 0.0 {
            let best = order.into_iter().reduce(
                |best, id| {
                    if logits[id] > logits[best] { id } else { best }
                },
            );
            return best.unwrap_or(0) as i32;
        }
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let largest = f64::from(logits[order[0]]);
        let weight = |id: &usize| ((f64::from(logits[*id]) - largest) / self.temperature).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0;
        let mut mass = 0.0;
        while kept < weights.len() && (kept == 0 || mass < self.top_p * total) {
            mass += weights[kept];
            kept += 1;
        }
        let mut left = random.random::<f64>() * mass;
        for (id, weight) in order[..kept].iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return *id as i32;
            }
        }
        order[kept - 1] as i32
    }
}

/// Continues `prompt` by up to `count` tokens and tells `each` of every new one; stops after an end
/// token. A sequence that outgrows the model's context goes on from its second half.
///
/// # Errors
/// `Invalid` for an empty prompt; `TokenOutOfRange`; whatever `each` returns.
pub fn generate<B: Backend, L: LinearMethod<B>>(
    decoder: &mut Decoder<'_, B, L>,
    prompt: &[i32],
    count: usize,
    sampling: Sampling,
    end_tokens: &[u32],
    random: &mut impl Rng,
    mut each: impl FnMut(i32) -> Result<()>,
) -> Result<Vec<i32>> {
    if prompt.is_empty() {
        return Err(Error::Invalid("the prompt is empty".into()));
    }
    let capacity = decoder.capacity();
    let mut sequence = prompt.to_vec();
    let mut pending = prompt.len();
    let mut new = Vec::with_capacity(count);
    while new.len() < count {
        if decoder.position() + pending > capacity {
            decoder.clear();
            pending = (capacity / 2).max(1).min(sequence.len());
        }
        let logits = decoder.append(&sequence[sequence.len() - pending..])?;
        let token = sampling.choose(&logits, random);
        sequence.push(token);
        new.push(token);
        pending = 1;
        each(token)?;
        if end_tokens.iter().any(|end| *end as i32 == token) {
            break;
        }
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn temperature_zero_is_the_largest_logit_and_ties_go_to_the_lower_id() {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let greedy = Sampling::new(0.0, 1.0).unwrap();
        assert_eq!(greedy.choose(&[0.0, 3.0, 3.0, -1.0], &mut random), 1);
    }

    #[test]
    fn frequencies_follow_the_softmax_and_top_p_cuts_the_tail() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let logits = [0.0, 2f32.ln(), 4f32.ln(), 1f32.ln()]; // 1/8, 1/4, 1/2, 1/8
        let draw = |sampling: Sampling, random: &mut ChaCha8Rng| {
            let mut counts = [0usize; 4];
            for _ in 0..8000 {
                counts[sampling.choose(&logits, random) as usize] += 1;
            }
            counts
        };
        let all = draw(Sampling::new(1.0, 1.0).unwrap(), &mut random);
        for (count, expected) in all.iter().zip([1000.0, 2000.0, 4000.0, 1000.0]) {
            // Six standard deviations of a binomial.
            assert!((*count as f64 - expected).abs() < 6.0 * 45.0, "{all:?}");
        }
        let cut = draw(Sampling::new(1.0, 0.7).unwrap(), &mut random);
        assert_eq!((cut[0], cut[3]), (0, 0));
        assert!((cut[1] as f64 - 8000.0 / 3.0).abs() < 6.0 * 45.0, "{cut:?}");
        assert!(Sampling::new(-1.0, 1.0).is_err() && Sampling::new(1.0, 0.0).is_err());
    }
}
