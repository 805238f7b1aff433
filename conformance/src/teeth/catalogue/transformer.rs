//! Faults of the parts of a LLaMA.

use ndarray::{Array2, Array4, ArrayView1, ArrayViewMut1, Axis, Ix1, Ix4};
use plumbline_reference::rms_norm::rms_norm;

use super::super::Fault::{Answer, Arithmetic, Request as Asked};
use super::super::Mutant;
use super::super::arithmetic::Slip;
use super::edits::{
    Edited, as_if, first_row_alone, input, map_input, map_output, rerun, set_input, set_output,
    set_param,
};
use super::fault;
use crate::case::Request;
use crate::params::Attention;
use crate::tensor::{Tensor, Tensors};

const NORM: &[&str] = &["rms_norm.forward"];
const NORM_BACKWARD: &[&str] = &["rms_norm.backward"];
const ATTENTION: &[&str] = &["attention.forward"];
const ATTENTION_BACKWARD: &[&str] = &["attention.backward"];
const SWIGLU: &[&str] = &["swiglu.forward"];
const SWIGLU_BACKWARD: &[&str] = &["swiglu.backward"];
const LORA: &[&str] = &["lora.forward"];
const LORA_BACKWARD: &[&str] = &["lora.backward"];

/// Faults of norms, attention, activations and adapters.
#[rustfmt::skip]
pub(super) static MUTANTS: &[Mutant] = &[
    fault("eps_outside_the_root", "x / (rms + eps)",
        NORM, &["eps_inside"], Answer(eps_outside)),
    fault("sum_of_squares", "the sum in place of the mean",
        NORM, &["mean_not_sum"], Answer(sum_of_squares)),
    fault("centred_norm", "the mean is subtracted first",
        NORM, &["not_centred"], Asked(centred)),
    fault("weight_plus_one", "1 + weight multiplies",
        NORM, &["weight"], Asked(|r| map_input(r, "weight", |w| w + 1.0))),
    fault("norm_in_f16", "squares are added in f16",
        NORM, &["full_precision"], Arithmetic(Slip::F16Sum)),
    fault("root_is_constant", "d_x ignores that the root moves",
        NORM_BACKWARD, &["through_the_root"], Answer(constant_root)),
    fault("d_weight_of_one_row", "d_weight of the last row only",
        NORM_BACKWARD, &["d_weight_sum"], Answer(last_row_d_weight)),
    fault("weight_outside", "d_x without the weight",
        NORM_BACKWARD, &["weight_inside"], Answer(weight_outside)),
    fault("sees_the_future", "no causal mask",
        ATTENTION, &["causal"], Answer(|r, o| attended(r, o, |_, _| true))),
    fault("sees_one_ahead", "the mask is off by one",
        ATTENTION, &["causal"], Answer(|r, o| attended(r, o, |query, key| key <= query + 1))),
    fault("unscaled_scores", "scores are not divided by the root",
        ATTENTION, &["root_of_head_dim"], Asked(|r| scores(r, 1.0))),
    fault("scaled_twice", "scores are divided by head_dim",
        ATTENTION, &["root_of_head_dim"], Asked(|r| scores(r, -1.0))),
    fault("heads_interleaved", "query head h reads key head h modulo kv_heads",
        ATTENTION, &["head_sharing"], Asked(heads_interleaved)),
    fault("one_long_sequence", "a batch is one sequence",
        ATTENTION, &["sequences_apart"], Answer(one_sequence)),
    fault("softmax_without_shift", "a large score overflows",
        ATTENTION, &["overflow"], Answer(without_shift)),
    fault("d_k_of_one_head", "d_k lacks the other query heads",
        ATTENTION_BACKWARD, &["head_sharing"], Answer(d_k_of_one_head)),
    fault("softmax_is_diagonal", "d_scores without the row sum of the softmax",
        ATTENTION_BACKWARD, &["softmax_derivative"], Answer(diagonal_softmax)),
    fault("unscaled_d_q", "d_q lacks the factor of the scores",
        ATTENTION_BACKWARD, &["root_of_head_dim"], Answer(unscaled_d_q)),
    fault("gradient_across_sequences", "d_v of a batch that is one sequence",
        ATTENTION_BACKWARD, &["sequences_apart"], Answer(gradient_across_sequences)),
    fault("up_is_gated", "gate and up change places",
        SWIGLU, &["gate_not_up"], Asked(gate_and_up)),
    fault("gelu_like", "x * sigmoid(1.702 x)",
        SWIGLU, &["exact_sigmoid", "gate_not_up"], Answer(gelu_like)),
    fault("sigmoid_overflows", "exp of a large gate is infinite",
        SWIGLU, &["large_gate"], Answer(sigmoid_overflows)),
    fault("coarse_exponential", "the exponential's argument is f16",
        SWIGLU, &["exact_sigmoid"], Arithmetic(Slip::CoarseExponential)),
    fault("product_rule_forgotten", "d_gate without the slope of the sigmoid",
        SWIGLU_BACKWARD, &["product_rule"], Answer(half_product_rule)),
    fault("swiglu_gradients_exchanged", "d_gate and d_up change places",
        SWIGLU_BACKWARD, &["gate_not_up"],
        Answer(|_, o| {
            let [d_gate, d_up] = ["d_gate", "d_up"].map(|name| o[name].clone());
            o.insert("d_gate".to_owned(), d_up);
            o.insert("d_up".to_owned(), d_gate);
            Ok(())
        })),
    fault("sigmoid_for_silu_backward", "d_up is d_output * sigmoid(gate)",
        SWIGLU_BACKWARD, &["gate_not_up", "product_rule"], Answer(sigmoid_for_silu)),
    fault("factors_exchanged", "lora_a @ lora_b in place of lora_b @ lora_a",
        LORA, &["factor_order"], Asked(exchanged)),
    fault("weight_transposed", "x @ weight in place of x @ weight^T",
        LORA, &["transposed_weight"], Asked(transposed_weight)),
    fault("lora_scaling_omitted", "the adapter is added at full strength",
        LORA, &["scaling"], Asked(|r| set_param(r, "lora_scaling", 1.0))),
    fault("adapter_not_in_d_x", "d_x of the base layer alone",
        LORA_BACKWARD, &["adapter_in_d_x"], Answer(base_d_x)),
    fault("lora_first_token_only", "only the first token trains",
        LORA_BACKWARD, &["all_tokens"],
        Answer(|r, o| as_if(r, o, &["d_lora_a", "d_lora_b"], |r| first_row_alone(r, "d_y")))),
    fault("lora_gradient_unscaled", "the factors' gradients lack lora_scaling",
        LORA_BACKWARD, &["scaling"],
        Answer(|r, o| {
            as_if(r, o, &["d_lora_a", "d_lora_b"], |r| set_param(r, "lora_scaling", 1.0))
        })),
    fault("tf32_products", "products of eleven-bit numbers",
        LORA, &["full_precision"], Arithmetic(Slip::Tf32Product)),
];

fn eps_outside(request: &Request, outputs: &mut Tensors) -> Edited {
    let (x, eps) = (input(request, "x")?, request.params.number("eps")? as f32);
    let weight = request.array::<f32, Ix1>("weight")?;
    let hidden = x.ncols() as f32;
    let mut values = x;
    for mut row in values.rows_mut() {
        let root = (row.iter().map(|x| x * x).sum::<f32>() / hidden).sqrt() + eps;
        row.zip_mut_with(&weight, |x, w| *x = *x / root * w);
    }
    set_output(outputs, "output", &values)
}

fn sum_of_squares(request: &Request, outputs: &mut Tensors) -> Edited {
    let hidden = (input(request, "x")?.ncols() as f32).sqrt();
    map_output(outputs, "output", |value| value / hidden)
}

fn centred(request: &mut Request) -> Edited {
    let mut x = input(request, "x")?;
    for mut row in x.rows_mut() {
        let mean = row.sum() / row.len() as f32;
        row.mapv_inplace(|x| x - mean);
    }
    set_input(request, "x", &x)
}

fn constant_root(request: &Request, outputs: &mut Tensors) -> Edited {
    let (x, d_output) = (input(request, "x")?, input(request, "d_output")?);
    let weight = request.array::<f32, Ix1>("weight")?;
    // The norm of d_output with the root of x: scale each row by the same factor as x was.
    let ones = ndarray::Array1::ones(weight.len());
    let normal = rms_norm(x.view(), ones.view(), request.params.number("eps")?);
    let normal = normal.map_err(|e| e.to_string())?;
    let mut d_x = &d_output * &weight;
    for ((mut row, x), normal) in d_x.rows_mut().into_iter().zip(x.rows()).zip(normal.rows()) {
        let factor = x.iter().zip(normal).find(|(x, _)| **x != 0.0).map_or(0.0, |(x, n)| n / x);
        row.mapv_inplace(|d| d * factor);
    }
    set_output(outputs, "d_x", &d_x)
}

fn last_row_d_weight(request: &Request, outputs: &mut Tensors) -> Edited {
    let mut d_output = input(request, "d_output")?;
    let last = d_output.nrows().saturating_sub(1);
    for mut row in d_output.axis_iter_mut(Axis(0)).take(last) {
        row.fill(0.0);
    }
    as_if(request, outputs, &["d_weight"], |r| set_input(r, "d_output", &d_output))
}

fn weight_outside(request: &Request, outputs: &mut Tensors) -> Edited {
    as_if(request, outputs, &["d_x"], |r| map_input(r, "weight", |_| 1.0))
}

type Heads = [Array4<f32>; 3];

fn heads(request: &Request) -> Result<Heads, String> {
    Ok([
        request.array::<f32, Ix4>("q")?,
        request.array::<f32, Ix4>("k")?,
        request.array::<f32, Ix4>("v")?,
    ])
}

/// Every sequence, token and head.
fn places(q: &Array4<f32>) -> impl Iterator<Item = (usize, usize, usize)> {
    let (batches, tokens, heads, _) = q.dim();
    ndarray::indices((batches, tokens, heads)).into_iter()
}

/// One head of one token.
fn one(array: &Array4<f32>, [b, t, h]: [usize; 3]) -> ArrayView1<'_, f32> {
    let sequence = array.view().index_axis_move(Axis(0), b);
    sequence.index_axis_move(Axis(0), t).index_axis_move(Axis(0), h)
}

fn row_mut(array: &mut Array4<f32>, [b, t, h]: [usize; 3]) -> ArrayViewMut1<'_, f32> {
    let sequence = array.view_mut().index_axis_move(Axis(0), b);
    sequence.index_axis_move(Axis(0), t).index_axis_move(Axis(0), h)
}

/// The keys that a query sees and the weight of each, with the mask and the exponential's shift to
/// be chosen.
fn probabilities(
    [q, k, _]: &Heads,
    [b, t, h]: [usize; 3],
    sees: &dyn Fn(usize, usize) -> bool,
    shift: bool,
) -> Vec<(usize, f32)> {
    let (_, tokens, heads, head_dim) = q.dim();
    let (share, root) = (heads / k.dim().2, (head_dim as f32).sqrt());
    let score = |key: usize| one(q, [b, t, h]).dot(&one(k, [b, key, h / share])) / root;
    let keys = (0..tokens).filter(|&key| sees(t, key));
    let scores: Vec<(usize, f32)> = keys.map(|key| (key, score(key))).collect();
    let largest = scores.iter().fold(f32::NEG_INFINITY, |largest, (_, score)| largest.max(*score));
    let shift = if shift { largest } else { 0.0 };
    let weights = scores.iter().map(|(key, score)| (*key, (score - shift).exp()));
    let total: f32 = weights.clone().map(|(_, weight)| weight).sum();
    weights.map(|(key, weight)| (key, weight / total)).collect()
}

/// Attention written once more.
fn attend(heads: &Heads, sees: impl Fn(usize, usize) -> bool, shift: bool) -> Array4<f32> {
    let [q, k, v] = heads;
    let share = q.dim().2 / k.dim().2;
    let mut output = Array4::zeros(q.dim());
    for (b, t, h) in places(q) {
        for (key, probability) in probabilities(heads, [b, t, h], &sees, shift) {
            let value = one(v, [b, key, h / share]);
            row_mut(&mut output, [b, t, h]).scaled_add(probability, &value);
        }
    }
    output
}

fn attended(
    request: &Request,
    outputs: &mut Tensors,
    sees: impl Fn(usize, usize) -> bool,
) -> Edited {
    let values = attend(&heads(request)?, sees, true);
    outputs.insert("output".to_owned(), Tensor::floats(&values));
    Ok(())
}

fn without_shift(request: &Request, outputs: &mut Tensors) -> Edited {
    let values = attend(&heads(request)?, |query, key| key <= query, false);
    outputs.insert("output".to_owned(), Tensor::floats(&values));
    Ok(())
}

/// Multiplies the scores by a power of the root of head_dim.
fn scores(request: &mut Request, power: f32) -> Edited {
    let head_dim = *request.inputs["q"].shape().last().ok_or("q is a scalar")? as f32;
    map_input(request, "q", |q| q * head_dim.sqrt().powf(power))
}

fn heads_interleaved(request: &mut Request) -> Edited {
    let Attention { heads, kv_heads } = Attention::read(&request.params)?;
    for name in ["k", "v"] {
        let old = request.array::<f32, Ix4>(name)?;
        let (batches, tokens, _, head_dim) = old.dim();
        let repeated = Array4::from_shape_fn((batches, tokens, heads, head_dim), |(b, t, h, d)| {
            old[[b, t, h % kv_heads, d]]
        });
        request.inputs.insert(name.to_owned(), Tensor::floats(&repeated));
    }
    set_param(request, "kv_heads", heads)
}

fn one_sequence(request: &Request, outputs: &mut Tensors) -> Edited {
    let old = heads(request)?;
    let shape = old[0].dim();
    let joined = old.map(|array| {
        let (batches, tokens, heads, head_dim) = array.dim();
        array.into_shape_with_order((1, batches * tokens, heads, head_dim)).expect("as many")
    });
    let values = attend(&joined, |query, key| key <= query, true);
    let values = values.into_shape_with_order(shape).map_err(|e| e.to_string())?;
    outputs.insert("output".to_owned(), Tensor::floats(&values));
    Ok(())
}

fn d_k_of_one_head(request: &Request, outputs: &mut Tensors) -> Edited {
    let Attention { heads, kv_heads } = Attention::read(&request.params)?;
    let mut d_output = request.array::<f32, Ix4>("d_output")?;
    for h in (0..heads).filter(|h| h % (heads / kv_heads) != 0) {
        d_output.index_axis_mut(Axis(2), h).fill(0.0);
    }
    as_if(request, outputs, &["d_k"], |r| {
        r.inputs.insert("d_output".to_owned(), Tensor::floats(&d_output));
        Ok(())
    })
}

/// `d_scores = p * d_p` in place of `p * (d_p - sum p * d_p)`, and `d_q` from it.
fn diagonal_softmax(request: &Request, outputs: &mut Tensors) -> Edited {
    let heads @ [q, k, v] = &heads(request)?;
    let d_output = request.array::<f32, Ix4>("d_output")?;
    let (share, root) = (q.dim().2 / k.dim().2, (q.dim().3 as f32).sqrt());
    let mut d_q = Array4::<f32>::zeros(q.dim());
    for (b, t, h) in places(q) {
        for (key, probability) in probabilities(heads, [b, t, h], &|q, k| k <= q, true) {
            let d_probability = one(&d_output, [b, t, h]).dot(&one(v, [b, key, h / share]));
            let d_score = probability * d_probability / root;
            row_mut(&mut d_q, [b, t, h]).scaled_add(d_score, &one(k, [b, key, h / share]));
        }
    }
    outputs.insert("d_q".to_owned(), Tensor::floats(&d_q));
    Ok(())
}

fn unscaled_d_q(request: &Request, outputs: &mut Tensors) -> Edited {
    let head_dim = *request.inputs["q"].shape().last().ok_or("q is a scalar")? as f32;
    map_output(outputs, "d_q", |d| d * head_dim.sqrt())
}

fn gradient_across_sequences(request: &Request, outputs: &mut Tensors) -> Edited {
    let faulty = rerun(request, |r| {
        for tensor in r.inputs.values_mut() {
            let [batches, tokens, heads, head_dim] = *tensor.shape() else {
                return Err("a head has four axes".to_owned());
            };
            let shape = vec![1, batches * tokens, heads, head_dim];
            *tensor = Tensor::new(shape, tensor.data().clone())?;
        }
        Ok(())
    })?;
    let shape = outputs["d_v"].shape().to_vec();
    outputs.insert("d_v".to_owned(), Tensor::new(shape, faulty["d_v"].data().clone())?);
    Ok(())
}

fn gate_and_up(request: &mut Request) -> Edited {
    let [gate, up] = ["gate", "up"].map(|name| request.inputs[name].clone());
    request.inputs.insert("gate".to_owned(), up);
    request.inputs.insert("up".to_owned(), gate);
    Ok(())
}

/// Another function of gate and up.
fn gated(request: &Request, outputs: &mut Tensors, f: impl Fn(f32, f32) -> f32) -> Edited {
    let [gate, up] = ["gate", "up"].map(|name| request.inputs[name].array::<f32>());
    let mut values = gate;
    values.zip_mut_with(&up, |gate, &up| *gate = f(*gate, up));
    outputs.insert("output".to_owned(), Tensor::floats(&values));
    Ok(())
}

fn gelu_like(request: &Request, outputs: &mut Tensors) -> Edited {
    gated(request, outputs, |gate, up| gate / (1.0 + (-1.702 * gate).exp()) * up)
}

fn sigmoid_overflows(request: &Request, outputs: &mut Tensors) -> Edited {
    gated(request, outputs, |gate, up| gate * (gate.exp() / (1.0 + gate.exp())) * up)
}

fn half_product_rule(request: &Request, outputs: &mut Tensors) -> Edited {
    let names = ["gate", "up", "d_output"];
    let [gate, up, d_output] = names.map(|name| request.inputs[name].array::<f32>());
    let mut d_gate = gate;
    d_gate.zip_mut_with(&(up * d_output), |gate, d| *gate = d / (1.0 + (-*gate).exp()));
    outputs.insert("d_gate".to_owned(), Tensor::floats(&d_gate));
    Ok(())
}

fn sigmoid_for_silu(request: &Request, outputs: &mut Tensors) -> Edited {
    let [gate, mut d_up] = ["gate", "d_output"].map(|name| request.inputs[name].array::<f32>());
    d_up.zip_mut_with(&gate, |d, gate| *d /= 1.0 + (-*gate).exp());
    outputs.insert("d_up".to_owned(), Tensor::floats(&d_up));
    Ok(())
}

/// Square layers only: elsewhere the shapes would not fit, and the fault would be seen at once.
fn exchanged(request: &mut Request) -> Edited {
    let (lora_a, lora_b) = (input(request, "lora_a")?, input(request, "lora_b")?);
    if lora_a.dim() == lora_b.dim() {
        set_input(request, "lora_a", &lora_b)?;
        set_input(request, "lora_b", &lora_a)?;
    }
    Ok(())
}

fn transposed_weight(request: &mut Request) -> Edited {
    let weight = input(request, "weight")?;
    if weight.is_square() {
        let transposed: Array2<f32> = weight.t().as_standard_layout().into_owned();
        set_input(request, "weight", &transposed)?;
    }
    Ok(())
}

fn base_d_x(request: &Request, outputs: &mut Tensors) -> Edited {
    let (d_y, weight) = (input(request, "d_y")?, input(request, "weight")?);
    set_output(outputs, "d_x", &d_y.dot(&weight))
}
