//! A scale that is the floor as binary32 knows it.
//!
//! `SCALE_FLOOR` is rounded to the type of the computation, and its binary32 lies below it. A scale
//! of exactly that number is raised in binary64, so that it gets no gradient, and stands on the
//! floor in binary32, where it gets one. Both are right.

use plumbline_reference::spec::SCALE_FLOOR;

use super::BoundsOf;
use crate::judge::bound::{Bounds, Evidence};
use crate::precision::{Precision, Unit};
use crate::tensor::{Data, Tensor};

/// The bounds, and for each such scale also the gradient that it has where it is not raised.
pub(super) fn either_side(evidence: &Evidence, bounds: BoundsOf) -> Result<Bounds, String> {
    let mut own = bounds(evidence)?;
    let mut request = evidence.request.clone();
    let floors = match request.inputs.get_mut("scale").map(Tensor::data_mut) {
        Some(Data::F64(scales)) if evidence.unit == Unit::of(Precision::F32) => lift(scales),
        _ => Vec::new(),
    };
    let Some(allowance) = own.get_mut("d_scale").filter(|_| !floors.is_empty()) else {
        return Ok(own);
    };
    // The two floors differ by less than one rounding of binary32, which every bound counts.
    let expected = (request.op.run.f64)(&request)?;
    let lifted = bounds(&Evidence { request: &request, expected: &expected, ..*evidence })?;
    for index in floors {
        allowance.bound[index] = allowance.bound[index].max(lifted["d_scale"].bound[index]);
        allowance.alternatives.push((index, expected["d_scale"].value(index)));
        allowance.open += 1;
    }
    Ok(own)
}

/// Lifts every scale on the floor of binary32 to that of binary64; their places.
fn lift(scales: &mut [f64]) -> Vec<usize> {
    let on_floor = |scale: &f64| *scale == f64::from(SCALE_FLOOR as f32);
    let places = (0..scales.len()).filter(|index| on_floor(&scales[*index])).collect();
    scales.iter_mut().filter(|scale| on_floor(scale)).for_each(|scale| *scale = SCALE_FLOOR);
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Request;
    use crate::judge::judge_outputs;
    use crate::ops::{find, tensors};
    use crate::params::Params;
    use serde_json::json;

    #[test]
    fn on_the_floor_of_binary32_there_is_a_gradient_or_none_and_nothing_between() {
        let floats = |values: &[f64]| {
            let shape = vec![1, values.len()];
            Tensor::from_f64s(shape, values.iter().copied(), Precision::F32)
        };
        let request = Request {
            op: find("fake_quantize.backward").unwrap(),
            params: Params::from_iter([("bits", json!(4))]),
            inputs: tensors([
                ("weight", floats(&[1.0, -1.0, 0.0])),
                ("scale", floats(&[SCALE_FLOOR])),
                ("offset", floats(&[0.0])),
                ("d_output", floats(&[2.0, 1.0, 1.0])),
            ]),
        };
        let answer = (request.op.run.f32)(&request).unwrap();
        // 2 * 7 + 1 * -8
        assert_eq!(answer["d_scale"].value(0), 6.0);
        for (d_scale, passes) in [(6.0, true), (0.0, true), (3.0, false), (6.1, false)] {
            let mut answer = answer.clone();
            answer.insert("d_scale".to_owned(), floats(&[d_scale]));
            let golden = crate::tensor::Tensors::new();
            let verdicts = judge_outputs(&request, &golden, &answer, None, Precision::F32).unwrap();
            let failed = verdicts.iter().any(|verdict| verdict.failure.is_some());
            assert_eq!(failed, !passes, "d_scale {d_scale}");
        }
    }
}
