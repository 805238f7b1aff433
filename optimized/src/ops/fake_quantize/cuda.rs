use plumbline_reference::spec::QuantSpec;

use super::{FakeQuantize, FakeQuantizeArgs};
use crate::cuda::{Argument, Compute, Cuda, FAKE_QUANTIZE, Kernel, Launcher, Shape, Values};
use crate::error::Result;
use crate::ops::widen::Entries;

/// Rows and threads of a block that quantizes, as in quantizer.cuh.
const TILE_ROWS: usize = 32;
const THREADS: u32 = 256;

/// By what the weight and what the output is stored as.
const ENTRIES: Entries = [
    ["fake_quantize", "fake_quantize_bf16"],
    ["fake_quantize_of_bf16", "fake_quantize_of_bf16_bf16"],
    ["fake_quantize_of_f16", "fake_quantize_of_f16_bf16"],
];

fn dequantize_kernel(stored: Compute) -> Kernel {
    let entry = match stored {
        Compute::F32 => "dequantize",
        Compute::Bf16 => "dequantize_bf16",
    };
    Kernel { module: &FAKE_QUANTIZE, entry }
}

/// Neighbouring columns that one thread takes: four where they always share a group.
pub(crate) fn columns_of_a_thread(spec: QuantSpec) -> usize {
    if spec.group_size().is_multiple_of(4) { 4 } else { 1 }
}

/// Tiles across a row of a weight.
pub(crate) fn tiles_across(spec: QuantSpec) -> usize {
    spec.in_features().div_ceil(32 * columns_of_a_thread(spec))
}

/// A block per tile of the weight.
pub(crate) fn by_tiles(spec: QuantSpec, out_features: usize) -> Shape {
    Shape::line(tiles_across(spec) * out_features.div_ceil(TILE_ROWS), THREADS)
}

/// As many blocks for every row as its columns need: `Columns` of groups.cuh.
pub(crate) fn by_columns(spec: QuantSpec, rows: usize) -> Shape {
    let across = spec.in_features().div_ceil(THREADS as usize * columns_of_a_thread(spec));
    Shape::line(rows * across, THREADS)
}

/// Half a warp for every group: `lane_sum` of groups.cuh.
pub(crate) fn by_groups(groups: usize) -> Shape {
    Shape::line(groups.div_ceil(THREADS as usize / 16), THREADS)
}

/// What every kernel that quantizes takes first, with the lengths checked.
pub(crate) fn quantizer_arguments<'a, L: Launcher>(
    operation: &'static str,
    args: &FakeQuantizeArgs<'a, Cuda<L>>,
) -> Result<Vec<Argument<'a, L::Buffer>>> {
    let (spec, out) = (args.spec, args.out_features);
    let (width, groups) = (spec.in_features(), out * spec.groups());
    let low_rank = match &args.low_rank {
        Some(low_rank) => Some((
            low_rank.lora_a.first(operation, "lora_a", low_rank.rank * width)?,
            low_rank.lora_b.first(operation, "lora_b", out * low_rank.rank)?,
            low_rank.rank,
            low_rank.lora_scaling,
        )),
        None => None,
    };
    let scale = args.scale.first(operation, "scale", groups)?;
    // With rank 0 nothing is read through the factors' pointers.
    let (lora_a, lora_b, rank, lora_scaling) = low_rank.unwrap_or((scale, scale, 0, 0.0));
    Ok(vec![
        Argument::In(args.weight.first(operation, out * width)?),
        Argument::In(lora_a),
        Argument::In(lora_b),
        Argument::In(scale),
        Argument::In(args.offset.first(operation, "offset", groups)?),
        Argument::side(out),
        Argument::side(width),
        Argument::side(spec.groups()),
        Argument::side(rank),
        Argument::F32(lora_scaling),
        Argument::F32(spec.qmin() as f32),
        Argument::F32(spec.qmax() as f32),
    ])
}

impl<L: Launcher> FakeQuantize for Cuda<L> {
    fn fake_quantize(
        &self,
        args: &FakeQuantizeArgs<'_, Self>,
        output: &mut Values<L>,
        codes: Option<&mut Values<L>>,
    ) -> Result<()> {
        const NAME: &str = "fake_quantize";
        let len = args.out_features * args.spec.in_features();
        let mut arguments = quantizer_arguments(NAME, args)?;
        let (output, stored) = output.operand_mut(NAME, "output", len)?;
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
            let shape = by_tiles(args.spec, args.out_features);
            let entry = args.weight.entry(ENTRIES, stored);
            let kernel = Kernel { module: &FAKE_QUANTIZE, entry };
            self.launcher.launch(kernel, shape, &mut arguments)
        })
    }

    fn dequantize(
        &self,
        spec: QuantSpec,
        out_features: usize,
        codes: &Values<L>,
        scale: &Values<L>,
        offset: &Values<L>,
        output: &mut Values<L>,
    ) -> Result<()> {
        let (width, groups) = (spec.in_features(), out_features * spec.groups());
        let len = out_features * width;
        let (output, stored) = output.operand_mut("dequantize", "output", len)?;
        self.launcher.launch(
            dequantize_kernel(stored),
            by_columns(spec, out_features),
            &mut [
                Argument::In(codes.first("dequantize", "codes", len)?),
                Argument::In(scale.first("dequantize", "scale", groups)?),
                Argument::In(offset.first("dequantize", "offset", groups)?),
                Argument::Out(output),
                Argument::side(width),
                Argument::side(spec.groups()),
            ],
        )
    }
}
