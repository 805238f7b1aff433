use super::{AdamW, AdamWArgs, AdamWTensors, Constants, GradientMultiplier};
use crate::cuda::{ADAMW, Argument, Cuda, Kernel, Launcher, Shape, Sums, Values};
use crate::error::Result;

const KERNEL: Kernel = Kernel { module: &ADAMW, entry: "adamw" };

impl<L: Launcher> AdamW for Cuda<L> {
    fn adamw(
        &self,
        args: AdamWArgs,
        GradientMultiplier { sums, slot }: GradientMultiplier<'_, Sums<L>>,
        tensors: AdamWTensors<'_, Values<L>>,
    ) -> Result<()> {
        let len = args.len;
        let Constants { keep, rate, correction, eps, old1, new1, old2, new2 } = args.constants();
        self.launcher.launch(
            KERNEL,
            Shape::elements(len.div_ceil(4)),
            &mut [
                Argument::Out(tensors.parameter.first_mut("adamw", "parameter", len)?),
                Argument::In(tensors.gradient.first("adamw", "gradient", len)?),
                Argument::Out(tensors.first_moment.first_mut("adamw", "first_moment", len)?),
                Argument::Out(tensors.second_moment.first_mut("adamw", "second_moment", len)?),
                Argument::In(sums.with_slot("adamw", slot)?),
                Argument::side(slot),
                Argument::U64(len as u64),
                Argument::F32(keep),
                Argument::F32(rate),
                Argument::F32(correction),
                Argument::F32(eps),
                Argument::F32(old1),
                Argument::F32(new1),
                Argument::F32(old2),
                Argument::F32(new2),
            ],
        )
    }
}
