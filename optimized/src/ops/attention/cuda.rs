use super::{Attention, AttentionArgs, AttentionGradients, AttentionSaved, cpu::Layout};
use crate::cuda::{ATTENTION, Argument, Cuda, Kernel, Launcher, Shape, Values};
use crate::error::{Error, Result};

const THREADS: u32 = 128;

/// Widths of a head that the kernels are compiled for; narrower heads use the next one.
const HEAD_DIMS: [usize; 3] = [64, 128, 256];

/// Rows (queries times heads of a key head) of a forward tile, and the kernels by head width.
const FEW: (usize, [&str; 3]) = (16, ["attention_16x64", "attention_16x128", "attention_16x256"]);
const MANY: (usize, [&str; 3]) = (64, ["attention_64x64", "attention_64x128", "attention_64x256"]);

/// The same of the backward, and keys of a tile in the second.
const D_ROWS: (usize, [&str; 3]) =
    (64, ["attention_d_rows_64", "attention_d_rows_128", "attention_d_rows_256"]);
const D_KEYS: (usize, [&str; 3]) =
    (32, ["attention_d_keys_64", "attention_d_keys_128", "attention_d_keys_256"]);

impl<L: Launcher> Attention for Cuda<L> {
    fn attention(
        &self,
        args: AttentionArgs,
        q: &Values<L>,
        k: &Values<L>,
        v: &Values<L>,
        output: &mut Values<L>,
        log_sum_exp: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "attention";
        let layout = Layout::new(args)?;
        let (queries, keys) = (layout.query_len(), layout.key_len());
        let rows = args.queries * layout.group;
        let saved = args.batch * args.heads * args.queries;
        let tensors = vec![
            Argument::In(q.first(NAME, "q", queries)?),
            Argument::In(k.first(NAME, "k", keys)?),
            Argument::In(v.first(NAME, "v", keys)?),
            Argument::Out(output.first_mut(NAME, "output", queries)?),
            Argument::Out(log_sum_exp.first_mut(NAME, "log_sum_exp", saved)?),
        ];
        launch(self, layout, if rows <= FEW.0 { FEW } else { MANY }, rows, tensors)
    }

    fn attention_backward(
        &self,
        args: AttentionArgs,
        saved: AttentionSaved<'_, Values<L>>,
        d_output: &Values<L>,
        gradients: AttentionGradients<'_, Values<L>>,
    ) -> Result<()> {
        const NAME: &str = "attention_backward";
        let layout = Layout::new(args)?;
        let (queries, keys) = (layout.query_len(), layout.key_len());
        let rows = args.batch * args.heads * args.queries;
        let q = saved.q.first(NAME, "q", queries)?;
        let k = saved.k.first(NAME, "k", keys)?;
        let v = saved.v.first(NAME, "v", keys)?;
        let output = saved.output.first(NAME, "output", queries)?;
        let log_sum_exp = saved.log_sum_exp.first(NAME, "log_sum_exp", rows)?;
        let d_output = d_output.first(NAME, "d_output", queries)?;
        let d_q = gradients.d_q.first_mut(NAME, "d_q", queries)?;
        let d_k = gradients.d_k.first_mut(NAME, "d_k", keys)?;
        let d_v = gradients.d_v.first_mut(NAME, "d_v", keys)?;
        self.workspace.with(&self.launcher, rows.div_ceil(2), |delta| {
            let tensors = vec![
                Argument::In(q),
                Argument::In(k),
                Argument::In(v),
                Argument::In(output),
                Argument::In(log_sum_exp),
                Argument::In(d_output),
                Argument::Out(d_q),
                Argument::Out(delta),
            ];
            launch(self, layout, D_ROWS, args.queries * layout.group, tensors)?;
            let tensors = vec![
                Argument::In(q),
                Argument::In(k),
                Argument::In(v),
                Argument::In(log_sum_exp),
                Argument::In(delta),
                Argument::In(d_output),
                Argument::Out(d_k),
                Argument::Out(d_v),
            ];
            launch(self, layout, D_KEYS, args.keys, tensors)
        })
    }
}

/// A block for each tile of `lines` rows or keys of each key head.
fn launch<L: Launcher>(
    cuda: &Cuda<L>,
    layout: Layout,
    (tile, entries): (usize, [&'static str; 3]),
    lines: usize,
    mut arguments: Vec<Argument<'_, L::Buffer>>,
) -> Result<()> {
    let AttentionArgs { batch, queries, keys, heads, kv_heads, head_dim } = layout.args;
    let Some(width) = HEAD_DIMS.iter().position(|width| head_dim <= *width) else {
        let most = HEAD_DIMS[HEAD_DIMS.len() - 1];
        return Err(Error::Invalid(format!(
            "attention kernels take heads of up to {most} values, got head_dim {head_dim}"
        )));
    };
    for size in [batch, queries, keys, heads, kv_heads, head_dim] {
        arguments.push(Argument::side(size));
    }
    arguments.push(Argument::F32(layout.factor));
    cuda.launcher.launch(
        Kernel { module: &ATTENTION, entry: entries[width] },
        Shape::line(lines.div_ceil(tile) * batch * kv_heads, THREADS),
        &mut arguments,
    )
}
