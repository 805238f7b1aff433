//! Input that every implementation must refuse.

use super::{Claim, Draft, Family, Scope, sampled};
use crate::ops::OPERATIONS;
use crate::tensor::{Data, Tensor};

pub(super) static FAMILIES: &[Family] = &[Family {
    name: "non_finite",
    what: "a NaN or an infinity in each float input of each operation, as first or last element",
    catches: "an answer computed from a NaN, a clamp that turns it into a code, a check that stops \
              before the end",
    build: non_finite,
}];

fn non_finite(_: &Scope) -> Result<Vec<Draft>, String> {
    let mut drafts = Vec::new();
    for op in OPERATIONS.iter() {
        let request = sampled(op.name, 1, |_| true)?.remove(0);
        let specs = op.tensors(&request.params)?;
        for spec in &specs.inputs {
            let Some(Data::F32(values)) = request.inputs.get(&*spec.name).map(Tensor::data) else {
                continue;
            };
            // Weights of a model have names of their own, and are blamed by them.
            let own = op.inputs.iter().find(|own| own.name == spec.name);
            let blamed = match own {
                Some(own) => &*own.name,
                None if spec.name.starts_with("model.") => "model.",
                None => "lm_head",
            };
            let last = values.len() - 1;
            let places = [(f32::NAN, last), (f32::INFINITY, 0), (f32::NEG_INFINITY, last)];
            for (value, index) in places {
                let mut request = request.clone();
                if let Some(Data::F32(values)) =
                    request.inputs.get_mut(&*spec.name).map(Tensor::data_mut)
                {
                    values[index] = value;
                }
                drafts.push(Draft { request, claims: vec![Claim::Refused(blamed)] });
            }
        }
    }
    Ok(drafts)
}
