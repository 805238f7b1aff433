//! Faults of the whole model. Its weights are matrices and vectors by name; a tensor that an edit
//! moves keeps the name of its place.

use ndarray::{Array2, Ix3};
use serde_json::Value;

use super::super::Fault::{Answer, Request as Asked};
use super::super::Mutant;
use super::edits::{Edited, as_if, input, map_input, map_output, rerun, set_input};
use super::fault;
use crate::case::Request;
use crate::params;
use crate::tensor::{Data, Tensor, Tensors};

const LLAMA: &[&str] = &["llama.loss_and_gradients"];
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const FINAL_NORM: &str = "model.norm.weight";

/// Faults of `llama.loss_and_gradients`.
#[rustfmt::skip]
pub(super) static MUTANTS: &[Mutant] = &[
    fault("labels_not_shifted", "a token is its own label",
        LLAMA, &["shifted_labels"], Answer(|r, o| loss_of(r, o, 0))),
    fault("labels_shifted_twice", "a token predicts the one after the next",
        LLAMA, &["shifted_labels"], Answer(|r, o| loss_of(r, o, 2))),
    fault("last_tokens_counted", "the mean is over all tokens, the last of a sequence too",
        LLAMA, &["counted_mean"], Answer(mean_of_all)),
    fault("batch_as_one_sequence", "a batch is read as one sequence",
        LLAMA, &["sequences_apart"], Answer(one_sequence)),
    fault("first_sequence_trains", "gradients of the first sequence alone",
        LLAMA, &["sequences_apart"], Answer(first_sequence)),
    fault("first_layer_everywhere", "every layer has the weights of the first",
        LLAMA, &["every_layer"], Asked(|r| layers(r, |_, _| 0))),
    fault("layers_in_reverse", "the last layer comes first",
        LLAMA, &["every_layer"], Asked(|r| layers(r, |layer, count| count - 1 - layer))),
    fault("norms_exchanged", "the norms of a block change places",
        LLAMA, &["norm_order"],
        Asked(|r| exchange(r, "input_layernorm", "post_attention_layernorm"))),
    fault("no_final_norm_weight", "the last norm has the weight 1",
        LLAMA, &["final_norm"], Asked(|r| map_input(r, FINAL_NORM, |_| 1.0))),
    fault("eps_of_1e_5", "eps is always 1e-5",
        LLAMA, &["eps"], Asked(|r| set_config(r, "rms_norm_eps", 1e-5))),
    fault("gate_and_up_exchanged", "up is gated",
        LLAMA, &["gate_not_up"], Asked(|r| exchange(r, "mlp.gate_proj", "mlp.up_proj"))),
    fault("key_heads_interleaved", "query head h reads key head h modulo kv_heads",
        LLAMA, &["head_sharing"], Answer(heads_interleaved)),
    fault("rows_of_neighbouring_pairs", "q and k are read in the layout of interleaved pairs",
        LLAMA, &["pairing"], Asked(neighbouring_pairs)),
    fault("theta_of_10000", "theta is always 10000",
        LLAMA, &["theta"], Asked(|r| set_config(r, "rope_theta", 10_000.0))),
    fault("rope_scaling_unread", "frequencies are never scaled",
        LLAMA, &["frequency_scaling"], Asked(|r| set_config(r, "rope_scaling", Value::Null))),
    fault("tied_head_without_gradient", "a tied embedding learns from the tokens it reads alone",
        LLAMA, &["tied_head"], Answer(|r, o| one_use(r, o, EMBEDDING))),
    fault("tied_gradient_overwritten", "a tied embedding learns from the logits alone",
        LLAMA, &["tied_head"], Answer(|r, o| one_use(r, o, HEAD))),
    fault("head_always_tied", "the embedding in place of the model's own projection",
        LLAMA, &["own_head"],
        Asked(|r| match r.inputs.contains_key(HEAD) {
            true => copy(r, EMBEDDING, HEAD),
            false => Ok(()),
        })),
];

fn set_config(request: &mut Request, name: &str, value: impl Into<Value>) -> Edited {
    let config = request.params.0.get_mut("config").and_then(Value::as_object_mut);
    config.ok_or("config is no object")?.insert(name.to_owned(), value.into());
    Ok(())
}

fn copy(request: &mut Request, from: &str, to: &str) -> Edited {
    let tensor = request.tensor(from)?.clone();
    request.inputs.insert(to.to_owned(), tensor);
    Ok(())
}

fn tokens(request: &Request) -> Result<Array2<i32>, String> {
    request.tokens("tokens")
}

fn set_tokens(request: &mut Request, tokens: &Array2<i32>) -> Edited {
    let ids = Data::I32(tokens.iter().copied().collect());
    let tensor = Tensor::new(tokens.shape().to_vec(), ids)?;
    request.inputs.insert("tokens".to_owned(), tensor);
    Ok(())
}

/// The loss with labels that many tokens ahead.
fn loss_of(request: &Request, outputs: &mut Tensors, ahead: usize) -> Edited {
    let tokens = tokens(request)?;
    let logits = outputs["logits"].array::<f32>().into_dimensionality::<Ix3>();
    let logits = logits.map_err(|e| e.to_string())?;
    let (mut sum, mut count) = (0.0, 0.0);
    for ((sequence, t), _) in tokens.indexed_iter() {
        let Some(&label) = tokens.get([sequence, t + ahead]) else { continue };
        let row = logits.index_axis(ndarray::Axis(0), sequence);
        let row = row.row(t);
        let total: f32 = row.iter().map(|logit| logit.exp()).sum();
        sum += total.ln() - row[label as usize];
        count += 1.0;
    }
    map_output(outputs, "loss", |_| sum / count)
}

fn mean_of_all(request: &Request, outputs: &mut Tensors) -> Edited {
    let length = tokens(request)?.ncols() as f32;
    let mut names: Vec<String> = outputs.keys().cloned().collect();
    names.retain(|name| name != "logits");
    names.iter().try_for_each(|name| map_output(outputs, name, |x| x * (length - 1.0) / length))
}

fn one_sequence(request: &Request, outputs: &mut Tensors) -> Edited {
    let tokens = tokens(request)?;
    let all = tokens.len();
    let joined = tokens.into_shape_with_order((1, all)).map_err(|e| e.to_string())?;
    let mut faulty = rerun(request, |r| set_tokens(r, &joined))?;
    let (shape, logits) = (outputs["logits"].shape().to_vec(), &faulty["logits"]);
    let logits = Tensor::new(shape, logits.data().clone())?;
    faulty.insert("logits".to_owned(), logits);
    *outputs = faulty;
    Ok(())
}

fn first_sequence(request: &Request, outputs: &mut Tensors) -> Edited {
    let first = tokens(request)?.row(0).to_owned().insert_axis(ndarray::Axis(0));
    let gradients: Vec<String> =
        outputs.keys().filter(|name| name.starts_with("d_")).cloned().collect();
    let names: Vec<&str> = gradients.iter().map(String::as_str).collect();
    as_if(request, outputs, &names, |r| set_tokens(r, &first))
}

/// Puts the weights of another layer into each, from the layer and their number.
fn layers(request: &mut Request, from: fn(usize, usize) -> usize) -> Edited {
    let count = params::llama_config(&request.params)?.num_hidden_layers;
    let given = request.inputs.clone();
    for (name, tensor) in &mut request.inputs {
        let Some(rest) = name.strip_prefix("model.layers.") else { continue };
        let (layer, part) = rest.split_once('.').ok_or_else(|| format!("{name} has no layer"))?;
        let layer = layer.parse().map_err(|_| format!("{name} has no layer"))?;
        *tensor = given[&format!("model.layers.{}.{part}", from(layer, count))].clone();
    }
    Ok(())
}

/// Two parts of every block change places.
fn exchange(request: &mut Request, one: &str, other: &str) -> Edited {
    for layer in 0..params::llama_config(&request.params)?.num_hidden_layers {
        let [one, other] = [one, other].map(|part| format!("model.layers.{layer}.{part}.weight"));
        let first = request.tensor(&one)?.clone();
        copy(request, &other, &one)?;
        request.inputs.insert(other, first);
    }
    Ok(())
}

/// Other rows of projections, in every block.
fn rows(
    request: &mut Request,
    parts: &[&str],
    rows: impl Fn(&Array2<f32>) -> Vec<usize>,
) -> Edited {
    for layer in 0..params::llama_config(&request.params)?.num_hidden_layers {
        for part in parts {
            let name = format!("model.layers.{layer}.self_attn.{part}_proj.weight");
            let weight = input(request, &name)?;
            let chosen = weight.select(ndarray::Axis(0), &rows(&weight));
            set_input(request, &name, &chosen)?;
        }
    }
    Ok(())
}

/// Loss and logits of a model in which key heads are repeated in turn, not each as often as it is
/// shared. The gradients of the repeated rows have no place in the answer.
fn heads_interleaved(request: &Request, outputs: &mut Tensors) -> Edited {
    let config = params::llama_config(&request.params)?;
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    as_if(request, outputs, &["loss", "logits"], |r| {
        set_config(r, "num_key_value_heads", heads)?;
        rows(r, &["k", "v"], |_| {
            let row = |row: usize| {
                row / config.head_dim % kv_heads * config.head_dim + row % config.head_dim
            };
            (0..heads * config.head_dim).map(row).collect()
        })
    })
}

/// Row 2j of a head becomes row j, and row 2j + 1 row j + head_dim / 2.
fn neighbouring_pairs(request: &mut Request) -> Edited {
    let head_dim = params::llama_config(&request.params)?.head_dim;
    rows(request, &["q", "k"], |weight| {
        let row = |row: usize| {
            let (head, place) = (row / head_dim, row % head_dim);
            head * head_dim + place % (head_dim / 2) * 2 + place / (head_dim / 2)
        };
        (0..weight.nrows()).map(row).collect()
    })
}

/// The gradient of one use of a tied embedding, from a model that does not tie it.
fn one_use(request: &Request, outputs: &mut Tensors, used: &str) -> Edited {
    if !params::llama_config(&request.params)?.tie_word_embeddings {
        return Ok(());
    }
    let faulty = rerun(request, |r| {
        set_config(r, "tie_word_embeddings", false)?;
        copy(r, EMBEDDING, HEAD)
    })?;
    outputs.insert(format!("d_{EMBEDDING}"), faulty[&format!("d_{used}")].clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use crate::sampler::Sampler;

    fn sampled(index: u64) -> (Request, Tensors) {
        let op = ops::find(LLAMA[0]).unwrap();
        let (params, inputs) = (op.sample)(&mut Sampler::new(1, op.name, index)).unwrap();
        let request = Request { op, params, inputs };
        let outputs = (op.run.f32)(&request).unwrap();
        (request, outputs)
    }

    #[test]
    fn the_right_labels_are_one_ahead() {
        for index in 0..5 {
            let (request, mut outputs) = sampled(index);
            let loss = outputs["loss"].value(0);
            loss_of(&request, &mut outputs, 1).unwrap();
            assert!((outputs["loss"].value(0) - loss).abs() < 1e-5, "{index}");
        }
    }

    #[test]
    fn both_uses_of_a_tied_embedding_make_its_gradient() {
        let name = format!("d_{EMBEDDING}");
        let mut tied = 0;
        for index in 0..20 {
            let (request, outputs) = sampled(index);
            if !params::llama_config(&request.params).unwrap().tie_word_embeddings {
                continue;
            }
            tied += 1;
            let of = |used| {
                let mut outputs = outputs.clone();
                one_use(&request, &mut outputs, used).unwrap();
                outputs[&name].array::<f32>()
            };
            let difference = of(EMBEDDING) + of(HEAD) - outputs[&name].array::<f32>();
            assert!(difference.iter().all(|d| d.abs() < 1e-4), "{index}");
        }
        assert!(tied > 0);
    }

    #[test]
    fn pairs_that_were_neighbours_stand_half_a_head_apart() {
        let (mut request, _) = sampled(0);
        set_config(&mut request, "head_dim", 6).unwrap();
        set_config(&mut request, "num_hidden_layers", 1).unwrap();
        for part in ["q", "k"] {
            let name = format!("model.layers.0.self_attn.{part}_proj.weight");
            let counted = Array2::from_shape_fn((12, 1), |(row, _)| row as f32);
            set_input(&mut request, &name, &counted).unwrap();
        }
        neighbouring_pairs(&mut request).unwrap();
        let moved = input(&request, "model.layers.0.self_attn.q_proj.weight").unwrap();
        let expected = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11].map(|row| row as f32);
        assert_eq!(moved.into_raw_vec_and_offset().0, expected);
    }
}
