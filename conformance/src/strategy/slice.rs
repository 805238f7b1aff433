//! Consistent slices of the tensors of a request, by the words of their shapes.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;

use crate::case::Request;
use crate::ops::{Shape, TensorSpec};
use crate::tensor::{Data, Tensor};

/// The name of an axis: a word of the registry, or tensor and axis where any shape is allowed.
/// Axes of one name have one size and are sliced together.
pub(super) type Label = String;

/// What is kept of some axes, and the parameters that follow.
#[derive(Debug, Clone, Default)]
pub(super) struct Slice {
    kept: BTreeMap<Label, Vec<usize>>,
    params: Vec<(String, Value)>,
}

impl Slice {
    /// The sliced request, where something was cut off.
    pub(super) fn apply(&self, request: &Request) -> Option<Request> {
        let mut sliced = request.clone();
        for (name, labels) in labels(request) {
            let tensor = sliced.inputs.get_mut(&name)?;
            for (axis, label) in labels.iter().enumerate() {
                if let Some(kept) = self.kept.get(label) {
                    *tensor = take(tensor, axis, kept)?;
                }
            }
        }
        for (name, value) in &self.params {
            sliced.params.0.insert(name.clone(), value.clone());
        }
        let count = |request: &Request| request.inputs.values().map(Tensor::len).sum::<usize>();
        (count(&sliced) < count(request)).then_some(sliced)
    }

    /// Without the indices `cut` of an axis. A parameter that is the size of the axis follows it,
    /// and so does `in_features` of packed rows.
    fn without(request: &Request, label: &str, size: usize, cut: &Range<usize>) -> Self {
        let kept: Vec<usize> = (0..size).filter(|index| !cut.contains(index)).collect();
        let mut params = Vec::new();
        let number = |name: &str| request.params.0.get(name).and_then(Value::as_u64);
        if number(label) == Some(size as u64) {
            params.push((label.to_owned(), json!(kept.len())));
        }
        if let ("bytes", Some(in_features)) = (label, number("in_features")) {
            let fewer = in_features * kept.len() as u64 / size as u64;
            params.push(("in_features".to_owned(), json!(fewer)));
        }
        Self { kept: [(label.to_owned(), kept)].into(), params }
    }

    fn and(mut self, other: Self) -> Self {
        self.kept.extend(other.kept);
        self.params.extend(other.params);
        self
    }
}

/// Every slice worth a try, those that cut most first.
pub(super) fn slices(request: &Request) -> Vec<Slice> {
    let sizes = axis_sizes(request);
    let size = |label: &str| sizes.get(label).copied();
    let mut slices = Vec::new();
    for (label, &size_here) in &sizes {
        let blocks = match label.as_str() {
            // A group is a block of inputs, and a key head serves a block of query heads.
            "in" => Blocks::of_groups(request, size_here),
            "heads" => size("kv_heads").map(|count| Blocks { count, outer: "kv_heads" }),
            "kv_heads" => continue,
            // An axis of its own where no inputs are grouped.
            "groups" if sizes.contains_key("in") => continue,
            _ => None,
        };
        match blocks {
            Some(blocks) => slices.extend(blocks.slices(request, label, size_here)),
            None => {
                let cuts = cuts(size_here);
                slices
                    .extend(cuts.iter().map(|cut| Slice::without(request, label, size_here, cut)));
            }
        }
    }
    slices
}

/// An axis that consists of blocks of equal size, one for each index of an outer axis.
struct Blocks {
    count: usize,
    outer: &'static str,
}

impl Blocks {
    /// The groups of a row, unless the row is the group whatever its size.
    fn of_groups(request: &Request, in_features: usize) -> Option<Self> {
        let group_size = request.params.0.get("group_size")?.as_u64()? as usize;
        let count = in_features.checked_div(group_size)?;
        Some(Self { count, outer: "groups" })
    }

    /// Whole blocks, then the same places of every block.
    fn slices(&self, request: &Request, label: &str, size: usize) -> Vec<Slice> {
        let Self { count, outer } = *self;
        if count == 0 || !size.is_multiple_of(count) {
            return Vec::new();
        }
        let block = size / count;
        let mut slices = Vec::new();
        for cut in cuts(count) {
            let inner = cut.start * block..cut.end * block;
            let inner = Slice::without(request, label, size, &inner);
            slices.push(inner.and(Slice::without(request, outer, count, &cut)));
        }
        for cut in cuts(block) {
            let kept: Vec<usize> =
                (0..size).filter(|index| !cut.contains(&(index % block))).collect();
            let mut slice = Slice::without(request, label, size, &(0..0));
            for (name, value) in &mut slice.params {
                if name == label {
                    *value = json!(kept.len());
                }
            }
            if outer == "groups" {
                slice.params.push(("group_size".to_owned(), json!(block - cut.len())));
            }
            slice.kept.insert(label.to_owned(), kept);
            slices.push(slice);
        }
        slices
    }
}

/// What to cut off an axis: all but one end, halves, quarters, ..., single indices.
pub(super) fn cuts(size: usize) -> Vec<Range<usize>> {
    if size < 2 {
        return Vec::new();
    }
    let mut cuts = vec![1..size, 0..size - 1];
    let mut step = size / 2;
    while step > 0 {
        cuts.extend((0..size).step_by(step).map(|start| start..(start + step).min(size)));
        // Pairs are tried for every size: some axes must stay even.
        step = if step > 2 { (step / 2).max(2) } else { step / 2 };
    }
    cuts
}

fn axis_sizes(request: &Request) -> BTreeMap<Label, usize> {
    let mut sizes = BTreeMap::new();
    for (name, labels) in labels(request) {
        let shape = request.inputs[&name].shape();
        sizes.extend(labels.into_iter().zip(shape.iter().copied()));
    }
    sizes
}

/// The axes of every input; none where the parameters fix the shape.
fn labels(request: &Request) -> Vec<(String, Vec<Label>)> {
    let specs = request.op.tensors(&request.params).unwrap_or_default().inputs;
    let given = specs.iter().filter(|spec| request.inputs.contains_key(&*spec.name));
    given.map(|spec| (spec.name.to_string(), labels_of(request, spec))).collect()
}

fn labels_of(request: &Request, spec: &TensorSpec) -> Vec<Label> {
    let numbered = |name: &str| -> Vec<Label> {
        let rank = request.inputs.get(name).map_or(0, |tensor| tensor.shape().len());
        (0..rank).map(|axis| format!("{name}.{axis}")).collect()
    };
    match &spec.shape {
        Shape::Words(words) => words.iter().map(|word| (*word).to_owned()).collect(),
        Shape::Any => numbered(&spec.name),
        Shape::Like(other) => numbered(other),
        Shape::Exact(_) => Vec::new(),
    }
}

/// These indices of one axis.
fn take(tensor: &Tensor, axis: usize, kept: &[usize]) -> Option<Tensor> {
    let mut shape = tensor.shape().to_vec();
    let size = *shape.get(axis)?;
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    if kept.iter().any(|index| *index >= size) {
        return None;
    }
    let at = (0..outer).flat_map(|row| {
        kept.iter().flat_map(move |index| {
            let start = (row * size + index) * inner;
            start..start + inner
        })
    });
    fn pick<T: Copy>(values: &[T], at: impl Iterator<Item = usize>) -> Vec<T> {
        at.map(|index| values[index]).collect()
    }
    let data = match tensor.data() {
        Data::F64(x) => Data::F64(pick(x, at)),
        Data::F32(x) => Data::F32(pick(x, at)),
        Data::F16(x) => Data::F16(pick(x, at)),
        Data::Bf16(x) => Data::Bf16(pick(x, at)),
        Data::I8(x) => Data::I8(pick(x, at)),
        Data::U8(x) => Data::U8(pick(x, at)),
        Data::I32(x) => Data::I32(pick(x, at)),
    };
    shape[axis] = kept.len();
    Tensor::new(shape, data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_reach_every_index_alone_and_every_aligned_pair() {
        for size in 2..20 {
            let cuts = cuts(size);
            assert!(cuts.iter().all(|cut| !cut.is_empty() && cut.len() < size));
            assert!((0..size).all(|index| cuts.contains(&(index..index + 1))));
            assert!(
                (0..size / 2).all(|pair| size == 2 || cuts.contains(&(2 * pair..2 * pair + 2)))
            );
        }
        assert!(cuts(1).is_empty() && cuts(0).is_empty());
    }

    #[test]
    fn a_slice_keeps_the_order_of_the_elements() {
        let tensor = Tensor::new(vec![2, 3], Data::I8(vec![0, 1, 2, 3, 4, 5])).unwrap();
        let taken = take(&tensor, 1, &[0, 2]).unwrap();
        assert_eq!((taken.shape(), taken.data()), (&[2, 2][..], &Data::I8(vec![0, 2, 3, 5])));
        let taken = take(&tensor, 0, &[1]).unwrap();
        assert_eq!((taken.shape(), taken.data()), (&[1, 3][..], &Data::I8(vec![3, 4, 5])));
        assert!(take(&tensor, 1, &[3]).is_none());
    }
}
