//! The parts of a transformer, the loss and the optimizer.

use plumbline::backend::Backend;
use plumbline::ops::Write;
use plumbline::ops::adamw::{AdamWArgs, AdamWTensor, GradientMultiplier, Moment, StateType};
use plumbline::ops::attention::{
    AttentionArgs, AttentionGradients, AttentionInputs, AttentionSaved,
};
use plumbline::ops::cross_entropy::CrossEntropyArgs;
use plumbline::ops::rms_norm::{RmsNormArgs, RmsNormGradients};
use plumbline::ops::rope::{RopeArgs, RopeTable};

use super::{Call, Refused, scalar};
use crate::params;
use crate::tensor::{Data, Tensor, Tensors};

/// A tensor to rotate, and how.
struct Rotation<B: Backend> {
    args: RopeArgs,
    table: RopeTable<B::Floats>,
    x: B::Floats,
}

impl<B: Backend> Call<'_, B> {
    /// Arguments, the normalised rows and what the backward needs of them.
    fn normalised(&self) -> Result<(RmsNormArgs, B::Floats, B::Floats), Refused> {
        let (tokens, hidden) = (self.shape("x")?[0], self.shape("x")?[1]);
        let args = RmsNormArgs { tokens, hidden, eps: self.request.params.number("eps")? as f32 };
        let mut output = self.like("x")?;
        let mut inverse_rms = self.backend.zeros(tokens)?;
        let (x, weight) = (self.floats("x")?, self.floats("weight")?);
        self.backend.rms_norm(args, &x, &weight, &mut output, &mut inverse_rms)?;
        Ok((args, output, inverse_rms))
    }

    pub(super) fn rms_norm(&self) -> Result<Tensors, Refused> {
        let (_, output, _) = self.normalised()?;
        Ok(crate::ops::tensors([("output", self.download(&output, self.shape("x")?)?)]))
    }

    pub(super) fn rms_norm_backward(&self) -> Result<Tensors, Refused> {
        let (args, _, inverse_rms) = self.normalised()?;
        let (mut d_x, mut d_weight) = (self.like("x")?, self.like("weight")?);
        self.backend.rms_norm_backward(
            args,
            &self.floats("x")?,
            &self.floats("weight")?,
            &inverse_rms,
            &self.floats("d_output")?,
            RmsNormGradients {
                d_x: &mut d_x,
                write_d_x: Write::Replace,
                d_weight: Some(&mut d_weight),
            },
        )?;
        Ok(crate::ops::tensors([
            ("d_x", self.download(&d_x, self.shape("x")?)?),
            ("d_weight", self.download(&d_weight, self.shape("weight")?)?),
        ]))
    }

    /// The tensor to rotate, and how.
    fn rotation(&self, name: &str) -> Result<Rotation<B>, Refused> {
        let params::Rope { spec, first_position } = params::Rope::read(&self.request.params)?;
        let [length, heads, head_dim] = self.request.sizes(name)?;
        let args = RopeArgs { batch: 1, length, heads, head_dim, first_position };
        let positions = first_position + length;
        let table = RopeTable::new(&**self.backend, spec, head_dim, positions)?;
        Ok(Rotation { args, table, x: self.floats(name)? })
    }

    pub(super) fn rope(&self) -> Result<Tensors, Refused> {
        let Rotation { args, table, mut x } = self.rotation("x")?;
        self.backend.rope(args, &table, None, &mut x)?;
        Ok(crate::ops::tensors([("output", self.download(&x, self.shape("x")?)?)]))
    }

    pub(super) fn rope_backward(&self) -> Result<Tensors, Refused> {
        let Rotation { args, table, x: mut d_x } = self.rotation("d_output")?;
        self.backend.rope_backward(args, &table, None, &mut d_x)?;
        Ok(crate::ops::tensors([("d_x", self.download(&d_x, self.shape("d_output")?)?)]))
    }

    /// Arguments, the output and what the backward needs besides.
    fn attended(&self) -> Result<(AttentionArgs, B::Floats, B::Floats), Refused> {
        let [batch, tokens, heads, head_dim] = self.request.sizes("q")?;
        let [_, _, kv_heads, _] = self.request.sizes("k")?;
        let args =
            AttentionArgs { batch, queries: tokens, keys: tokens, heads, kv_heads, head_dim };
        let mut output = self.like("q")?;
        let mut log_sum_exp = self.backend.zeros(batch * heads * tokens)?;
        let (q, k, v) = (self.floats("q")?, self.floats("k")?, self.floats("v")?);
        let inputs = AttentionInputs { q: &q, k: &k, v: &v, documents: None };
        self.backend.attention(args, inputs, &mut output, &mut log_sum_exp)?;
        Ok((args, output, log_sum_exp))
    }

    pub(super) fn attention(&self) -> Result<Tensors, Refused> {
        let (_, output, _) = self.attended()?;
        Ok(crate::ops::tensors([("output", self.download(&output, self.shape("q")?)?)]))
    }

    pub(super) fn attention_backward(&self) -> Result<Tensors, Refused> {
        let (args, output, log_sum_exp) = self.attended()?;
        let (q, k, v) = (self.floats("q")?, self.floats("k")?, self.floats("v")?);
        let inputs = AttentionInputs { q: &q, k: &k, v: &v, documents: None };
        let saved = AttentionSaved { inputs, output: &output, log_sum_exp: &log_sum_exp };
        let (mut d_q, mut d_k, mut d_v) = (self.like("q")?, self.like("k")?, self.like("v")?);
        let gradients = AttentionGradients { d_q: &mut d_q, d_k: &mut d_k, d_v: &mut d_v };
        self.backend.attention_backward(args, saved, &self.floats("d_output")?, gradients)?;
        Ok(crate::ops::tensors([
            ("d_q", self.download(&d_q, self.shape("q")?)?),
            ("d_k", self.download(&d_k, self.shape("k")?)?),
            ("d_v", self.download(&d_v, self.shape("v")?)?),
        ]))
    }

    pub(super) fn swiglu(&self) -> Result<Tensors, Refused> {
        let (gate, up) = (self.floats("gate")?, self.floats("up")?);
        let len = self.request.tensor("gate")?.len();
        let mut output = self.like("gate")?;
        self.backend.swiglu(len, &gate, &up, &mut output)?;
        Ok(crate::ops::tensors([("output", self.download(&output, self.shape("gate")?)?)]))
    }

    pub(super) fn swiglu_backward(&self) -> Result<Tensors, Refused> {
        let (gate, up) = (self.floats("gate")?, self.floats("up")?);
        let d_output = self.floats("d_output")?;
        let len = self.request.tensor("gate")?.len();
        let (mut d_gate, mut d_up) = (self.like("gate")?, self.like("gate")?);
        self.backend.swiglu_backward(len, &gate, &up, &d_output, &mut d_gate, &mut d_up)?;
        let shape = self.shape("gate")?;
        Ok(crate::ops::tensors([
            ("d_gate", self.download(&d_gate, shape)?),
            ("d_up", self.download(&d_up, shape)?),
        ]))
    }

    fn cross_entropy_args(&self) -> Result<CrossEntropyArgs, Refused> {
        let [tokens, vocab_size] = self.request.sizes("logits")?;
        let ignore_index = self.request.params.required("ignore_index")?;
        Ok(CrossEntropyArgs { tokens, vocab_size, ignore_index, gradient_multiplier: 1.0 })
    }

    /// The mean loss, and how many tokens it counts.
    fn loss(&self) -> Result<(f64, usize), Refused> {
        let targets = self.backend.upload_tokens(&self.ids("targets")?)?;
        let logits = self.floats("logits")?;
        let (args, mut sums) = (self.cross_entropy_args()?, self.backend.upload_sums(&[0.0])?);
        let counted = self.backend.cross_entropy(args, &logits, &targets, &mut sums, 0)?;
        if counted == 0 {
            return Err(Refused("no target is counted".to_owned()));
        }
        Ok((self.backend.read_sums(&mut sums)?[0] / counted as f64, counted))
    }

    pub(super) fn cross_entropy(&self) -> Result<Tensors, Refused> {
        Ok(crate::ops::tensors([("loss", scalar(self.loss()?.0))]))
    }

    pub(super) fn cross_entropy_backward(&self) -> Result<Tensors, Refused> {
        let (_, counted) = self.loss()?;
        let gradient_multiplier = 1.0 / counted as f32;
        let args = CrossEntropyArgs { gradient_multiplier, ..self.cross_entropy_args()? };
        let targets = self.backend.upload_tokens(&self.ids("targets")?)?;
        let (mut logits, mut sums) = (self.floats("logits")?, self.backend.upload_sums(&[0.0])?);
        self.backend.cross_entropy_backward(args, &mut logits, &targets, &mut sums, 0)?;
        let d_logits = self.download(&logits, self.shape("logits")?)?;
        Ok(crate::ops::tensors([("d_logits", d_logits)]))
    }

    pub(super) fn adamw(&self) -> Result<Tensors, Refused> {
        let params::AdamW { spec, lr, weight_decay, step } =
            params::AdamW::read(&self.request.params)?;
        let args = AdamWArgs { spec, state: StateType::F32 };
        let (mut parameter, gradient) = (self.floats("parameter")?, self.floats("gradient")?);
        let mut first_moment = Moment::F32(self.floats("first_moment")?);
        let mut second_moment = Moment::F32(self.floats("second_moment")?);
        let len = self.request.tensor("parameter")?.len();
        let tensor = AdamWTensor {
            name: "parameter",
            len,
            step,
            learning_rate: lr,
            weight_decay,
            parameter: &mut parameter,
            gradient: &gradient,
            first_moment: &mut first_moment,
            second_moment: &mut second_moment,
        };
        let sums = self.backend.upload_sums(&[1.0])?;
        let multiplier = GradientMultiplier { sums: &sums, slot: 0 };
        self.backend.adamw(args, multiplier, &mut [tensor])?;
        let moment = |moment: &Moment<B>, shape| {
            let values = moment.to_host(&**self.backend, len)?;
            Ok::<_, Refused>(Tensor::new(shape, Data::F32(values))?)
        };
        let shape = self.shape("parameter")?;
        Ok(crate::ops::tensors([
            ("parameter", self.download(&parameter, shape)?),
            ("first_moment", moment(&first_moment, shape.to_vec())?),
            ("second_moment", moment(&second_moment, shape.to_vec())?),
        ]))
    }
}
