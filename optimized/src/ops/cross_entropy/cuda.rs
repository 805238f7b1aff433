use super::{CrossEntropy, CrossEntropyArgs, cpu::columns, cpu::counted};
use crate::cuda::{Argument, CROSS_ENTROPY, Cuda, Ids, Kernel, Launcher, Shape, Sums, Values};
use crate::error::Result;
use crate::ops::Write;

const FORWARD: Kernel = Kernel { module: &CROSS_ENTROPY, entry: "cross_entropy" };
const BACKWARD: Kernel = Kernel { module: &CROSS_ENTROPY, entry: "cross_entropy_backward" };

/// Threads of a row, at most: with two blocks on a multiprocessor, the rows that a device works on
/// stay in its L2 cache until the backward reads them again.
const THREADS: u32 = 1024;

impl<L: Launcher> CrossEntropy for Cuda<L> {
    fn cross_entropy(
        &self,
        args: CrossEntropyArgs,
        logits: &Values<L>,
        targets: &Ids<L>,
        sums: &mut Sums<L>,
        slot: usize,
    ) -> Result<usize> {
        let CrossEntropyArgs { tokens, vocab_size, ignore_index, .. } = args;
        let logits = logits.first("cross_entropy", "logits", tokens * vocab_size)?;
        let columns = columns(args, &targets.host)?;
        let targets = targets.values.first("cross_entropy", "targets", tokens)?;
        self.workspace.with(&self.launcher, tokens, |losses| {
            self.launcher.launch(
                FORWARD,
                Shape::rows(tokens, vocab_size, THREADS),
                &mut [
                    Argument::In(logits),
                    Argument::In(targets),
                    Argument::Out(losses),
                    Argument::side(vocab_size),
                    Argument::I32(ignore_index),
                ],
            )?;
            self.sum_in_order("cross_entropy", (losses, tokens), (sums, slot), Write::Add)
        })?;
        Ok(counted(&columns))
    }

    fn cross_entropy_backward(
        &self,
        args: CrossEntropyArgs,
        logits: &mut Values<L>,
        targets: &Ids<L>,
        sums: &mut Sums<L>,
        slot: usize,
    ) -> Result<usize> {
        let CrossEntropyArgs { tokens, vocab_size, ignore_index, gradient_multiplier } = args;
        let logits = logits.first_mut("cross_entropy_backward", "logits", tokens * vocab_size)?;
        let columns = columns(args, &targets.host)?;
        let targets = targets.values.first("cross_entropy", "targets", tokens)?;
        self.workspace.with(&self.launcher, tokens, |losses| {
            self.launcher.launch(
                BACKWARD,
                Shape::rows(tokens, vocab_size, THREADS),
                &mut [
                    Argument::Out(logits),
                    Argument::In(targets),
                    Argument::Out(losses),
                    Argument::side(vocab_size),
                    Argument::I32(ignore_index),
                    Argument::F32(gradient_multiplier),
                ],
            )?;
            self.sum_in_order("cross_entropy", (losses, tokens), (sums, slot), Write::Add)
        })?;
        Ok(counted(&columns))
    }
}
