use super::{ABSMAX_BLOCK, Absmax, LEVELS, MAGNITUDES, Nf4, Nf4Weight};
use crate::cuda::{Argument, Compute, Cuda, Kernel, Launcher, NF4, Shape, Values};
use crate::error::Result;

const THREADS: u32 = 256;

/// By what the output is stored as.
fn kernel<L: Launcher>(absmax: &Absmax<Cuda<L>>, stored: Compute) -> Kernel {
    let entry = match (absmax, stored) {
        (Absmax::F32(_), Compute::F32) => "nf4_dequantize",
        (Absmax::F32(_), Compute::Bf16) => "nf4_dequantize_bf16",
        (Absmax::Double(_), Compute::F32) => "nf4_dequantize_double",
        (Absmax::Double(_), Compute::Bf16) => "nf4_dequantize_double_bf16",
    };
    Kernel { module: &NF4, entry }
}

impl<L: Launcher> Nf4 for Cuda<L> {
    fn nf4_dequantize(&self, weight: &Nf4Weight<Self>, output: &mut Values<L>) -> Result<()> {
        const NAME: &str = "nf4_dequantize";
        let (len, blocks) = (weight.len, weight.blocks());
        let (output, stored) = output.operand_mut(NAME, "output", len)?;
        let block_size = weight.block_size.get().min(len);
        // Neighbours that one thread takes: four where they always share a block.
        let share = if len.is_multiple_of(4) && block_size.is_multiple_of(4) { 4 } else { 1 };
        let mut arguments = vec![
            Argument::In(weight.codes.first(NAME, "codes", len.div_ceil(2))?),
            Argument::In(weight.tables.first(NAME, "tables", LEVELS + MAGNITUDES)?),
        ];
        match &weight.absmax {
            Absmax::F32(absmax) => {
                arguments.push(Argument::In(absmax.first(NAME, "absmax", blocks)?));
            }
            Absmax::Double(double) => arguments.extend([
                Argument::In(double.codes.first(NAME, "absmax_codes", blocks)?),
                Argument::In(double.scale.first(
                    NAME,
                    "absmax_scale",
                    blocks.div_ceil(ABSMAX_BLOCK),
                )?),
                Argument::F32(double.offset),
            ]),
        }
        self.status.with(NAME, |status, first| {
            let mut arguments = arguments;
            arguments.extend([
                Argument::Out(output),
                Argument::side(len / share),
                Argument::side(block_size / share),
                Argument::side(share),
                Argument::Out(status),
                Argument::U32(first),
            ]);
            let shape = Shape::line((len / share).div_ceil(THREADS as usize), THREADS);
            self.launcher.launch(kernel(&weight.absmax, stored), shape, &mut arguments)
        })
    }
}
