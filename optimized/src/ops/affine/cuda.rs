use super::{Affine, AffineGrid, PackedCodes};
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

    /// The codes, their bits and the bytes of a row, the lengths checked.
    fn codes<'c>(
        &self,
        operation: &'static str,
        codes: &'c PackedCodes<Cuda<L>>,
    ) -> Result<[Argument<'c, L::Buffer>; 3]> {
        let bytes = codes.of_grid(operation, self.out_features, self.spec)?;
        Ok([
            Argument::In(bytes.first(operation, "codes", codes.bytes())?),
            Argument::side(codes.bits().count()),
            Argument::side(codes.row_bytes()),
        ])
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
        codes: &PackedCodes<Self>,
        output: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "affine_dequantize";
        let (spec, out) = (grid.spec, grid.out_features);
        let len = out * spec.in_features();
        let [scale, zero_point] = grid.arguments(NAME)?;
        let [bytes, bits, row_bytes] = grid.codes(NAME, codes)?;
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
                    bytes,
                    scale,
                    zero_point,
                    Argument::Out(output),
                    Argument::side(spec.in_features()),
                    Argument::side(spec.groups()),
                    bits,
                    row_bytes,
                    Argument::Out(status),
                    Argument::U32(first),
                ],
            )
        })
    }

    fn affine_dequantize_backward(
        &self,
        grid: &AffineGrid<'_, Self>,
        codes: &PackedCodes<Self>,
        d_output: &Values<L>,
        d_scale: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "affine_dequantize_backward";
        let (spec, groups) = (grid.spec, grid.groups());
        let len = grid.out_features * spec.in_features();
        let [scale, zero_point] = grid.arguments(NAME)?;
        let [bytes, bits, row_bytes] = grid.codes(NAME, codes)?;
        self.launcher.launch(
            BACKWARD,
            by_groups(groups),
            &mut [
                bytes,
                scale,
                zero_point,
                Argument::In(d_output.first(NAME, "d_output", len)?),
                Argument::Out(d_scale.first_mut(NAME, "d_scale", groups)?),
                Argument::U64(groups as u64),
                Argument::side(spec.groups()),
                Argument::side(spec.group_size()),
                bits,
                row_bytes,
            ],
        )
    }
}
