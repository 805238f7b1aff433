use super::Swiglu;
use crate::cuda::{Argument, Cuda, Kernel, Launcher, SWIGLU, Shape, Values};
use crate::error::Result;

const FORWARD: Kernel = Kernel { module: &SWIGLU, entry: "swiglu" };
const BACKWARD: Kernel = Kernel { module: &SWIGLU, entry: "swiglu_backward" };

impl<L: Launcher> Swiglu for Cuda<L> {
    fn swiglu(
        &self,
        len: usize,
        gate: &Values<L>,
        up: &Values<L>,
        output: &mut Values<L>,
    ) -> Result<()> {
        self.launcher.launch(
            FORWARD,
            Shape::elements(len),
            &mut [
                Argument::In(gate.first("swiglu", "gate", len)?),
                Argument::In(up.first("swiglu", "up", len)?),
                Argument::Out(output.first_mut("swiglu", "output", len)?),
                Argument::U64(len as u64),
            ],
        )
    }

    fn swiglu_backward(
        &self,
        len: usize,
        gate: &Values<L>,
        up: &Values<L>,
        d_output: &Values<L>,
        d_gate: &mut Values<L>,
        d_up: &mut Values<L>,
    ) -> Result<()> {
        self.launcher.launch(
            BACKWARD,
            Shape::elements(len),
            &mut [
                Argument::In(gate.first("swiglu_backward", "gate", len)?),
                Argument::In(up.first("swiglu_backward", "up", len)?),
                Argument::In(d_output.first("swiglu_backward", "d_output", len)?),
                Argument::Out(d_gate.first_mut("swiglu_backward", "d_gate", len)?),
                Argument::Out(d_up.first_mut("swiglu_backward", "d_up", len)?),
                Argument::U64(len as u64),
            ],
        )
    }
}
