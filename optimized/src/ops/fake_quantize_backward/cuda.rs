use plumbline_reference::spec::{GradScale, QuantSpec};

use super::{FakeQuantizeBackward, FakeQuantizeGradients, factor};
use crate::cuda::{
    Argument, Compute, Cuda, FAKE_QUANTIZE_BACKWARD, Kernel, Launcher, Product, Shape, Values,
};
use crate::error::Result;
use crate::ops::fake_quantize::{FakeQuantizeArgs, LowRank, cuda as quantizer};

const NAME: &str = "fake_quantize_backward";
/// By what the weight is stored as.
const MASK: [Kernel; 3] = [
    Kernel { module: &FAKE_QUANTIZE_BACKWARD, entry: NAME },
    Kernel { module: &FAKE_QUANTIZE_BACKWARD, entry: "fake_quantize_backward_of_bf16" },
    Kernel { module: &FAKE_QUANTIZE_BACKWARD, entry: "fake_quantize_backward_of_f16" },
];
const SCALE: Kernel = Kernel { module: &FAKE_QUANTIZE_BACKWARD, entry: "scale_gradient" };
const OFFSET: Kernel = Kernel { module: &FAKE_QUANTIZE_BACKWARD, entry: "offset_gradient" };

/// Parts of a row's groups, each the part of a group that lies in one tile: as in group_sums.cuh.
pub(crate) fn parts(spec: QuantSpec) -> usize {
    quantizer::tiles_across(spec) - 1 + spec.groups()
}

impl<L: Launcher> FakeQuantizeBackward for Cuda<L> {
    fn fake_quantize_backward(
        &self,
        args: &FakeQuantizeArgs<'_, Self>,
        grad_scale: GradScale,
        d_output: &mut Values<L>,
        gradients: FakeQuantizeGradients<'_, Values<L>>,
    ) -> Result<()> {
        let (spec, out) = (args.spec, args.out_features);
        self.workspace.with(&self.launcher, out * parts(spec), |partial| {
            self.mask(args, d_output, partial)?;
            let to = (gradients.d_scale, gradients.d_offset);
            self.group_gradients(args, partial, factor(spec, grad_scale), to)
        })?;
        match (&args.low_rank, gradients.d_low_rank) {
            (Some(low_rank), Some(to)) => {
                self.low_rank_gradients(NAME, low_rank, d_output, (out, spec.in_features()), to)
            }
            _ => Ok(()),
        }
    }
}

impl<L: Launcher> Cuda<L> {
    /// Masks the gradient and leaves the parts of its groups' sums.
    fn mask(
        &self,
        args: &FakeQuantizeArgs<'_, Self>,
        d_output: &mut Values<L>,
        partial: &mut L::Buffer,
    ) -> Result<()> {
        let mut arguments = quantizer::quantizer_arguments(NAME, args)?;
        let len = args.out_features * args.spec.in_features();
        arguments.push(Argument::Out(d_output.first_mut(NAME, "d_output", len)?));
        arguments.push(Argument::Out(partial));
        self.status.with(NAME, |status, first| {
            let mut arguments = arguments;
            arguments.extend([Argument::Out(status), Argument::U32(first)]);
            self.launcher.launch(
                args.weight.choose(MASK),
                quantizer::by_tiles(args.spec, args.out_features),
                &mut arguments,
            )
        })
    }

    /// Adds the parts of the groups' sums to the gradients of scale and offset, where these are.
    pub(crate) fn group_gradients(
        &self,
        args: &FakeQuantizeArgs<'_, Self>,
        partial: &L::Buffer,
        factor: f32,
        (d_scale, d_offset): (Option<&mut Values<L>>, Option<&mut Values<L>>),
    ) -> Result<()> {
        let groups = args.out_features * args.spec.groups();
        if let Some(d_scale) = d_scale {
            let scale = args.scale.first(NAME, "scale", groups)?;
            let d_scale = d_scale.first_mut(NAME, "d_scale", groups)?;
            let to = vec![Argument::In(scale), Argument::Out(d_scale)];
            self.add_group_sums(SCALE, args, partial, to, factor)?;
        }
        if let Some(d_offset) = d_offset {
            let d_offset = d_offset.first_mut(NAME, "d_offset", groups)?;
            let to = vec![Argument::Out(d_offset)];
            self.add_group_sums(OFFSET, args, partial, to, factor)?;
        }
        Ok(())
    }

    /// Adds the parts up and the sums, times the factor, to a gradient.
    fn add_group_sums(
        &self,
        kernel: Kernel,
        args: &FakeQuantizeArgs<'_, Self>,
        partial: &L::Buffer,
        to: Vec<Argument<'_, L::Buffer>>,
        factor: f32,
    ) -> Result<()> {
        let (spec, groups) = (args.spec, args.out_features * args.spec.groups());
        let mut arguments = vec![Argument::In(partial)];
        arguments.extend(to);
        arguments.extend([
            Argument::F32(factor),
            Argument::side(spec.in_features()),
            Argument::side(spec.groups()),
            Argument::U64(groups as u64),
        ]);
        self.launcher.launch(kernel, Shape::elements(groups), &mut arguments)
    }

    /// Adds the gradients of the factors of an update whose gradient is `d_weight [out, in]`. Eq. (A1b).
    pub(crate) fn low_rank_gradients(
        &self,
        operation: &'static str,
        low_rank: &LowRank<'_, Values<L>>,
        d_weight: &Values<L>,
        (out, width): (usize, usize),
        (d_lora_a, d_lora_b): (&mut Values<L>, &mut Values<L>),
    ) -> Result<()> {
        let rank = low_rank.rank;
        let d_lora_a = d_lora_a.first_mut(operation, "d_lora_a", rank * width)?;
        let d_lora_b = d_lora_b.first_mut(operation, "d_lora_b", out * rank)?;
        if rank == 0 {
            return Ok(());
        }
        let to_a = Product {
            rows: rank,
            columns: width,
            inner: out,
            a_transposed: true,
            b_transposed: false,
            multiplier: low_rank.lora_scaling,
            add: true,
            operands: Compute::F32,
        };
        let to_b = Product {
            rows: out,
            columns: rank,
            inner: width,
            a_transposed: false,
            b_transposed: true,
            ..to_a
        };
        self.launcher.product(to_a, &low_rank.lora_b.buffer, &d_weight.buffer, d_lora_a)?;
        self.launcher.product(to_b, &d_weight.buffer, &low_rank.lora_a.buffer, d_lora_b)
    }
}
