//! One transformer block: attention, then a gated feed-forward layer, each behind a norm and beside
//! a residual path.

use ndarray::{Array2, Array3, Array4, ArrayD, ArrayView1, ArrayView2, ArrayView3, Axis, Ix2};

use super::activations::{Passed, Place};
use super::layer::Layer;
use super::reshape;
use crate::attention::{attention, attention_backward};
use crate::rms_norm::{rms_norm, rms_norm_backward};
use crate::rope::{rope, rope_backward};
use crate::spec::{ActivationSpec, LlamaConfig};
use crate::swiglu::{swiglu, swiglu_backward};
use crate::{Error, Real, check};

pub(super) const ATTENTION_NORM: &str = "input_layernorm";
pub(super) const QUERY: &str = "self_attn.q_proj";
pub(super) const KEY: &str = "self_attn.k_proj";
pub(super) const VALUE: &str = "self_attn.v_proj";
pub(super) const ATTENTION_OUTPUT: &str = "self_attn.o_proj";
pub(super) const FEED_FORWARD_NORM: &str = "post_attention_layernorm";
pub(super) const GATE: &str = "mlp.gate_proj";
pub(super) const UP: &str = "mlp.up_proj";
pub(super) const DOWN: &str = "mlp.down_proj";

/// The norms and linear layers of one block.
pub(super) struct Block<'a, T> {
    pub config: &'a LlamaConfig,
    pub activations: Option<ActivationSpec>,
    pub attention_norm: ArrayView1<'a, T>,
    pub query: Layer<'a, T>,
    pub key: Layer<'a, T>,
    pub value: Layer<'a, T>,
    pub attention_output: Layer<'a, T>,
    pub feed_forward_norm: ArrayView1<'a, T>,
    pub gate: Layer<'a, T>,
    pub up: Layer<'a, T>,
    pub down: Layer<'a, T>,
}

/// What the backward pass needs; `rows = batch * length`.
pub(super) struct Saved<T> {
    /// `[rows, hidden]`, the block's input.
    hidden: Array2<T>,
    /// `[rows, hidden]`
    attention_input: Passed<T>,
    /// `[rows, heads * head_dim]`, rotated.
    q: Passed<T>,
    /// `[rows, kv_heads * head_dim]`, before and behind the place ahead of the rotation.
    k: Passed<T>,
    /// The same, rotated.
    rotated_k: Passed<T>,
    /// `[rows, kv_heads * head_dim]`
    v: Passed<T>,
    /// `[rows, heads * head_dim]`
    attended: Passed<T>,
    /// `[rows, hidden]`, after the attention's residual sum.
    middle: Array2<T>,
    /// `[rows, hidden]`
    feed_forward_input: Passed<T>,
    /// `[rows, intermediate]`
    gate: Array2<T>,
    /// `[rows, intermediate]`
    up: Array2<T>,
    /// `[rows, intermediate]`
    gated: Passed<T>,
}

/// Gradients through one block.
pub(super) struct Backward<T> {
    /// `[rows, hidden]`, of the block's input.
    pub d_hidden: Array2<T>,
    /// Of each tensor that its part differentiates, under the names of both.
    pub gradients: Vec<(String, ArrayD<T>)>,
}

impl<T: Real> Block<'_, T> {
    /// One block. Eq. (N8c); with activations on grids, those of Eq. (N8d) behind each part.
    ///
    /// ```text
    /// a = rms_norm(hidden, input_layernorm)
    /// q, k, v = rope(linear(a, q_proj)), rope(linear(a, k_proj)), linear(a, v_proj)
    /// middle = hidden + linear(attention(q, k, v), o_proj)
    /// f = rms_norm(middle, post_attention_layernorm)
    /// block = middle + linear(swiglu(linear(f, gate_proj), linear(f, up_proj)), down_proj)
    /// ```
    ///
    /// `hidden [rows, hidden]` -> the same. Positions start at 0 in every sequence of the batch.
    pub fn forward(
        &self,
        hidden: Array2<T>,
        sequences: (usize, usize),
    ) -> Result<(Array2<T>, Saved<T>), Error> {
        let eps = self.config.rms_norm_eps;
        let normed = rms_norm(hidden.view(), self.attention_norm, eps)?;
        let attention_input = self.pass(Place::NormOutput, normed)?;
        let input = attention_input.after.view();
        let q = self.rotate(self.query.forward(input)?, sequences)?;
        let q = self.pass(Place::Rotated, q)?;
        let k = self.pass(Place::KeyOrValue, self.key.forward(input)?)?;
        let rotated_k = self.rotate(k.after.clone(), sequences)?;
        let rotated_k = self.pass(Place::Rotated, rotated_k)?;
        let v = self.pass(Place::KeyOrValue, self.value.forward(input)?)?;
        let [of_q, of_k, of_v] =
            [&q, &rotated_k, &v].map(|one| self.split_heads(one.after.clone(), sequences));
        let attended = join_heads(attention(of_q.view(), of_k.view(), of_v.view())?);
        let attended = self.pass(Place::WayOut, attended)?;
        let middle = &hidden + &self.attention_output.forward(attended.after.view())?;
        let middle = check::result("llama", "middle", middle)?;

        let normed = rms_norm(middle.view(), self.feed_forward_norm, eps)?;
        let feed_forward_input = self.pass(Place::NormOutput, normed)?;
        let gate = self.gate.forward(feed_forward_input.after.view())?;
        let up = self.up.forward(feed_forward_input.after.view())?;
        let gated = matrix(swiglu(gate.view().into_dyn(), up.view().into_dyn())?);
        let gated = self.pass(Place::WayOut, gated)?;
        let output = &middle + &self.down.forward(gated.after.view())?;
        let output = check::result("llama", "hidden", output)?;
        let saved = Saved {
            hidden,
            attention_input,
            q,
            k,
            rotated_k,
            v,
            attended,
            middle,
            feed_forward_input,
            gate,
            up,
            gated,
        };
        Ok((output, saved))
    }

    /// The gradients of Eq. (N8c), each operation's own in reverse order; where a value is used
    /// twice, its gradients add.
    pub fn backward(
        &self,
        saved: &Saved<T>,
        d_output: Array2<T>,
        sequences: (usize, usize),
    ) -> Result<Backward<T>, Error> {
        let mut gradients = Vec::with_capacity(9);
        let d_middle = self.feed_forward_backward(saved, d_output, &mut gradients)?;
        let d_hidden = self.attention_backward(saved, d_middle, sequences, &mut gradients)?;
        Ok(Backward { d_hidden, gradients })
    }

    /// From the gradient of the block's output to that of `middle`.
    fn feed_forward_backward(
        &self,
        saved: &Saved<T>,
        d_output: Array2<T>,
        gradients: &mut Vec<(String, ArrayD<T>)>,
    ) -> Result<Array2<T>, Error> {
        let through_down = self.down.backward(saved.gated.after.view(), d_output.view())?;
        let d_gated = self.pass_backward(Place::WayOut, &saved.gated, through_down.d_x)?;
        let through_gate = swiglu_backward(
            saved.gate.view().into_dyn(),
            saved.up.view().into_dyn(),
            d_gated.view().into_dyn(),
        )?;
        keep(gradients, DOWN, through_down.gradients);
        let input = saved.feed_forward_input.after.view();
        let projections = [
            (GATE, &self.gate, matrix(through_gate.d_gate)),
            (UP, &self.up, matrix(through_gate.d_up)),
        ];
        let d_input = projections_backward(input, projections, gradients)?;
        let d_input = self.pass_backward(Place::NormOutput, &saved.feed_forward_input, d_input)?;
        let through_norm = rms_norm_backward(
            saved.middle.view(),
            self.feed_forward_norm,
            d_input.view(),
            self.config.rms_norm_eps,
        )?;
        gradients.push((weight_of(FEED_FORWARD_NORM), through_norm.d_weight.into_dyn()));
        Ok(d_output + through_norm.d_x)
    }

    /// From the gradient of `middle` to that of the block's input.
    fn attention_backward(
        &self,
        saved: &Saved<T>,
        d_middle: Array2<T>,
        sequences: (usize, usize),
        gradients: &mut Vec<(String, ArrayD<T>)>,
    ) -> Result<Array2<T>, Error> {
        let through_output =
            self.attention_output.backward(saved.attended.after.view(), d_middle.view())?;
        keep(gradients, ATTENTION_OUTPUT, through_output.gradients);
        let d_attended = self.pass_backward(Place::WayOut, &saved.attended, through_output.d_x)?;
        let d_attended = self.split_heads(d_attended, sequences);
        let [q, k, v] = [&saved.q, &saved.rotated_k, &saved.v]
            .map(|one| self.split_heads(one.after.clone(), sequences));
        let through_attention =
            attention_backward(q.view(), k.view(), v.view(), d_attended.view())?;
        let d_q = join_heads(through_attention.d_q);
        let d_q = self.pass_backward(Place::Rotated, &saved.q, d_q)?;
        let d_q = self.rotate_back(d_q, sequences)?;
        let d_k = join_heads(through_attention.d_k);
        let d_k = self.pass_backward(Place::Rotated, &saved.rotated_k, d_k)?;
        let d_k = self.rotate_back(d_k, sequences)?;
        let d_k = self.pass_backward(Place::KeyOrValue, &saved.k, d_k)?;
        let d_v = join_heads(through_attention.d_v);
        let d_v = self.pass_backward(Place::KeyOrValue, &saved.v, d_v)?;
        let input = saved.attention_input.after.view();
        let projections =
            [(QUERY, &self.query, d_q), (KEY, &self.key, d_k), (VALUE, &self.value, d_v)];
        let d_input = projections_backward(input, projections, gradients)?;
        let d_input = self.pass_backward(Place::NormOutput, &saved.attention_input, d_input)?;
        let through_norm = rms_norm_backward(
            saved.hidden.view(),
            self.attention_norm,
            d_input.view(),
            self.config.rms_norm_eps,
        )?;
        gradients.push((weight_of(ATTENTION_NORM), through_norm.d_weight.into_dyn()));
        Ok(d_middle + through_norm.d_x)
    }

    /// Every head by its position, `[rows, n * head_dim]` -> the same.
    fn rotate(&self, rows: Array2<T>, sequences: (usize, usize)) -> Result<Array2<T>, Error> {
        let heads = self.split_heads(rows, sequences);
        Ok(join_heads(each_sequence(heads, |x| rope(x, self.config.rope, 0))?))
    }

    fn rotate_back(&self, d: Array2<T>, sequences: (usize, usize)) -> Result<Array2<T>, Error> {
        let heads = self.split_heads(d, sequences);
        Ok(join_heads(each_sequence(heads, |d| rope_backward(d, self.config.rope, 0))?))
    }

    /// `[rows, n * head_dim]` -> `[batch, length, n, head_dim]`
    fn split_heads(&self, rows: Array2<T>, (batch, length): (usize, usize)) -> Array4<T> {
        let head_dim = self.config.head_dim;
        let heads = rows.ncols() / head_dim;
        reshape(rows, (batch, length, heads, head_dim))
    }
}

/// Gradient of an input that several projections read; those of their own tensors are kept.
fn projections_backward<T: Real, const N: usize>(
    input: ArrayView2<T>,
    projections: [(&'static str, &Layer<T>, Array2<T>); N],
    gradients: &mut Vec<(String, ArrayD<T>)>,
) -> Result<Array2<T>, Error> {
    let mut d_input = Array2::zeros(input.dim());
    for (part, layer, d_y) in projections {
        let through = layer.backward(input, d_y.view())?;
        d_input += &through.d_x;
        keep(gradients, part, through.gradients);
    }
    Ok(d_input)
}

fn keep<T>(
    gradients: &mut Vec<(String, ArrayD<T>)>,
    part: &str,
    of_layer: Vec<(&'static str, Array2<T>)>,
) {
    let named = of_layer.into_iter();
    gradients.extend(named.map(|(name, gradient)| (format!("{part}.{name}"), gradient.into_dyn())));
}

fn weight_of(part: &str) -> String {
    format!("{part}.weight")
}

/// Applies an operation on `[length, heads, head_dim]` to every sequence of the batch.
fn each_sequence<T: Real>(
    mut x: Array4<T>,
    operation: impl Fn(ArrayView3<T>) -> Result<Array3<T>, Error>,
) -> Result<Array4<T>, Error> {
    for mut sequence in x.axis_iter_mut(Axis(0)) {
        let output = operation(sequence.view())?;
        sequence.assign(&output);
    }
    Ok(x)
}

/// `[batch, length, heads, head_dim]` -> `[rows, heads * head_dim]`
fn join_heads<T: Real>(x: Array4<T>) -> Array2<T> {
    let (batch, length, heads, head_dim) = x.dim();
    reshape(x, (batch * length, heads * head_dim))
}

fn matrix<T: Real>(array: ArrayD<T>) -> Array2<T> {
    array.into_dimensionality::<Ix2>().expect("made from a matrix")
}
