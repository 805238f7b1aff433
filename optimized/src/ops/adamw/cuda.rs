use super::moment::other_type;
use super::{
    AdamW, AdamWArgs, AdamWTensor, Constants, GradientMultiplier, Moment, StateType,
    TensorConstants,
};
use crate::cuda::{ADAMW, Argument, Cuda, Kernel, Launcher, Pointer, Shape, Sums, Values};
use crate::error::Result;

/// Values one block handles, as the kernel has it.
const CHUNK: usize = 1 << 13;

impl<L: Launcher> AdamW for Cuda<L> {
    fn adamw(
        &self,
        args: AdamWArgs,
        GradientMultiplier { sums, slot }: GradientMultiplier<'_, Sums<L>>,
        tensors: &mut [AdamWTensor<'_, Self>],
    ) -> Result<()> {
        let sums = sums.with_slot("adamw", slot)?;
        let (rates, blocks) = rates(&args, tensors);
        let count = Argument::side(tensors.len());
        let mut pointers = Vec::with_capacity(4 * tensors.len());
        for tensor in tensors {
            let (len, name) = (tensor.len, tensor.name);
            pointers.push(Pointer::Out(tensor.parameter.first_mut("adamw", "parameter", len)?));
            pointers.push(Pointer::In(tensor.gradient.first("adamw", "gradient", len)?));
            for (which, moment) in [
                ("first_moment", &mut *tensor.first_moment),
                ("second_moment", &mut *tensor.second_moment),
            ] {
                let values = values_of(moment, args.state, name)?;
                pointers.push(Pointer::Out(values.first_mut("adamw", which, len)?));
            }
        }
        let Constants { eps, old1, new1, old2, new2 } = args.constants();
        let entry = match args.state {
            StateType::F32 => "adamw_f32",
            StateType::Bf16 => "adamw_bf16",
        };
        self.workspace.with(&self.launcher, 4 * rates.len(), |buffer| {
            self.launcher.write(bytemuck::cast_slice(&rates), buffer, 0)?;
            self.launcher.launch(
                Kernel { module: &ADAMW, entry },
                Shape::line(blocks, 256),
                &mut [
                    Argument::Table(pointers),
                    Argument::In(buffer),
                    count,
                    Argument::In(sums),
                    Argument::side(slot),
                    Argument::F32(eps),
                    Argument::F32(old1),
                    Argument::F32(new1),
                    Argument::F32(old2),
                    Argument::F32(new2),
                ],
            )
        })
    }
}

/// What the kernel is told of each tensor beside where it is, laid out as its `Rates` are, and how
/// many blocks they have.
fn rates<L: Launcher>(
    args: &AdamWArgs,
    tensors: &[AdamWTensor<'_, Cuda<L>>],
) -> (Vec<[u64; 4]>, usize) {
    let mut blocks = 0;
    let of = tensors.iter().map(|tensor| {
        let TensorConstants { key, keep, rate, correction } = tensor.constants(args);
        let first_chunk = u32::try_from(blocks).expect("a grid has fewer than 2^32 blocks");
        blocks += tensor.len.div_ceil(CHUNK);
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let [keep, rate, correction] = [keep, rate, correction].map(f32::to_bits);
        [tensor.len as u64, key, pair(first_chunk, keep), pair(rate, correction)]
    });
    (of.collect(), blocks)
}

fn values_of<'a, L: Launcher>(
    moment: &'a mut Moment<Cuda<L>>,
    state: StateType,
    name: &str,
) -> Result<&'a mut Values<L>> {
    match (moment, state) {
        (Moment::F32(values), StateType::F32) | (Moment::Bf16(values), StateType::Bf16) => {
            Ok(values)
        }
        _ => Err(other_type(name)),
    }
}
