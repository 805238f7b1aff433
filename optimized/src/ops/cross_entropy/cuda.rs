use super::{CrossEntropy, CrossEntropyArgs, LossSum, cpu::columns};
use crate::cuda::{Argument, CROSS_ENTROPY, Cuda, Ids, Kernel, Launcher, Shape, Values};
use crate::error::Result;

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
    ) -> Result<LossSum> {
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
            Ok(total(&columns, &self.downloaded(losses, tokens)?))
        })
    }

    fn cross_entropy_backward(
        &self,
        args: CrossEntropyArgs,
        logits: &mut Values<L>,
        targets: &Ids<L>,
    ) -> Result<LossSum> {
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
            Ok(total(&columns, &self.downloaded(losses, tokens)?))
        })
    }
}

/// Adds in the order of the tokens, as the cpu backend does; a token that is not counted lost 0.
fn total(columns: &[Option<usize>], losses: &[f64]) -> LossSum {
    LossSum { sum: losses.iter().sum(), counted: columns.iter().flatten().count() }
}
