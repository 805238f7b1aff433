//! Faults of AWQ.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Slice, arr0};
use plumbline_reference::awq::{ChannelScale, channel_scale, group_range};
use serde_json::Value;

use super::super::Fault::{Answer, Request as Asked};
use super::super::Mutant;
use super::edits::{Edited, input, output, set_input, set_output, set_param, spec, swap_param};
use super::fault;
use crate::case::Request;
use crate::tensor::{Tensor, Tensors};

const AWQ_SCALE: &[&str] = &["awq.scale"];
const AWQ_CLIP: &[&str] = &["awq.clip"];

/// Faults of AWQ.
#[rustfmt::skip]
pub(super) static MUTANTS: &[Mutant] = &[
    fault("one_ratio_more", "ratios of k / (steps + 1)",
        AWQ_SCALE, &["ratio"],
        Asked(|r| {
            let steps: usize = r.params.optional("steps")?.unwrap_or(20);
            set_param(r, "steps", steps + 1)
        })),
    fault("ten_ratios_by_default", "10 ratios where none are given",
        AWQ_SCALE, &["default_steps"], Asked(|r| swap_param(r, "steps", Value::Null, 10))),
    fault("not_balanced", "channel scales are the powers of the magnitudes",
        AWQ_SCALE, &["balanced"],
        Answer(|r, o| {
            let ratio = o["ratio"].value(0) as f32;
            let magnitudes = input(r, "x")?.mapv(f32::abs).mean_axis(Axis(0));
            let powers = magnitudes.ok_or("no tokens")?.mapv(|m| m.powf(ratio).max(1e-4));
            o.insert("channel_scale".to_owned(), Tensor::floats(&powers));
            Ok(())
        })),
    fault("largest_magnitude", "the largest magnitude of a channel in place of the mean",
        AWQ_SCALE, &["mean_magnitude"],
        Asked(|r| {
            let mut x = input(r, "x")?;
            for mut channel in x.columns_mut() {
                let largest = channel.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                channel.fill(largest);
            }
            set_input(r, "x", &x)
        })),
    fault("scale_not_divided_out", "the output is in the units of the scaled weight",
        AWQ_SCALE, &["divided_out"],
        Answer(|_, o| {
            let scale = o["channel_scale"].array::<f32>();
            let scaled = output(o, "output")? * scale;
            set_output(o, "output", &scaled.into_dimensionality().map_err(|e| e.to_string())?)
        })),
    fault("error_of_the_weight", "the ratio with the least error of the weight",
        AWQ_SCALE, &["output_error"],
        Answer(|r, o| scale_by(r, o, |weight, candidate| {
            (&candidate.output - weight).mapv(|change| change * change).sum()
        }, first_least))),
    fault("last_of_equal_ratios", "the last of equal errors",
        AWQ_SCALE, &["first_minimum"],
        Answer(|r, o| scale_by(r, o, |_, candidate| candidate.error, last_least))),
    fault("all_the_shrinks", "ranges down to nothing, not to the half",
        AWQ_CLIP, &["shrink", "half"],
        Answer(|r, o| clip_by(r, o, &Search { count: |steps| steps, ..SEARCH }))),
    fault("half_rounded_up", "one range more where steps are odd",
        AWQ_CLIP, &["half"],
        Answer(|r, o| clip_by(r, o, &Search { count: |n| n.div_ceil(2), ..SEARCH }))),
    fault("no_clip_search", "the widest range",
        AWQ_CLIP, &["shrink"], Answer(|r, o| clip_by(r, o, &Search { count: |_| 1, ..SEARCH }))),
    fault("clip_error_of_the_weight", "the range with the least error of the weight",
        AWQ_CLIP, &["output_error"],
        Answer(|r, o| clip_by(r, o, &Search { error: |change, _| change.dot(change), ..SEARCH }))),
    fault("last_of_equal_ranges", "the last of equal errors",
        AWQ_CLIP, &["first_minimum"],
        Answer(|r, o| clip_by(r, o, &Search { choose: last_least, ..SEARCH }))),
    fault("ten_ranges_by_default", "10 steps where none are given",
        AWQ_CLIP, &["default_steps"], Asked(|r| swap_param(r, "steps", Value::Null, 10))),
    fault("error_of_one_token", "the error of the first token alone",
        AWQ_CLIP, &["all_tokens"],
        Asked(|r| {
            let first = input(r, "x")?.slice_axis(Axis(0), Slice::from(..1)).to_owned();
            set_input(r, "x", &first)
        })),
    fault("error_of_the_mean_token", "tokens are averaged before the error is measured",
        AWQ_CLIP, &["all_tokens"],
        Asked(|r| {
            let mean = input(r, "x")?.mean_axis(Axis(0)).ok_or("there are no tokens")?;
            set_input(r, "x", &mean.insert_axis(Axis(0)))
        })),
];

fn steps(request: &Request) -> Result<usize, String> {
    Ok(request.params.optional("steps")?.unwrap_or(20))
}

fn first_least(errors: &[f32]) -> usize {
    (0..errors.len()).fold(0, |best, k| if errors[k] < errors[best] { k } else { best })
}

fn last_least(errors: &[f32]) -> usize {
    (0..errors.len()).fold(0, |best, k| if errors[k] <= errors[best] { k } else { best })
}

/// The channel scales that another error or another choice finds.
fn scale_by(
    request: &Request,
    outputs: &mut Tensors,
    error: fn(&Array2<f32>, &ChannelScale<f32>) -> f32,
    choose: fn(&[f32]) -> usize,
) -> Edited {
    let (weight, x, spec) = (input(request, "weight")?, input(request, "x")?, spec(request)?);
    let steps = steps(request)?;
    let candidate = |k| channel_scale(weight.view(), x.view(), &spec, k, steps);
    let candidates: Result<Vec<_>, _> = (0..steps).map(candidate).collect();
    let candidates = candidates.map_err(|e| e.to_string())?;
    let errors: Vec<f32> = candidates.iter().map(|found| error(&weight, found)).collect();
    let found = &candidates[choose(&errors)];
    outputs.insert("channel_scale".to_owned(), Tensor::floats(&found.channel_scale));
    outputs.insert("ratio".to_owned(), Tensor::floats(&arr0(found.ratio)));
    set_output(outputs, "output", &found.output)
}

/// A search for the range of a group.
struct Search {
    /// Ranges that are tried, of so many steps.
    count: fn(usize) -> usize,
    /// Of what rounding changed in the weight, and the inputs of the group.
    error: fn(&Array1<f32>, ArrayView2<f32>) -> f32,
    choose: fn(&[f32]) -> usize,
}

/// That of the method.
const SEARCH: Search = Search {
    count: |steps| steps / 2,
    error: |change, x| {
        let changes = x.dot(change);
        changes.dot(&changes) / changes.len() as f32
    },
    choose: first_least,
};

fn clip_by(request: &Request, outputs: &mut Tensors, search: &Search) -> Edited {
    let (weight, x, spec) = (input(request, "weight")?, input(request, "x")?, spec(request)?);
    let (steps, mut max_value) = (steps(request)?, output(outputs, "max_value")?);
    let mut answer = weight.clone();
    for ((o, g), max_value) in max_value.indexed_iter_mut() {
        let inputs = Slice::from(g * spec.group_size()..(g + 1) * spec.group_size());
        let x = x.slice_axis(Axis(1), inputs);
        let group = weight.row(o).slice_axis_move(Axis(0), inputs);
        // A group that was clipped before is quantized as it is: its widest range.
        let candidate = |k: usize| {
            let clipped = clipped(group, 1.0 - k as f64 / steps as f64);
            group_range(clipped.view(), x, &spec, 0, 2).map_err(|e| e.to_string())
        };
        let found: Vec<_> = (0..(search.count)(steps)).map(candidate).collect::<Result<_, _>>()?;
        let error = |output: &Array1<f32>| (search.error)(&(output - &group), x);
        let errors: Vec<f32> = found.iter().map(|found| error(&found.output)).collect();
        let best = &found[(search.choose)(&errors)];
        *max_value = best.max_value;
        answer.row_mut(o).slice_axis_mut(Axis(0), inputs).assign(&best.output);
    }
    set_output(outputs, "max_value", &max_value)?;
    set_output(outputs, "output", &answer)
}

fn clipped(group: ArrayView1<f32>, part: f64) -> Array1<f32> {
    let absmax = group.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
    let max_value = absmax * part as f32;
    group.mapv(|w| w.clamp(-max_value, max_value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use crate::sampler::Sampler;

    type Again = fn(&Request, &mut Tensors) -> Edited;

    #[test]
    fn the_first_and_the_last_of_equal_errors() {
        assert_eq!(first_least(&[2.0, 1.0, 1.0, 3.0]), 1);
        assert_eq!(last_least(&[2.0, 1.0, 1.0, 3.0]), 2);
    }

    /// With the method's own search, what is searched once more is the reference's.
    #[test]
    fn without_a_fault_they_are_the_reference() {
        let right: [(&str, Again); 2] = [
            ("awq.scale", |r, o| scale_by(r, o, |_, candidate| candidate.error, first_least)),
            ("awq.clip", |r, o| clip_by(r, o, &SEARCH)),
        ];
        for (name, again) in right {
            let op = ops::find(name).unwrap();
            for index in 0..10 {
                let (params, inputs) = (op.sample)(&mut Sampler::new(1, name, index)).unwrap();
                let request = Request { op, params, inputs };
                let reference = (op.run.f32)(&request).unwrap();
                let mut outputs = reference.clone();
                again(&request, &mut outputs).unwrap();
                assert_eq!(outputs, reference, "{name} {index}");
            }
        }
    }
}
