use super::Add;
use crate::cuda::{ADD, Argument, Cuda, Kernel, Launcher, Shape, Values};
use crate::error::Result;

const KERNEL: Kernel = Kernel { module: &ADD, entry: "add" };

impl<L: Launcher> Add for Cuda<L> {
    fn add(&self, x: &Values<L>, y: &mut Values<L>, len: usize) -> Result<()> {
        self.launcher.launch(
            KERNEL,
            Shape::elements(len.div_ceil(4)),
            &mut [
                Argument::In(x.first("add", "x", len)?),
                Argument::Out(y.first_mut("add", "y", len)?),
                Argument::U64(len as u64),
            ],
        )
    }
}
