//! Tensors as the case protocol carries them: row-major, owned, one of seven element types.

use half::{bf16, f16};
use ndarray::{Array, Dimension, IxDyn};
use safetensors::Dtype;
use std::collections::BTreeMap;

use plumbline_reference::Real;

use crate::precision::{Precision, Scalar};

/// Named tensors, without the `in.` or `out.` of the file.
pub type Tensors = BTreeMap<String, Tensor>;

/// A row-major tensor; a scalar has shape `[]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// The elements of a [`Tensor`] in their stored type.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Binary64.
    F64(Vec<f64>),
    /// Binary32.
    F32(Vec<f32>),
    /// Binary16.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// Codes of a signed grid.
    I8(Vec<i8>),
    /// Codes of an unsigned grid.
    U8(Vec<u8>),
    /// Token ids.
    I32(Vec<i32>),
}

/// What a tensor may hold; a float tensor may come in any of four types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// F64, F32, F16 or BF16.
    Float,
    /// I8.
    SignedCodes,
    /// U8: codes of an unsigned grid, or packed bytes.
    UnsignedCodes,
    /// I32.
    TokenIds,
}

impl Kind {
    /// Whether a stored type belongs to this kind.
    pub fn accepts(self, dtype: Dtype) -> bool {
        match self {
            Self::Float => {
                matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
            }
            Self::SignedCodes => dtype == Dtype::I8,
            Self::UnsignedCodes => dtype == Dtype::U8,
            Self::TokenIds => dtype == Dtype::I32,
        }
    }

    /// The accepted types in words.
    pub fn expected(self) -> &'static str {
        match self {
            Self::Float => "F64, F32, F16 or BF16",
            Self::SignedCodes => "I8",
            Self::UnsignedCodes => "U8",
            Self::TokenIds => "I32",
        }
    }
}

impl Tensor {
    /// # Errors
    /// Where the shape does not hold exactly the given elements.
    pub fn new(shape: Vec<usize>, data: Data) -> Result<Self, String> {
        let elements = shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
        match elements {
            Some(elements) if elements == data.len() => Ok(Self { shape, data }),
            _ => Err(format!("shape {shape:?} does not hold {} elements", data.len())),
        }
    }

    /// A float tensor from an array, F32 or F64 as its scalar type says.
    pub fn floats<T: Scalar, D: Dimension>(array: &Array<T, D>) -> Self {
        Self::from_f64s(array.shape().to_vec(), array.iter().map(|x| x.value()), T::PRECISION)
    }

    /// Codes of a signed grid.
    pub fn codes<D: Dimension>(array: &Array<i8, D>) -> Self {
        let data = Data::I8(array.iter().copied().collect());
        Self { shape: array.shape().to_vec(), data }
    }

    /// Codes of an unsigned grid, or packed bytes.
    pub fn unsigned<D: Dimension>(array: &Array<u8, D>) -> Self {
        let data = Data::U8(array.iter().copied().collect());
        Self { shape: array.shape().to_vec(), data }
    }

    /// Rounds each value once to the precision.
    ///
    /// # Panics
    /// Where the shape does not hold exactly the given values.
    pub fn from_f64s(
        shape: Vec<usize>,
        values: impl Iterator<Item = f64>,
        precision: Precision,
    ) -> Self {
        let data = match precision {
            Precision::F32 => Data::F32(values.map(|x| x as f32).collect()),
            Precision::F64 => Data::F64(values.collect()),
        };
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape, data }
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The stored elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The stored elements, to be changed in place.
    pub fn data_mut(&mut self) -> &mut Data {
        &mut self.data
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stored type.
    pub fn dtype(&self) -> Dtype {
        match self.data {
            Data::F64(_) => Dtype::F64,
            Data::F32(_) => Dtype::F32,
            Data::F16(_) => Dtype::F16,
            Data::Bf16(_) => Dtype::BF16,
            Data::I8(_) => Dtype::I8,
            Data::U8(_) => Dtype::U8,
            Data::I32(_) => Dtype::I32,
        }
    }

    /// Element `index` in row-major order; every stored type fits a binary64 exactly.
    pub fn value(&self, index: usize) -> f64 {
        match &self.data {
            Data::F64(x) => x[index],
            Data::F32(x) => x[index].into(),
            Data::F16(x) => x[index].into(),
            Data::Bf16(x) => x[index].into(),
            Data::I8(x) => x[index].into(),
            Data::U8(x) => x[index].into(),
            Data::I32(x) => x[index].into(),
        }
    }

    /// The elements of a tensor of codes.
    pub fn small_integers(&self) -> Option<Vec<i16>> {
        match &self.data {
            Data::I8(codes) => Some(codes.iter().copied().map(i16::from).collect()),
            Data::U8(codes) => Some(codes.iter().copied().map(i16::from).collect()),
            _ => None,
        }
    }

    /// All elements in row-major order.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        (0..self.len()).map(|index| self.value(index))
    }

    /// Element `index` as decimal and as the bits that are stored.
    pub fn describe(&self, index: usize) -> String {
        match &self.data {
            Data::F64(x) => format!("{:?} (0x{:016x})", x[index], x[index].to_bits()),
            Data::F32(x) => format!("{:?} (0x{:08x})", x[index], x[index].to_bits()),
            Data::F16(x) => format!("{:?} (0x{:04x})", x[index].to_f32(), x[index].to_bits()),
            Data::Bf16(x) => format!("{:?} (0x{:04x})", x[index].to_f32(), x[index].to_bits()),
            Data::I8(x) => format!("{} (0x{:02x})", x[index], x[index]),
            Data::U8(x) => format!("{} (0x{:02x})", x[index], x[index]),
            Data::I32(x) => format!("{} (0x{:08x})", x[index], x[index]),
        }
    }

    /// Position `index` counts to in row-major order.
    pub fn position(&self, index: usize) -> Vec<usize> {
        let mut rest = index;
        let mut position: Vec<usize> = self
            .shape
            .iter()
            .rev()
            .map(|&size| {
                let here = rest % size;
                rest /= size;
                here
            })
            .collect();
        position.reverse();
        position
    }

    /// Row-major index of the first element that is NaN or infinite.
    pub fn first_non_finite(&self) -> Option<usize> {
        (0..self.len()).find(|&index| !self.value(index).is_finite())
    }

    /// Row-major index of the first element that a binary32 does not hold exactly.
    pub fn first_not_f32(&self) -> Option<usize> {
        let Data::F64(values) = &self.data else { return None };
        values.iter().position(|&x| x.is_finite() && f64::from(x as f32) != x)
    }

    /// The same numbers, floats rounded to `precision`, integers as they are.
    pub fn to_precision(&self, precision: Precision) -> Self {
        match self.data {
            Data::I8(_) | Data::U8(_) | Data::I32(_) => self.clone(),
            _ => Self::from_f64s(self.shape.clone(), self.values(), precision),
        }
    }

    /// The elements as an array over the scalar type.
    pub fn array<T: Real>(&self) -> Array<T, IxDyn> {
        let values: Vec<T> = self.values().map(T::of).collect();
        Array::from_shape_vec(IxDyn(&self.shape), values).expect("the shape holds the elements")
    }
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F64(x) => x.len(),
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
            Self::I8(x) => x.len(),
            Self::U8(x) => x.len(),
            Self::I32(x) => x.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_counts_in_row_major_order() {
        let tensor = Tensor::new(vec![2, 3, 4], Data::I8(vec![0; 24])).unwrap();
        assert_eq!(tensor.position(0), [0, 0, 0]);
        assert_eq!(tensor.position(23), [1, 2, 3]);
        assert_eq!(tensor.position(13), [1, 0, 1]);
        let scalar = Tensor::new(vec![], Data::F64(vec![1.5])).unwrap();
        assert_eq!(scalar.position(0), Vec::<usize>::new());
    }

    #[test]
    fn a_shape_that_overflows_is_an_error() {
        assert!(Tensor::new(vec![usize::MAX, 2], Data::I8(vec![])).is_err());
        assert!(Tensor::new(vec![2, 2], Data::I8(vec![0; 3])).is_err());
    }

    #[test]
    fn description_shows_decimal_and_bits() {
        let tensor = Tensor::new(vec![2], Data::F32(vec![-0.0, 0.1])).unwrap();
        assert_eq!(tensor.describe(0), "-0.0 (0x80000000)");
        assert_eq!(tensor.describe(1), "0.1 (0x3dcccccd)");
        let codes = Tensor::new(vec![1], Data::I8(vec![-2])).unwrap();
        assert_eq!(codes.describe(0), "-2 (0xfe)");
    }

    #[test]
    fn f32_exactness_is_seen_per_element() {
        let tensor = Tensor::new(vec![3], Data::F64(vec![0.5, 0.1, 1.0])).unwrap();
        assert_eq!(tensor.first_not_f32(), Some(1));
        assert_eq!(tensor.to_precision(Precision::F32).first_not_f32(), None);
    }
}
