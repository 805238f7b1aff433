//! Windows of one long token sequence, in an order that is a function of the seed alone.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::checkpoint::hex;
use crate::error::{Error, Result};

/// Non-overlapping windows of a text. Each epoch shuffles them and shifts where the first begins,
/// so that over epochs every token is predicted from contexts of every length.
pub struct TokenWindows {
    tokens: Vec<i32>,
    context: usize,
    seed: u64,
    /// The epoch that `order` and `shift` belong to.
    epoch: Option<u64>,
    order: Vec<usize>,
    shift: usize,
}

impl TokenWindows {
    /// # Errors
    /// `Invalid` when the text does not fill one window of `context` tokens and its targets.
    pub fn new(tokens: Vec<i32>, context: usize, seed: u64) -> Result<Self> {
        if context == 0 {
            return Err(Error::Invalid("data.context is 0, expected at least 1".into()));
        }
        if tokens.len() < context + 1 {
            let have = tokens.len();
            let need = context + 1;
            let reason = format!("the training text has {have} tokens, one window needs {need}");
            return Err(Error::Invalid(reason));
        }
        Ok(Self { tokens, context, seed, epoch: None, order: Vec::new(), shift: 0 })
    }

    /// Windows of one epoch.
    pub fn windows_per_epoch(&self) -> usize {
        // One window's room is left for the shift, unless there is only one.
        ((self.tokens.len() - 1) / self.context - 1).max(1)
    }

    /// SHA-256 over the tokens and how they are cut: equal for data of equal batches.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("windows of {} tokens, seed {}\n", self.context, self.seed));
        self.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        hex(hash)
    }

    /// Inputs and targets of `count` samples, beginning with the run's sample number `first`.
    pub fn batch(&mut self, first: u64, count: usize) -> (Vec<i32>, Vec<i32>) {
        let mut inputs = Vec::with_capacity(count * self.context);
        let mut targets = Vec::with_capacity(count * self.context);
        for sample in first..first + count as u64 {
            let start = self.start(sample);
            inputs.extend_from_slice(&self.tokens[start..][..self.context]);
            targets.extend_from_slice(&self.tokens[start + 1..][..self.context]);
        }
        (inputs, targets)
    }

    fn start(&mut self, sample: u64) -> usize {
        let windows = self.windows_per_epoch();
        let epoch = sample / windows as u64;
        if self.epoch != Some(epoch) {
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            random.set_stream(epoch);
            self.order = (0..windows).collect();
            self.order.shuffle(&mut random);
            let room = self.tokens.len() - 1 - windows * self.context;
            self.shift = random.random_range(0..=room.min(self.context));
            self.epoch = Some(epoch);
        }
        self.shift + self.order[(sample % windows as u64) as usize] * self.context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_window_once_and_depends_on_nothing_but_the_seed() {
        let mut data = TokenWindows::new((0..1000).collect(), 10, 7).unwrap();
        let windows = data.windows_per_epoch();
        assert_eq!(windows, 98);
        let epoch = |data: &mut TokenWindows, number: u64| -> Vec<i32> {
            (0..windows as u64).map(|i| data.batch(number * windows as u64 + i, 1).0[0]).collect()
        };
        let first = epoch(&mut data, 0);
        let second = epoch(&mut data, 1);
        assert_ne!(first, second);
        for starts in [&first, &second] {
            let mut sorted: Vec<i32> = starts.clone();
            sorted.sort_unstable();
            assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] == 10));
        }
        assert_eq!(epoch(&mut data, 0), first, "going back gives the same order");
        let (inputs, targets) = data.batch(3, 2);
        assert_eq!((inputs.len(), targets.len()), (20, 20));
        assert!(inputs.iter().zip(&targets).all(|(x, y)| x + 1 == *y));
    }

    #[test]
    fn a_text_shorter_than_a_window_is_refused() {
        assert!(TokenWindows::new((0..10).collect(), 10, 0).is_err());
        let mut smallest = TokenWindows::new((0..11).collect(), 10, 0).unwrap();
        assert_eq!(smallest.batch(0, 1).1, (1..11).collect::<Vec<_>>());
    }
}
