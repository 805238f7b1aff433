use super::{CrossEntropy, CrossEntropyArgs, LossSum, cpu::columns};
use crate::cuda::{Argument, CROSS_ENTROPY, Cuda, Ids, Kernel, Launcher, Shape, Values};
use crate::error::Result;

const FORWARD: Kernel = Kernel { module: &CROSS_ENTROPY, entry: "cross_entropy" };
const BACKWARD: Kernel = Kernel { module: &CROSS_ENTROPY, entry: "cross_entropy_backward" };
const TOTAL: Kernel = Kernel { module: &CROSS_ENTROPY, entry: "cross_entropy_total" };

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
        let mut losses = self.launcher.zeros(tokens, 8)?;
        self.launcher.launch(
            FORWARD,
            Shape::rows(tokens, vocab_size, THREADS),
            &mut [
                Argument::In(logits),
                Argument::In(targets.values.first("cross_entropy", "targets", tokens)?),
                Argument::Out(&mut losses),
                Argument::size(vocab_size)?,
                Argument::I32(ignore_index),
            ],
        )?;
        total(self, &columns, &losses)
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
        let mut losses = self.launcher.zeros(tokens, 8)?;
        self.launcher.launch(
            BACKWARD,
            Shape::rows(tokens, vocab_size, THREADS),
            &mut [
                Argument::Out(logits),
                Argument::In(targets.values.first("cross_entropy", "targets", tokens)?),
                Argument::Out(&mut losses),
                Argument::size(vocab_size)?,
                Argument::I32(ignore_index),
                Argument::F32(gradient_multiplier),
            ],
        )?;
        total(self, &columns, &losses)
    }
}

/// The sum of the losses; waits for it.
fn total<L: Launcher>(
    cuda: &Cuda<L>,
    columns: &[Option<usize>],
    losses: &L::Buffer,
) -> Result<LossSum> {
    let mut sum = cuda.launcher.zeros(1, 8)?;
    cuda.launcher.launch(
        TOTAL,
        Shape::line(1, 256),
        &mut [Argument::In(losses), Argument::Out(&mut sum), Argument::size(columns.len())?],
    )?;
    let sum: Vec<f64> = cuda.downloaded(&sum, 1)?;
    Ok(LossSum { sum: sum[0], counted: columns.iter().flatten().count() })
}
