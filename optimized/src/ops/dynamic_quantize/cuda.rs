use plumbline_reference::spec::ZeroPointRule;

use super::{DynamicCodes, DynamicQuantize, DynamicQuantizeArgs};
use crate::cuda::{Argument, Cuda, DYNAMIC_QUANTIZE, Kernel, Launcher, Shape, Values};
use crate::error::Result;

const FORWARD: Kernel = Kernel { module: &DYNAMIC_QUANTIZE, entry: "dynamic_quantize" };
const BACKWARD: Kernel = Kernel { module: &DYNAMIC_QUANTIZE, entry: "dynamic_quantize_backward" };

/// Threads of a row, at most.
const THREADS: u32 = 256;

impl DynamicQuantizeArgs {
    fn shape(&self) -> Shape {
        Shape::rows(self.rows(), self.spec.group_size(), THREADS)
    }

    /// What both kernels take between their tensors and the status.
    fn grid<B>(&self) -> [Argument<'static, B>; 3] {
        [
            Argument::side(self.spec.group_size()),
            Argument::F32(self.spec.unsigned_max() as f32),
            Argument::U32((self.zero_point == ZeroPointRule::Integer).into()),
        ]
    }
}

impl<L: Launcher> DynamicQuantize for Cuda<L> {
    fn dynamic_quantize(
        &self,
        args: DynamicQuantizeArgs,
        x: &Values<L>,
        output: &mut Values<L>,
        codes: Option<DynamicCodes<'_, Self>>,
    ) -> Result<()> {
        const NAME: &str = "dynamic_quantize";
        let (len, rows) = (args.len(), args.rows());
        let x = x.first(NAME, "x", len)?;
        let mut arguments =
            vec![Argument::In(x), Argument::Out(output.first_mut(NAME, "output", len)?)];
        match codes {
            Some(DynamicCodes { codes, scale, zero_point }) => arguments.extend([
                Argument::Out(codes.first_mut(NAME, "codes", len)?),
                Argument::Out(scale.first_mut(NAME, "scale", rows)?),
                Argument::Out(zero_point.first_mut(NAME, "zero_point", rows)?),
                Argument::U32(1),
            ]),
            // Any pointers will do: the kernel makes no use of them.
            None => {
                arguments.extend([Argument::In(x), Argument::In(x), Argument::In(x)]);
                arguments.push(Argument::U32(0));
            }
        }
        arguments.extend(args.grid());
        self.status.with(NAME, |status, first| {
            let mut arguments = arguments;
            arguments.extend([Argument::Out(status), Argument::U32(first)]);
            self.launcher.launch(FORWARD, args.shape(), &mut arguments)
        })
    }

    fn dynamic_quantize_backward(
        &self,
        args: DynamicQuantizeArgs,
        x: &Values<L>,
        d: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "dynamic_quantize_backward";
        let mut arguments = vec![
            Argument::In(x.first(NAME, "x", args.len())?),
            Argument::Out(d.first_mut(NAME, "d", args.len())?),
        ];
        arguments.extend(args.grid());
        self.status.with(NAME, |status, first| {
            let mut arguments = arguments;
            arguments.extend([Argument::Out(status), Argument::U32(first)]);
            self.launcher.launch(BACKWARD, args.shape(), &mut arguments)
        })
    }
}
