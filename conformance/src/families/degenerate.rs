//! Groups without a range, with nothing in them, or with one number that drowns the rest: on every
//! operation that finds its own grid.

use super::{Claim, Draft, Family, Scope, sampled};
use crate::case::Request;
use crate::tensor::{Data, Tensor};
use crate::witness::groups;

pub(super) static FAMILIES: &[Family] = &[
    Family {
        name: "constant_group",
        what: "a group that repeats one number, above or below zero",
        catches: "0 / 0 where high equals low, a range that leaves zero out",
        build: constant_group,
    },
    Family {
        name: "zero_group",
        what: "a group of zeros, and of negative zeros",
        catches: "a scale of zero, a zero point from 0 / 0",
        build: zero_group,
    },
    Family {
        name: "outlier",
        what: "one number a few thousand times as large as the rest of its group",
        catches: "a range from a mean or a deviation, extremes of the wrong group",
        build: outlier,
    },
];

/// Operations that find a grid, and the tensor that they find it for.
const FINDERS: [(&str, &str); 11] = [
    ("init_scale", "weight"),
    ("rtn.quantize", "weight"),
    ("nf4.quantize", "weight"),
    ("gptq.quantize", "weight"),
    ("lwc.forward", "weight"),
    ("lwc.backward", "weight"),
    ("awq.scale", "weight"),
    ("awq.clip", "weight"),
    ("dynamic_quantize.forward", "x"),
    ("dynamic_quantize.backward", "x"),
    ("loftq_init", "weight"),
];

/// Draws of each operation: enough to have met every rule and both kinds of group.
const DRAWS: usize = 8;

fn constant_group(_: &Scope) -> Result<Vec<Draft>, String> {
    with_groups(Claim::ConstantGroup, |turn, group| {
        let constant = group[0];
        group.fill(if turn.is_multiple_of(2) { constant } else { -constant });
    })
}

fn zero_group(_: &Scope) -> Result<Vec<Draft>, String> {
    with_groups(Claim::ZeroGroup, |turn, group| {
        group.fill(if turn.is_multiple_of(2) { 0.0 } else { -0.0 });
    })
}

fn outlier(_: &Scope) -> Result<Vec<Draft>, String> {
    with_groups(Claim::Outlier, |turn, group| {
        let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let sign = if turn.is_multiple_of(2) { 1.0 } else { -1.0 };
        let place = turn % group.len();
        group[place] = sign * largest * 2048.0;
    })
}

/// Draws whose groups have three elements or more, with one of their groups replaced.
fn with_groups(
    claim: fn(&'static str) -> Claim,
    replace: fn(usize, &mut [f32]),
) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    for (op, name) in FINDERS {
        let suits = |request: &Request| {
            let groups = groups(request, &request.inputs[name]);
            groups.iter().any(|group| group.len() >= 3)
        };
        for (turn, mut request) in sampled(op, DRAWS, suits)?.into_iter().enumerate() {
            let large = groups(&request, &request.inputs[name]).into_iter();
            let large: Vec<_> = large.filter(|group| group.len() >= 3).collect();
            let group = large[turn % large.len()].clone();
            if let Some(Data::F32(values)) = request.inputs.get_mut(name).map(Tensor::data_mut) {
                replace(turn, &mut values[group]);
            }
            drafts.push(Draft { request, claims: vec![claim(name)] });
        }
    }
    Ok(drafts)
}
