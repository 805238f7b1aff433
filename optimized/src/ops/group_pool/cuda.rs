use super::{GroupPool, GroupPoolArgs};
use crate::cuda::{Argument, Cuda, GROUP_POOL, Kernel, Launcher, Values};
use crate::error::Result;
use crate::ops::Write;
use crate::ops::fake_quantize::cuda::{by_columns, by_groups};

const FORWARD: Kernel = Kernel { module: &GROUP_POOL, entry: "group_pool" };
const BACKWARD: Kernel = Kernel { module: &GROUP_POOL, entry: "group_pool_backward" };

impl<L: Launcher> GroupPool for Cuda<L> {
    fn group_pool(&self, args: GroupPoolArgs, x: &Values<L>, pooled: &mut Values<L>) -> Result<()> {
        let GroupPoolArgs { tokens, spec, .. } = args;
        let groups = tokens * spec.groups();
        let (divisor, factor) = args.divisor_and_factor();
        self.launcher.launch(
            FORWARD,
            by_groups(groups),
            &mut [
                Argument::In(x.first("group_pool", "x", tokens * spec.in_features())?),
                Argument::Out(pooled.first_mut("group_pool", "pooled", groups)?),
                Argument::U64(groups as u64),
                Argument::side(spec.group_size()),
                Argument::F32(divisor),
                Argument::F32(factor),
            ],
        )
    }

    fn group_pool_backward(
        &self,
        args: GroupPoolArgs,
        d_pooled: &Values<L>,
        d_x: &mut Values<L>,
        write: Write,
    ) -> Result<()> {
        const NAME: &str = "group_pool_backward";
        let GroupPoolArgs { tokens, spec, .. } = args;
        let (divisor, factor) = args.divisor_and_factor();
        self.launcher.launch(
            BACKWARD,
            by_columns(spec, tokens),
            &mut [
                Argument::In(d_pooled.first(NAME, "d_pooled", tokens * spec.groups())?),
                Argument::Out(d_x.first_mut(NAME, "d_x", tokens * spec.in_features())?),
                Argument::side(spec.in_features()),
                Argument::side(spec.groups()),
                Argument::F32(divisor),
                Argument::F32(factor),
                Argument::U32(u32::from(write == Write::Add)),
            ],
        )
    }
}
