use super::{RmsNorm, RmsNormArgs, RmsNormGradients};
use crate::cuda::{Argument, Cuda, Kernel, Launcher, RMS_NORM, Shape, Values};
use crate::error::Result;
use crate::ops::Write;

const FORWARD: Kernel = Kernel { module: &RMS_NORM, entry: "rms_norm" };
const BACKWARD: Kernel = Kernel { module: &RMS_NORM, entry: "rms_norm_backward" };
const D_WEIGHT_PARTIAL: Kernel = Kernel { module: &RMS_NORM, entry: "rms_norm_d_weight_partial" };
const D_WEIGHT: Kernel = Kernel { module: &RMS_NORM, entry: "rms_norm_d_weight" };

/// Threads of a row, at most.
const THREADS: u32 = 256;

/// Tokens of one partial sum of `d_weight`; the kernel and the cpu backend have the same number.
const SLAB: usize = 32;

/// Columns that a block of the `d_weight` kernels takes.
const COLUMNS: u32 = 128;

impl<L: Launcher> RmsNorm for Cuda<L> {
    fn rms_norm(
        &self,
        args: RmsNormArgs,
        x: &Values<L>,
        weight: &Values<L>,
        output: &mut Values<L>,
        inverse_rms: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "rms_norm";
        let RmsNormArgs { tokens, hidden, eps } = args;
        self.launcher.launch(
            FORWARD,
            Shape::rows(tokens, hidden, THREADS),
            &mut [
                Argument::In(x.first(NAME, "x", tokens * hidden)?),
                Argument::In(weight.first(NAME, "weight", hidden)?),
                Argument::Out(output.first_mut(NAME, "output", tokens * hidden)?),
                Argument::Out(inverse_rms.first_mut(NAME, "inverse_rms", tokens)?),
                Argument::side(hidden),
                Argument::F32(eps),
            ],
        )
    }

    fn rms_norm_backward(
        &self,
        args: RmsNormArgs,
        x: &Values<L>,
        weight: &Values<L>,
        inverse_rms: &Values<L>,
        d_output: &Values<L>,
        gradients: RmsNormGradients<'_, Values<L>>,
    ) -> Result<()> {
        const NAME: &str = "rms_norm_backward";
        let RmsNormArgs { tokens, hidden, eps: _ } = args;
        let x = x.first(NAME, "x", tokens * hidden)?;
        let weight = weight.first(NAME, "weight", hidden)?;
        let inverse_rms = inverse_rms.first(NAME, "inverse_rms", tokens)?;
        let d_output = d_output.first(NAME, "d_output", tokens * hidden)?;
        let d_x = gradients.d_x.first_mut(NAME, "d_x", tokens * hidden)?;
        let d_weight = match gradients.d_weight {
            Some(d_weight) => Some(d_weight.first_mut(NAME, "d_weight", hidden)?),
            None => None,
        };
        self.launcher.launch(
            BACKWARD,
            Shape::rows(tokens, hidden, THREADS),
            &mut [
                Argument::In(x),
                Argument::In(weight),
                Argument::In(inverse_rms),
                Argument::In(d_output),
                Argument::Out(d_x),
                Argument::side(hidden),
                Argument::U32((gradients.write_d_x == Write::Add).into()),
            ],
        )?;
        match d_weight {
            Some(d_weight) => add_d_weight(self, args, x, inverse_rms, d_output, d_weight),
            None => Ok(()),
        }
    }
}

/// Sums of slabs of tokens, then of the slabs.
fn add_d_weight<L: Launcher>(
    cuda: &Cuda<L>,
    RmsNormArgs { tokens, hidden, eps: _ }: RmsNormArgs,
    x: &L::Buffer,
    inverse_rms: &L::Buffer,
    d_output: &L::Buffer,
    d_weight: &mut L::Buffer,
) -> Result<()> {
    let slabs = tokens.div_ceil(SLAB);
    let columns = hidden.div_ceil(COLUMNS as usize);
    cuda.workspace.with(&cuda.launcher, (slabs * hidden).div_ceil(2), |partial| {
        cuda.launcher.launch(
            D_WEIGHT_PARTIAL,
            Shape::plane(slabs, columns, COLUMNS),
            &mut [
                Argument::In(x),
                Argument::In(inverse_rms),
                Argument::In(d_output),
                Argument::Out(partial),
                Argument::side(tokens),
                Argument::side(hidden),
            ],
        )?;
        cuda.launcher.launch(
            D_WEIGHT,
            Shape::line(columns, COLUMNS),
            &mut [
                Argument::In(partial),
                Argument::Out(d_weight),
                Argument::side(slabs),
                Argument::side(hidden),
            ],
        )
    })
}
