use super::{WeightView, Widen};
use crate::cuda::{Argument, Compute, Cuda, Kernel, Launcher, Shape, Values, WIDEN};
use crate::error::Result;

/// By what the weight and what the output is stored as.
const ENTRIES: Entries = [
    ["widen", "widen_bf16"],
    ["widen_of_bf16", "widen_of_bf16_bf16"],
    ["widen_of_f16", "widen_of_f16_bf16"],
];

/// Entries of a kernel for each type of a weight and each type of an output.
pub(crate) type Entries = [[&'static str; 2]; 3];

impl<'a, L: Launcher> WeightView<'a, Cuda<L>> {
    /// The buffer, its length checked.
    pub(crate) fn first(self, operation: &'static str, len: usize) -> Result<&'a L::Buffer> {
        match self {
            WeightView::F32(values) => values.first(operation, "weight", len),
            WeightView::Bf16(halves) | WeightView::F16(halves) => {
                halves.first(operation, "weight", len)
            }
        }
    }

    /// Of the entries for f32, bf16 and f16 the one for this weight.
    pub(crate) fn choose<T: Copy>(self, entries: [T; 3]) -> T {
        match self {
            WeightView::F32(_) => entries[0],
            WeightView::Bf16(_) => entries[1],
            WeightView::F16(_) => entries[2],
        }
    }

    /// The same where the output has a type, too.
    pub(crate) fn entry(self, entries: Entries, output: Compute) -> &'static str {
        let [f32, bf16] = self.choose(entries);
        match output {
            Compute::F32 => f32,
            Compute::Bf16 => bf16,
        }
    }
}

impl<L: Launcher> Widen for Cuda<L> {
    fn widen(
        &self,
        len: usize,
        weight: WeightView<'_, Self>,
        output: &mut Values<L>,
    ) -> Result<()> {
        let (output, stored) = output.operand_mut("widen", "output", len)?;
        self.launcher.launch(
            Kernel { module: &WIDEN, entry: weight.entry(ENTRIES, stored) },
            Shape::elements(len.div_ceil(4)),
            &mut [
                Argument::In(weight.first("widen", len)?),
                Argument::Out(output),
                Argument::U64(len as u64),
            ],
        )
    }
}
