//! What the properties do to tensors: choose, join and multiply, in whatever type they are stored.

use half::{bf16, f16};

use crate::ops::{Shape, TensorSpec};
use crate::tensor::{Data, Tensor};

/// The axis of a tensor that is called by this word of the protocol.
pub(super) fn axis_of(spec: &TensorSpec, word: &str) -> Option<usize> {
    match spec.shape {
        Shape::Words(words) => words.iter().position(|own| *own == word),
        _ => None,
    }
}

/// The same expression on the elements of every type.
macro_rules! each {
    ($data:expr, $values:ident => $result:expr) => {
        match $data {
            Data::F64($values) => Data::F64($result),
            Data::F32($values) => Data::F32($result),
            Data::F16($values) => Data::F16($result),
            Data::Bf16($values) => Data::Bf16($result),
            Data::I8($values) => Data::I8($result),
            Data::U8($values) => Data::U8($result),
            Data::I32($values) => Data::I32($result),
        }
    };
}

/// The elements at these row-major places.
pub(super) fn gather(tensor: &Tensor, shape: Vec<usize>, places: &[usize]) -> Tensor {
    let data = each!(tensor.data(), values => places.iter().map(|&place| values[place]).collect());
    Tensor::new(shape, data).expect("one place for each element")
}

/// The slices of an axis in this order; one may come twice or not at all.
pub(super) fn take(tensor: &Tensor, axis: usize, order: &[usize]) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    let length = shape[axis];
    let places: Vec<usize> = (0..outer)
        .flat_map(|o| order.iter().map(move |&at| (o * length + at) * inner))
        .flat_map(|start| start..start + inner)
        .collect();
    shape[axis] = order.len();
    gather(tensor, shape, &places)
}

/// One behind the other along an axis.
///
/// # Panics
/// Where the parts are of different types or there is none.
pub(super) fn join(parts: &[&Tensor], axis: usize) -> Tensor {
    let mut data = parts[0].data().clone();
    for part in &parts[1..] {
        match (&mut data, part.data()) {
            (Data::F64(all), Data::F64(more)) => all.extend(more),
            (Data::F32(all), Data::F32(more)) => all.extend(more),
            (Data::I32(all), Data::I32(more)) => all.extend(more),
            (_, more) => panic!("parts of different types, one like {more:?}"),
        }
    }
    let mut shape = parts[0].shape().to_vec();
    let outer: usize = shape[..axis].iter().product();
    let mut starts = vec![0];
    for part in parts {
        starts.push(starts[starts.len() - 1] + part.len());
    }
    let places: Vec<usize> = (0..outer)
        .flat_map(|o| {
            parts.iter().zip(&starts).flat_map(move |(part, start)| {
                let slice = part.len() / outer;
                start + o * slice..start + (o + 1) * slice
            })
        })
        .collect();
    let flat = Tensor::new(vec![data.len()], data).expect("as many as there are");
    shape[axis] = parts.iter().map(|part| part.shape()[axis]).sum();
    gather(&flat, shape, &places)
}

/// Every element times the factor of its row-major place.
pub(super) fn multiplied(tensor: &Tensor, factor: impl Fn(usize) -> f64) -> Tensor {
    let values = tensor.values().enumerate().map(|(place, value)| value * factor(place));
    let data = match tensor.data() {
        Data::F64(_) => Data::F64(values.collect()),
        Data::F32(_) => Data::F32(values.map(|x| x as f32).collect()),
        Data::F16(_) => Data::F16(values.map(f16::from_f64).collect()),
        Data::Bf16(_) => Data::Bf16(values.map(bf16::from_f64).collect()),
        Data::I8(_) => Data::I8(values.map(|x| x as i8).collect()),
        Data::U8(_) => Data::U8(values.map(|x| x as u8).collect()),
        Data::I32(_) => Data::I32(values.map(|x| x as i32).collect()),
    };
    Tensor::new(tensor.shape().to_vec(), data).expect("as many as before")
}

/// The stored bits of one element.
pub(super) fn bits(tensor: &Tensor, place: usize) -> u64 {
    match tensor.data() {
        Data::F64(x) => x[place].to_bits(),
        Data::F32(x) => x[place].to_bits().into(),
        Data::F16(x) => x[place].to_bits().into(),
        Data::Bf16(x) => x[place].to_bits().into(),
        Data::I8(x) => (x[place] as u8).into(),
        Data::U8(x) => x[place].into(),
        Data::I32(x) => (x[place] as u32).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[usize]) -> Tensor {
        let count = shape.iter().product::<usize>() as i32;
        Tensor::new(shape.to_vec(), Data::I32((0..count).collect())).unwrap()
    }

    #[test]
    fn slices_are_taken_along_their_own_axis() {
        let tensor = counting(&[2, 3, 2]);
        let taken = take(&tensor, 1, &[2, 0]);
        assert_eq!(taken.shape(), [2, 2, 2]);
        assert_eq!(taken.data(), &Data::I32(vec![4, 5, 0, 1, 10, 11, 6, 7]));
    }

    #[test]
    fn parts_of_different_lengths_are_joined_and_taken_apart() {
        let (one, two) = (counting(&[2, 1, 2]), counting(&[2, 3, 2]));
        let joined = join(&[&one, &two], 1);
        assert_eq!(joined.shape(), [2, 4, 2]);
        assert_eq!(take(&joined, 1, &[0]), one);
        assert_eq!(take(&joined, 1, &[1, 2, 3]), two);
    }
}
