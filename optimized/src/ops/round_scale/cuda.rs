use plumbline_reference::spec::ScaleRule;

use super::{Numbers, RoundScale};
use crate::cuda::{Argument, Cuda, Kernel, Launcher, ROUND_SCALE, Shape, Values};
use crate::error::Result;

const FORWARD: Kernel = Kernel { module: &ROUND_SCALE, entry: "round_scale" };
const BACKWARD: Kernel = Kernel { module: &ROUND_SCALE, entry: "round_scale_backward" };

impl<L: Launcher> RoundScale for Cuda<L> {
    fn round_scale(
        &self,
        rule: ScaleRule,
        len: usize,
        scale: &Values<L>,
        rounded_scale: &mut Values<L>,
    ) -> Result<()> {
        let scale = scale.first("round_scale", "scale", len)?;
        let rounded_scale = rounded_scale.first_mut("round_scale", "rounded_scale", len)?;
        let Numbers { smallest, largest, digits, least_exponent } = rule.into();
        self.status.with("round_scale", |status, first| {
            self.launcher.launch(
                FORWARD,
                Shape::elements(len),
                &mut [
                    Argument::In(scale),
                    Argument::Out(rounded_scale),
                    Argument::U64(len as u64),
                    Argument::F32(smallest),
                    Argument::F32(largest),
                    Argument::U32(digits),
                    Argument::U32(least_exponent),
                    Argument::Out(status),
                    Argument::U32(first),
                ],
            )
        })
    }

    fn round_scale_backward(
        &self,
        rule: ScaleRule,
        len: usize,
        scale: &Values<L>,
        d_scale: &mut Values<L>,
    ) -> Result<()> {
        let Numbers { smallest, largest, .. } = rule.into();
        self.launcher.launch(
            BACKWARD,
            Shape::elements(len),
            &mut [
                Argument::In(scale.first("round_scale_backward", "scale", len)?),
                Argument::Out(d_scale.first_mut("round_scale_backward", "d_scale", len)?),
                Argument::U64(len as u64),
                Argument::F32(smallest),
                Argument::F32(largest),
            ],
        )
    }
}
