use super::{Affine, AffineGrid};
use crate::cuda::{AFFINE, Argument, Compute, Cuda, Kernel, Launcher, Values};
use crate::error::Result;
use crate::ops::fake_quantize::cuda::{by_columns, by_groups};

const QUANTIZE: Kernel = Kernel { module: &AFFINE, entry: "affine_quantize" };
const DEQUANTIZE: Kernel = Kernel { module: &AFFINE, entry: "affine_dequantize" };
const DEQUANTIZE_BF16: Kernel = Kernel { module: &AFFINE, entry: "affine_dequantize_bf16" };
const BACKWARD: Kernel = Kernel { module: &AFFINE, entry: "affine_dequantize_backward" };

impl<'a, L: Launcher> AffineGrid<'a, Cuda<L>> {
    fn groups(&self) -> usize {
        self.out_features * self.spec.groups()
    }

    /// Scale and zero point, the lengths checked.
    fn arguments(&self, operation: &'static str) -> Result<[Argument<'a, L::Buffer>; 2]> {
        Ok([
            Argument::In(self.scale.first(operation, "scale", self.groups())?),
            Argument::In(self.zero_point.first(operation, "zero_point", self.groups())?),
        ])
    }
}

impl<L: Launcher> Affine for Cuda<L> {
    fn affine_quantize(
        &self,
        grid: &AffineGrid<'_, Self>,
        weight: &Values<L>,
        codes: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "affine_quantize";
        let (spec, out) = (grid.spec, grid.out_features);
        let len = out * spec.in_features();
        let [scale, zero_point] = grid.arguments(NAME)?;
        let weight = weight.first(NAME, "weight", len)?;
        let codes = codes.first_mut(NAME, "codes", len)?;
        self.status.with(NAME, |status, first| {
            self.launcher.launch(
                QUANTIZE,
                by_columns(spec, out),
                &mut [
                    Argument::In(weight),
                    scale,
                    zero_point,
                    Argument::Out(codes),
                    Argument::side(spec.in_features()),
                    Argument::side(spec.groups()),
                    Argument::F32(spec.unsigned_max() as f32),
                    Argument::Out(status),
                    Argument::U32(first),
                ],
            )
        })
    }

    fn affine_dequantize(
        &self,
        grid: &AffineGrid<'_, Self>,
        codes: &Values<L>,
        output: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "affine_dequantize";
        let (spec, out) = (grid.spec, grid.out_features);
        let len = out * spec.in_features();
        let [scale, zero_point] = grid.arguments(NAME)?;
        let codes = codes.first(NAME, "codes", len)?;
        let (output, stored) = output.operand_mut(NAME, "output", len)?;
        let kernel = match stored {
            Compute::F32 => DEQUANTIZE,
            Compute::Bf16 => DEQUANTIZE_BF16,
        };
        self.status.with(NAME, |status, first| {
            self.launcher.launch(
                kernel,
                by_columns(spec, out),
                &mut [
                    Argument::In(codes),
                    scale,
                    zero_point,
                    Argument::Out(output),
                    Argument::side(spec.in_features()),
                    Argument::side(spec.groups()),
                    Argument::Out(status),
                    Argument::U32(first),
                ],
            )
        })
    }

    fn affine_dequantize_backward(
        &self,
        grid: &AffineGrid<'_, Self>,
        codes: &Values<L>,
        d_output: &Values<L>,
        d_scale: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "affine_dequantize_backward";
        let (spec, groups) = (grid.spec, grid.groups());
        let len = grid.out_features * spec.in_features();
        let [scale, zero_point] = grid.arguments(NAME)?;
        self.launcher.launch(
            BACKWARD,
            by_groups(groups),
            &mut [
                Argument::In(codes.first(NAME, "codes", len)?),
                scale,
                zero_point,
                Argument::In(d_output.first(NAME, "d_output", len)?),
                Argument::Out(d_scale.first_mut(NAME, "d_scale", groups)?),
                Argument::U64(groups as u64),
                Argument::side(spec.group_size()),
            ],
        )
    }
}
