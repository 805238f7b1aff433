use plumbline_reference::spec::{InnerScale, LrQatDialect, LrQatMask};

use super::stored::{self, check_zero_point_bits, fixed_unit};
use super::{LrQatArgs, LrQatGradients, LrQatQuantize, StoredWeight};
use crate::cuda::{Argument, Compute, Cuda, Kernel, LR_QAT_QUANTIZE, Launcher, Shape, Values};
use crate::error::Result;
use crate::ops::fake_quantize::cuda::by_tiles;
use crate::ops::fake_quantize_backward::cuda::parts;

const QUANTIZE: Kernel = Kernel { module: &LR_QAT_QUANTIZE, entry: "lr_qat_quantize" };
const QUANTIZE_BF16: Kernel = Kernel { module: &LR_QAT_QUANTIZE, entry: "lr_qat_quantize_bf16" };
const BACKWARD: Kernel = Kernel { module: &LR_QAT_QUANTIZE, entry: "lr_qat_quantize_backward" };
const SCALE: Kernel = Kernel { module: &LR_QAT_QUANTIZE, entry: "lr_qat_scale_gradient" };

impl<L: Launcher> StoredWeight<Cuda<L>> {
    /// The buffer, its length checked, and the type's place in the kernel's list.
    fn stored(
        &self,
        operation: &'static str,
        (rows, width): (usize, usize),
    ) -> Result<(&L::Buffer, u32)> {
        let (values, place, row) = match self {
            Self::F32(values) => (values, 0, width),
            Self::Bf16(halves) => (halves, 1, width),
            Self::F16(halves) => (halves, 2, width),
            Self::Fixed8(bytes) => (bytes, 3, width),
            Self::Int(bytes) => (bytes, 4, width.div_ceil(2)),
        };
        Ok((values.first(operation, "weight", rows * row)?, place))
    }
}

/// What both kernels take first, with the lengths checked.
fn arguments<'a, L: Launcher>(
    operation: &'static str,
    args: &LrQatArgs<'a, Cuda<L>>,
) -> Result<Vec<Argument<'a, L::Buffer>>> {
    let (spec, grid, out) = (args.spec, *args.spec.grid(), args.out_features);
    let (width, groups, low_rank) = (grid.in_features(), out * grid.groups(), &args.low_rank);
    let (weight, place) = args.weight.stored(operation, (out, width))?;
    let scale = args.scale.first(operation, "scale", groups)?;
    let zero_point = match args.zero_point {
        Some(zero_point) => {
            let zero_point = zero_point.first(stored::NAME, "zero_point", groups)?;
            check_zero_point_bits(grid)?;
            Some(zero_point)
        }
        None => None,
    };
    let is_live = spec.inner_scale() == InnerScale::Live;
    let rounds_update = spec.dialect() == LrQatDialect::LrQatCode;
    Ok(vec![
        Argument::In(low_rank.lora_a.first(operation, "lora_a", low_rank.rank * width)?),
        Argument::In(low_rank.lora_b.first(operation, "lora_b", out * low_rank.rank)?),
        Argument::side(out),
        Argument::side(width),
        Argument::side(grid.groups()),
        Argument::side(low_rank.rank),
        Argument::F32(low_rank.lora_scaling),
        Argument::In(weight),
        Argument::In(scale),
        // Without zero points nothing is read through the pointer.
        Argument::In(zero_point.unwrap_or(scale)),
        Argument::U32(u32::from(zero_point.is_some())),
        Argument::U32(place),
        Argument::U32(u32::from(is_live)),
        Argument::U32(u32::from(rounds_update)),
        Argument::F32(grid.qmin() as f32),
        Argument::F32(grid.unsigned_max() as f32),
        Argument::F32(fixed_unit(grid)),
    ])
}

impl<L: Launcher> LrQatQuantize for Cuda<L> {
    fn lr_qat_quantize(
        &self,
        args: &LrQatArgs<'_, Self>,
        output: &mut Values<L>,
        codes: Option<&mut Values<L>>,
    ) -> Result<()> {
        const NAME: &str = "lr_qat_quantize";
        let (grid, out) = (*args.spec.grid(), args.out_features);
        let len = out * grid.in_features();
        let mut arguments = arguments(NAME, args)?;
        let (output, stored) = output.operand_mut(NAME, "output", len)?;
        let kernel = match stored {
            Compute::F32 => QUANTIZE,
            Compute::Bf16 => QUANTIZE_BF16,
        };
        arguments.push(Argument::Out(output));
        match codes {
            Some(codes) => arguments
                .extend([Argument::Out(codes.first_mut(NAME, "codes", len)?), Argument::U32(1)]),
            // Any pointer will do: the kernel makes no use of it.
            None => arguments.extend([Argument::In(&args.scale.buffer), Argument::U32(0)]),
        }
        self.status.with(NAME, |status, first| {
            let mut arguments = arguments;
            arguments.extend([Argument::Out(status), Argument::U32(first)]);
            self.launcher.launch(kernel, by_tiles(grid, out), &mut arguments)
        })
    }

    fn lr_qat_quantize_backward(
        &self,
        args: &LrQatArgs<'_, Self>,
        d_output: &mut Values<L>,
        gradients: LrQatGradients<'_, Values<L>>,
    ) -> Result<()> {
        const NAME: &str = "lr_qat_quantize_backward";
        let (grid, out) = (*args.spec.grid(), args.out_features);
        let (width, groups) = (grid.in_features(), out * grid.groups());
        // A sum is half a word.
        let words = (out * parts(grid)).div_ceil(2);
        self.workspace.with(&self.launcher, words, |partial| {
            self.mask_lr_qat(args, d_output, partial)?;
            let Some(d_scale) = gradients.d_scale else { return Ok(()) };
            self.launcher.launch(
                SCALE,
                Shape::elements(groups),
                &mut [
                    Argument::In(partial),
                    Argument::In(&args.scale.buffer),
                    Argument::Out(d_scale.first_mut(NAME, "d_scale", groups)?),
                    Argument::side(width),
                    Argument::side(grid.groups()),
                    Argument::U64(groups as u64),
                ],
            )
        })?;
        match gradients.d_low_rank {
            Some(to) => self.low_rank_gradients(NAME, &args.low_rank, d_output, (out, width), to),
            None => Ok(()),
        }
    }
}

impl<L: Launcher> Cuda<L> {
    /// Turns the gradient into that of the argument and leaves the parts of its groups' sums.
    fn mask_lr_qat(
        &self,
        args: &LrQatArgs<'_, Self>,
        d_output: &mut Values<L>,
        partial: &mut L::Buffer,
    ) -> Result<()> {
        const NAME: &str = "lr_qat_quantize_backward";
        let (grid, out) = (*args.spec.grid(), args.out_features);
        let pre_round = args.spec.mask() == LrQatMask::PreRound;
        let mut arguments = arguments(NAME, args)?;
        arguments.extend([
            Argument::U32(u32::from(pre_round)),
            Argument::Out(d_output.first_mut(NAME, "d_output", out * grid.in_features())?),
            Argument::Out(partial),
        ]);
        self.status.with(NAME, |status, first| {
            let mut arguments = arguments;
            arguments.extend([Argument::Out(status), Argument::U32(first)]);
            self.launcher.launch(BACKWARD, by_tiles(grid, out), &mut arguments)
        })
    }
}
