use super::{Clip, StepSlots};
use crate::cuda::{Argument, Cuda, Kernel, Launcher, SUMS, Shape, Sums};
use crate::error::Result;
use crate::ops::Write;

const ADD: Kernel = Kernel { module: &SUMS, entry: "sums_add" };
const CLIP: Kernel = Kernel { module: &SUMS, entry: "sums_clip" };

/// One block: the order of a sum is that of its terms. The kernels have the number too.
const THREADS: u32 = 256;

impl<L: Launcher> Cuda<L> {
    /// Adds `count` terms in their order and writes the sum to a slot, or adds it to the slot.
    pub(crate) fn sum_in_order(
        &self,
        operation: &'static str,
        (terms, count): (&L::Buffer, usize),
        (sums, slot): (&mut Sums<L>, usize),
        write: Write,
    ) -> Result<()> {
        self.launcher.launch(
            ADD,
            Shape::line(1, THREADS),
            &mut [
                Argument::In(terms),
                Argument::Out(sums.with_slot_mut(operation, slot)?),
                Argument::side(count),
                Argument::side(slot),
                Argument::U32((write == Write::Add).into()),
            ],
        )
    }
}

impl<L: Launcher> Clip for Cuda<L> {
    fn clip(&self, slots: StepSlots, max_norm: f64, sums: &mut Sums<L>) -> Result<()> {
        let sums = sums.with_slot_mut("clip", slots.factor())?;
        self.status.seen_by(|status| {
            self.launcher.launch(
                CLIP,
                Shape::line(1, THREADS),
                &mut [
                    Argument::Out(sums),
                    Argument::In(status),
                    Argument::side(slots.losses),
                    Argument::side(slots.tensors),
                    Argument::F64(max_norm),
                ],
            )
        })
    }
}
