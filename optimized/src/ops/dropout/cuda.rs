use super::{Dropout, DropoutArgs};
use crate::cuda::{Argument, Cuda, DROPOUT, Kernel, Launcher, Shape, Values};
use crate::error::Result;
use crate::ops::Write;

const KERNEL: Kernel = Kernel { module: &DROPOUT, entry: "dropout" };

impl<L: Launcher> Dropout for Cuda<L> {
    fn dropout(&self, args: DropoutArgs, x: &Values<L>, output: &mut Values<L>) -> Result<()> {
        self.launcher.launch(
            KERNEL,
            Shape::elements(args.len),
            &mut [
                Argument::In(x.first("dropout", "x", args.len)?),
                Argument::Out(output.first_mut("dropout", "output", args.len)?),
                Argument::U64(args.key),
                Argument::U32(args.threshold()),
                Argument::F32(args.factor()),
                Argument::U32(u32::from(args.write == Write::Add)),
                Argument::U64(args.len as u64),
            ],
        )
    }
}
