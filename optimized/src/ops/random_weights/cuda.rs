use super::{RandomWeights, RandomWeightsArgs, start, step};
use crate::cuda::{Argument, Cuda, Kernel, Launcher, RANDOM_WEIGHTS, Shape, Values};
use crate::error::Result;

const KERNEL: Kernel = Kernel { module: &RANDOM_WEIGHTS, entry: "random_weights" };

impl<L: Launcher> RandomWeights for Cuda<L> {
    fn random_weights(&self, args: RandomWeightsArgs, output: &mut Values<L>) -> Result<()> {
        self.launcher.launch(
            KERNEL,
            Shape::elements(args.len),
            &mut [
                Argument::Out(output.first_mut("random_weights", "output", args.len)?),
                Argument::U64(start(&args)),
                Argument::F32(step(args.deviation)),
                Argument::U64(args.len as u64),
            ],
        )
    }
}
