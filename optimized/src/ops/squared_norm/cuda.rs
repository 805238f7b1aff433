use super::SquaredNorm;
use crate::cuda::{Argument, Cuda, Kernel, Launcher, SQUARED_NORM, Shape, Values};
use crate::error::Result;

const KERNEL: Kernel = Kernel { module: &SQUARED_NORM, entry: "squared_norm" };

/// Elements one block covers.
const SPAN: usize = 8192;

impl<L: Launcher> SquaredNorm for Cuda<L> {
    fn squared_norm(&self, x: &Values<L>, len: usize) -> Result<f64> {
        let x = x.first("squared_norm", "x", len)?;
        let blocks = len.div_ceil(SPAN);
        self.workspace.with(&self.launcher, blocks, |partial| {
            self.launcher.launch(
                KERNEL,
                Shape::line(blocks, 256),
                &mut [Argument::In(x), Argument::Out(partial), Argument::U64(len as u64)],
            )?;
            Ok(self.downloaded::<f64>(partial, blocks)?.into_iter().sum())
        })
    }
}
