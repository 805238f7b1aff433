//! Subjects with one thing wrong, each for the property that must notice it.

use plumbline_conformance::case::Request;
use plumbline_conformance::ops::Operation;
use plumbline_conformance::precision::Precision;
use plumbline_conformance::subject::{Subject, SubjectError, Support, select};
use plumbline_conformance::teeth::arithmetic::{Slip, with_slip};
use plumbline_conformance::tensor::{Data, Tensor, Tensors};
use std::time::Duration;

type Edit = fn(&Request, &mut Tensors, usize) -> Result<(), String>;

/// The f32 reference with wrong answers of one operation, and others beside it that are right.
pub struct Wrong {
    op: &'static str,
    right: &'static [&'static str],
    edit: Edit,
    calls: usize,
}

impl Wrong {
    /// Does one operation alone, wrongly.
    pub fn in_op(op: &'static str, edit: Edit) -> Self {
        Self { op, right: &[], edit, calls: 0 }
    }

    fn beside(op: &'static str, right: &'static [&'static str], edit: Edit) -> Self {
        Self { op, right, edit, calls: 0 }
    }
}

impl Subject for Wrong {
    fn name(&self) -> &str {
        "wrong"
    }

    fn precisions(&self) -> &[Precision] {
        &[Precision::F32]
    }

    fn supports(&self, op: &Operation, _: Precision) -> Support {
        match op.name == self.op || self.right.contains(&op.name) {
            true => Support::Yes,
            false => Support::No("not part of this subject".to_owned()),
        }
    }

    fn run(&mut self, request: &Request, _: Precision) -> Result<Tensors, SubjectError> {
        let run = request.op.run.f32;
        let mut outputs = run(request).map_err(SubjectError::Refused)?;
        if request.op.name == self.op {
            self.calls += 1;
            (self.edit)(request, &mut outputs, self.calls).map_err(SubjectError::Broken)?;
        }
        Ok(outputs)
    }
}

/// Changes every element of an f32 output.
pub fn map(tensors: &mut Tensors, name: &str, change: impl Fn(f32) -> f32) {
    if let Some(Data::F32(values)) = tensors.get_mut(name).map(Tensor::data_mut) {
        values.iter_mut().for_each(|value| *value = change(*value));
    }
}

/// The answer to another request.
fn answer_to(
    request: &Request,
    outputs: &mut Tensors,
    edit: impl Fn(&mut Request),
) -> Result<(), String> {
    let mut edited = request.clone();
    edit(&mut edited);
    *outputs = (request.op.run.f32)(&edited)?;
    Ok(())
}

/// Sums of every second output row run from the last input to the first.
pub fn sum_backwards_in_odd_rows(
    request: &Request,
    outputs: &mut Tensors,
    _: usize,
) -> Result<(), String> {
    let matrix = |name| request.array::<f32, ndarray::Ix2>(name);
    let (x, weight) = (matrix("x")?, matrix("weight")?);
    let (lora_a, lora_b) = (matrix("lora_a")?, matrix("lora_b")?);
    let scaling = request.params.number("lora_scaling")? as f32;
    let low = x.dot(&lora_a.t());
    let rows = weight.nrows();
    if let Some(Data::F32(y)) = outputs.get_mut("y").map(Tensor::data_mut) {
        for (place, y) in y.iter_mut().enumerate().filter(|(place, _)| place % rows % 2 == 1) {
            let (t, o) = (place / rows, place % rows);
            let terms = (0..weight.ncols()).rev().map(|i| x[[t, i]] * weight[[o, i]]);
            let update = (0..lora_b.ncols()).map(|r| low[[t, r]] * lora_b[[o, r]]).sum::<f32>();
            *y = terms.sum::<f32>() + scaling * update;
        }
    }
    Ok(())
}

fn mutant(name: &str) -> Box<dyn Subject> {
    select(&format!("mutant:{name}"), Duration::from_secs(60)).unwrap()
}

/// A subject that the property must reject.
pub fn subject_for(property: &str) -> Box<dyn Subject> {
    let wrong: Wrong = match property {
        "powers_of_two" => return mutant("weight_plus_one"),
        "norm_ignores_size" => return mutant("eps_outside_the_root"),
        "negation" => return mutant("round_half_up"),
        "rows_permuted" => return mutant("groups_over_outputs"),
        "groups_permuted" => return mutant("group_index_off_by_one"),
        "tokens_permuted" => return mutant("first_sample_only"),
        "sequences_permuted" => return mutant("one_long_sequence"),
        "heads_permuted" => return mutant("heads_interleaved"),
        "batch_twice" => return mutant("first_sample_only"),
        "batches_joined" => return mutant("first_sample_only"),
        "accumulation" => return mutant("d_weight_of_one_row"),
        "padding" => return mutant("d_weight_of_one_row"),
        "idempotent" => return mutant("offset_not_added_back"),
        "causal" => return mutant("sees_one_ahead"),
        "position_is_place" => return mutant("position_from_zero"),
        "ignored_tokens" => return mutant("ignored_tokens_learn"),
        "mean_of_twice" => return mutant("loss_is_a_sum"),
        // The factors are stored in a type that ends at 1/8.
        "factors_rebalanced" => Wrong::in_op("l4q.forward", |request, outputs, _| {
            answer_to(request, outputs, |edited| {
                map(&mut edited.inputs, "lora_a", |a| a.clamp(-0.125, 0.125));
            })
        }),
        // The last input is behind the end of a loop.
        "inputs_permuted" => Wrong::in_op("lora.forward", |request, outputs, _| {
            let columns = request.sizes::<2>("x")?[1];
            answer_to(request, outputs, |edited| {
                if let Some(Data::F32(x)) = edited.inputs.get_mut("x").map(Tensor::data_mut) {
                    x.chunks_mut(columns).for_each(|row| row[columns - 1] = 0.0);
                }
            })
        }),
        // What does not fill a register is contracted.
        "elements_permuted" => Wrong::in_op("swiglu.forward", |_, outputs, _| {
            if let Some(Data::F32(values)) = outputs.get_mut("output").map(Tensor::data_mut) {
                let whole = values.len() / 8 * 8;
                values[whole..].iter_mut().for_each(|value| *value = value.next_up());
            }
            Ok(())
        }),
        "zero_update" => {
            Wrong::beside("l4q.forward", &["fake_quantize.forward"], |request, outputs, _| {
                *outputs = with_slip(Slip::Truncate, || (request.op.run.faulty)(request))?;
                Ok(())
            })
        }
        "affine_round_trip" => {
            Wrong::beside("affine.dequantize", &["affine.quantize"], |request, outputs, _| {
                answer_to(request, outputs, |edited| {
                    map(&mut edited.inputs, "zero_point", |zero_point| zero_point + 1.0);
                })
            })
        }
        // Two codes of a byte change places.
        "pack_round_trip" => Wrong::beside("unpack", &["pack"], |_, outputs, _| {
            if let Some(Data::U8(codes)) = outputs.get_mut("codes").map(Tensor::data_mut) {
                codes.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
            }
            Ok(())
        }),
        // The weight is half a step of bf16 away, as where training and merging differ in type.
        "merge_is_forward" => {
            Wrong::beside("l4q.merge", &["l4q.forward"], |request, outputs, _| {
                answer_to(request, outputs, |edited| {
                    map(&mut edited.inputs, "weight", |w| half::bf16::from_f32(w).to_f32());
                })
            })
        }
        "merge_keeps_outputs" => {
            Wrong::beside("qa_lora.merge", &["qa_lora.forward", "peqa.forward"], |_, outputs, _| {
                map(outputs, "zero_point", f32::round_ties_even);
                Ok(())
            })
        }
        "rotation_back" => {
            Wrong::beside("rope.backward", &["rope.forward"], |request, outputs, _| {
                let forward = plumbline_conformance::ops::find("rope.forward")?;
                let x = request.tensor("d_output")?.clone();
                let params = request.params.clone();
                let inputs = [("x".to_owned(), x)].into();
                let turned = (forward.run.f32)(&Request { op: forward, params, inputs })?;
                outputs.insert("d_x".to_owned(), turned["output"].clone());
                Ok(())
            })
        }
        "shifted_logits" => Wrong::in_op("cross_entropy.forward", |request, outputs, _| {
            let first = request.tensor("logits")?.value(0) as f32;
            map(outputs, "loss", |loss| loss + 1e-3 * first);
            Ok(())
        }),
        "nothing_to_learn" => Wrong::in_op("adamw.step", |_, outputs, _| {
            map(outputs, "parameter", |parameter| parameter * 0.9999);
            Ok(())
        }),
        // The step is counted by the optimizer and not taken from the request.
        "continued" => Wrong::in_op("adamw.step", |request, outputs, calls| {
            answer_to(request, outputs, |edited| {
                edited.params.0.insert("step".to_owned(), calls.into());
            })
        }),
        // Two threads race for one element now and then.
        "deterministic" => Wrong::in_op("l4q.forward", |_, outputs, calls| {
            if calls % 5 == 0
                && let Some(Data::F32(y)) = outputs.get_mut("y").map(Tensor::data_mut)
                && let Some(last) = y.last_mut()
            {
                *last = last.next_up();
            }
            Ok(())
        }),
        other => panic!("no subject is wrong in {other}"),
    };
    Box::new(wrong)
}
