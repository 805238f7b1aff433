use super::SquaredNorm;
use crate::cuda::{Argument, Cuda, Kernel, Launcher, SQUARED_NORM, Shape, Sums, Values};
use crate::error::Result;
use crate::ops::Write;

const KERNEL: Kernel = Kernel { module: &SQUARED_NORM, entry: "squared_norm" };

/// Elements one block covers.
const SPAN: usize = 8192;

impl<L: Launcher> SquaredNorm for Cuda<L> {
    fn squared_norm(
        &self,
        x: &Values<L>,
        len: usize,
        sums: &mut Sums<L>,
        slot: usize,
    ) -> Result<()> {
        let x = x.first("squared_norm", "x", len)?;
        let blocks = len.div_ceil(SPAN);
        self.workspace.with(&self.launcher, blocks, |partial| {
            self.launcher.launch(
                KERNEL,
                Shape::line(blocks, 256),
                &mut [Argument::In(x), Argument::Out(partial), Argument::U64(len as u64)],
            )?;
            let to = (sums, slot);
            self.sum_in_order("squared_norm", (partial, blocks), to, Write::Replace)
        })
    }
}
