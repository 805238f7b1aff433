//! Where a run stands: what a checkpoint keeps beside tensors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counters of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Steps done, those that were skipped included.
    pub step: u64,
    /// Updates of the optimizer.
    pub updates: u64,
    /// The sample that the next step begins with. The order of the samples is a function of the
    /// seed alone, so this number is the state of the data.
    pub next_sample: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Steps that changed nothing because a loss or a gradient was not finite.
    pub skipped: u64,
    /// The last of those in a row.
    pub skipped_in_a_row: u64,
    /// Seconds of training, evaluations included.
    pub seconds: f64,
    /// Mean loss of the last step that was not skipped, nats.
    pub last_loss: Option<f64>,
}

/// The best evaluation of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Steps that were done.
    pub step: u64,
    /// Mean negative log-likelihood over all tokens of all texts, nats.
    pub mean_nll: f64,
}

/// What the evaluations of a run said so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluations {
    /// The best one after the start.
    pub best: Option<Best>,
    /// Evaluations since the best one.
    pub since_best: u64,
    /// Perplexity of each text at the last one; absent where it is beyond all numbers.
    pub perplexity: BTreeMap<String, Option<f64>>,
}

impl Evaluations {
    /// Takes an evaluation in; whether it is the best so far. One that is not a number never is.
    pub fn add(&mut self, step: u64, mean_nll: f64) -> bool {
        let is_best = match self.best {
            Some(best) => mean_nll < best.mean_nll,
            None => mean_nll.is_finite(),
        };
        if is_best {
            self.best = Some(Best { step, mean_nll });
            self.since_best = 0;
        } else {
            self.since_best += 1;
        }
        is_best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_smaller_loss_is_better_and_the_others_are_counted() {
        let mut evaluations = Evaluations::default();
        assert!(!evaluations.add(10, f64::NAN));
        assert!(evaluations.add(20, 3.0));
        assert!(!evaluations.add(30, 3.0) && !evaluations.add(40, f64::NAN));
        assert_eq!(evaluations.best, Some(Best { step: 20, mean_nll: 3.0 }));
        assert_eq!(evaluations.since_best, 2);
        assert!(evaluations.add(50, 2.9));
        assert_eq!((evaluations.since_best, evaluations.best.unwrap().step), (0, 50));
    }
}
