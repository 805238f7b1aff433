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
