use super::{
    Attention, AttentionArgs, AttentionGradients, AttentionInputs, AttentionSaved, cpu::Layout,
};
use crate::cuda::{
    ATTENTION, ATTENTION_BF16, Argument, Compute, Cuda, Ids, Kernel, Launcher, Module, Shape,
    Values,
};
use crate::error::{Error, Result};

const THREADS: u32 = 128;

/// Widths of a head that the kernels are compiled for; narrower heads use the next one.
const HEAD_DIMS: [usize; 3] = [64, 128, 256];

/// The kernels of one pass by the width of a head, and the rows (queries times heads of a key head)
/// or keys of a tile.
struct Pass {
    module: &'static Module,
    lines: usize,
    entries: &'static [&'static str],
}

const FEW: Pass = Pass {
    module: &ATTENTION,
    lines: 16,
    entries: &["attention_16x64", "attention_16x128", "attention_16x256"],
};
const MANY: Pass = Pass {
    module: &ATTENTION,
    lines: 64,
    entries: &["attention_64x64", "attention_64x128", "attention_64x256"],
};
const D_ROWS: Pass = Pass {
    module: &ATTENTION,
    lines: 64,
    entries: &["attention_d_rows_64", "attention_d_rows_128", "attention_d_rows_256"],
};
const D_KEYS: Pass = Pass {
    module: &ATTENTION,
    lines: 32,
    entries: &["attention_d_keys_64", "attention_d_keys_128", "attention_d_keys_256"],
};

/// Widths of a head that the kernels on tensor cores take.
const ROUNDED_HEAD_DIMS: [usize; 2] = [64, 128];

const ROUNDED: Pass = Pass {
    module: &ATTENTION_BF16,
    lines: 64,
    entries: &["attention_bf16_64", "attention_bf16_128"],
};
const ROUNDED_D_ROWS: Pass = Pass {
    module: &ATTENTION_BF16,
    lines: 64,
    entries: &["attention_bf16_d_rows_64", "attention_bf16_d_rows_128"],
};
const ROUNDED_D_KEYS: Pass = Pass {
    module: &ATTENTION_BF16,
    lines: 64,
    entries: &["attention_bf16_d_keys_64", "attention_bf16_d_keys_128"],
};

impl<L: Launcher> Cuda<L> {
    /// Whether attention's products are of operands rounded to bf16. The few rows of a generated
    /// token wait for the keys and not for their products.
    fn rounds_attention(&self, layout: Layout) -> bool {
        let AttentionArgs { queries, head_dim, .. } = layout.args;
        let many = queries * layout.group > FEW.lines;
        self.compute == Compute::Bf16 && many && ROUNDED_HEAD_DIMS.contains(&head_dim)
    }
}

impl<L: Launcher> Attention for Cuda<L> {
    fn attention(
        &self,
        args: AttentionArgs,
        inputs: AttentionInputs<'_, Values<L>, Ids<L>>,
        output: &mut Values<L>,
        log_sum_exp: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "attention";
        let layout = Layout::new(args)?;
        let inputs = Inputs::new(NAME, layout, inputs)?;
        let rows = args.queries * layout.group;
        let saved = args.batch * args.heads * args.queries;
        let output = output.first_mut(NAME, "output", layout.query_len())?;
        let log_sum_exp = log_sum_exp.first_mut(NAME, "log_sum_exp", saved)?;
        let tensors = vec![Argument::Out(output), Argument::Out(log_sum_exp)];
        let pass = match self.rounds_attention(layout) {
            true => ROUNDED,
            false if rows <= FEW.lines => FEW,
            false => MANY,
        };
        launch(self, inputs, pass, rows, tensors)
    }

    fn attention_backward(
        &self,
        args: AttentionArgs,
        saved: AttentionSaved<'_, Values<L>, Ids<L>>,
        d_output: &Values<L>,
        gradients: AttentionGradients<'_, Values<L>>,
    ) -> Result<()> {
        const NAME: &str = "attention_backward";
        let layout = Layout::new(args)?;
        let (queries, keys) = (layout.query_len(), layout.key_len());
        let rows = args.batch * args.heads * args.queries;
        let inputs = Inputs::new(NAME, layout, saved.inputs)?;
        let output = saved.output.first(NAME, "output", queries)?;
        let log_sum_exp = saved.log_sum_exp.first(NAME, "log_sum_exp", rows)?;
        let d_output = d_output.first(NAME, "d_output", queries)?;
        let d_q = gradients.d_q.first_mut(NAME, "d_q", queries)?;
        let d_k = gradients.d_k.first_mut(NAME, "d_k", keys)?;
        let d_v = gradients.d_v.first_mut(NAME, "d_v", keys)?;
        let (d_rows, d_keys) = match self.rounds_attention(layout) {
            true => (ROUNDED_D_ROWS, ROUNDED_D_KEYS),
            false => (D_ROWS, D_KEYS),
        };
        self.workspace.with(&self.launcher, rows.div_ceil(2), |delta| {
            let tensors = vec![
                Argument::In(output),
                Argument::In(log_sum_exp),
                Argument::In(d_output),
                Argument::Out(d_q),
                Argument::Out(delta),
            ];
            launch(self, inputs, d_rows, args.queries * layout.group, tensors)?;
            let tensors = vec![
                Argument::In(log_sum_exp),
                Argument::In(delta),
                Argument::In(d_output),
                Argument::Out(d_k),
                Argument::Out(d_v),
            ];
            launch(self, inputs, d_keys, args.keys, tensors)
        })
    }
}

/// What every kernel takes first.
struct Inputs<'a, L: Launcher> {
    layout: Layout,
    q: &'a L::Buffer,
    k: &'a L::Buffer,
    v: &'a L::Buffer,
    documents: Option<&'a L::Buffer>,
}

impl<L: Launcher> Clone for Inputs<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L: Launcher> Copy for Inputs<'_, L> {}

impl<'a, L: Launcher> Inputs<'a, L> {
    fn new(
        operation: &'static str,
        layout: Layout,
        inputs: AttentionInputs<'a, Values<L>, Ids<L>>,
    ) -> Result<Self> {
        let AttentionInputs { q, k, v, documents } = inputs;
        if let Some(documents) = documents {
            layout.checked(operation, &documents.host)?;
        }
        Ok(Self {
            layout,
            q: q.first(operation, "q", layout.query_len())?,
            k: k.first(operation, "k", layout.key_len())?,
            v: v.first(operation, "v", layout.key_len())?,
            documents: documents.map(|documents| &documents.values.buffer),
        })
    }
}

/// A block for each tile of `lines` rows or keys of each key head.
fn launch<'a, L: Launcher>(
    cuda: &Cuda<L>,
    inputs: Inputs<'a, L>,
    pass: Pass,
    lines: usize,
    tensors: Vec<Argument<'a, L::Buffer>>,
) -> Result<()> {
    let Inputs { layout, q, k, v, documents } = inputs;
    let AttentionArgs { batch, queries, keys, heads, kv_heads, head_dim } = layout.args;
    let Some(width) = HEAD_DIMS.iter().position(|width| head_dim <= *width) else {
        let most = HEAD_DIMS[HEAD_DIMS.len() - 1];
        return Err(Error::Invalid(format!(
            "attention kernels take heads of up to {most} values, got head_dim {head_dim}"
        )));
    };
    let mut arguments = vec![Argument::In(q), Argument::In(k), Argument::In(v)];
    arguments.extend(tensors);
    for size in [batch, queries, keys, heads, kv_heads, head_dim] {
        arguments.push(Argument::side(size));
    }
    arguments.push(Argument::F32(layout.factor));
    // Without documents nothing is read through their pointer.
    arguments.push(Argument::In(documents.unwrap_or(q)));
    arguments.push(Argument::U32(u32::from(documents.is_some())));
    cuda.launcher.launch(
        Kernel { module: pass.module, entry: pass.entries[width] },
        Shape::line(lines.div_ceil(pass.lines) * batch * kv_heads, THREADS),
        &mut arguments,
    )
}
