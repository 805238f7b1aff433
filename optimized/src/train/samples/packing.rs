//! Which samples share a window, and in which order an epoch visits the windows.
//!
//! Samples of one window do not see each other, so who stands beside whom does not matter: the
//! windows are made once, as full as best-fit decreasing makes them, and an epoch shuffles them.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Samples by window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Where each window's samples begin in `samples`, and the end of the last.
    starts: Vec<u32>,
    samples: Vec<u32>,
}

impl Windows {
    /// Every sample alone.
    pub fn alone(samples: usize) -> Self {
        Self { starts: (0..=samples as u32).collect(), samples: (0..samples as u32).collect() }
    }

    /// As few windows of `context` tokens as best-fit decreasing finds: the longest sample first,
    /// each into the window that it leaves the least room in.
    ///
    /// # Panics
    /// When a sample is longer than a window.
    pub fn packed(lengths: &[u32], context: usize) -> Self {
        let mut longest_first: Vec<u32> = (0..lengths.len() as u32).collect();
        longest_first.sort_by_key(|sample| std::cmp::Reverse(lengths[*sample as usize]));
        let mut with_room: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let (mut window_of, mut windows) = (vec![0u32; lengths.len()], 0u32);
        for sample in longest_first {
            let length = lengths[sample as usize];
            assert!(length as usize <= context, "a sample of {length} in a window of {context}");
            let tightest = with_room.range(length..).next().map(|(room, _)| *room);
            let (window, room) = match tightest {
                Some(room) => {
                    let candidates = with_room.get_mut(&room).expect("it was found");
                    let window = candidates.pop().expect("empty lists are removed");
                    if candidates.is_empty() {
                        with_room.remove(&room);
                    }
                    (window, room)
                }
                None => {
                    windows += 1;
                    (windows - 1, context as u32)
                }
            };
            window_of[sample as usize] = window;
            if room > length {
                with_room.entry(room - length).or_default().push(window);
            }
        }
        Self::by_window(&window_of, windows as usize)
    }

    /// Samples of a window in ascending order.
    fn by_window(window_of: &[u32], windows: usize) -> Self {
        let mut starts = vec![0u32; windows + 1];
        for window in window_of {
            starts[*window as usize + 1] += 1;
        }
        for window in 0..windows {
            starts[window + 1] += starts[window];
        }
        let (mut next, mut samples) = (starts.clone(), vec![0u32; window_of.len()]);
        for (sample, window) in window_of.iter().enumerate() {
            let place = &mut next[*window as usize];
            samples[*place as usize] = sample as u32;
            *place += 1;
        }
        Self { starts, samples }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// The samples of one.
    pub fn samples(&self, window: usize) -> &[u32] {
        &self.samples[self.starts[window] as usize..self.starts[window + 1] as usize]
    }
}

/// The windows in an order that is a function of seed and epoch.
pub struct EpochOrder {
    seed: u64,
    epoch: Option<u64>,
    order: Vec<u32>,
}

impl EpochOrder {
    /// Of `windows` windows.
    pub fn new(windows: usize, seed: u64) -> Self {
        Self { seed, epoch: None, order: (0..windows as u32).collect() }
    }

    /// The window that is number `number` of the run.
    pub fn window(&mut self, number: u64) -> usize {
        let windows = self.order.len() as u64;
        let epoch = number / windows;
        if self.epoch != Some(epoch) {
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            random.set_stream(epoch);
            self.order = (0..windows as u32).collect();
            self.order.shuffle(&mut random);
            self.epoch = Some(epoch);
        }
        self.order[(number % windows) as usize] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn every_sample_is_in_one_window_and_none_overflows() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let lengths: Vec<u32> = (0..2000).map(|_| random.random_range(1..=64)).collect();
        let windows = Windows::packed(&lengths, 64);
        let mut seen = vec![0; lengths.len()];
        for window in 0..windows.count() {
            let samples = windows.samples(window);
            let total: u32 = samples.iter().map(|sample| lengths[*sample as usize]).sum();
            assert!((1..=64).contains(&total), "window {window} holds {total}");
            samples.iter().for_each(|sample| seen[*sample as usize] += 1);
        }
        assert!(seen.iter().all(|times| *times == 1));
        // Best-fit decreasing needs at most 11/9 of the least, and close to it for many samples.
        let least = lengths.iter().sum::<u32>().div_ceil(64) as usize;
        assert!(windows.count() <= least + least / 50, "{} for {least}", windows.count());
    }

    #[test]
    fn the_tightest_window_is_taken() {
        // 6 and 5 open two windows; 4 fits the first exactly, 3 the second, 2 what is left of it.
        let windows = Windows::packed(&[3, 6, 2, 4, 5], 10);
        assert_eq!(windows.count(), 2);
        assert_eq!((windows.samples(0), windows.samples(1)), (&[1, 3][..], &[0, 2, 4][..]));
        assert_eq!(Windows::alone(2).samples(1), [1]);
    }

    #[test]
    fn an_epoch_is_a_permutation_by_seed_and_number() {
        let epoch = |seed: u64, number: u64| -> Vec<usize> {
            let mut order = EpochOrder::new(50, seed);
            (0..50).map(|i| order.window(number * 50 + i)).collect()
        };
        let first = epoch(7, 0);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_ne!(first, epoch(7, 1));
        assert_ne!(first, epoch(8, 0));
        assert_eq!(first, epoch(7, 0));
    }
}
