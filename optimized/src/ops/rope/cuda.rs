use super::{Rope, RopeArgs, RopeTable};
use crate::cuda::{Argument, Cuda, Ids, Kernel, Launcher, ROPE, Shape, Values};
use crate::error::Result;

const ROTATE: Kernel = Kernel { module: &ROPE, entry: "rope" };

/// Threads of a token, at most.
const THREADS: u32 = 256;

impl<L: Launcher> Rope for Cuda<L> {
    fn rope(
        &self,
        args: RopeArgs,
        table: &RopeTable<Values<L>>,
        documents: Option<&Ids<L>>,
        x: &mut Values<L>,
    ) -> Result<()> {
        rotate(self, args, (table, documents), x, 1.0)
    }

    fn rope_backward(
        &self,
        args: RopeArgs,
        table: &RopeTable<Values<L>>,
        documents: Option<&Ids<L>>,
        d_x: &mut Values<L>,
    ) -> Result<()> {
        rotate(self, args, (table, documents), d_x, -1.0)
    }
}

/// Rotates by `direction` times the table's angles.
fn rotate<L: Launcher>(
    cuda: &Cuda<L>,
    args: RopeArgs,
    (table, documents): (&RopeTable<Values<L>>, Option<&Ids<L>>),
    x: &mut Values<L>,
    direction: f32,
) -> Result<()> {
    let RopeArgs { batch, length, heads, head_dim, first_position } = args;
    args.reached_by(table.positions)?;
    if let Some(documents) = documents {
        args.checked(&documents.host)?;
    }
    let (half, tokens) = (head_dim / 2, batch * length);
    let cosine = table.cosine.first("rope", "cosine", table.positions * half)?;
    // Without documents nothing is read through their pointer.
    let starts = documents.map_or(cosine, |documents| &documents.values.buffer);
    cuda.launcher.launch(
        ROTATE,
        Shape::rows(tokens, heads * half, THREADS),
        &mut [
            Argument::In(cosine),
            Argument::In(table.sine.first("rope", "sine", table.positions * half)?),
            Argument::Out(x.first_mut("rope", "x", tokens * heads * head_dim)?),
            Argument::side(length),
            Argument::side(heads),
            Argument::side(head_dim),
            Argument::side(first_position),
            Argument::F32(direction),
            Argument::In(starts),
            Argument::U32(u32::from(documents.is_some())),
        ],
    )
}
