//! What the slices of a request can be chosen along.

use super::tensors::{axis_of, take};
use crate::case::Request;
use crate::ops::TensorSpec;
use crate::tensor::Tensor;

/// What the slices of a request can be chosen along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Along {
    /// A word of the protocol's shapes.
    Word(&'static str),
    /// Groups, each with its columns.
    Groups,
    /// Key and value heads, each with its query heads.
    KvHeads,
}

impl Along {
    /// The word that is counted, and the words that it goes together with.
    fn words(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Word(word) => (word, None),
            Self::Groups => ("groups", Some("in")),
            Self::KvHeads => ("kv_heads", Some("heads")),
        }
    }

    /// How many there are; 0 where the operation has none.
    pub(super) fn count(self, request: &Request) -> usize {
        size_of(request, self.words().0).unwrap_or(0)
    }

    /// Slices of the second word that belong to one of the first.
    pub(super) fn width(self, request: &Request) -> usize {
        let (word, wide) = self.words();
        let sizes = (size_of(request, word), wide.and_then(|wide| size_of(request, wide)));
        match sizes {
            (Some(count), Some(size)) if count > 0 => (size / count).max(1),
            _ => 1,
        }
    }

    /// The inputs with their slices in this order.
    pub(super) fn take(self, request: &mut Request, order: &[usize]) {
        let width = self.width(request);
        let Ok(specs) = request.op.tensors(&request.params) else { return };
        for spec in &specs.inputs {
            let Some(tensor) = request.inputs.get_mut(&*spec.name) else { continue };
            *tensor = self.taken(spec, tensor, order, width);
        }
    }

    /// One tensor with its slices in this order, if it has any.
    pub(super) fn taken(
        self,
        spec: &TensorSpec,
        tensor: &Tensor,
        order: &[usize],
        width: usize,
    ) -> Tensor {
        let (word, wide) = self.words();
        let mut taken = tensor.clone();
        if let Some(axis) = axis_of(spec, word) {
            taken = take(&taken, axis, order);
        }
        if let Some(axis) = wide.and_then(|wide| axis_of(spec, wide)) {
            let columns: Vec<usize> =
                order.iter().flat_map(|at| at * width..(at + 1) * width).collect();
            taken = take(&taken, axis, &columns);
        }
        taken
    }

    /// Whether a tensor has slices along this.
    pub(super) fn has(self, spec: &TensorSpec) -> bool {
        let (word, wide) = self.words();
        [Some(word), wide].into_iter().flatten().any(|word| axis_of(spec, word).is_some())
    }
}

/// The size that a word stands for, from the inputs or, where only outputs have it, from the
/// parameters.
fn size_of(request: &Request, word: &str) -> Option<usize> {
    let specs = request.op.tensors(&request.params).ok()?;
    let given = specs.inputs.iter().find_map(|spec| {
        let axis = axis_of(spec, word)?;
        request.inputs.get(&*spec.name)?.shape().get(axis).copied()
    });
    given.or_else(|| {
        let sizes = (request.op.sizes)(request).ok()?;
        sizes.into_iter().find_map(|(own, size)| (own == word).then_some(size))
    })
}
