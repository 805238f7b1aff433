//! Faults of the loss and of the optimizer.

use serde_json::json;

use super::super::Fault::{Answer, Request as Asked};
use super::super::Mutant;
use super::edits::{Edited, input, map_output, set_param};
use super::fault;
use crate::case::Request;
use crate::params::AdamW;
use crate::tensor::{Data, Tensor, Tensors};

const LOSS: &[&str] = &["cross_entropy.forward"];
const LOSS_BACKWARD: &[&str] = &["cross_entropy.backward"];
const ADAMW: &[&str] = &["adamw.step"];

/// Faults of cross-entropy and AdamW.
#[rustfmt::skip]
pub(super) static MUTANTS: &[Mutant] = &[
    fault("loss_is_a_sum", "the sum over tokens",
        LOSS, &["counted_mean"], Answer(|r, o| rescale(r, o, "loss", |counted, _| counted))),
    fault("mean_over_ignored", "the mean over all tokens, ignored ones too",
        LOSS, &["counted_mean", "ignored"],
        Answer(|r, o| rescale(r, o, "loss", |counted, all| counted / all))),
    fault("bits_for_nats", "the logarithm to base 2",
        LOSS, &["uniform"],
        Answer(|_, o| map_output(o, "loss", |loss| loss / std::f32::consts::LN_2))),
    fault("exp_without_shift", "a large logit overflows",
        LOSS, &["overflow"], Answer(overflowing)),
    fault("gradient_of_a_sum", "d_logits is not divided by the counted tokens",
        LOSS_BACKWARD, &["counted_mean"],
        Answer(|r, o| rescale(r, o, "d_logits", |counted, _| counted))),
    fault("gradient_over_ignored", "d_logits is divided by all tokens",
        LOSS_BACKWARD, &["counted_mean", "ignored"],
        Answer(|r, o| rescale(r, o, "d_logits", |counted, all| counted / all))),
    fault("ignored_tokens_learn", "ignored tokens get gradient",
        LOSS_BACKWARD, &["ignored"], Answer(ignored_learn)),
    fault("no_bias_correction", "moments are used as they are",
        ADAMW, &["bias_correction"],
        Answer(|r, o| adamw(r, o, Variant { correct: false, ..Variant::RIGHT }))),
    fault("step_from_zero", "bias is corrected for the step before",
        ADAMW, &["late_step", "bias_correction"], Asked(step_before)),
    fault("decay_in_the_gradient", "decay passes through the moments",
        ADAMW, &["decoupled_decay"],
        Answer(|r, o| adamw(r, o, Variant { coupled: true, ..Variant::RIGHT }))),
    fault("decay_without_lr", "decay is not multiplied by lr",
        ADAMW, &["decay_by_lr", "decoupled_decay"],
        Answer(|r, o| adamw(r, o, Variant { decay_by_lr: false, ..Variant::RIGHT }))),
    fault("decay_forgotten", "weight_decay is ignored",
        ADAMW, &["decoupled_decay"], Asked(|r| set_param(r, "weight_decay", 0.0))),
    fault("eps_inside_the_root", "sqrt(v + eps)",
        ADAMW, &["eps_outside"],
        Answer(|r, o| adamw(r, o, Variant { eps_inside: true, ..Variant::RIGHT }))),
    fault("second_moment_of_the_magnitude", "|g| in place of g^2",
        ADAMW, &["second_moment"],
        Answer(|r, o| adamw(r, o, Variant { squared: false, ..Variant::RIGHT }))),
];

/// Counted and all tokens.
fn tokens(request: &Request) -> Result<(f32, f32), String> {
    let ignore: i32 = request.params.required("ignore_index")?;
    let targets = request.tokens::<ndarray::Ix1>("targets")?;
    let counted = targets.iter().filter(|&&target| target != ignore).count();
    Ok((counted as f32, targets.len() as f32))
}

fn rescale(
    request: &Request,
    outputs: &mut Tensors,
    name: &str,
    factor: fn(f32, f32) -> f32,
) -> Edited {
    let (counted, all) = tokens(request)?;
    map_output(outputs, name, |value| value * factor(counted, all))
}

fn overflowing(request: &Request, outputs: &mut Tensors) -> Edited {
    let largest = input(request, "logits")?.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    map_output(
        outputs,
        "loss",
        |loss| if largest.exp().is_infinite() { f32::INFINITY } else { loss },
    )
}

fn ignored_learn(request: &Request, outputs: &mut Tensors) -> Edited {
    let ignore: i32 = request.params.required("ignore_index")?;
    let targets = request.tokens::<ndarray::Ix1>("targets")?;
    let learned: Vec<i32> =
        targets.iter().map(|&target| if target == ignore { 0 } else { target }).collect();
    let mut edited = request.clone();
    edited
        .inputs
        .insert("targets".to_owned(), Tensor::new(vec![learned.len()], Data::I32(learned))?);
    *outputs = (request.op.run.f32)(&edited)?;
    Ok(())
}

fn step_before(request: &mut Request) -> Edited {
    let step: u64 = request.params.required("step")?;
    set_param(request, "step", json!((step - 1).max(1)))
}

/// What an AdamW does differently.
#[derive(Clone, Copy)]
struct Variant {
    correct: bool,
    coupled: bool,
    decay_by_lr: bool,
    eps_inside: bool,
    squared: bool,
}

impl Variant {
    const RIGHT: Self =
        Self { correct: true, coupled: false, decay_by_lr: true, eps_inside: false, squared: true };
}

fn adamw(request: &Request, outputs: &mut Tensors, variant: Variant) -> Edited {
    let AdamW { spec, lr, weight_decay, step } = AdamW::read(&request.params)?;
    let names = ["parameter", "gradient", "first_moment", "second_moment"];
    let [parameter, gradient, first, second] =
        names.map(|name| request.inputs[name].array::<f32>());
    let mut gradient = gradient;
    if variant.coupled {
        gradient = gradient + &parameter * weight_decay as f32;
    }
    let power = gradient.mapv(|g| if variant.squared { g * g } else { g.abs() });
    let first = first * spec.beta1 as f32 + gradient * (1.0 - spec.beta1) as f32;
    let second = second * spec.beta2 as f32 + power * (1.0 - spec.beta2) as f32;
    let correction = |beta: f64| {
        if variant.correct { (1.0 - beta.powf(step as f64)) as f32 } else { 1.0 }
    };
    let (first_scale, second_scale) = (correction(spec.beta1), correction(spec.beta2));
    let decay = match (variant.coupled, variant.decay_by_lr) {
        (true, _) => 1.0,
        (false, true) => 1.0 - lr * weight_decay,
        (false, false) => 1.0 - weight_decay,
    };
    let eps = spec.eps as f32;
    let mut direction = second.mapv(|v| {
        let corrected = v / second_scale;
        if variant.eps_inside { (corrected + eps).sqrt() } else { corrected.sqrt() + eps }
    });
    direction.zip_mut_with(&first, |root, m| *root = m / first_scale / *root);
    let parameter = parameter * decay as f32 - direction * lr as f32;
    for (name, array) in
        [("parameter", parameter), ("first_moment", first), ("second_moment", second)]
    {
        outputs.insert(name.to_owned(), Tensor::floats(&array));
    }
    Ok(())
}
