use plumbline_reference::spec::{QuantSpec, RangeSearch, RtnSpec, SymmetricScale};

use super::Rtn;
use crate::cuda::{Argument, Cuda, Kernel, Launcher, RTN, Shape, Values};
use crate::error::Result;

const KERNEL: Kernel = Kernel { module: &RTN, entry: "rtn" };

/// Groups of a block, and its threads.
const GROUPS: u32 = 128;

impl<L: Launcher> Rtn for Cuda<L> {
    fn rtn(
        &self,
        spec: QuantSpec,
        rtn: RtnSpec,
        out_features: usize,
        weight: &Values<L>,
        scale: &mut Values<L>,
        zero_point: &mut Values<L>,
    ) -> Result<()> {
        let groups = out_features * spec.groups();
        let weight = weight.first("rtn", "weight", out_features * spec.in_features())?;
        let scale = scale.first_mut("rtn", "scale", groups)?;
        let zero_point = zero_point.first_mut("rtn", "zero_point", groups)?;
        let largest = spec.unsigned_max() as f32;
        let (factor, divisor) = match (rtn.symmetric, rtn.convention) {
            (true, SymmetricScale::Paper) => (1.0, spec.qmax() as f32),
            (true, SymmetricScale::Gptq) => (2.0, largest),
            (false, _) => (1.0, largest),
        };
        let (p, steps) = match rtn.range {
            RangeSearch::Lp { p, steps } => (p, steps),
            RangeSearch::MinMax => (1.0, 0),
        };
        self.status.with("rtn", |status, first| {
            self.launcher.launch(
                KERNEL,
                Shape::line(groups.div_ceil(GROUPS as usize), GROUPS),
                &mut [
                    Argument::In(weight),
                    Argument::Out(scale),
                    Argument::Out(zero_point),
                    Argument::U64(groups as u64),
                    Argument::side(spec.group_size()),
                    Argument::U32(u32::from(rtn.symmetric)),
                    Argument::F32(factor),
                    Argument::F32(divisor),
                    Argument::F32(largest),
                    Argument::F32(-spec.qmin() as f32),
                    Argument::F64(p),
                    Argument::U64(steps as u64),
                    Argument::Out(status),
                    Argument::U32(first),
                ],
            )
        })
    }
}
